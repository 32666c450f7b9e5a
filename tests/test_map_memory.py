"""Maps in memory: where they go, and when no more do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sppdet.stages.map_memory import MapMemory
from sppdet.types import FeatureMaps

CPU = torch.device("cpu")


def maps_of(cells: int, value: float = 1.0) -> FeatureMaps:
    """Maps of 2 × cells bytes."""
    one = torch.full((1, 1, cells), value, dtype=torch.float16)
    return FeatureMaps((one,), np.ones(1), 16, 0.5)


def test_what_fits_is_held_and_comes_back_as_it_was() -> None:
    memory = MapMemory(CPU, device_room=0, host_room=100)
    first, second, third = maps_of(30, 1), maps_of(30, 2), maps_of(20, 3)
    held_now = [
        memory.put(name, maps) for name, maps in zip("abc", (first, second, third), strict=True)
    ]
    assert held_now == [True, False, True]
    held = memory.get("a")
    assert held is not None and torch.equal(held.maps[0], first.maps[0])
    assert held.maps[0].dtype == torch.float16
    assert memory.get("b") is None  # 60 + 60 bytes are too many,
    assert memory.get("c") is not None  # 60 + 40 just fit
    memory.put("a", second)
    assert memory.get("a") is held  # held once, and its room not counted twice
    assert memory.get("nobody") is None


def test_the_device_is_filled_before_the_host() -> None:
    elsewhere = torch.device("meta")
    memory = MapMemory(elsewhere, device_room=60, host_room=60)
    for name in "abc":
        memory.put(name, maps_of(30))
    places = [held.maps[0].device if (held := memory.get(name)) else None for name in "abc"]
    assert places == [elsewhere, CPU, None]


def test_room_by_what_is_free() -> None:
    memory = MapMemory.by_what_is_free(CPU)
    assert memory.put("a", maps_of(10)) and memory.get("a") is not None


@pytest.mark.parametrize(
    ("group", "folder", "bound", "used", "cached"),
    [
        ("0::/", "", "memory.max", "memory.current", "inactive_file"),
        ("0::/jobs/7", "jobs", "memory.max", "memory.current", "inactive_file"),
        (
            *("4:memory:/jobs/7", "memory/jobs/7"),
            *("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_room_by_what_a_group_may_use(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    group: str,
    folder: str,
    bound: str,
    used: str,
    cached: str,
) -> None:
    monkeypatch.setattr("sppdet.stages.map_memory._CGROUP", tmp_path)
    monkeypatch.setattr("sppdet.stages.map_memory._GROUPS", tmp_path / "groups")
    monkeypatch.setattr("sppdet.stages.map_memory.local_processes", lambda: 2)
    (tmp_path / "groups").write_text(f"9:cpu:/other\n{group}\n")
    assert MapMemory.by_what_is_free(CPU).put("a", maps_of(51))
    where = tmp_path / folder
    where.mkdir(parents=True, exist_ok=True)
    (where / bound).write_text("5000\n")
    (where / used).write_text("4600\n")
    (where / "memory.stat").write_text(f"anon 4000\nfile 600\n{cached} 100\nactive_file 500\n")
    memory = MapMemory.by_what_is_free(CPU)  # 0.4 of 500 bytes, for one of two processes
    assert not memory.put("a", maps_of(51)) and memory.put("b", maps_of(50))
    (where / bound).write_text("max\n")
    assert MapMemory.by_what_is_free(CPU).put("a", maps_of(51))


def test_room_by_what_the_system_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = tmp_path / "meminfo"
    monkeypatch.setattr("sppdet.stages.map_memory._MEMORY", system)
    system.write_text("MemTotal: 9 kB\nMemFree: 0 kB\nMemAvailable: 1 kB\n")
    memory = MapMemory.by_what_is_free(CPU)  # 0.4 of 1,024 bytes
    assert not memory.put("a", maps_of(205)) and memory.put("b", maps_of(204))
    system.unlink()
    assert not MapMemory.by_what_is_free(CPU).put("a", maps_of(1))

"""Maps in memory: where they go, and when no more do."""

from __future__ import annotations

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
    memory = MapMemory(CPU, room=100)
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


def test_maps_move_to_the_device() -> None:
    memory = MapMemory(torch.device("meta"), room=60)
    assert memory.put("a", maps_of(30)) and not memory.put("b", maps_of(30))
    held = memory.get("a")
    assert held is not None and held.maps[0].device.type == "meta"


def test_room_by_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not MapMemory.by_what_is_free(CPU).put("a", maps_of(1))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(FeatureMaps, "to", lambda maps, device: maps)
    memory = MapMemory.by_what_is_free(torch.device("cuda", 0))  # 0.6 of 1,000 bytes
    assert not memory.put("a", maps_of(301)) and memory.put("b", maps_of(300))

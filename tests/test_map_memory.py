"""Maps in memory: where they go, and when no more do."""

from __future__ import annotations

import numpy as np
import torch

from sppdet.features.memory import MapMemory
from sppdet.types import FeatureMaps

CPU = torch.device("cpu")


def maps_of(cells: int, value: float = 1.0) -> FeatureMaps:
    """Maps of 2 × cells bytes."""
    one = torch.full((1, 1, cells), value, dtype=torch.float16)
    return FeatureMaps((one,), np.ones(1, dtype=np.float32), 16, 0.5)


def test_what_fits_is_held_and_comes_back_as_it_was() -> None:
    memory = MapMemory(CPU, device_room=0, host_room=100)
    first, second, third = maps_of(30, 1), maps_of(30, 2), maps_of(20, 3)
    for name, maps in (("a", first), ("b", second), ("c", third)):
        memory.put(name, maps)
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
    memory.put("a", maps_of(10))
    assert memory.get("a") is not None

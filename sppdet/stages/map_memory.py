"""Feature maps held in a GPU's memory; on a CPU the page cache holds those of the disk."""

from __future__ import annotations

import threading

import torch

from sppdet.types import FeatureMaps

_FRACTION = 0.6  # of the GPU memory that is free at the start


class MapMemory:
    """Float16 maps by name on a device, until `room` bytes are used up.

    Nothing is evicted: epochs go through all images, so that keeping some of them for good saves
    more than keeping the last ones used.
    """

    def __init__(self, device: torch.device, *, room: int) -> None:
        self._device = device
        self._room = room
        self._held: dict[str, FeatureMaps] = {}
        self._lock = threading.Lock()

    @classmethod
    def by_what_is_free(cls, device: torch.device) -> MapMemory:
        """Return a memory with room for a fraction of what a GPU has free now; none on a CPU."""
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        return cls(device, room=int(_FRACTION * free))

    def get(self, name: str) -> FeatureMaps | None:
        """Return the maps of an image on the device; None if they aren't held."""
        with self._lock:
            return self._held.get(name)

    def put(self, name: str, maps: FeatureMaps) -> bool:
        """Hold an image's maps where there is room for them; returns whether they are held now."""
        needed = sum(m.numel() * m.element_size() for m in maps.maps)
        with self._lock:
            if name not in self._held and needed <= self._room:
                self._room -= needed
                self._held[name] = maps.to(self._device)
            return name in self._held

"""Feature maps that stay in memory: on the GPU while they fit, then in the host's memory."""

from __future__ import annotations

import os
import threading

import torch

from sppdet.config import local_processes
from sppdet.types import FeatureMaps

_DEVICE_PART = 0.6  # of the GPU memory that is free at the start
_HOST_PART = 0.4  # of the host memory that is free at the start


class MapMemory:
    """Float16 maps by name, until the room is used up; what doesn't fit is read again from disk.

    Nothing is thrown out: epochs go through all pictures, so that keeping some of them for good
    saves more than keeping the last ones used.

    Args:
        device_room, host_room: bytes.
    """

    def __init__(self, device: torch.device, *, device_room: int, host_room: int) -> None:
        host = torch.device("cpu")
        self._rooms = {device: device_room} if device != host else {}
        self._rooms[host] = host_room
        self._held: dict[str, FeatureMaps] = {}
        self._lock = threading.Lock()

    @classmethod
    def by_what_is_free(cls, device: torch.device) -> MapMemory:
        """Room by what the GPU and the host have free now."""
        on_device = 0
        if device.type == "cuda":
            on_device = int(_DEVICE_PART * torch.cuda.mem_get_info(device)[0])
        host_room = int(_HOST_PART * _free_host_bytes() / local_processes())
        return cls(device, device_room=on_device, host_room=host_room)

    def get(self, name: str) -> FeatureMaps | None:
        """The maps of a picture, on the device or in host memory; None if they aren't held."""
        with self._lock:
            return self._held.get(name)

    def put(self, name: str, maps: FeatureMaps) -> None:
        """Hold a picture's maps where there is room for them."""
        needed = sum(m.numel() * m.element_size() for m in maps.maps)
        with self._lock:
            if name in self._held:
                return
            for place, room in self._rooms.items():
                if room >= needed:
                    self._rooms[place] = room - needed
                    self._held[name] = maps.placed_on(place)
                    return


def _free_host_bytes() -> int:
    """Memory that the system says is free; 0 where it doesn't say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0

"""Feature maps that stay in memory: on the GPU while they fit, then in the host's memory."""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from sppdet.config import local_processes
from sppdet.types import FeatureMaps

_DEVICE_PART = 0.6  # of the GPU memory that is free at the start
_HOST_PART = 0.4  # of the host memory that is free at the start
# where Linux says what may be used, and a container what it may use of that
_MEMORY, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


class MapMemory:
    """Float16 maps by name, until the room is used up; who puts them in sees to what doesn't fit.

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

    def put(self, name: str, maps: FeatureMaps) -> bool:
        """Hold a picture's maps where there is room for them; whether they are held now."""
        needed = sum(m.numel() * m.element_size() for m in maps.maps)
        with self._lock:
            if name in self._held:
                return True
            for place, room in self._rooms.items():
                if room >= needed:
                    self._rooms[place] = room - needed
                    self._held[name] = maps.to(place)
                    return True
        return False


def _free_host_bytes() -> int:
    """Memory that may still be used, by the system and the container; 0 where nothing is said."""
    try:
        with _MEMORY.open() as lines:
            free = next(1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return 0
    return min(free, _free_in_container(free))


def _free_in_container(otherwise: int) -> int:
    """Bytes that the control group may still use; `otherwise` where it has no bound."""
    try:
        bound = int((_CGROUP / "memory.max").read_text())  # "max" is no number: there is none
        used = int((_CGROUP / "memory.current").read_text())
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return otherwise
    # files that were read are given up when memory is asked for
    cached = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    return max(0, bound - used + cached)

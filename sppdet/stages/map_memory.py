"""Feature maps that stay in memory: on the GPU while they fit, then in the host's memory."""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from sppdet.config import local_processes
from sppdet.types import FeatureMaps

_DEVICE_PART = 0.6  # of the GPU memory that is free at the start
_HOST_PART = 0.4  # of the host memory that is free at the start
# where Linux says what may be used, and what a job or a container may use of that
_MEMORY, _GROUPS, _CGROUP = (
    Path(p) for p in ("/proc/meminfo", "/proc/self/cgroup", "/sys/fs/cgroup")
)
# of version 2 and 1 of control groups: the bound, what is used, and what is given up of that when asked
_VERSIONS = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


class MapMemory:
    """Float16 maps by name, until the room is used up; who puts them in sees to what doesn't fit.

    Nothing is thrown out: epochs go through all images, so that keeping some of them for good
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
        """The maps of an image, on the device or in host memory; None if they aren't held."""
        with self._lock:
            return self._held.get(name)

    def put(self, name: str, maps: FeatureMaps) -> bool:
        """Hold an image's maps where there is room for them; whether they are held now."""
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
    """Memory that may still be used, by the system and its groups; 0 where nothing is said."""
    try:
        with _MEMORY.open() as lines:
            free = next(1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return 0
    return _free_in_groups(free)


def _free_in_groups(otherwise: int) -> int:
    """The least that a control group of this process may still use; `otherwise` without a bound."""
    try:
        lines = _GROUPS.read_text().splitlines()
    except OSError:
        return otherwise
    free = otherwise
    for _, controller, path in (line.split(":", 2) for line in lines):
        if controller in _VERSIONS:
            top = _CGROUP / controller
            group = top / path.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(top):
                    free = min(free, _free_in_group(folder, *_VERSIONS[controller], free))
    return free


def _free_in_group(folder: Path, bound: str, used: str, cached: str, otherwise: int) -> int:
    try:
        most = int((folder / bound).read_text())  # "max" is no number: there is no bound
        taken = int((folder / used).read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return otherwise
    # files that were read are given up when memory is asked for
    given_up = sum(int(line.split()[1]) for line in lines if line.startswith(f"{cached} "))
    return max(0, most - taken + given_up)

"""Identity of processes: is the one that wrote a lock or a temporary file still running?"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from pathlib import Path


@functools.cache
def place() -> str:
    """Name the machine and namespace in which process numbers are valid, as 8 hexadecimal digits.

    Processes in one place have the same host, boot and process namespace, so that containers and
    machines that share a folder are told apart.
    """
    parts = [platform.node()]
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            path = Path(source)
            parts.append(str(path.readlink()) if path.is_symlink() else path.read_text().strip())
        except OSError:  # another system, or a /proc that isn't to be read
            parts.append("")
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=4).hexdigest()


def start_of(pid: int) -> str | None:
    """Read the start time of a process in the system's ticks; None if it has ended.

    Together with the number it names a process for good: numbers are given out again. "0" where
    the system doesn't tell.
    """
    if os.name == "nt" and pid != os.getpid():
        return None  # os.kill would end it; but a file that it has open can't be removed there
    try:
        # after the name in parentheses: the 3rd field is the state, the 22nd the start
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        fields = text.rpartition(")")[2].split()
        state, started = fields[0], fields[19]
    except (OSError, IndexError):
        state, started = "?", "0"
    if state in ("Z", "X"):  # dead, but its parent hasn't noticed
        return None
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:  # it is somebody else's
        pass
    return started

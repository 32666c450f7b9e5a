"""A bound on the disk space of files that several processes write."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path


class Room:
    """Bound on what may still be written into some folders; thread-safe.

    Each of several processes has an equal share of what is left when it looks first, so that all of
    them together never exceed the bound. Separate commands at work at the same time may.
    """

    def __init__(self, folder: Path, pattern: str, *, most: int, processes: int = 1) -> None:
        """Bound the bytes of all files in the folders `folder`/`pattern`.

        Args:
            most: bytes. processes: that write into them at the same time.
        """
        self.folder = folder
        self.most = most
        self._pattern = pattern
        self._processes = processes
        self._left: int | None = None  # not looked yet
        self._refused = False
        self._lock = threading.Lock()

    def used(self) -> int:
        """Count the bytes that are used up now."""
        total = 0
        for path in self.folder.glob(f"{self._pattern}/*"):
            with contextlib.suppress(OSError):  # a temporary file that has been renamed meanwhile
                total += path.stat().st_size
        return total

    @property
    def is_full(self) -> bool:
        """Whether nothing more is written by this process."""
        with self._lock:
            return self._refused or self._remaining() <= 0

    def write(self, path: Path, write: Callable[[int], int]) -> bool:
        """Replace a file where there is room; after the first that doesn't fit nothing is written.

        Args:
            write: given the bytes that are left, writes `path` and returns its bytes, or 0 for too many.

        Returns:
            whether it was written.
        """
        with self._lock:
            left = self._remaining()
            if self._refused:
                return False
            if path.exists():  # a damaged one, whose place the new one takes
                left += path.stat().st_size
                path.unlink()
            self._left = left  # also if writing fails
            size = write(left)
            self._left -= size
            self._refused = size == 0
            return size > 0

    def _remaining(self) -> int:
        if self._left is None:
            self._left = (self.most - self.used()) // self._processes
        return self._left

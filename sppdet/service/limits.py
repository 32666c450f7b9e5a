"""Bound what a service takes of a client, and answer what goes beyond."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from sppdet.errors import ConfigError

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20}


class Refused(Exception):
    """A request that isn't answered with detections: an HTTP status and one line for the client."""

    def __init__(self, status: int, line: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(line)
        self.status = status
        self.headers = dict(headers or {})


@dataclass(frozen=True)
class Limits:
    """Limits of a service, each > 0, but `queue`, which may be 0."""

    max_bytes: int = 20 * 10**6
    """Bytes of a request's body."""
    max_pixels: int = 50_000_000
    """Pixels of an image, by its header."""
    timeout: float = 30.0
    """Seconds for each of a request's headers, its body, its waiting for a thread, and its detection."""
    queue: int = 16
    """Requests that wait for a thread."""
    workers: int = 1
    """Threads that detect."""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "timeout", "workers"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: {getattr(self, name)}, expected more than 0")
        if self.queue < 0:
            raise ConfigError(f"queue: {self.queue}, expected 0 or more")

    @property
    def held_bytes(self) -> int:
        """Bytes of all bodies together: those at work, and those that may wait."""
        return self.max_bytes * (self.queue + self.workers)


@dataclass
class Held:
    """Counts the bytes that the bodies of all requests hold together."""

    most: int
    bytes: int = field(default=0, init=False)

    def add(self, count: int) -> None:
        """Count bytes of a body; `remove` must follow.

        Raises:
            Refused: 503, there are too many.
        """
        if self.bytes + count > self.most:
            raise busy(1)
        self.bytes += count

    def remove(self, count: int) -> None:
        """Count bytes that were dropped."""
        self.bytes -= count


def busy(seconds: float) -> Refused:
    """Build the answer to a request that there is no room for, which may come again in `seconds`."""
    again = {"Retry-After": str(max(1, round(seconds)))}
    return Refused(503, "too many requests are waiting; try again later", again)


def parse_bytes(text: str, option: str = "--max-bytes") -> int:
    """Read a number of bytes, such as 500000, 20MB or 16MiB.

    Raises:
        ConfigError: it is none; the message begins with `option`.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise ConfigError(f"{option} {text}: expected a number of bytes, such as 20MB")
    count = int(float(match[1]) * _UNITS[match[2]])
    if count < 1:
        raise ConfigError(f"{option} {text}: expected one byte or more")
    return count

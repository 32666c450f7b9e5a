"""Make a failing input shorter."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from campaigns.areas import Area
from campaigns.fork import name_of, start
from campaigns.verdict import kind_of


def replay(area: Area, data: bytes, folder: Path) -> str | None:
    """What is wrong with one input, in a child of its own; None if nothing is."""

    def work() -> None:
        problem = area.check(data)
        (folder / "problem").write_text(problem or "", encoding="utf-8", errors="replace")

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "problem").unlink(missing_ok=True)
    status = start(work, folder, memory=2**32).wait(area.seconds)
    if status == 0:
        return (folder / "problem").read_text(encoding="utf-8") or None
    return name_of(status)


def minimised(
    area: Area, problem: str, data: bytes, folder: Path, *, seconds: float = 3.0
) -> bytes:
    """The input with as much removed as still fails in the same way, within some seconds."""
    kind = kind_of(problem)
    folder.mkdir(parents=True, exist_ok=True)
    if problem.startswith(("killed", "ran past", "exit")):
        return _shortest(data, lambda one: _is(replay(area, one, folder), kind), seconds)

    def work() -> None:
        found = _shortest(data, lambda one: _is(area.check(one), kind), seconds)
        (folder / "shortest").write_bytes(found)

    (folder / "shortest").write_bytes(data)
    start(work, folder, memory=2**32).wait(area.seconds + seconds)
    return (folder / "shortest").read_bytes()


def _is(problem: str | None, kind: str) -> bool:
    return problem is not None and kind_of(problem) == kind


def _shortest(data: bytes, fails: Callable[[bytes], bool], seconds: float) -> bytes:
    """Leave out shorter and shorter pieces as long as the rest fails."""
    until, size = time.monotonic() + seconds, len(data) // 2
    while size >= 1:
        at = 0
        while at < len(data):
            if time.monotonic() > until:
                return data
            shorter = data[:at] + data[at + size :]
            if fails(shorter):
                data = shorter
            else:
                at += size
        size //= 2
    return data

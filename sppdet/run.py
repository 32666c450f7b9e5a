"""The folder of one training: its log, its timings, and what is shown while it works."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sppdet.artifacts import read_json, write_json
from sppdet.errors import ArtifactError

T = TypeVar("T")


class Reporter:
    """Says what happens, on the screen and (with a folder) in `log.jsonl`.

    On a terminal long stages have a progress bar with the time left; elsewhere there are plain
    lines alone.
    """

    def __init__(self, folder: Path | None = None, *, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._log = folder / "log.jsonl" if folder else None
        self._timings = folder / "timings.json" if folder else None

    def say(self, text: str, event: str = "message", **facts: Any) -> None:
        """Print one line and log it."""
        self.console.print(text, markup=False)
        self.log(event, text=text, **facts)

    def log(self, event: str, **facts: Any) -> None:
        """Append one line to the log; a line is written whole, and never rewritten."""
        if self._log is None:
            return
        record = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **facts}
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(record, default=str) + "\n")

    def track(self, items: Iterable[T], *, total: int, label: str) -> Iterator[T]:
        """The items, with a progress bar where there is a terminal."""
        if not self.console.is_terminal:
            yield from items
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield from progress.track(items, total=total, description=label)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; the seconds are added up over interruptions in `timings.json`."""
        self.log("stage started", stage=name)
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self._add_seconds(name, seconds)
        self.log("stage ended", stage=name, seconds=round(seconds, 3))

    def _add_seconds(self, name: str, seconds: float) -> None:
        if self._timings is None:
            return
        try:
            timings = read_json(self._timings)
        except ArtifactError:
            timings = {}
        timings[name] = round(timings.get(name, 0.0) + seconds, 3)
        write_json(self._timings, timings)

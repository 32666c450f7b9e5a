"""The folder of one training: its log, its timings, its lock, and what is shown meanwhile."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sppdet.errors import ArtifactError, one_line
from sppdet.runs.artifacts import write_json
from sppdet.runs.distributed import Ranks
from sppdet.runs.lock import run_lock
from sppdet.runs.log import read_timings

T = TypeVar("T")


class Reporter:
    """Says what happens, on the screen and (with a folder) in `log.jsonl`.

    On a terminal long stages have a progress bar with the time left; elsewhere there are plain
    lines alone; `quiet` says nothing.
    """

    def __init__(
        self, folder: Path | None = None, *, console: Console | None = None, quiet: bool = False
    ) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True, quiet=quiet)
        self._idle = False
        self.folder = folder
        self._log = folder / "log.jsonl" if folder else None
        self._timings = folder / "timings.json" if folder else None

    def say(self, text: str, event: str = "message", **facts: Any) -> None:
        """Print one line, escaped and shortened by `one_line`, and log the whole text."""
        self.console.print(one_line(text), markup=False)
        self.log(event, text=text, **facts)

    def log(self, event: str, **facts: Any) -> None:
        """Append one line to the log; a line is written whole, and never rewritten."""
        if self._log is None:
            return
        record = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **facts}
        line = json.dumps({k: _or_none(v) for k, v in record.items()}, default=str)
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("a", encoding="utf-8") as handle:
                handle.write(line + "\n")
        except OSError as error:
            raise ArtifactError(f"{self._log}: can't be written: {error.strerror}") from None

    def track(self, items: Iterable[T], *, total: int, label: str) -> Iterator[T]:
        """The items, with a progress bar where there is a terminal."""
        if not self.console.is_terminal:
            yield from items
            return
        columns = (
            TextColumn("{task.description}", markup=False),  # names may have brackets
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield from progress.track(items, total=total, description=label)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage: `timings.json` has the seconds of the last time that it did something.

        A stage that was interrupted has the seconds since it went on.
        """
        self.log("stage started", stage=name)
        self._idle = False
        start = time.perf_counter()
        yield
        seconds = round(time.perf_counter() - start, 3)
        self.log("stage ended", stage=name, seconds=seconds, idle=self._idle)
        self._note_seconds(name, seconds)

    def nothing_done(self) -> None:
        """Say of the stage at work that all it makes was there already."""
        self._idle = True

    def _note_seconds(self, name: str, seconds: float) -> None:
        if self._timings is None:
            return
        timings = read_timings(self._timings)
        if not (self._idle and name in timings):
            write_json(self._timings, {**timings, name: seconds})


def _or_none(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def held_run(folder: Path, ranks: Ranks, reporter: Reporter | None) -> Iterator[Reporter]:
    """A run's folder to train in, held by the first process and cleared of what killed ones left.

    Yields:
        `reporter`, or one of the folder's; in all processes but the first one that says nothing.

    Raises:
        ArtifactError: another process is training in this folder, or it has other files than a run's.
    """
    if not ranks.is_first:
        yield Reporter(quiet=True)
        return
    with run_lock(folder):
        if reporter is not None and reporter.folder != folder:  # a run's folder is known by its log
            Reporter(folder, quiet=True).log("run of another's log", log=str(reporter.folder))
        yield reporter or Reporter(folder)

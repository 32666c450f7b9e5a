"""The folder of one training: its log, its timings, its lock, and what is shown meanwhile."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sppdet.errors import ArtifactError, one_line
from sppdet.runs.artifacts import read_json, remove_leftovers, write_json
from sppdet.runs.distributed import Ranks
from sppdet.runs.places import check_run_folder
from sppdet.runs.processes import start_of

T = TypeVar("T")
_log = logging.getLogger("sppdet")


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


def read_timings(path: Path) -> dict[str, float]:
    """The seconds of every stage; none of them, with a warning, if the file is damaged."""
    if not path.exists():
        return {}
    try:
        found = read_json(path)
    except ArtifactError as error:
        _log.warning("%s; it is begun again", error)
        return {}
    if not isinstance(found, dict) or not all(map(_is_seconds, found.values())):
        _log.warning("%s: expected seconds by stage; it is begun again", path)
        return {}
    return found


def _is_seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e12


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
    check_run_folder(folder)
    with run_lock(folder):
        remove_leftovers(folder)
        if reporter is not None and reporter.folder != folder:  # a run's folder is known by its log
            Reporter(folder, quiet=True).log("run of another's log", log=str(reporter.folder))
        yield reporter or Reporter(folder)


@contextlib.contextmanager
def run_lock(folder: Path, *, name: str = ".lock", doing: str = "training") -> Iterator[None]:
    """Hold the file `name` in `folder`, so that no second process works there at the same time.

    The lock of a process that has been killed is taken over. Processes of other machines that share
    the folder are not seen.

    Raises:
        ArtifactError: a living process holds it.
    """
    path, own = folder / name, _process(os.getpid())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _take_lock(path, own, doing)
    except OSError as error:
        raise ArtifactError(f"{path}: can't be taken: {error.strerror}") from None
    try:
        yield
    finally:
        handle.close()
        with contextlib.suppress(OSError):
            path.unlink()


def _take_lock(path: Path, own: str, doing: str) -> TextIO:
    for _ in range(20):
        try:
            handle = path.open("x", encoding="ascii")
            handle.write(own)
            handle.flush()
            return handle
        except FileExistsError:
            holder = _content(path)
        if holder and holder == _process(int(holder.split()[0])):
            raise ArtifactError(
                f"{path.parent}: process {holder.split()[0]} is {doing} here; wait until it has "
                f"ended, or remove {path} if that is something else"
            )
        time.sleep(0.05)  # an empty lock may be about to be written
        if _content(path) == holder:
            path.unlink(missing_ok=True)
    raise ArtifactError(f"{path}: can't be taken; are several processes starting at once?")


def _content(path: Path) -> str:
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return ""
    number = text.split(" ")[0]
    return text if number.isdigit() and len(number) < 20 else ""  # int refuses 5,000 digits


def _process(pid: int) -> str:
    """The number of a process and its start; "" if it has ended."""
    started = start_of(pid)
    return "" if started is None else f"{pid} {started}"

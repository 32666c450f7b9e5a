"""Progress of long loops: a bar on a terminal; elsewhere a line every 30 seconds, and none for short loops.

    for image in track(images, total=len(images), label="proposals"): ...

`log.jsonl` gets the lines in any case. Of several processes the first one speaks.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.text import Text

from sppdet.runs.log import LOGGER, consoles, event

T = TypeVar("T")
INTERVAL_S = 30.0
clock: Callable[[], float] = time.monotonic
_last_line = float("-inf")  # by the clock; nested loops take turns


def track(
    items: Iterable[T],
    *,
    total: int | None,
    label: str,
    done: int = 0,
    made: Callable[[T], bool] = lambda _: True,
) -> Iterator[T]:
    """Iterate over items and show the progress.

    Args:
        total: number of items, `done` included; None: nobody knows.
        done: number of items that an earlier call has done; they aren't among `items`.
        made: tells items that took time from those that were there already, which say nothing about
            the time left.
    """
    with counting(label, total=total, done=done) as count:
        for item in items:
            yield item
            count(made(item))


@contextlib.contextmanager
def counting(label: str, *, total: int | None, done: int = 0) -> Iterator[Callable[[bool], None]]:
    """Show the progress of a block, which calls the yielded function after each item.

    The function takes whether the item was made; see `track`.
    """
    counter = Counter(label, total, done)
    terminals = [console for console in consoles() if console.is_terminal]
    bar = _BARS.add(counter, terminals[0]) if terminals else None

    def count(made: bool) -> None:
        counter.add(made=made)
        if bar is not None:
            live, task = bar
            live.update(task, completed=counter.done)
        counter.speak(logging.INFO if bar is None else logging.DEBUG)

    try:
        yield count
    finally:
        if bar is not None:
            _BARS.remove(*bar)


@dataclass
class Counter:
    """The items of a loop that are done, and the time that the others will take."""

    label: str
    total: int | None
    done: int
    _made: int = 0
    _start: float = field(default_factory=lambda: clock())
    _counted: float = 0.0  # time of the last item

    def add(self, *, made: bool) -> None:
        """Count an item."""
        self.done += 1
        self._made += made
        self._counted = clock()

    def seconds_left(self) -> float | None:
        """Estimate from the items that were made so far; None before the first one, or without a total."""
        if not self._made or self.total is None:
            return None
        each = (self._counted - self._start) / self._made
        return max(0.0, (self.total - self.done) * each - (clock() - self._counted))

    def speak(self, level: int) -> None:
        """Log a line if none has been logged for `INTERVAL_S`, neither by this loop nor by another."""
        global _last_line
        now = self._counted
        if now - max(self._start, _last_line) < INTERVAL_S or not LOGGER.isEnabledFor(level):
            return
        if self.done == self.total:  # what comes next says so
            return
        _last_line = now
        left = self.seconds_left()
        of = "" if self.total is None else f" of {self.total:,}"
        text = f"{self.label}: {self.done:,}{of}"
        facts = {"label": self.label, "done": self.done, "total": self.total}
        if left is not None:
            text += f", {duration(left)} left"
            facts["seconds_left"] = round(left)
        LOGGER.log(level, "%s", text, extra=event("progress", **facts))


def duration(seconds: float) -> str:
    """Format seconds for people: "45 s", "1 min 20 s", "12 min", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60} s".removesuffix(" 0 s")
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60:,} h {minutes % 60} min".removesuffix(" 0 min")


# -- bars ------------------------------------------------------------------------------------------


class _TimeLeft(ProgressColumn):
    """The time left as the lines have it: rich forgets the speed of items that take longer than 30 s."""

    def render(self, task: Task) -> Text:
        """Format the time left."""
        counter: Counter = task.fields["counter"]
        left = counter.seconds_left()
        return Text("" if left is None else f"{duration(left)} left", style="progress.remaining")


class _Bars:
    """The bars of all loops at work, nested ones below each other: a terminal has one live display."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal may end the bars while it is held
        self._live: Progress | None = None

    def add(self, counter: Counter, console: Console) -> tuple[Progress, TaskID]:
        """Show a bar; returns it with its display."""
        with self._lock:
            if self._live is None:
                columns = (
                    TextColumn("{task.description}", markup=False),  # names may have brackets
                    BarColumn(),
                    MofNCompleteColumn(),
                    _TimeLeft(),
                )
                self._live = Progress(*columns, console=console, transient=True)
                self._live.start()
            task = self._live.add_task(
                counter.label, total=counter.total, completed=counter.done, counter=counter
            )
            return self._live, task

    def remove(self, live: Progress, task: TaskID) -> None:
        """Remove a bar; with the last one its display ends."""
        with self._lock:
            live.remove_task(task)
            if live is self._live and not live.task_ids:
                self.end()

    def end(self) -> None:
        """End the display, whatever loops are at work: an error leaves their generators suspended."""
        with self._lock:
            live, self._live = self._live, None
            if live is not None:
                live.stop()


_BARS = _Bars()


def end_bars() -> None:
    """Remove all bars, before the last words of a command that fails or is stopped."""
    _BARS.end()

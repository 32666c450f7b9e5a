"""Messages and timings of a run, by the standard library's logging.

Every module logs to the logger "sppdet". The command line shows its messages by `ConsoleHandler`, a
run's folder keeps them in `log.jsonl`; programs that use the library add handlers of their own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from sppdet.errors import ArtifactError, one_line, printable
from sppdet.runs.artifacts import read_json, write_json

if TYPE_CHECKING:  # light commands log without waiting for torch
    from sppdet.runs.distributed import Ranks

LOGGER = logging.getLogger("sppdet")
RESULT = (logging.INFO + logging.WARNING) // 2
"""Level of what a command was called for, such as the mAP: shown even where other messages aren't."""


def event(name: str, **facts: Any) -> dict[str, Any]:
    """Build the `extra` of a log call: the event's name, and facts for `log.jsonl`."""
    return {"event": name, "facts": facts}


class ConsoleHandler(logging.Handler):
    """Print messages on a console, one escaped line each; those of level INFO, but for commands, shortened.

    rich's own handler breaks lines at 80 columns where the output is no terminal. Warnings are left
    to the handlers of the root logger, which write to standard error.
    """

    def __init__(self, console: Console | None = None, level: int = logging.INFO) -> None:
        super().__init__(level)
        self.console = console or Console(highlight=False, soft_wrap=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a record."""
        if record.levelno < logging.WARNING:
            text, style = record.getMessage(), ""
            if record.levelno < logging.INFO:
                style = "dim"
            elif record.levelno >= RESULT:
                style = "bold"
            short = record.levelno == logging.INFO and getattr(record, "event", "") != "next"
            line = one_line(text) if short else printable(text)
            self.console.print(line, markup=False, style=style)


class JsonLinesHandler(logging.Handler):
    """Append every record to a file as one line of strict JSON."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.DEBUG)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Append one line.

        Raises:
            ArtifactError: the file can't be written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as handle:
                handle.write(json_line(record) + "\n")
        except OSError as error:
            raise ArtifactError(f"{self._path}: can't be written: {error.strerror}") from None


class JsonOutputHandler(logging.Handler):
    """Print every record on standard output as `log.jsonl` has it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        print(json_line(record), flush=True)


def print_record(name: str, text: str) -> None:
    """Print a record of an event, whatever the state of logging."""
    record = logging.LogRecord(LOGGER.name, logging.ERROR, "", 0, text, None, None)
    print(json_line(logging.makeLogRecord({**vars(record), **event(name)})), flush=True)


def json_line(record: logging.LogRecord) -> str:
    """Format a record as strict JSON: time, event, text and the event's facts."""
    usual = "warning" if record.levelno >= logging.WARNING else "message"
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "event": getattr(record, "event", usual),
        "text": record.getMessage(),
        **getattr(record, "facts", {}),
    }
    return json.dumps({key: _finite_or_none(value) for key, value in line.items()}, default=str)


EventCallback = Callable[[str, Mapping[str, Any]], object]


class CallbackHandler(logging.Handler):
    """Call a function with the name and the facts of every event, until it fails.

    A tracker that can't be reached must not end a training: its error becomes a warning.
    """

    def __init__(self, on_event: EventCallback) -> None:
        super().__init__(logging.DEBUG)
        self._on_event: EventCallback | None = on_event

    def emit(self, record: logging.LogRecord) -> None:
        """Pass an event on; messages that are none are left out."""
        if self._on_event is None or not hasattr(record, "event"):
            return
        try:
            self._on_event(record.event, record.__dict__["facts"])
        except Exception as error:
            self._on_event = None  # before the warning, which comes by here
            text = "on_event: %s: %s; it isn't called again"
            LOGGER.warning(text, type(error).__name__, one_line(str(error)))


def _finite_or_none(value: Any) -> Any:
    # JSON has no NaN and no infinity
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _HostHandler(logging.Handler):
    """Pass records on to the handlers of the program that uses the library."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on."""
        if LOGGER.parent is not None:
            LOGGER.parent.callHandlers(record)


_added: list[logging.Handler] = []
_host = _HostHandler()
_state_of_host: tuple[int, bool] = (logging.NOTSET, True)
_lock = threading.Lock()
_run: ContextVar[Path | None] = ContextVar("run of the current thread", default=None)


@contextlib.contextmanager
def handler_added(handler: logging.Handler) -> Iterator[None]:
    """Add a handler to the logger "sppdet" within a block, and let messages of its level pass.

    Handlers of the program that uses the library get what they would get without the block: Python
    asks for the level of the logger alone, not for those above it, so that lowering it would flood them.
    """
    global _state_of_host
    with _lock:
        if not _added:
            _state_of_host = LOGGER.level, LOGGER.propagate
            _host.setLevel(LOGGER.getEffectiveLevel())
            if LOGGER.propagate:
                LOGGER.addHandler(_host)
            LOGGER.propagate = False
        _added.append(handler)
        LOGGER.addHandler(handler)
        LOGGER.setLevel(min(handler.level, LOGGER.getEffectiveLevel()))
    try:
        yield
    finally:
        with _lock:
            LOGGER.removeHandler(handler)
            _added.remove(handler)
            if not _added:
                LOGGER.removeHandler(_host)
                level, LOGGER.propagate = _state_of_host
                LOGGER.setLevel(level)


def log_to_console(level: int = logging.INFO, *, as_json: bool = False) -> None:
    """Print the messages of this process from now on, as the command line does.

    Of the processes that `torchrun` starts the first one prints.
    """
    ours = (ConsoleHandler, JsonOutputHandler)
    LOGGER.handlers = [h for h in LOGGER.handlers if not isinstance(h, ours)]
    if os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0":
        LOGGER.addHandler(JsonOutputHandler(level) if as_json else ConsoleHandler(level=level))
        LOGGER.setLevel(level)


@contextlib.contextmanager
def log_file(run: Path, ranks: Ranks) -> Iterator[None]:
    """Append the messages of a block to `log.jsonl` in a run's folder; the first process does.

    Of several runs in one process, each in a thread of its own, each has its own messages; those of
    other threads, such as warnings of images, go to all.
    """
    if not ranks.is_first:
        yield
        return
    handler = JsonLinesHandler(run / "log.jsonl")
    handler.addFilter(lambda record: _run.get() in (None, run))
    token = _run.set(run)
    try:
        with handler_added(handler):
            yield
    finally:
        _run.reset(token)


@contextlib.contextmanager
def events_passed(on_event: EventCallback | None) -> Iterator[None]:
    """Call a function with the events of the run of this thread within a block; None: nothing."""
    if on_event is None:
        yield
        return
    handler, run = CallbackHandler(on_event), _run.get()
    handler.addFilter(lambda record: _run.get() == run)
    with handler_added(handler):
        yield


def consoles() -> list[Console]:
    """List the consoles that messages of level INFO are printed on, and tables as well."""
    if not LOGGER.isEnabledFor(logging.INFO):  # a process beside the one that reports
        return []
    shown = [
        h for h in LOGGER.handlers if isinstance(h, ConsoleHandler) and h.level <= logging.INFO
    ]
    return [handler.console for handler in shown]


# -- timings ---------------------------------------------------------------------------------------


class Timing:
    """The timing of a stage; `cached` if all its results were there already."""

    cached = False


@contextlib.contextmanager
def timed(run: Path, stage: str, *, write: bool = True, title: str = "") -> Iterator[Timing]:
    """Time a stage; `timings.json` has its seconds of the last time that it wasn't cached.

    A stage that was interrupted has the seconds since it was resumed. The log has the CPU seconds of this
    process and its children beside them.

    Args:
        write: whether this process writes the run's files.
        title: line that says what begins.
    """
    timing, start, cpu = Timing(), time.perf_counter(), _cpu_seconds()
    level = logging.INFO if title else logging.DEBUG
    began = event("stage started", stage=stage)
    LOGGER.log(level, "%s", title or f"{stage} started", extra=began)
    yield timing
    seconds = round(time.perf_counter() - start, 3)
    used = round(_cpu_seconds() - cpu, 3)
    facts = event("stage ended", stage=stage, seconds=seconds, cpu_seconds=used, idle=timing.cached)
    text = "%s ended after %.3f s, %.3f CPU seconds%s"
    LOGGER.debug(text, stage, seconds, used, "; all was there" * timing.cached, extra=facts)
    if write:
        path = run / "timings.json"
        timings = read_timings(path)
        if not (timing.cached and stage in timings):
            write_json(path, {**timings, stage: seconds})


def _cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def read_timings(path: Path) -> dict[str, float]:
    """Read the seconds of every stage; empty, with a warning, if the file is damaged."""
    if not path.exists():
        return {}
    try:
        found = read_json(path)
    except ArtifactError as error:
        LOGGER.warning("%s; it is begun again", error)
        return {}
    if not isinstance(found, dict) or not all(map(is_seconds, found.values())):
        LOGGER.warning("%s: expected seconds by stage; it is begun again", path)
        return {}
    return found


def is_seconds(value: Any) -> bool:
    """Check that a value from a file is a number of seconds."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e12

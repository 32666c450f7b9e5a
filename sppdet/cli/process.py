"""State of the process that runs a command: what it prints, and the libraries it computes with."""

from __future__ import annotations

import gc
import importlib
import logging
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from sppdet.errors import one_line, printable


@dataclass
class State:
    """State of the running command; `debug` to `log_json` are options."""

    debug: bool = False
    threads: int | None = None
    quiet: bool = False
    verbose: bool = False
    log_json: bool = False
    command: str = ""


state = State()


def start_libraries() -> None:
    """Import torch, OpenCV and numba and set their threads; commands that compute begin so."""
    _import_libraries()
    import cv2

    from sppdet.runs.environment import available_cores, set_threads

    # broken images are reported by sppdet
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    set_threads(state.threads or available_cores())


def _import_libraries() -> None:
    """Import what takes longest with the garbage collector off, which would look for garbage in vain.

    It passes over what is there now from then on, which nobody drops before the process ends.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module("torch")
        importlib.import_module("numba")
        gc.freeze()
    finally:
        if collecting:
            gc.enable()


class _WarningHandler(logging.Handler):
    """Print warnings on standard error; on a terminal above the bars, for which rich replaces it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._file = sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        if self._file is not None:  # it is closed
            file = sys.stderr if self._file.isatty() else self._file
            print(one_line(f"warning: {record.getMessage()}"), file=file)


def start_messages() -> None:
    """Print messages as the options say: warnings on standard error, others on standard output."""
    from sppdet.runs.log import RESULT, log_to_console

    logging.basicConfig(handlers=[_WarningHandler()], level=logging.WARNING, force=True)
    level = logging.DEBUG if state.verbose or state.log_json else logging.INFO
    log_to_console(RESULT if state.quiet else level, as_json=state.log_json)


def show(text: str) -> None:
    """Print a line that the command was called for, under `--quiet` as well; a record with `--log-json`."""
    if state.log_json:
        from sppdet.runs.log import LOGGER, RESULT, event

        LOGGER.log(RESULT, "%s", text, extra=event("output"))
    else:
        print(printable(text))


def suggest(*words: str, when: str = "") -> None:
    """Say which command of sppdet comes next, quoted for a shell.

    Args:
        words: from the command's name on.
        when: condition, such as "with images of your own".
    """
    from sppdet.runs.log import LOGGER, event

    command = shlex.join(["sppdet", *words])
    label = f"next, {when}" if when else "next"
    LOGGER.info("%s: %s", label, command, extra=event("next", command=command))


def given_words(command: str, *, without: tuple[str, ...]) -> Iterator[str]:
    """Yield the words of the command line with another command, without some options and their values."""
    words = iter(sys.argv[1:])
    for word in words:
        if word in without:
            next(words, None)
        elif word.partition("=")[0] not in without:
            yield command if word == state.command else word

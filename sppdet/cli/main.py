"""The command line as a process: signals, errors of one line, exit status.

Only the standard library and light modules of sppdet are imported here. `app` has the commands, which
import what they need when they run, so that `sppdet --help` waits for no torch.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
import threading
import traceback

from sppdet.cli.process import State, state
from sppdet.errors import SppdetError, one_line
from sppdet.runs.environment import set_variables
from sppdet.runs.signals import Stopped, raise_if_requested, stopping_signals

_INTERRUPTED = 130  # typer's status after Ctrl-C
# what a signal that ends a command leaves behind, and how to resume
AFTER_A_SIGNAL = {
    "train": "the same command goes on from the last checkpoint",
    "propose": "the proposals so far are kept; the same command does the rest",
    "eval": "the detections so far are kept; the same command does the rest",
    "eval --detections": "nothing is kept; the same command starts again",
    "diagnose": "nothing is kept; the same command starts again",
    "audit": "nothing is kept; the same command starts again",
    "suggest": "what was seen of the images is kept; the same command does the rest",
    "report": "nothing is kept; the same command starts again",
    "explain": "nothing is kept; the same command starts again",
    "check": "nothing is kept; the same command starts again",
    "compare": "nothing is kept; the same command starts again",
    "crossval": "finished folds are kept; the same command goes on from here",
    "curve": "finished trainings are kept; the same command goes on from here",
    "detect": "the results so far are kept; the same command does the rest",
    "export": "nothing is kept; the same command starts again",
    "serve": "the requests at work were answered first",
    "convert": "nothing is kept; the same command starts again",
    "pretrain": "the same command goes on from the last checkpoint",
    "pretrain-eval": "nothing is kept; the same command starts again",
    "classify": "the answers so far are kept, in the file of --json too",
    "probe": "nothing is kept; the same command starts again",
    "download": "complete sets are kept; the same command fetches the rest",
    "demo": "the same command goes on from the last checkpoint",
}


def main() -> None:
    """Run the command line. Errors meant for the user are one line on stderr and status 1.

    SIGINT, SIGTERM and SIGHUP end in a line that says how to resume, and status 128 + signal.
    """
    set_variables()  # before torch is imported
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that can't show × shows the rest
    vars(state).update(vars(State()))
    threads = set(threading.enumerate())
    with stopping_signals(say_stopped):
        try:
            _call()
        except Stopped as stop:
            if state.debug:
                traceback.print_exc()
            say_stopped(stop)
            if any(not thread.daemon for thread in set(threading.enumerate()) - threads):
                os._exit(stop.status)  # Python would wait for their work
            raise SystemExit(stop.status) from None


def say_stopped(stop: Stopped) -> None:
    """Print the last line of a command that was stopped; of several processes the first does."""
    how = AFTER_A_SIGNAL.get(state.command)
    try:
        _end_bars()
        if os.environ.get("RANK", "0") == "0":
            print(f"{stop}; {how}" if how else stop, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # the terminal is gone; Python would fail again on closing the streams
        os._exit(stop.status)


def _call() -> None:
    try:
        _run_app()
    except BrokenPipeError:
        _drop_output()  # the reader is gone
        raise SystemExit(1) from None
    except (SppdetError, OSError, MemoryError, ImportError) as error:
        if isinstance(error, ImportError) and not _is_opencv(error):
            raise
        raise_if_requested()
        _drop_output()
        if state.debug:
            traceback.print_exc()
        _say_error(_message(error))
        raise SystemExit(1) from None
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # by typer, where Python itself has handled Ctrl-C
            raise Stopped(signal.SIGINT) from None
        raise


def _say_error(message: object) -> None:
    """Print an error on standard error and, with `--log-json`, as a record as well."""
    with contextlib.suppress(OSError):
        _end_bars()
    print(one_line(f"error: {message}"), file=sys.stderr)
    if state.log_json:
        from sppdet.runs.log import print_record

        with contextlib.suppress(OSError):
            print_record("error", str(message))


def _end_bars() -> None:
    progress = sys.modules.get("sppdet.runs.progress")
    if progress is not None:
        progress.end_bars()


def _run_app() -> None:
    from sppdet.cli.app import app

    try:
        app()
    except SystemExit:
        if sys.stdout is not None:  # it is None when it is closed
            sys.stdout.flush()  # a full disk shows now at the latest
        raise


def _is_opencv(error: ImportError) -> bool:
    """Check whether a system library of OpenCV's is missing, as in slim containers."""
    return re.match(r"lib(GL|EGL|gthread|glib|SM|Xext|Xrender)\b.*\.so", str(error)) is not None


def _message(error: Exception) -> object:
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, ImportError):
        library = str(error).partition(":")[0]
        return (
            f"OpenCV needs {library}: install libgl1 and libglib2.0-0 (apt-get), or put "
            "opencv-contrib-python-headless in the place of opencv-contrib-python (pip)"
        )
    return error


def _drop_output() -> None:
    """Redirect standard output to nowhere if it can't be written; Python would fail at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""Signals that ask the program to stop, raised as an exception so that files are left in order."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

# Windows has no SIGHUP
STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_SAME_REQUEST_S = 1.0  # `timeout` and terminals may send one request to a process twice
_AGAIN_S = 0.02
_requested: list[int] = []  # the signal that the block of `stopping_signals` has had


class Stopped(BaseException):
    """A signal asked the program to stop. Like KeyboardInterrupt it is no Exception."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    def __str__(self) -> str:
        """Return the user's message: "interrupted" or "stopped by SIGTERM"."""
        if self.number == signal.SIGINT:
            return "interrupted"
        return f"stopped by {signal.Signals(self.number).name}"

    @property
    def status(self) -> int:
        """Exit status by the convention of shells."""
        return 128 + self.number


def raise_if_requested() -> None:
    """Raise `Stopped` again after a signal whose exception got lost.

    Libraries that call Python from compiled code turn every exception there into one of their own:
    call this where such an error is handled.
    """
    if _requested:
        raise Stopped(_requested[0])


@contextlib.contextmanager
def stopping_signals(at_once: Callable[[Stopped], None]) -> Iterator[None]:
    """Raise `Stopped` in this block at SIGINT, SIGTERM or SIGHUP; restore the handlers after it.

    A signal that is ignored when the block begins (SIGHUP under `nohup`) stays ignored. A second
    request, more than a second after the first, ends the process at once, whatever it is still
    tidying up.

    Args:
        at_once: called at the second request before the process ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets no other thread handle signals
        return
    first: float | None = None

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
            _requested.append(number)
            raise Stopped(number)
        if now - first > _SAME_REQUEST_S:
            stopped = Stopped(number)
            at_once(stopped)
            os._exit(stopped.status)

    def again_if_lost(unraisable: sys.UnraisableHookArgs) -> None:
        """Send the signal once more where Python dropped its exception, as in a weakref's callback."""
        nonlocal first
        if not isinstance(unraisable.exc_value, Stopped):
            before_hook(unraisable)
            return
        first = None
        number = unraisable.exc_value.number
        # later: raised in here it would be lost, too
        timer = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()

    before_hook, sys.unraisablehook = sys.unraisablehook, again_if_lost
    ordinary = (signal.SIG_DFL, signal.default_int_handler)
    before = {n: signal.getsignal(n) for n in STOPPING}
    ours = [number for number, handler in before.items() if handler in ordinary]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        _requested.clear()
        sys.unraisablehook = before_hook
        for number in ours:
            if signal.getsignal(number) is stop:  # a process of `torchrun` may ignore one for good
                signal.signal(number, before[number])

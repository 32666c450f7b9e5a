"""Run code in forked children of a warm process, where a crash or a hang harms nobody."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch


def warm_up() -> None:
    """Import whatever a command imports, once, and keep to one thread: forks can't have more."""

    import sppdet.classification.probe
    import sppdet.classification.stage
    import sppdet.classification.testing
    import sppdet.cli.info
    import sppdet.cli.main
    import sppdet.demo.run
    import sppdet.stages.pipeline  # noqa: F401

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@dataclass(frozen=True)
class Ended:
    """How a child ended; `status` is negative for a signal, None if it was stopped for its time."""

    status: int | None
    out: str
    err: str
    seconds: float


def name_of(status: int | None) -> str:
    """A status in words."""
    if status is None:
        return "ran past the limit"
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


@dataclass
class Child:
    """A forked process and where its output goes."""

    pid: int
    folder: Path  # has its `out` and `err`
    began: float

    def poll(self, seconds: float) -> int | None:
        """Its status as of `Ended`, once it has ended; None if it is still at work then."""
        handle = os.pidfd_open(self.pid)
        try:
            if not select.select([handle], [], [], seconds)[0]:
                return None
        finally:
            os.close(handle)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def stop(self) -> None:
        """Kill it; its `err` tells where it was."""
        os.kill(self.pid, signal.SIGUSR1)  # see faulthandler.register
        time.sleep(0.2)
        self.kill(signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def wait(self, limit: float) -> int | None:
        """Its status as of `Ended`; killed after `limit` seconds."""
        status = self.poll(limit)
        if status is None:
            self.stop()
        return status

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to the child alone."""
        os.kill(self.pid, number)

    def ended(self, limit: float) -> Ended:
        """Wait, and read what it said."""
        status = self.wait(limit)
        out, err = (
            (self.folder / name).read_text(encoding="utf-8", errors="replace")
            for name in ("out", "err")
        )
        return Ended(status, out, err, time.monotonic() - self.began)


def start(
    work: Callable[[], None],
    folder: Path,
    *,
    memory: int | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    out: Path | None = None,
) -> Child:
    """Fork a child that does `work` and exits.

    Args:
        folder: receives its `out` and `err`.
        memory: bytes of address space it may take beyond what it has; None: no limit.
        out: a file for its standard output other than `folder`/out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "out").write_bytes(b"")
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, folder, time.monotonic())
    status = 70
    try:
        _become_child(folder, memory, environment or {}, cwd, out)
        status = _status_of(work)
    except KeyboardInterrupt:  # before the command has begun, as SIGTERM ends it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        _flush()
        os._exit(status)


def _become_child(
    folder: Path,
    memory: int | None,
    environment: Mapping[str, str],
    cwd: Path | None,
    out: Path | None,
) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the parent
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )
    for descriptor, path in (
        (0, Path(os.devnull)),
        (1, out or folder / "out"),
        (2, folder / "err"),
    ):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT
        opened = os.open(path, flags | (os.O_TRUNC if path.parent == folder else 0), 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    for descriptor, name, mode in ((1, "stdout", "w"), (2, "stderr", "w")):
        stream = open(descriptor, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
    faulthandler.enable(file=sys.stderr)
    faulthandler.register(signal.SIGUSR1, file=sys.stderr)
    os.environ.update(environment)
    if cwd is not None:
        os.chdir(cwd)
    if memory is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = pages * resource.getpagesize() + memory
        limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _status_of(work: Callable[[], None]) -> int:
    # as the interpreter ends a program
    try:
        work()
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:  # as the interpreter's own complaint on a closed or full output
            os.write(2, f"Exception ignored on flushing: {error}\n".encode())


def command(arguments: Sequence[str]) -> Callable[[], None]:
    """The command line with these arguments, as `start` takes it."""

    def work() -> None:
        from sppdet.cli.main import main

        sys.argv = ["sppdet", *arguments]
        main()

    return work

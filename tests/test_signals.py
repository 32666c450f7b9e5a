"""Signals that end a command: one line that says how to go on, the right status, no waiting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from runs import CommandLine
from sppdet.cli.app import app
from sppdet.cli.main import AFTER_A_SIGNAL
from sppdet.errors import DataError
from sppdet.parallel import ordered_map
from sppdet.runs import signals
from sppdet.runs.artifacts import read_header, read_tensors
from sppdet.runs.signals import STOPPING, Stopped, stopping_signals

pytestmark = pytest.mark.skipif(os.name == "nt", reason="os.kill only ends processes here")

GOES_ON = "the same command goes on from the last checkpoint"
SAYS = {"SIGINT": "interrupted", "SIGTERM": "stopped by SIGTERM", "SIGHUP": "stopped by SIGHUP"}


def raised_within(number: int) -> Callable[..., NoReturn]:
    """A function that is told to stop while it is at work."""

    def told(*_: object, **__: object) -> NoReturn:
        os.kill(os.getpid(), number)
        time.sleep(5)
        raise AssertionError("the signal has passed unnoticed")

    return told


@pytest.mark.parametrize("name", SAYS)
@pytest.mark.parametrize(
    ("arguments", "function", "how"),
    [
        (["train", "c.yaml"], "sppdet.stages.choice.load_config", GOES_ON),
        (["pretrain", "c.yaml"], "sppdet.io.settings.load_settings", GOES_ON),
        (
            ["detect", "run", "a", "--out", "b"],
            "sppdet.stages.detector.Detector.load",
            "the results so far are kept; the same command does the rest",
        ),
        (
            ["eval", "run"],
            "sppdet.stages.evaluate.evaluate_run",
            "the detections so far are kept; the same command does the rest",
        ),
        (
            ["eval", "--config", "c.yaml", "--detections", "d", "--out", "o"],
            "sppdet.stages.evaluate_files.evaluate_files",
            "nothing is kept; the same command starts again",
        ),
        (["info", "run"], "sppdet.cli.info.describe_run", ""),
    ],
)
def test_a_signal_is_one_line(
    sppdet: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    arguments: list[str],
    function: str,
    how: str,
) -> None:
    number = getattr(signal, name)
    before = [signal.getsignal(n) for n in STOPPING]
    monkeypatch.setattr(function, raised_within(number))
    said = f"{SAYS[name]}; {how}\n" if how else f"{SAYS[name]}\n"
    assert sppdet(*arguments) == (128 + number, "", said)
    assert [signal.getsignal(n) for n in STOPPING] == before


def test_every_command_says_how_to_go_on() -> None:
    commands = {str(c.name or c.callback.__name__) for c in app.registered_commands if c.callback}
    known = {key.partition(" ")[0] for key in AFTER_A_SIGNAL}
    assert commands - known == {"info", "init"}


def test_other_processes_of_torchrun_say_nothing(
    sppdet: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sppdet.cli.info.describe_run", raised_within(signal.SIGINT))
    monkeypatch.setenv("RANK", "1")
    assert sppdet("info", "run") == (130, "", "")


def test_a_signal_while_the_program_is_loaded(tmp_path: Path) -> None:
    # in the place of a library that takes its time
    (tmp_path / "cv2.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(20)\n"
    )
    package = str(Path(signals.__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, "-m", "sppdet", "detect", "run", "a", "--out", "b"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), package])},
    )
    assert (ended.returncode, ended.stdout) == (143, "")
    assert ended.stderr.startswith("stopped by SIGTERM; the results so far are kept")


def swallowed(error: Exception) -> Callable[..., None]:
    """A function that has a signal in compiled code, which makes an error of its own of it."""

    def call(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(5)
        except BaseException:
            raise error from None

    return call


def test_a_signal_that_a_library_makes_an_error_of(
    sppdet: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sppdet.cli.info.describe_run", swallowed(DataError("a.jpg: damaged")))
    assert sppdet("info", "run") == (129, "", "stopped by SIGHUP\n")
    monkeypatch.setattr("sppdet.runs.artifacts.safe_open", swallowed(ValueError("no shape")))
    for read in (read_tensors, read_header):
        with pytest.raises(Stopped, match="SIGHUP"), stopping_signals(lambda _: None):
            read(tmp_path / "a.safetensors")
    signals.raise_if_requested()  # does nothing: the signal is forgotten


def test_a_signal_where_python_drops_exceptions(capfd: pytest.CaptureFixture[str]) -> None:
    class Falling:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    with pytest.raises(Stopped, match="SIGTERM"), stopping_signals(lambda _: None):
        Falling()
        time.sleep(20)
    assert capfd.readouterr() == ("", "")


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stopping_signals(lambda _: None):
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_same_request_twice_at_once_is_one() -> None:
    with pytest.raises(Stopped) as caught, stopping_signals(lambda _: None):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:  # tidying up goes on
            os.kill(os.getpid(), signal.SIGTERM)
            tidied = True
    assert tidied and caught.value.status == 143


# the module alone: sppdet takes seconds to import
PATIENT = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("signals", sys.argv[1])
signals = sys.modules["signals"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(signals)
with signals.stopping_signals(lambda stop: print(f"at once: {stop}", flush=True)):
    try:
        print("ready", flush=True)
        time.sleep(60)
    except signals.Stopped:
        print("tidying up", flush=True)
        time.sleep(60)
"""


def test_a_second_request_ends_the_process_at_once() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PATIENT, str(signals.__file__)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.readline() == "tidying up\n"
        time.sleep(1.1)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "at once: interrupted\n"
        assert process.wait(10) == 130


def test_threads_at_work_are_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppdet.parallel._GRACE_S", 0.2)
    release, begun = threading.Event(), []

    def work(item: int) -> int:
        begun.append(item)
        if item == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        if item >= 2:
            release.wait(20)
        return item

    def items() -> Iterator[int]:
        yield from range(50)

    started, got = time.monotonic(), list[int]()
    with pytest.raises(Stopped), stopping_signals(lambda _: None):
        got.extend(ordered_map(work, items(), workers=2))
    release.set()
    assert got == [0, 1]
    assert time.monotonic() - started < 5
    time.sleep(0.1)
    assert sorted(begun) == [0, 1, 2, 3]  # nothing was begun afterwards

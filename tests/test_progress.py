"""Progress of loops by a clock of the tests' own: lines, the time left, bars on a terminal."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from runs import log_of, printed_to
from sppdet.features.backbones import Backbone
from sppdet.runs import progress
from sppdet.runs.distributed import Ranks
from sppdet.runs.log import LOGGER, ConsoleHandler, handler_added, log_file
from sppdet.runs.progress import INTERVAL_S, duration, end_bars, track
from stages import make_world, scenes


class Clock:
    """A clock that stands still but for what the tests add."""

    now = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now

    def over(self, seconds: Iterable[float]) -> Iterator[int]:
        """Numbered items, each of which takes so long."""
        for number, one in enumerate(seconds):
            self.now += one
            yield number


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "clock", found)
    monkeypatch.setattr(progress, "_last_line", float("-inf"))
    return found


def said_by(loop: Callable[[], Any]) -> list[str]:
    """The lines that a loop prints where there is no terminal."""
    file = io.StringIO()
    with printed_to(file):
        loop()
    return file.getvalue().splitlines()


def test_a_line_every_30_seconds_with_the_time_left(clock: Clock) -> None:
    def loop() -> list[int]:
        return list(track(clock.over([8.0] * 12), total=12, label="[a] proposals"))

    # 12 items of 8 s: lines at 32, 64 and not at 96 s, when all is done
    assert said_by(loop) == [
        "[a] proposals: 4 of 12, 1 min 4 s left",
        "[a] proposals: 8 of 12, 32 s left",
    ]


def test_items_come_through_unchanged_and_work_between_them_counts(clock: Clock) -> None:
    seen = []

    def loop() -> None:
        for item in track("abcd", total=1_000_000, label="x"):
            seen.append(item)
            clock.now += 20

    assert said_by(loop) == [
        "x: 2 of 1,000,000, 5,555 h 33 min left",
        "x: 4 of 1,000,000, 5,555 h 32 min left",
    ]
    assert seen == list("abcd")


def test_short_loops_say_nothing_whatever_their_number(clock: Clock) -> None:
    def loops() -> None:
        for _ in range(10):
            list(track(clock.over([14.0, 15.0]), total=2, label="short"))

    assert said_by(loops) == []


def test_nested_loops_share_the_interval(clock: Clock) -> None:
    def loops() -> None:
        for _ in track(range(3), total=3, label="outer"):
            list(track(clock.over([16.0] * 3), total=3, label="inner"))

    # the inner loop says one after 32 s; the outer one is due at 96 s, 64 s of which are silent
    assert said_by(loops) == [
        "inner: 2 of 3, 16 s left",
        "inner: 2 of 3, 16 s left",
        "inner: 2 of 3, 16 s left",
    ]

    def slow() -> None:
        for _ in track(range(3), total=3, label="outer"):
            list(track(clock.over([25.0]), total=1, label="inner"))

    assert said_by(slow) == ["outer: 2 of 3, 25 s left"]


def test_what_was_there_already_says_nothing_about_the_time_left(clock: Clock) -> None:
    def resumed() -> None:  # 90 of 100 by an earlier call
        list(track(clock.over([16.0] * 10), total=100, done=90, label="svm"))

    assert said_by(resumed)[0] == "svm: 92 of 100, 2 min 8 s left"

    def found() -> None:  # the first 90 are found in a store in no time
        seconds = [0.0] * 90 + [16.0] * 10
        list(track(clock.over(seconds), total=100, label="maps", made=lambda one: one >= 90))

    assert said_by(found)[0] == "maps: 92 of 100, 2 min 8 s left"

    def nothing_made() -> None:
        list(track(clock.over([40.0] * 2), total=2, label="maps", made=lambda _: False))

    assert said_by(nothing_made) == ["maps: 1 of 2"]


def test_images_of_an_earlier_call_count(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "INTERVAL_S", 0)
    world = make_world(tmp_path, tiny, scenes())
    made = world.data.gather([2, 3, 0], lambda _: {}, lambda one: one, label="svm", done=5)
    assert list(made) == [{}] * 3
    lines = world.events("progress")
    assert [(r["done"], r["total"]) for r in lines] == [(6, 8), (7, 8)]


def test_the_log_has_the_lines_with_numbers(clock: Clock, tmp_path: Path) -> None:
    with log_file(tmp_path, Ranks()):
        list(track(clock.over([40.0] * 3), total=3, label="x"))
    assert [{**record, "time": ""} for record in log_of(tmp_path)] == [
        {"time": "", "event": "progress", "text": f"x: {done} of 3, {text} left"}
        | {"label": "x", "done": done, "total": 3, "seconds_left": left}
        for done, text, left in ((1, "1 min 20 s", 80), (2, "40 s", 40))
    ]


def test_a_process_beside_the_first_says_nothing(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, LOGGER.name):
        list(track(clock.over([INTERVAL_S] * 3), total=3, label="x"))
    assert not caplog.records
    with caplog.at_level(logging.INFO, LOGGER.name):
        list(track(clock.over([INTERVAL_S] * 3), total=3, label="x"))
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *(
            (0.0, "0 s"),
            (59.4, "59 s"),
            (59.6, "1 min"),
            (80.0, "1 min 20 s"),
            (599.4, "9 min 59 s"),
        ),
        *((600.0, "10 min"), (3569.0, "59 min"), (3571.0, "1 h"), (7499.0, "2 h 5 min")),
        (1e6, "277 h 47 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# -- on a terminal ---------------------------------------------------------------------------------


def test_bars_of_nested_loops_on_a_terminal(clock: Clock, tmp_path: Path) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, color_system=None)
    with handler_added(ConsoleHandler(console)), log_file(tmp_path, Ranks()):
        for k in track(range(2), total=2, label="folds"):
            for one in track(clock.over([40.0] * 3), total=3, label="[b] images"):
                if k == 1 and one == 1:
                    live = progress._BARS._live
                    assert live is not None
                    live.refresh()
                    LOGGER.info("a message")
    shown = file.getvalue()
    assert progress._BARS._live is None
    rows = [line.split() for line in shown.replace("\r", "\n").splitlines()]
    both = [(row[0], *row[-4:]) for row in rows if row[-2:] == ["s", "left"]]
    # 40 s of the item at work are over, and 80 s of its fold
    assert ("[b]", "1/3", "40", "s", "left") in both and ("folds", "1/2", "40", "s", "left") in both
    assert "a message\n" in shown
    assert "of 3" not in shown  # no lines beside bars, but in the log
    assert [r["done"] for r in log_of(tmp_path) if r["event"] == "progress"] == [1, 2, 1, 1, 2]


def test_a_bar_begins_with_what_an_earlier_call_has_done(clock: Clock) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, color_system=None)
    with handler_added(ConsoleHandler(console)):
        for _ in track(clock.over([1.0]), total=100, done=90, label="x"):
            live = progress._BARS._live
            assert live is not None
            live.refresh()
    assert "  90/100" in file.getvalue() and "0/100 " not in file.getvalue().replace("90/100 ", "")


def test_an_error_leaves_no_bar(clock: Clock) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, color_system=None)
    with handler_added(ConsoleHandler(console)):
        loop = track(clock.over([1.0] * 9), total=9, label="x")
        next(loop)
        first = progress._BARS._live
        assert first is not None
        end_bars()  # as a command does that fails: the loop is suspended, not closed
        assert not first.live.is_started
        again = track(clock.over([1.0] * 9), total=9, label="y")
        next(again)
        next(loop)
        del loop  # closes it
        assert progress._BARS._live is not None  # the other loop's
        del again
    assert progress._BARS._live is None

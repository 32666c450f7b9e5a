"""Logging of a run: into its own file, without a word to the program that uses the library."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import pytest

from runs import log_of
from sppdet.runs.distributed import Ranks
from sppdet.runs.log import LOGGER, RESULT, consoles, event, log_file, log_to_console, timed


def test_a_host_gets_what_it_would_get_without_a_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = LOGGER.level, LOGGER.propagate, LOGGER.handlers[:]
    with log_file(tmp_path, Ranks()):
        LOGGER.debug("a")
        LOGGER.info("b")
        LOGGER.warning("c")
    assert [record.getMessage() for record in caplog.records] == ["c"]
    assert [record["text"] for record in log_of(tmp_path)] == ["a", "b", "c"]
    assert (LOGGER.level, LOGGER.propagate, LOGGER.handlers) == state
    with caplog.at_level(logging.INFO), log_file(tmp_path, Ranks()):  # a host that wants messages
        LOGGER.debug("d")
        LOGGER.info("e")
    assert [record.getMessage() for record in caplog.records] == ["c", "e"]


def test_runs_in_several_threads_have_their_own_messages(tmp_path: Path) -> None:
    state = LOGGER.level, LOGGER.propagate, LOGGER.handlers[:]
    both, first_ended = threading.Barrier(2), threading.Event()

    def run(name: str) -> None:
        with log_file(tmp_path / name, Ranks()):
            both.wait()
            LOGGER.info("of %s", name)
            both.wait()
            if name == "b":
                first_ended.wait()
                LOGGER.debug("alone")
        first_ended.set()

    threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [record["text"] for record in log_of(tmp_path / "a")] == ["of a"]
    assert [record["text"] for record in log_of(tmp_path / "b")] == ["of b", "alone"]
    assert (LOGGER.level, LOGGER.propagate, LOGGER.handlers) == state


def test_messages_of_other_threads_are_kept(tmp_path: Path) -> None:
    with log_file(tmp_path, Ranks()):
        thread = threading.Thread(target=LOGGER.warning, args=("of a worker",))
        thread.start()
        thread.join()
    assert [record["text"] for record in log_of(tmp_path)] == ["of a worker"]


# -- on the console --------------------------------------------------------------------------------


def say_all() -> None:
    LOGGER.debug("details")
    LOGGER.info("a message " + "x" * 400)
    LOGGER.log(RESULT, "the result " + "y" * 400)
    LOGGER.info("next: %s", "z" * 400, extra=event("next", command="z" * 400))


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (logging.DEBUG, ["details", "a message", "the result", "next:"]),
        (logging.INFO, ["a message", "the result", "next:"]),
        (RESULT, ["the result"]),
    ],
)
def test_levels_of_the_console(
    level: int, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_to_console(level)
    with log_file(tmp_path, Ranks()):  # which wants everything
        say_all()
        assert len(consoles()) == (level < RESULT)  # no tables where no messages are
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(expected)
    assert all(line.startswith(text) for line, text in zip(lines, expected, strict=True))
    # messages may have foreign text, and are shortened; results and commands are whole
    lengths = {text: len(line) for line, text in zip(lines, expected, strict=True)}
    assert lengths["the result"] == 411 and lengths.get("next:", 406) == 406
    assert lengths.get("a message", 300) == 300
    assert len(log_of(tmp_path)) == 4


def test_json_on_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_to_console(logging.DEBUG, as_json=True)
    with log_file(tmp_path, Ranks()), timed(tmp_path, "svm", title="[1/2] svm: training"):
        LOGGER.warning("careful", extra=event("odd", value=float("nan")))
        assert consoles() == []
    out, err = capsys.readouterr()
    records = [json.loads(line, parse_constant=str) for line in out.splitlines()]
    assert records == log_of(tmp_path) and err == ""
    assert [(r["event"], r["text"].partition(" ")[0]) for r in records] == [
        ("stage started", "[1/2]"),
        ("odd", "careful"),
        ("stage ended", "svm"),
    ]
    assert records[1]["value"] is None


def test_of_several_processes_the_first_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, size, printed in (("0", "2", 1), ("1", "2", 0), ("1", "1", 1)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", size)
        LOGGER.setLevel(logging.NOTSET)
        log_to_console()
        LOGGER.info("a")
        assert capsys.readouterr().out == "a\n" * printed

"""Logging of a run: into its own file, without a word to the program that uses the library."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from runs import log_of
from sppdet.runs.distributed import Ranks
from sppdet.runs.log import LOGGER, log_file


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

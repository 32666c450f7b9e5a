"""What commands print: messages, quiet and verbose, JSON lines, what to do next."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from runs import CommandLine, log_of
from test_cli import COMMANDS, error_of


def records_of(out: str) -> list[dict[str, Any]]:
    """Lines of JSON in the strict sense, and nothing else."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in out.splitlines()]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_the_shared_options(sppdet: CommandLine, command: str) -> None:
    _, out, _ = sppdet(*[command] * bool(command), "--help")
    for option in ("-q, --quiet", "-v, --verbose", "--log-json", "--threads", "--debug"):
        assert out.count(f"  {option} ") == 1


def test_a_finished_training_quiet_and_verbose(
    sppdet: CommandLine, settings: Path, run_copy: Path
) -> None:
    run = run_copy.rename(run_copy.parent / "my run")
    train = ("train", settings, "--run", run, "--device", "cpu")
    status, usual, err = sppdet(*train)
    warning = "warning: 1 objects of other classes left out: ring 1\n"
    assert status == 0 and set(err.splitlines(keepends=True)) == {warning}
    lines = usual.splitlines()
    stages = [line for line in lines if line.startswith("[")]
    assert [line[:6] for line in stages] == [f"[{k}/8] " for k in range(1, 9)]
    assert lines[-1] == f"next: sppdet detect '{run}' FOLDER --out found"
    score = next(line for line in lines if line.startswith("mAP ("))

    for quiet in (["--quiet", *train], [*train, "-q"]):
        assert sppdet(*quiet) == (0, f"{score}\nthe run is in {run}\n", err)

    _, more, _ = sppdet(*train, "--verbose")
    assert re.search(r"^svm: fingerprint [0-9a-f]{16} .* has [0-9a-f]{16}$", more, re.MULTILINE)
    assert re.search(
        r"^svm ended after [0-9.]+ s, [0-9.]+ CPU seconds; all was there$", more, re.MULTILINE
    )
    assert set(lines) <= set(more.splitlines())


def test_json_lines_are_those_of_the_log(
    sppdet: CommandLine, settings: Path, run_copy: Path
) -> None:
    before = len(log_of(run_copy))
    train = ("train", settings, "--run", run_copy, "--device", "cpu")
    status, out, err = sppdet(*train, "--log-json")
    assert status == 0 and err.startswith("warning: 1 objects of other classes")
    *records, last = records_of(out)
    assert records == log_of(run_copy)[before:]
    assert last["event"] == "next" and last["command"].startswith("sppdet detect ")
    (score,) = [record for record in records if record["event"] == "evaluated"]
    assert 0 <= score["interval"][0] <= score["mean_ap"] <= score["interval"][1] <= 1
    assert {"run started", "stage started", "stage ended", "data"} <= {r["event"] for r in records}

    _, out, _ = sppdet("--log-json", *train, "-q")
    events = [record["event"] for record in records_of(out)]
    assert [event for event in events if event != "warning"] == ["evaluated", "message"]


def test_detections_as_json(
    sppdet: CommandLine, settings: Path, trained: Path, tmp_path: Path
) -> None:
    fresh = settings.parent / "set" / "fresh"
    status, out, err = sppdet("detect", trained, fresh, "--out", tmp_path / "a", "-q", "--log-json")
    (record,) = records_of(out)
    assert (status, err, record["event"]) == (0, "", "detected")
    assert (record["images"], record["failed"]) == (3, 0)
    assert record["text"].startswith(f"{record['detections']} detections in 3 images")


def test_products_and_errors_as_json(sppdet: CommandLine, trained: Path, tmp_path: Path) -> None:
    for arguments in (["info", trained], ["init", "--list"], ["init", "squeezenet_small"]):
        _, plain, _ = sppdet(*arguments)
        assert sppdet(*arguments, "--quiet") == (0, plain, "")  # they are what was asked for
        status, out, err = sppdet(*arguments, "--log-json")
        assert (status, err) == (0, "")
        records = records_of(out)
        assert [record["text"] for record in records] == plain.splitlines()
        assert {record["event"] for record in records} == {"output"}
    status, out, err = sppdet("info", tmp_path, "--log-json")
    (record,) = records_of(out)
    assert (status, record["event"]) == (1, "error")
    assert error_of(status, err) == record["text"]


def test_options_that_contradict_each_other(sppdet: CommandLine, trained: Path) -> None:
    for words in (["info", trained, "-q", "-v"], ["--quiet", "info", trained, "--verbose"]):
        status, out, err = sppdet(*words)
        assert out == "" and error_of(status, err) == "--quiet and --verbose: expected one of them"
    assert sppdet("info", trained)[0] == 0  # nothing is left of it


def test_options_after_the_command_count(
    sppdet: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, err = sppdet("info", tmp_path, "--debug")
    assert err.startswith("Traceback")
    seen: list[int] = []
    monkeypatch.setattr("sppdet.runs.environment.set_threads", seen.append)
    for arguments in (["report", tmp_path, "--threads", "3"], ["report", tmp_path]):
        sppdet(*arguments)
    assert seen == [3, 1]  # the second is what the fixture gives before the command


def test_the_command_that_goes_on(sppdet: CommandLine, settings: Path, tmp_path: Path) -> None:
    run = tmp_path / "it's"
    for until in (["--until", "data"], ["--until=data"]):
        status, out, _ = sppdet("train", settings, *until, "--run", run)
        assert status == 0
        command = f"sppdet --threads 1 train {settings} --run {shlex.quote(str(run))}"
        assert out.splitlines()[-1] == f"next: {command}"
    assert shlex.split(command)[-1] == str(run)


def test_a_training_without_a_test_set_has_no_metric(
    sppdet: CommandLine, settings: Path, run_copy: Path
) -> None:
    train = ("train", settings, "--run", run_copy, "--device", "cpu", "--set", "data.test=null")
    status, out, _ = sppdet(*train, "--quiet")
    expected = "no test set, so there is no metric (data.test names one)"
    assert (status, out) == (0, f"{expected}\nthe run is in {run_copy}\n")

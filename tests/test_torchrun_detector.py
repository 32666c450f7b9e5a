"""A detector's training that several processes share, as `torchrun` starts them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from runs import KILLED, contents, log_of, torchrun, train_quietly
from sppdet.runs.artifacts import read_json, read_tensors

TOLERANCE = {"head": 1e-4, "svm": 5e-3, "bbox": 1e-3}  # of the largest weight
# checkpoints at every pool and image; no dropout, which differs between processes; SVMs close to
# their optimum
CONFIG = ("checkpoint_minutes=0", "head.dropout=0", "svm.tolerance=2e-5")
MORE = tuple(part for setting in CONFIG for part in ("--set", setting))
ONLY_ONE = """
import os, sys
if os.environ["RANK"] != sys.argv.pop(4):
    sys.argv[2] = "0"
"""
# torchrun tells the other one to end before that one has said why it ends
SLOW_TO_END = """
import builtins, time
say = builtins.print
def slowly(*words, **named):
    time.sleep(named.get("file") is sys.stderr)
    say(*words, **named)
builtins.print = slowly
"""


@pytest.fixture(scope="module")
def alone(settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process with one thread."""
    run = tmp_path_factory.mktemp("alone")
    train_quietly(settings, run, *CONFIG)
    return run


def assert_close(run: Path, alone: Path, parts: Sequence[str] = ("head", "svm", "bbox")) -> None:
    """Stored proposals, maps: the same bytes. The rest: the same within rounding."""
    for kind in ("proposals", "maps"):
        stored = contents(run, f"store/{kind}-*/*")
        assert len(stored) >= 12 and stored == contents(alone, f"store/{kind}-*/*")
    for part in parts:
        ours, theirs = (read_tensors(r / "model" / f"{part}.safetensors")[0] for r in (run, alone))
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            bound = TOLERANCE[part] * float(tensor.abs().max())
            assert float((ours[name] - tensor).abs().max()) < bound, (part, name)
    scores = [read_json(r / "eval" / "test" / "voc07" / "metrics.json") for r in (run, alone)]
    assert scores[0]["mAP"] == pytest.approx(scores[1]["mAP"], abs=0.02)


def test_several_processes_train_as_one(settings: Path, alone: Path, tmp_path: Path) -> None:
    ended = torchrun(2, "train", settings, "--run", tmp_path, "--device", "cpu", *MORE)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("the run is in") == 1  # one of them speaks
    assert_close(tmp_path, alone)
    assert not (tmp_path / ".lock").exists() and not (tmp_path / "state").exists()
    said = [[r.get("text", "") for r in log_of(run)] for run in (tmp_path, alone)]
    trained = [[t for t in texts if t.startswith("svm: ") and "objective" in t] for texts in said]
    assert len(trained[0]) == len(trained[1]) > 4  # each class more than once


def test_several_processes_without_a_head(settings: Path, tmp_path: Path) -> None:
    without = ("--set", "head=none", "--set", "workers=1", "--set", "svm.tolerance=2e-5")
    runs = [tmp_path / "one", tmp_path / "three"]
    train_quietly(settings, runs[0], *without[1::2])
    ended = torchrun(3, "train", settings, "--run", runs[1], "--device", "cpu", *without)
    assert ended.returncode == 0, ended.stderr
    assert_close(runs[1], runs[0], ("svm", "bbox"))
    # box regression shares out whole classes: nothing else is summed
    assert contents(runs[1] / "model", "bbox*") == contents(runs[0] / "model", "bbox*")


def test_several_processes_share_a_bound_on_the_disk(
    settings: Path, alone: Path, tmp_path: Path
) -> None:
    wanted = contents(alone, "store/maps-*/*")
    for part in (0.5, 0.8):  # the second goes on with what the first has left
        most = int(part * sum(map(len, wanted.values())))
        bound = ("--set", f"features.max_disk={most / 1e9}", "--until", "features")
        ended = torchrun(2, "train", settings, "--run", tmp_path, "--device", "cpu", *MORE, *bound)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("others are recomputed") == 1
        stored = contents(tmp_path, "store/maps-*/*")
        assert (part - 0.2) * most < sum(map(len, stored.values())) <= most
        assert stored.items() < wanted.items()


def test_several_processes_evaluate_as_one(alone: Path, tmp_path: Path) -> None:
    ended = torchrun(2, "eval", alone, "--split", "train")
    assert ended.returncode == 0, ended.stderr
    scored = contents(alone / "eval" / "train", "**/*")
    assert len(scored) > 6
    stored = contents(alone, "store/detections-*/*")
    for path in alone.glob("store/detections-*/*"):
        path.unlink()
    again = subprocess.run(
        [sys.executable, "-m", "sppdet", "--threads", "1", "eval", str(alone), "--split", "train"],
        capture_output=True,
    )
    assert again.returncode == 0
    assert {
        k: v for k, v in contents(alone / "eval" / "train", "**/*").items() if "png" not in k
    } == {k: v for k, v in scored.items() if "png" not in k}
    assert contents(alone, "store/detections-*/*").items() <= stored.items()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_a_process_that_is_killed_ends_all_and_training_goes_on(
    settings: Path, alone: Path, tmp_path: Path
) -> None:
    program = tmp_path / "killed.py"
    program.write_text(ONLY_ONE + SLOW_TO_END + KILLED, encoding="utf-8")
    run = tmp_path / "run"
    command: list[str | Path] = ["train", settings, "--run", run, "--device", "cpu", *MORE]
    for rank, pattern, nth in (
        (0, "state/finetune.safetensors", 1),
        (0, "state/svm.safetensors", 4),
        (1, "state/bbox-2.safetensors", 1),
    ):
        kill = ("--", program, pattern, str(nth), "after", str(rank))
        ended = torchrun(2, *command, program=kill)
        assert ended.returncode != 0
        other = f"process {1 - rank} of 2"
        assert f"error: {other} " in ended.stderr, (pattern, ended.stderr)
        assert "SIGKILL" in ended.stderr
        assert not (run / "eval").exists()
    ended = torchrun(2, *command)
    assert ended.returncode == 0, ended.stderr
    assert_close(run, alone)
    texts = [str(record.get("text", "")) for record in log_of(run)]
    for start in (
        "finetune: going on after batch",
        "svm: going on after image",
        "bbox: going on",
    ):
        assert any(text.startswith(start) for text in texts), start

"""Interrupted runs: killed anywhere, they end with the same bytes as one left in peace."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from runs import Forks, contents, log_of, results, train_quietly

KILLS = (
    ("store/proposals-*/*", 5, "after"),
    ("store/maps-*/*", 4, "before"),
    ("state/finetune.safetensors", 2, "after"),
    ("state/svm.safetensors", 5, "after"),
    ("state/bbox-3.safetensors", 1, "before"),
    ("model/bbox.safetensors", 1, "before"),
    ("state/calibrate.safetensors", 7, "after"),
    ("store/detections-*/*", 3, "after"),
)


@pytest.mark.skipif(sys.platform != "linux", reason="needs forks as Linux has them")
def test_a_run_that_is_killed_again_and_again(
    settings: Path, trained: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    command = ["--threads", "1", "train", str(settings), "--run", str(tmp_path)]
    command += ["--set", "checkpoint_minutes=0", "--device", "cpu"]
    with Forks(tmp_path_factory.mktemp("forks")) as forks:
        for kill in KILLS:
            status, _, error = forks.run(command, kill)
            assert status == -signal.SIGKILL, (kill, error)
            assert (tmp_path / ".lock").exists()
            left = list(tmp_path.rglob(".tmp-*"))  # those of the calls before are gone
            assert len(left) == (kill[2] == "before")
            assert not (tmp_path / "eval").exists()
        status, _, error = forks.run(command)
        assert status == 0, error
    assert results(tmp_path) == results(trained)
    assert not (tmp_path / "state").exists() and not (tmp_path / ".lock").exists()
    assert not list(tmp_path.rglob(".*"))

    log = log_of(tmp_path)
    starts = [i for i, record in enumerate(log) if record["event"] == "run started"]
    assert len(starts) == len(KILLS) + 1
    said = [
        [str(record.get("text", "")) for record in log[first:end]]
        for first, end in zip(starts, [*starts[1:], None], strict=True)
    ]
    # call 0 was killed at the proposals, 1 at the maps, 2 in fine-tuning and so on
    (tuned,) = (text for text in said[3] if "finetune: going on after batch" in text)
    assert 0 < int(tuned.split()[5]) < 30
    assert "svm: going on after image 5 of 12" in said[4]
    regressed = [[t.split()[1] for t in texts if " examples, " in t] for texts in said]
    assert regressed[4] == ["disc:", "square:"]  # the third was being written
    assert "bbox: going on after disc, square" in said[5]
    assert regressed[5] == ["disc:", "square:", "star:", "triangle:"]
    assert "bbox: going on after disc, square, star, triangle" in said[6]
    assert "svm: there already" in said[6]
    assert "bbox: there already" in said[7]
    assert "calibrate: going on after 7 images" in said[7]
    assert "calibration: there already" in said[8]


def test_stores_go_on_where_they_were(settings: Path, run_copy: Path) -> None:
    files = sorted((run_copy / "store").glob("[pm]*/*.safetensors"))
    lost = files[:12:5] + files[20::5]  # maps of training images, proposals
    stamps = {p: p.stat().st_mtime_ns for p in files}
    whole = {p: p.read_bytes() for p in lost}
    for path in lost:
        path.unlink()
    train_quietly(settings, run_copy, until="features")
    assert {p for p in files if p.stat().st_mtime_ns != stamps[p]} == set(lost)
    assert {p: p.read_bytes() for p in lost} == whole


@pytest.mark.parametrize("part", ["backbone", "head", "svm", "bbox"])
def test_a_truncated_part_of_the_model_is_made_again(
    settings: Path, run_copy: Path, part: str
) -> None:
    whole = contents(run_copy / "model")
    path = run_copy / "model" / f"{part}.safetensors"
    path.write_bytes(whole[path.name][:-7])
    _, said = train_quietly(settings, run_copy, until="bbox")
    assert contents(run_copy / "model") == whole
    redone = [line.split(":")[0] for line in said.splitlines() if line.endswith("made again")]
    assert redone == [p for p in (part,) if p != "backbone"]


def test_a_damaged_seal_is_made_again(settings: Path, run_copy: Path) -> None:
    seal = run_copy / "model" / "trained.json"
    whole = seal.read_bytes()
    seal.write_bytes(whole[:1])
    train_quietly(settings, run_copy, until="bbox")
    assert seal.read_bytes() == whole


@pytest.mark.parametrize("kind", ["proposals", "maps", "detections"])
def test_a_truncated_item_of_a_store_is_made_again(
    settings: Path, run_copy: Path, kind: str
) -> None:
    path = sorted((run_copy / "store").glob(f"{kind}-*/*.safetensors"))[2]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    train_quietly(settings, run_copy, until="evaluate" if kind == "detections" else "features")
    assert path.read_bytes() == whole


def test_a_checkpoint_by_other_settings_or_damaged_is_not_used(
    settings: Path, trained: Path, run_copy: Path
) -> None:
    (run_copy / "model" / "svm.safetensors").unlink()
    state = run_copy / "state" / "svm.safetensors"
    state.parent.mkdir()
    for content in ((trained / "model" / "head.safetensors").read_bytes(), b"half"):
        state.write_bytes(content)
        _, said = train_quietly(settings, run_copy, until="svm")
        assert "going on after" not in said
        assert contents(run_copy / "model") == contents(trained / "model")
        (run_copy / "model" / "svm.safetensors").unlink()


def test_a_damaged_list_of_images_is_made_again(settings: Path, run_copy: Path) -> None:
    whole = (run_copy / "images.json").read_bytes()
    (run_copy / "images.json").write_bytes(whole[:100])
    _, said = train_quietly(settings, run_copy, until="bbox")
    assert said.count("there already") == 3
    assert (run_copy / "images.json").read_bytes() == whole

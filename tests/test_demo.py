"""The demo at a small scale: every part of it runs, and a second call finds it all there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from runs import CommandLine
from sppdet.demo.run import run_demo
from sppdet.demo.scene import CLASS_NAMES
from sppdet.errors import DataError
from sppdet.features.folding import folded
from sppdet.io.backbone_weights import load_backbone
from sppdet.runs.artifacts import fingerprint_of, read_tensors
from sppdet.runs.log import ConsoleHandler, handler_added
from sppdet.stages.model_files import read_run_config

SMALLER = (
    *("scales=[120,200]", "proposals.image_width=200", "proposals.max_boxes=120", "workers=2"),
    *("head.widths=[16]", "finetune.batches=10", "finetune.snapshots=2"),
)


def demo(out: Path, *, seed: int = 0, backbone_epochs: int = 1) -> float:
    with handler_added(ConsoleHandler()):
        return run_demo(
            out,
            seed=seed,
            train_images=8,
            test_images=4,
            fresh_images=2,
            backbone_epochs=backbone_epochs,
            overrides=SMALLER,
        )


def test_a_small_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score = demo(tmp_path)
    said = capsys.readouterr().out
    assert re.search(rf"^mAP \(.*, set-test\): {score:.4f}$", said, re.MULTILINE)
    metrics = json.loads(
        (tmp_path / "run" / "eval" / "test" / "voc07" / "metrics.json").read_text()
    )
    assert metrics["mAP"] == score
    config = read_run_config(tmp_path / "run")
    assert config.backbone.weights == str(tmp_path / "backbone")
    assert config.data.root == [tmp_path / "set"] and config.svm.layer == "fc6"
    wanted = folded(load_backbone("tiny", str(tmp_path / "backbone"))).layers.state_dict()
    used, _ = read_tensors(tmp_path / "run" / "model" / "backbone.safetensors")
    assert used.keys() == wanted.keys()
    assert all(torch.equal(used[key], wanted[key]) for key in used)
    found = json.loads((tmp_path / "detections" / "detections.json").read_text())
    assert [image["file_name"] for image in found["images"]] == ["000013.jpg", "000014.jpg"]
    assert [category["name"] for category in found["categories"]] == sorted(CLASS_NAMES)
    files = {p.name for p in (tmp_path / "detections").iterdir()}
    joint = ("detections.json", "detections.jsonl", "detections.csv", "coco_results.json")
    folders = ("images", "Annotations", "crops", "yolo")
    assert files == {*folders, *joint, ".sppdet-detect.jsonl"}
    timings = [
        json.loads((tmp_path / run / "timings.json").read_text()) for run in ("backbone", "run")
    ]
    assert list(timings[0]) == ["pretrain"]
    assert next(iter(timings[1])) == "data" and list(timings[1])[-1] == "evaluate"

    model = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "model").iterdir()}
    last = tmp_path / "backbone" / "model" / "last.safetensors"
    backbone = fingerprint_of(last)
    assert demo(tmp_path) == score
    said = capsys.readouterr().out
    assert said.count("there already") == 5  # the backbone, head, SVMs, box regressors, calibration
    assert {p: p.stat().st_mtime_ns for p in model} == model

    with pytest.raises(Exception, match="holds a demo set made by"):
        demo(tmp_path, seed=1)
    assert fingerprint_of(last) == backbone


def test_the_command(sppdet: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[Path, int]] = []
    monkeypatch.setattr("sppdet.demo.run.run_demo", lambda out, *, seed: asked.append((out, seed)))
    assert sppdet("demo", "--out", tmp_path, "--seed", "5")[0] == 0
    assert asked == [(tmp_path, 5)]


def test_nothing_but_the_demos_own_crops_is_removed(tmp_path: Path) -> None:
    mine = tmp_path / "crops" / "holiday.jpg"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    with pytest.raises(DataError, match="crops: wasn't made by the demo"):
        demo(tmp_path)
    (tmp_path / "crops" / "made_by.txt").write_text("me")
    with pytest.raises(DataError, match="crops: wasn't made by the demo"):
        demo(tmp_path)
    assert mine.read_bytes() == b"mine"

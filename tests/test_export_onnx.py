"""A model as ONNX files: what the example that runs them without torch finds is what sppdet finds."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kinds import Pair
from runs import CommandLine
from sppdet.config import DetectConfig
from sppdet.detection.detect import Classifiers
from sppdet.detection.onnx_head import PooledScores, _log_odds
from sppdet.errors import ArtifactError, ConfigError, SppdetError
from sppdet.features.backbones import conv_backbone
from sppdet.io.finding import find_images
from sppdet.stages import export_onnx as module
from sppdet.stages.detector import Detector
from sppdet.stages.export_onnx import export_onnx
from sppdet.stages.trained_model import TrainedModel
from sppdet.types import Detections

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

EXAMPLE = Path(__file__).parents[1] / "examples" / "onnx_detect.py"
LEAST = {"svm": -1.0, "softmax": -5.0}  # scores that little training reaches


def plain(model: TrainedModel) -> TrainedModel:
    """The model without the settings that the example leaves out."""
    config = model.config
    features = config.features.model_copy(update={"precision": "auto", "rounding": "float16"})
    own = config.detect
    detect = DetectConfig(nms=0.4, max_per_class=7, svd=own.svd, max_windows=own.max_windows)
    detect = detect.model_copy(update={"min_score": LEAST[config.classifier]})
    changed = config.model_copy(update={"features": features, "detect": detect})
    return replace(model, config=changed)


def run_example(*arguments: str | Path) -> list[dict[str, Any]]:
    command = [sys.executable, EXAMPLE, *arguments]
    # without this package and without torch, whatever is installed
    block = (
        "import sys; sys.modules.update(torch=None, sppdet=None); import runpy; sys.argv.pop(0);"
    )
    block += "runpy.run_path(sys.argv[0])"
    command = [sys.executable, "-c", block, *map(str, command[1:])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def with_thresholds(folder: Path) -> None:
    """Take all detections of LEAST and more; the own thresholds may let none pass."""
    path = folder / "detector.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    least = LEAST["svm" if facts["scores"] == "margins" else "softmax"]
    facts["thresholds"] = [float(np.nextafter(least, -9))] * len(facts["class_names"])
    path.write_text(json.dumps(facts), encoding="utf-8")


def assert_near(rows: list[dict[str, Any]], expected: Detections) -> None:
    rows = sorted(rows, key=lambda row: -row["score"])
    assert len(rows) == len(expected) > 0
    np.testing.assert_allclose([row["score"] for row in rows], expected.scores, atol=1e-4)
    assert [row["class"] for row in rows] == expected.names()
    np.testing.assert_allclose([row["box"] for row in rows], expected.boxes, atol=2e-2)


def test_the_example_detects_as_sppdet_does(pair: Pair, demo_root: Path, tmp_path: Path) -> None:
    model, folder = plain(TrainedModel.open(pair.file)), tmp_path / "onnx"
    lines = export_onnx(model, folder)
    assert [line.partition(":")[0] for line in lines] == ["layers.onnx", "head.onnx"]
    for name in ("layers.onnx", "head.onnx"):
        onnx.checker.check_model(folder / name, full_check=True)
    with_thresholds(folder)
    detector = Detector.of(model, device="cpu")
    shown = find_images([demo_root / "fresh"])[:2]
    odd = (
        tmp_path / "odd.png"
    )  # narrower than what networks take, and turned at no scale to whole cells
    Image.open(shown[0]).resize((61, 203)).save(odd)
    for image in (*shown, odd):
        pixels = detector.read(image)
        proposals = detector.proposer.of(pixels)
        np.savez(tmp_path / "boxes.npz", boxes=proposals.boxes)
        height, width = pixels.shape[:2]
        views = detector.prepare(pixels)
        expected = detector.detect_prepared(views, proposals, width=width, height=height)
        assert_near(run_example(folder, image, tmp_path / "boxes.npz"), expected)


def test_the_example_is_short_and_needs_little() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    imported = [one for one in ast.walk(ast.parse(text)) if isinstance(one, ast.Import)]
    names = {alias.name for one in imported for alias in one.names}
    assert names == {"json", "sys", "cv2", "numpy", "onnxruntime"}


def test_the_example_names_its_arguments() -> None:
    ended = subprocess.run([sys.executable, EXAMPLE, "folder"], capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1
    assert "FOLDER IMAGE [PROPOSALS.npz]" in ended.stderr


def test_by_the_command_line(
    sppdet: CommandLine, exported: Path, trained: Path, demo_root: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "onnx"
    status, said, err = sppdet("export", exported, "--onnx", folder)
    assert (status, err) == (0, "")
    assert said.splitlines()[2:] == [f"written to {folder}"]
    assert "layers.onnx: " in said and "of torch's largest value" in said
    facts = json.loads((folder / "detector.json").read_text(encoding="utf-8"))
    detector = Detector.load(trained, device="cpu")
    assert facts["class_names"] == list(detector.class_names)
    assert facts["left_out"] == [] and facts["weights"] == "random"
    assert str(tmp_path.parent) not in json.dumps(facts)
    assert detector.calibration is not None
    # the thresholds are scores of one probability
    logits = np.multiply(facts["slopes"], facts["thresholds"]) + facts["intercepts"]
    np.testing.assert_allclose(logits, logits[0], atol=1e-5)
    rows = run_example(folder, find_images([demo_root / "fresh"])[0])  # by OpenCV's own search
    assert all(row["score"] >= min(facts["thresholds"]) for row in rows)
    file = tmp_path / "model.sppdet"
    status, said, err = sppdet("export", trained, file, "--onnx", folder)  # the same again
    assert (status, err) == (0, "") and file.read_bytes() == exported.read_bytes()


def test_the_example_with_odd_input(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "onnx"
    export_onnx(TrainedModel.open(exported), folder)
    tall = tmp_path / "tall.png"  # of a search that would take minutes at 500 pixels of width
    Image.effect_noise((20, 1200), 60).convert("RGB").save(tall)
    np.savez(tmp_path / "none.npz", boxes=np.zeros((0, 4), np.float32))
    assert run_example(folder, tall, tmp_path / "none.npz") == []
    run_example(folder, tall)
    missing = str(tmp_path / "missing.png")
    command = [sys.executable, str(EXAMPLE), str(folder), missing]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert ended.stderr.endswith(f"{missing}: can't be read\n")  # OpenCV warns before


def test_what_is_there_is_not_overwritten(exported: Path, tmp_path: Path) -> None:
    model = TrainedModel.open(exported)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "head.onnx").write_bytes(b"mine")
    with pytest.raises(ArtifactError, match=r"head\.onnx: `sppdet export` hasn't written it"):
        export_onnx(model, foreign)
    assert [path.name for path in foreign.iterdir()] == ["head.onnx"]
    folder = tmp_path / "onnx"
    export_onnx(model, folder)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    export_onnx(model, folder)
    assert first == {path.name: path.read_bytes() for path in folder.iterdir()}
    with_thresholds(folder)
    with pytest.raises(ArtifactError, match=r"detector\.json: .* or it has changed since"):
        export_onnx(model, folder)


def test_what_the_example_leaves_out_is_said(
    exported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = TrainedModel.open(exported)
    detect = DetectConfig(flip=True, box_voting=0.5)
    export_onnx(replace(model, config=model.config.model_copy(update={"detect": detect})), tmp_path)
    assert "leaves out detect.box_voting, detect.flip" in caplog.text
    assert json.loads((tmp_path / "detector.json").read_text())["left_out"] == [
        *("detect.box_voting", "detect.flip"),
    ]


def test_what_is_not_exported(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TrainedModel.open(exported)
    features = model.config.features.model_copy(update={"precision": "bfloat16"})
    half = replace(model, config=model.config.model_copy(update={"features": features}))
    with pytest.raises(
        ConfigError, match=r"features\.precision: bfloat16, expected float32 for ONNX"
    ):
        export_onnx(half, tmp_path / "out")
    with pytest.raises(
        SppdetError, match=r"layers\.onnx: its maps differ .* expected at most 0\.0001"
    ):
        module._layers(conv_backbone("zf5"))  # whose norms become constants
    genuine = PooledScores.forward

    def wrong(self: PooledScores, pooled: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scores, deltas = genuine(self, pooled)
        return scores, deltas + 2e-4

    monkeypatch.setattr(PooledScores, "forward", wrong)
    with pytest.raises(SppdetError, match=r"head\.onnx: its deltas differ from torch's by 0\.0002"):
        export_onnx(model, tmp_path / "out")
    monkeypatch.setattr(PooledScores, "forward", lambda *_: torch.special.i0e(torch.zeros(2)))
    with pytest.raises(SppdetError, match=r"head\.onnx: torch can't export") as caught:
        export_onnx(model, tmp_path / "out")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(module, "is_installed", lambda: False)
    with pytest.raises(ConfigError, match=r"pip install 'sppdet\[onnx\]'"):
        export_onnx(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_log_odds_without_expm1() -> None:
    """Against the detector's own formula, from sure to impossible."""
    linear = torch.cat([torch.randn(200, 4) * s for s in (1e-3, 1.0, 20.0, 300.0)])
    own = Classifiers("fc6", torch.zeros(4, 1), torch.zeros(4), "softmax").scores(linear)
    assert float(own.max()) > 15 and float(own.min()) < -500
    torch.testing.assert_close(_log_odds(linear), own, rtol=1e-6, atol=1e-6)

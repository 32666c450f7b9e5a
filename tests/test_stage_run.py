"""The whole pipeline learns a few images by heart; its detections and scores against slow loops."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from runs import train_quietly
from sppdet.config import FeaturesConfig, ProposalsConfig
from sppdet.features.head import Head, empty_head
from sppdet.io.backbone_weights import load_backbone
from sppdet.io.image_cache import ImageCache
from sppdet.proposals.selective_search import selective_search
from sppdet.runs.artifacts import write_tensors
from sppdet.stages.detector import Detector
from sppdet.stages.evaluate import evaluate_run
from sppdet.stages.map_cache import MapCache
from sppdet.training_config import HeadConfig, Layer
from sppdet.types import ImageArray
from stages import (
    CANONICAL,
    LEVELS,
    NAMES,
    SCALES,
    Box,
    Scene,
    easy_scenes,
    scenes,
    slow_feature,
    slow_iou,
    slow_layer,
    slow_moved,
    slow_nms,
    write_voc,
)

COMMON: dict[str, Any] = {
    "backbone": {"name": "tiny", "weights": "none"},
    "proposals": {"image_width": 128, "min_size": 12, "max_boxes": 120},
    "scales": SCALES,
    "spp_levels": list(LEVELS),
    "features": {"canonical_size": CANONICAL},
    "svm": {"C": 0.1},
    "bbox": {"ridge": 100.0},
    "workers": 1,
}
RUNS: dict[str, dict[str, Any]] = {
    "pool5": {"head": "none"},
    "fc6": {
        "head": {"widths": [48], "dropout": 0.2},
        "finetune": {"batches": 150, "batch_size": 32, "lr": 0.02, "pool_images": 6},
    },
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images in the layout of VOC, the same for training and test."""
    return write_voc(tmp_path_factory.mktemp("learned") / "set", easy_scenes(6))


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, root: Path) -> Path:
    """A finished run."""
    data = {"root": str(root), "train": "all", "test": "all"}
    path = root.parent / f"{request.param}.yaml"
    path.write_text(yaml.safe_dump({"data": data, **COMMON, **RUNS[request.param]}))
    train_quietly(path, path.with_suffix(""))
    return path.with_suffix("")


def test_it_learns(run: Path) -> None:
    metrics = json.loads((run / "eval" / "test" / "voc07" / "metrics.json").read_text())
    assert metrics["images"] == 6 and metrics["ground_truths"] == 9
    assert metrics["mAP"] > 0.9


def test_a_pretrained_head_is_used_as_it_is_without_fine_tuning(root: Path, tmp_path: Path) -> None:
    backbone = load_backbone("tiny", "none", seed=5)
    head = empty_head(backbone, LEVELS, HeadConfig(widths=[24]), 7)
    given = {f"conv.{k}": v for k, v in backbone.layers.state_dict().items()}
    given |= {f"head.{k}": v for k, v in head.state_dict().items()}
    about = {"net": "tiny", "levels": list(LEVELS)}
    write_tensors(tmp_path / "net" / "model" / "net.safetensors", given, made_by="x", about=about)
    settings = {
        **COMMON,
        "data": {"root": str(root), "train": "all"},
        "backbone": {"name": "tiny", "weights": str(tmp_path / "net")},
        "head": {"widths": [24]},
        "finetune": "none",
    }
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(settings))
    train_quietly(path, tmp_path / "run", until="svm")
    kept = tmp_path / "run" / "model" / "head.safetensors"
    for name in ("fc6.weight", "fc6.bias"):
        assert np.array_equal(load_file(kept)[name], given[f"head.{name}"].detach().numpy())
    before = kept.stat().st_mtime_ns
    train_quietly(path, tmp_path / "run", until="svm")
    assert kept.stat().st_mtime_ns == before  # it is there already
    train_quietly(path, tmp_path / "run", "head=none", until="svm")
    assert not kept.exists()


# -- detections ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A detection, or a line of a result file."""

    image: str
    label: int
    score: float
    box: Box


class SlowDetector:
    """Detection from the files of a model, proposal by proposal."""

    def __init__(self, run: Path) -> None:
        self.svm = load_file(run / "model" / "svm.safetensors")
        self.bbox = load_file(run / "model" / "bbox.safetensors")
        self.head: Head | None = None
        self.layer: Layer = "pool5"
        backbone = load_backbone("tiny", "none")
        if (run / "model" / "head.safetensors").exists():
            config = HeadConfig.model_validate(RUNS["fc6"]["head"])
            self.head = empty_head(backbone, LEVELS, config, len(NAMES) + 1)
            tensors = load_file(run / "model" / "head.safetensors")
            self.head.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()})
            self.layer = "fc6"
        features = FeaturesConfig(canonical_size=CANONICAL)
        self.source = MapCache(backbone, SCALES, features, ImageCache())
        self.clipped = 0

    def __call__(self, image: str, pixels: ImageArray) -> list[Found]:
        """All detections of an image."""
        maps = self.source.compute(self.source.scaled(pixels))
        proposals = selective_search(pixels, ProposalsConfig(**COMMON["proposals"]))
        boxes: list[Box] = [(a, b, c, d) for a, b, c, d in proposals.boxes.tolist()]
        pooled = [slow_feature(maps, box, "pool5", None) for box in boxes]
        scored = [slow_layer(x, self.layer, self.head) for x in pooled]
        found = []
        for k in range(len(NAMES)):
            scores = [self.svm["weights"][k] @ x + self.svm["biases"][k] for x in scored]
            order = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
            order = [i for i in order if scores[i] >= -1.5]
            kept = [order[i] for i in slow_nms([boxes[i] for i in order], 0.3)][:100]
            for i in kept:
                deltas = pooled[i] @ self.bbox["weights"][k] + self.bbox["biases"][k]
                box = self.clip(slow_moved(boxes[i], deltas.tolist()), pixels) or boxes[i]
                found.append(Found(image, k + 1, float(scores[i]), box))
        return found

    def clip(self, box: Box, image: ImageArray) -> Box | None:
        """The part of a box inside an image; None where there is none."""
        height, width = image.shape[:2]
        x1, x2 = (min(max(x, 0.0), float(width)) for x in box[::2])
        y1, y2 = (min(max(y, 0.0), float(height)) for y in box[1::2])
        self.clipped += (x1, y1, x2, y2) != box
        return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def assert_same(found: list[Found], expected: list[Found]) -> None:
    """The same images and classes in descending score; scores and boxes within rounding."""

    def order(d: Found) -> tuple[str, int, float]:
        return d.image, d.label, -d.score

    found, expected = sorted(found, key=order), sorted(expected, key=order)
    assert [(d.image, d.label) for d in found] == [(d.image, d.label) for d in expected]
    np.testing.assert_allclose(
        [d.score for d in found], [d.score for d in expected], rtol=1e-3, atol=2e-3
    )
    np.testing.assert_allclose([d.box for d in found], [d.box for d in expected], atol=0.05)


def result_files(folder: Path) -> list[Found]:
    """The lines of the devkit's files, in our convention."""
    found = []
    for path in sorted(folder.glob("comp4_det_*.txt")):
        label = NAMES.index(path.stem.split("_")[-1]) + 1
        for line in path.read_text().splitlines():
            image, score, *sides = line.split()
            x1, y1, x2, y2 = map(float, sides)
            found.append(Found(image, label, float(score), (x1 - 1, y1 - 1, x2, y2)))
    return found


def test_detections_are_raw_features_times_the_models_files(run: Path, root: Path) -> None:
    slow, detector = SlowDetector(run), Detector.load(run, device="cpu")
    expected: list[Found] = []
    for i, scene in enumerate(easy_scenes(6)):
        here = slow(f"im{i}", scene.image)
        made = detector(root / "JPEGImages" / f"im{i}.png")
        rows = zip(made.labels.tolist(), made.scores.tolist(), made.boxes.tolist(), strict=True)
        assert_same([Found(f"im{i}", k, s, (*box,)) for k, s, box in rows], here)
        expected += here
    assert slow.clipped > 0  # the bounds of the images matter
    assert_same(result_files(run / "eval" / "test"), expected)


# -- scores ----------------------------------------------------------------------------------------


def slow_ap(found: list[Found], given: list[Scene], label: int) -> float:
    """11-point average precision of a class, detection by detection."""
    objects = {
        (f"im{i}", j): (box, difficult)
        for i, s in enumerate(given)
        for j, (box, k, difficult) in enumerate(zip(s.boxes, s.labels, s.difficult, strict=True))
        if k == label
    }
    count = sum(not difficult for _, difficult in objects.values())
    taken: set[tuple[str, int]] = set()
    right, wrong = 0, 0
    curve = []
    for d in sorted((d for d in found if d.label == label), key=lambda d: -d.score):
        ious = {key: slow_iou(d.box, box) for key, (box, _) in objects.items() if key[0] == d.image}
        best = max(ious, key=lambda key: ious[key]) if ious else None
        if best is not None and ious[best] >= 0.5:
            if objects[best][1]:
                continue
            right, wrong = (right, wrong + 1) if best in taken else (right + 1, wrong)
            taken.add(best)
        else:
            wrong += 1
        curve.append((right / count, right / (right + wrong)))
    levels = [
        max((p for r, p in curve if 10 * r >= level - 1e-9), default=0.0) for level in range(11)
    ]
    return sum(levels) / 11


def test_the_average_precision_of_other_images(run: Path, root: Path) -> None:
    given = [*easy_scenes(11)[6:], *scenes(seed=4)]  # some that are found, some that aren't
    given[1].difficult[0] = True
    other = write_voc(root.parent / run.name / "other", given)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    copy = Path(shutil.copytree(run, root.parent / f"{run.name}-copy"))
    settings["data"] |= {"root": [str(other)], "test": ["all"]}
    (copy / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    result = evaluate_run(copy, "test")
    found = result_files(copy / "eval" / "test")
    expected = [slow_ap(found, given, label) for label in (1, 2, 3)]
    assert 0.2 < np.mean(expected) < 0.8
    assert [c.ap for c in result.classes] == pytest.approx(expected, abs=1e-6)
    assert result.mean_ap == pytest.approx(np.mean(expected), abs=1e-6)
    slow = SlowDetector(run)
    assert_same(found, [d for i, s in enumerate(given) for d in slow(f"im{i}", s.image)])

"""Small runs of all kinds that a model can be of, for the tests of model files and of ONNX files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs import train_quietly, write_settings
from sppdet.stages.trained_model import TrainedModel, write_model

KINDS: dict[str, dict[str, Any]] = {
    "softmax": {
        "classifier": "softmax",
        "finetune": {"sampling": "images", "layers": "conv3+", "batches": 6, "box_loss": 1.0},
        "bbox": {"source": "finetune"},
        "detect": {"flip": True, "svd": [8], "box_voting": 0.5},
    },
    "joined": {
        "backbone": {"name": "tiny", "weights": "none", "stages": [4, 8]},
        "features": {"canonical_size": 80, "project": 24, "rounding": "int8"},
        "head": "none",
        "finetune": "none",
        "detect": {"max_windows": 60, "soft_nms": 0.5},
    },
    "a head that detection doesn't need": {
        "features": {"canonical_size": 80, "precision": "bfloat16"},
        "finetune": {"batches": 5},
        "svm": {"layer": "pool5"},
        "proposals": {"engine": ["sppdet", "edgeboxes"], "image_width": 200, "max_boxes": 150},
        "calibrate": "none",
    },
    "timm": {
        "backbone": {"name": "timm/tf_efficientnet_lite0", "weights": "none", "stages": [8, 16]},
        "head": "none",
        "finetune": "none",
        "bbox": "none",
        "scales": [96],
    },
}


@dataclass(frozen=True)
class Pair:
    """A run and its file."""

    run: Path
    file: Path


def train_kind(name: str, folder: Path, root: Path) -> Pair:
    """Train a run of a kind on the set in `root`, and write its file."""
    settings = write_settings(folder / "a.yaml", root, workers=1, **KINDS[name])
    train_quietly(settings, folder / "run", until="calibrate")
    write_model(TrainedModel.open(folder / "run"), folder / "model.sppdet")
    return Pair(folder / "run", folder / "model.sppdet")

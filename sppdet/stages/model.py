"""A run's trained parts on disk: safetensors under `model/`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from sppdet.config import Classifier, Config
from sppdet.detection.detect import Classifiers, Regressors
from sppdet.detection.ranking import Ranking, coarse_levels
from sppdet.errors import ArtifactError, ConfigError
from sppdet.evaluation.calibration import Calibration, Evidence
from sppdet.features.backbones import Backbone, conv_backbone
from sppdet.features.folding import folded
from sppdet.features.geometry import Geometry
from sppdet.features.head import Head, empty_head
from sppdet.features.levels import spp_width
from sppdet.runs.artifacts import is_intact, read_header
from sppdet.runs.weights import Part, check_types, class_names_in, fill, write_weights
from sppdet.tensor_types import TensorType, types_of
from sppdet.training_config import Layer


def save_backbone(path: Path, backbone: Backbone, *, made_by: str) -> None:
    """Write the convolutional layers' tensors, with their geometry and origin."""
    about = {"geometries": backbone.geometries, "origin": backbone.origin}
    write_weights(path, backbone.layers.state_dict(), made_by=made_by, about=about)


def holds_backbone(path: Path, backbone: Backbone, *, made_by: str) -> bool:
    """Check that a file has layers with this fingerprint, whose windows lie on the same cells."""
    header = read_header(path)
    placed = header.about.get("geometries") if header else None
    return placed == [list(pair) for pair in backbone.geometries] and is_intact(path, made_by)


def read_backbone(part: Part, config: Config) -> Backbone:
    """Read the run's convolutional layers."""
    strides = config.backbone.strides
    backbone = conv_backbone(
        config.backbone.name,
        stages=strides,
        project=config.features.project,
        geometries=_geometries(part, len(strides or (0,))),
    )
    backbone = replace(folded(backbone), origin=str(part.about.get("origin", "")))
    fill(backbone.layers, part.tensors, part.where)
    return backbone


def _geometries(part: Part, count: int) -> list[Geometry]:
    found = part.about.get("geometries")
    if isinstance(found, list) and len(found) == count:
        pairs = [p for p in found if isinstance(p, list) and len(p) == 2]
        pairs = [p for p in pairs if type(p[0]) is int and isinstance(p[1], int | float)]
        if len(pairs) == count and all(s > 0 and math.isfinite(c) for s, c in pairs):
            return [(s, float(c)) for s, c in pairs]
    raise ArtifactError(
        f"{part.where}: damaged: expected the maps' strides and centres in its header"
    )


def save_head(path: Path, head: Head, *, made_by: str) -> None:
    """Write fc6, fc7 and fc8."""
    write_weights(path, head.state_dict(), made_by=made_by)


def read_head(part: Part, backbone: Backbone, config: Config, *, classes: int) -> Head:
    """Read the run's fully connected layers."""
    if config.head is None:
        raise ConfigError("head: none")
    build = partial(
        empty_head,
        *(backbone, config.spp_levels, config.head, classes + 1),
        boxes=config.learns_boxes(),
    )
    with torch.device("meta"):  # before memory is asked for, which may be more than there is
        expected = types_of(build().state_dict())
    check_types(part.tensors, expected, part.where)
    head = build()
    fill(head, part.tensors, part.where)
    return head.eval().requires_grad_(False)


def save_classifiers(
    path: Path, classifiers: Classifiers, class_names: tuple[str, ...], *, made_by: str
) -> None:
    """Write the classifiers with the names of their classes."""
    about = {
        "layer": classifiers.layer,
        "class_names": list(class_names),
        "kind": classifiers.kind,
    }
    tensors = {"weights": classifiers.weights, "biases": classifiers.biases}
    write_weights(path, tensors, made_by=made_by, about=about)


def read_classifiers(part: Part) -> tuple[Classifiers, tuple[str, ...]]:
    """Read the classifiers and the names of their classes."""
    tensors, about = part.tensors, part.about
    names = class_names_in(about, part.where)
    kind: Classifier = "softmax" if about.get("kind") == "softmax" else "svm"
    rows = len(names) + (kind == "softmax")  # with the background
    float32 = partial(TensorType, torch.float32)
    expected = {"weights": float32((rows, None)), "biases": float32((rows,))}
    check_types(tensors, expected, part.where)
    return Classifiers(_layer(part), tensors["weights"], tensors["biases"], kind), names


def save_regressors(path: Path, regressors: Regressors, *, made_by: str) -> None:
    """Write the box regressors."""
    tensors = {"weights": regressors.weights, "biases": regressors.biases}
    write_weights(path, tensors, made_by=made_by, about={"layer": regressors.layer})


def read_regressors(part: Part, *, classes: int) -> Regressors:
    """Read the box regressors."""
    tensors = part.tensors
    float32 = partial(TensorType, torch.float32)
    expected = {"weights": float32((classes, None, 4)), "biases": float32((classes, 4))}
    check_types(tensors, expected, part.where)
    return Regressors(_layer(part), tensors["weights"], tensors["biases"])


def save_ranking(path: Path, ranking: Ranking, *, made_by: str) -> None:
    """Write the ranking of windows."""
    tensors = {"weights": ranking.weights, "bias": torch.tensor([ranking.bias])}
    write_weights(path, tensors, made_by=made_by, about={"levels": list(ranking.levels)})


def read_ranking(part: Part, *, levels: Sequence[int], channels: int) -> Ranking:
    """Read the ranking of windows, of maps of `channels`, for a pyramid of `levels`."""
    tensors = part.tensors
    coarse = coarse_levels(levels)
    if part.about.get("levels") != list(coarse):
        raise ArtifactError(f"{part.where}: doesn't fit the run's settings: it is for other levels")
    float32 = partial(TensorType, torch.float32)
    expected = {"weights": float32((spp_width(channels, coarse),)), "bias": float32((1,))}
    check_types(tensors, expected, part.where)
    return Ranking(coarse, tensors["weights"], float(tensors["bias"]))


def save_calibration(
    path: Path, calibration: Calibration | None, *, made_by: str, made_for: str
) -> None:
    """Write the calibration; None is written, too: that nothing could be fitted.

    Args:
        made_for: `ModelFiles.detection_fingerprint` of what is calibrated.
    """
    evidence = calibration.evidence if calibration else ()
    nothing = np.zeros(0)
    tensors = {
        "slopes": torch.from_numpy(calibration.slopes if calibration else nothing),
        "intercepts": torch.from_numpy(calibration.intercepts if calibration else nothing),
        "counts": torch.tensor([len(e.scores) for e in evidence], dtype=torch.int64),
        "objects": torch.tensor([e.objects for e in evidence], dtype=torch.int64),
        "scores": torch.from_numpy(np.concatenate([nothing, *(e.scores for e in evidence)])),
        "correct": torch.tensor(
            [x for e in evidence for x in e.correct.tolist()], dtype=torch.bool
        ),
    }
    write_weights(path, tensors, made_by=made_by, about={"made_for": made_for})


def read_calibration(part: Part | None, *, classes: int, made_for: str) -> Calibration | None:
    """Read the calibration; None where there is none, or one of other parts or settings of detection."""
    if part is None:
        return None
    tensors = part.tensors
    if part.about.get("made_for") != made_for or tensors.get("slopes", torch.zeros(0)).shape == (
        0,
    ):
        return None
    float64 = partial(TensorType, torch.float64)
    int64 = TensorType(torch.int64, (classes,))
    total = tensors["scores"].shape[0] if tensors.get("scores", torch.zeros(())).ndim == 1 else None
    expected = {
        **{key: float64((classes,)) for key in ("slopes", "intercepts")},
        **dict.fromkeys(("counts", "objects"), int64),
        "scores": float64((total,)),
        "correct": TensorType(torch.bool, (total,)),
    }
    check_types(tensors, expected, part.where)
    counts = tensors["counts"].numpy()
    if (counts < 0).any() or counts.sum() != total or not (tensors["slopes"] > 0).all():
        raise ArtifactError(
            f"{part.where}: damaged: expected slopes > 0 and the detections of every class"
        )
    ends = np.cumsum(counts)[:-1]
    evidence = zip(
        np.split(tensors["scores"].numpy(), ends),
        np.split(tensors["correct"].numpy(), ends),
        tensors["objects"].tolist(),
        strict=True,
    )
    return Calibration(
        tensors["slopes"].numpy(),
        tensors["intercepts"].numpy(),
        tuple(Evidence(*each) for each in evidence),
    )


def _layer(part: Part) -> Layer:
    for layer in get_args(Layer):
        if part.about.get("layer") == layer:
            found: Layer = layer
            return found
    raise ArtifactError(f"{part.where}: damaged: expected the name of a layer in its header")


def choose_device(device: str | torch.device) -> torch.device:
    """Resolve a device: auto (a GPU of NVIDIA's where there is one, else cpu), cpu, cuda, cuda:1, mps.

    Raises:
        ConfigError: torch has no such device here.
    """
    name = str(device)
    if re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?|mps", name) is None:
        raise ConfigError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(name)
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise ConfigError(f"--device {name}: torch finds no GPU here; expected cpu or auto")
        if chosen.index is not None and chosen.index >= count:
            there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
            raise ConfigError(f"--device {name}: torch finds {count} here; expected {there}")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("--device mps: torch finds no GPU of Apple's here; expected cpu or auto")
    return chosen

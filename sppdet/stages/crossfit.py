"""Folds of the training images: the models that haven't seen one, and what they detect in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.config import Config
from sppdet.detection.detect import Classifiers, Regressors
from sppdet.errors import ArtifactError
from sppdet.evaluation.folds import classes_of_images, leave_out_folds
from sppdet.io.dataset_digest import dataset_digest
from sppdet.randomness import rng
from sppdet.runs.artifacts import fingerprint, is_intact, read_json, write_json
from sppdet.runs.environment import worker_count
from sppdet.runs.log import LOGGER, event
from sppdet.runs.weights import check_types, class_names_in, read_weights, write_weights
from sppdet.stages.model_files import ModelFiles
from sppdet.stages.similar import similar_groups
from sppdet.stages.training_data import TrainingData
from sppdet.tensor_types import TensorType
from sppdet.types import Dataset, Detections

_float32, _int64 = partial(TensorType, torch.float32), partial(TensorType, torch.int64)


@dataclass(frozen=True)
class Folds:
    """The fold of each training image, (I,); −1 of those that every model must see."""

    of_image: NDArray[np.int64]
    count: int

    @classmethod
    def of(cls, config: Config, data: TrainingData) -> Folds | None:
        """Deal the training images out, or read how they were; None where no fold's model is needed.

        Similar images are in one fold: a model that has seen a near-duplicate of an image has seen it.
        """
        if config.calibrate is None or config.classifier == "softmax":
            return None
        dataset, path = data.dataset, ModelFiles(data.folder).folds
        count = fold_count(config.calibrate.folds, len(dataset))
        if not count:
            return None
        made_by = fingerprint("folds", 1, dataset_digest(dataset, data.images), data.seed, count)
        with data.ranks.first_goes_first():
            of_image = _read_folds(path, made_by, len(dataset))
            if of_image is None:
                groups = _groups(config, dataset)
                random = rng(data.seed, "folds of calibration")
                of_image = leave_out_folds(classes_of_images(dataset), groups, count, random)
                if data.ranks.is_first:
                    write_json(path, {"made_by": made_by, "of_image": of_image.tolist()})
        return cls(of_image, count)

    def masks(self) -> list[NDArray[np.bool_]]:
        """Return for each fold the images (I,) that are in it."""
        return [self.of_image == fold for fold in range(self.count)]

    def made_by(self, model: str) -> str:
        """Return the fingerprint of the folds' models from that of the model of all images."""
        return fingerprint("folds", model, self.count, self.of_image.tolist())

    def lack(self, path: Path, model: str) -> bool:
        """Check whether the file of the folds' models is missing, damaged, or made from something else."""
        return not is_intact(path, self.made_by(model))


def _groups(config: Config, dataset: Dataset) -> NDArray[np.int64]:
    """Find the groups of similar images; one with most of the images is none, with a warning."""
    workers = worker_count(config.workers)
    groups = similar_groups(dataset, max_pixels=config.data.max_pixels, workers=workers)
    largest = np.bincount(groups).argmax()
    alike = groups == largest
    if 2 * alike.sum() > len(dataset):
        text = (
            f"{dataset.name}: {alike.sum()} of {len(dataset)} images show nearly the same and are in "
            "several folds; probabilities will be too high for other images"
        )
        LOGGER.warning("%s", text, extra=event("similar images in folds"))
        groups[alike] = len(dataset) + np.flatnonzero(alike)
    return groups


def _read_folds(path: Path, made_by: str, images: int) -> NDArray[np.int64] | None:
    """Read the folds that were dealt from the same images; None if they weren't."""
    try:
        found = read_json(path)
    except ArtifactError:
        return None
    if not isinstance(found, dict) or found.get("made_by") != made_by:
        return None
    of_image = found.get("of_image")
    if not isinstance(of_image, list) or len(of_image) != images:
        return None
    return np.array(of_image, np.int64) if all(type(k) is int for k in of_image) else None


def fold_count(setting: int | str, images: int) -> int:
    """Resolve `calibrate.folds`: the fewer the images, the more of them each fold must train on.

    0 of a single image: nothing would be left to train on.
    """
    if images < 2:
        return 0
    if isinstance(setting, int):
        return min(images, setting)
    return min(images, 20 if images < 50 else 10 if images < 200 else 5)


def save_fold_models(
    path: Path, models: Sequence[Classifiers] | Sequence[Regressors], *, made_by: str
) -> None:
    """Write the SVMs or the box regressors of the folds."""
    tensors = {
        "weights": torch.stack([one.weights for one in models]),
        "biases": torch.stack([one.biases for one in models]),
    }
    write_weights(path, tensors, made_by=made_by)


def read_fold_classifiers(path: Path, config: Config, *, classes: int) -> list[Classifiers]:
    """Read the SVMs of the folds."""
    tensors, _ = read_weights(path)
    expected = {"weights": _float32((None, classes, None)), "biases": _float32((None, classes))}
    check_types(tensors, expected, path)
    folds = zip(tensors["weights"], tensors["biases"], strict=True)
    return [Classifiers(config.svm_layer(), *fold) for fold in folds]


def read_fold_regressors(path: Path, config: Config, *, classes: int) -> list[Regressors]:
    """Read the box regressors of the folds."""
    assert config.bbox is not None
    tensors, _ = read_weights(path)
    expected = {
        "weights": _float32((None, classes, None, 4)),
        "biases": _float32((None, classes, 4)),
    }
    check_types(tensors, expected, path)
    folds = zip(tensors["weights"], tensors["biases"], strict=True)
    return [Regressors(config.bbox.layer, *fold) for fold in folds]


def save_detections(
    path: Path, found: Mapping[str, Detections], names: Sequence[str], *, made_by: str
) -> None:
    """Write the detections in training images, by the image's id."""
    ids, kept = list(found), list(found.values())
    boxes = [np.zeros((0, 4), np.float32), *(d.boxes for d in kept)]
    scores = [np.zeros(0, np.float32), *(d.scores for d in kept)]
    labels = [np.zeros(0, np.int64), *(d.labels for d in kept)]
    tensors = {
        "counts": torch.tensor([len(d) for d in kept], dtype=torch.int64),
        "boxes": torch.from_numpy(np.concatenate(boxes)),
        "scores": torch.from_numpy(np.concatenate(scores)),
        "labels": torch.from_numpy(np.concatenate(labels)),
    }
    about = {"ids": ids, "class_names": list(names)}
    write_weights(path, tensors, made_by=made_by, about=about)


def read_cross_fitted(run: Path) -> dict[str, Detections]:
    """Read the detections in training images by models that haven't seen them, by the image's id.

    Images that every model has seen aren't there.

    Raises:
        ArtifactError: there are none, or the file is damaged.
    """
    path = ModelFiles(run).cross_fitted
    if not path.is_file():
        raise ArtifactError(
            f"{run}: no detections in its training images by models that haven't seen them; "
            "`sppdet train` with `calibrate` settings makes them"
        )
    return read_detections(path)


def read_detections(path: Path) -> dict[str, Detections]:
    """Read the detections that `save_detections` has written."""
    tensors, about = read_weights(path)
    names, ids = class_names_in(about, path), about.get("ids")
    total = tensors["scores"].shape[0] if tensors.get("scores", torch.zeros(())).ndim == 1 else None
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        raise ArtifactError(f"{path}: damaged: expected the ids of the images in its header")
    expected = {
        "counts": _int64((len(ids),)),
        "boxes": _float32((total, 4)),
        "scores": _float32((total,)),
        "labels": _int64((total,)),
    }
    check_types(tensors, expected, path)
    counts, labels = tensors["counts"], tensors["labels"]
    fits = bool((counts >= 0).all()) and int(counts.sum()) == total
    if not fits or bool(((labels < 1) | (labels > len(names))).any()):
        raise ArtifactError(f"{path}: damaged: expected the detections of every image")
    parts = (tensors[key].split(counts.tolist()) for key in ("boxes", "scores", "labels"))
    return {
        name: Detections(boxes.numpy(), scores.numpy(), labels.numpy(), names)
        for name, boxes, scores, labels in zip(ids, *parts, strict=True)
    }

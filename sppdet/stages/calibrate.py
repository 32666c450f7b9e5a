"""The calibrate stage: detect in training images by models that haven't seen them, fit probabilities."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.detection.detect import DetectionParts, score, suppress
from sppdet.errors import shorten
from sppdet.evaluation.calibration import Calibration, Evidence, fit_calibration
from sppdet.evaluation.folds import classes_of_images, deal, equal_sizes, in_one_part
from sppdet.evaluation.voc import class_results
from sppdet.randomness import rng
from sppdet.runs.artifacts import fingerprint, read_checkpoint, write_tensors
from sppdet.runs.log import LOGGER, event, warnings_alone
from sppdet.stages.bbox import make_regressors
from sppdet.stages.context import Context
from sppdet.stages.detector import Detector
from sppdet.stages.finetune_images import MAX_VALIDATION_IMAGES
from sppdet.stages.model import read_ranking, save_calibration
from sppdet.stages.svm import train_svms
from sppdet.stages.training_data import Sample, TrainingData
from sppdet.training.finetune_windows import split_images
from sppdet.training.processes import Tensors
from sppdet.training_config import CalibrateConfig
from sppdet.types import Dataset, Detections

_LEAST_IMAGES = 10  # held out in fine-tuning, that a softmax is calibrated on


def calibrate(context: Context) -> bool:
    """Fit probabilities to detections in held-out images; returns False if there was nothing to do."""
    made = _calibrate(context)
    context.training_data.maps.keep_in_memory(None)
    if context.ranks.is_first:
        shutil.rmtree(context.run / "state", ignore_errors=True)  # no stage is unfinished any more
    return made


def _calibrate(context: Context) -> bool:
    config, path = context.config, context.files.calibration
    if config.calibrate is None:
        if context.ranks.is_first:
            path.unlink(missing_ok=True)
        return False
    if not context.is_due("calibration"):
        return False
    softmax = config.classifier == "softmax"
    dataset, found = _by_softmax(context) if softmax else _by_folds(context, config.calibrate)
    calibration = None
    if len(dataset.images):
        classes = class_results(dataset, found, metric="voc07")
        calibration = fit_calibration([Evidence.of(one) for one in classes])
        _tell(calibration, dataset)
    if context.ranks.is_first:
        made_for = context.files.detection_fingerprint(config)
        made_by = context.plan.made_by["calibration"]
        save_calibration(path, calibration, made_by=made_by, made_for=made_for)
    return True


def fold_count(setting: int | str, images: int) -> int:
    """Resolve `calibrate.folds`: the fewer the images, the more of them each fold must train on."""
    if isinstance(setting, int):
        return min(setting, images)
    return min(images, 5 if images < 100 else 3)


def _tell(calibration: Calibration | None, dataset: Dataset) -> None:
    if calibration is None:
        text = "calibrate: too few detections to tell right ones from wrong ones; no probabilities"
        LOGGER.warning("%s", text, extra=event("not calibrated"))
        return
    few = [dataset.class_names[k] for k in calibration.borrowing()]
    borrowed = (
        f"; with few right detections, and after the other classes: {shorten(few)}" if few else ""
    )
    right = sum(int(e.correct.sum()) for e in calibration.evidence)
    text = f"calibrate: {right} right detections in {len(dataset)} held-out images"
    facts = event("calibrated", right=right, images=len(dataset), borrowing=few)
    LOGGER.info(
        "%s",
        f"{text}; F1 is best from probability {calibration.best_f1():.2f}{borrowed}",
        extra=facts,
    )


def _by_softmax(context: Context) -> tuple[Dataset, dict[str, Detections]]:
    """Detect in the images that fine-tuning has held out; without enough of them, in none."""
    config, data = context.config, context.training_data
    assert config.finetune is not None
    most = MAX_VALIDATION_IMAGES if config.finetune.on_images else None
    fraction = config.finetune.val_fraction
    _, held_out = split_images(len(data.dataset), fraction=fraction, seed=data.seed, most=most)
    if len(held_out) < _LEAST_IMAGES:
        text = (
            f"calibrate: fine-tuning has held out {len(held_out)} images, expected {_LEAST_IMAGES}"
        )
        remedy = "probabilities of a softmax need more; raise finetune.val_fraction"
        LOGGER.warning("%s; %s", text, remedy, extra=event("few held out"))
        held_out = held_out[:0]
    detector = Detector.load(context.run, device=context.ranks.device)
    found = _detect(data, detector.parts, held_out.tolist())
    images = tuple(data.dataset.images[p] for p in held_out.tolist())
    return replace(data.dataset, images=images), found


def _by_folds(context: Context, config: CalibrateConfig) -> tuple[Dataset, dict[str, Detections]]:
    """Detect in each fold of the training images by SVMs and regressors of the other folds.

    An image is in no fold if it has all objects of a class that can be learned from.
    """
    data, images = context.training_data, context.training_set.images
    count = fold_count(config.folds, len(images))
    if count < 2:
        return replace(data.dataset, images=()), {}
    classes = classes_of_images(data.dataset)
    folds = deal(classes, equal_sizes(len(images), count), rng(data.seed, "folds of calibration"))
    needed = in_one_part(classes, folds)
    found: dict[str, Detections] = {}
    for fold in range(count):
        held_out = np.flatnonzero((folds == fold) & ~needed)
        training = np.flatnonzero((folds != fold) | needed)
        if len(held_out):
            found |= _in_fold(context, fold, held_out, training)
    seen = tuple(image for image in images if image.id in found)
    return replace(data.dataset, images=seen), found


def _in_fold(
    context: Context, fold: int, held_out: NDArray[np.int64], training: NDArray[np.int64]
) -> dict[str, Detections]:
    """Train on some images and detect in others; finished folds are kept until the stage is done."""
    config, data = context.config, context.training_data
    made_by = fingerprint(context.plan.made_by["calibration"], fold)
    path, names = data.state_path(f"calibrate-{fold + 1}"), data.dataset.class_names
    checkpoint = read_checkpoint(path, made_by)
    data.ranks.wait()  # all have looked before the first writes it
    if checkpoint:
        tensors = checkpoint[0]
        return {
            data.dataset.images[p].id: _as_detections(tensors, names, suffix=str(p))
            for p in held_out.tolist()
        }
    LOGGER.info("calibrate: fold %d, %d images", fold + 1, len(held_out))
    images = tuple(data.dataset.images[p] for p in training.tolist())
    others = replace(data, dataset=replace(data.dataset, images=images))
    with warnings_alone():
        classifiers = train_svms(others, config.svm_layer(), config.svm, made_by=made_by)
        regressors = make_regressors(config, others, made_by=made_by)
    ranking = None
    if config.detect.max_windows is not None:
        ranking = read_ranking(
            context.files.ranking, levels=config.spp_levels, channels=data.maps.channels
        )
        ranking = replace(ranking, weights=ranking.weights.to(data.maps.device))
    parts = DetectionParts(names, data.extractor, classifiers, regressors, config.detect, ranking)
    found = _detect(data, parts, held_out.tolist())
    if data.ranks.is_first:
        kept = {
            f"{key}{p}": torch.from_numpy(getattr(found[data.dataset.images[p].id], key))
            for p in held_out.tolist()
            for key in ("boxes", "scores", "labels")
        }
        write_tensors(path, kept, made_by=made_by, about={})
    return found


def _detect(
    data: TrainingData, parts: DetectionParts, positions: Sequence[int]
) -> dict[str, Detections]:
    """Detect in training images, by the image's id."""

    def detect(sample: Sample) -> Tensors:
        image = sample.image
        flip = parts.config.flip
        mirrored = data.maps.of_image(image, mirrored=True) if flip else None
        scored = score(parts, sample.maps, sample.proposals, width=image.width, mirrored=mirrored)
        made = suppress([scored], parts.config, width=image.width, height=image.height)
        arrays = {"boxes": made.boxes, "scores": made.scores, "labels": made.labels}
        return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}

    found = {}
    gathered = data.gather(positions, detect, lambda made: made, label="calibrate")
    for position, tensors in zip(positions, gathered, strict=True):
        found[data.dataset.images[position].id] = _as_detections(tensors, parts.class_names)
    return found


def _as_detections(tensors: Tensors, names: tuple[str, ...], *, suffix: str = "") -> Detections:
    boxes, scores, labels = (
        tensors[f"{key}{suffix}"].cpu().numpy() for key in ("boxes", "scores", "labels")
    )
    return Detections(boxes, scores, labels, names)

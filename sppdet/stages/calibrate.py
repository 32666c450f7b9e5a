"""The calibrate stage: detect in training images by models that haven't seen them, fit probabilities."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from sppdet.detection.detect import DetectionParts, Regressors, score, suppress
from sppdet.errors import shorten
from sppdet.evaluation.calibration import Calibration, Evidence, fit_calibration
from sppdet.evaluation.voc import class_results
from sppdet.runs.artifacts import is_intact
from sppdet.runs.log import LOGGER, event
from sppdet.stages.context import Context
from sppdet.stages.crossfit import (
    read_detections,
    read_fold_classifiers,
    read_fold_regressors,
    save_detections,
)
from sppdet.stages.detector import Detector
from sppdet.stages.model import read_ranking, read_regressors, save_calibration
from sppdet.stages.training_data import Sample
from sppdet.training.finetune_windows import split_for_tuning
from sppdet.training.processes import Tensors
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
            shutil.rmtree(context.files.cross_fitted.parent, ignore_errors=True)
        return False
    if not context.is_due("calibration"):
        return False
    made_by = context.plan.made_by["calibration"]
    by = _by_softmax if config.classifier == "softmax" else _by_folds
    dataset, found = by(context)
    calibration = None
    if len(dataset.images):
        classes = class_results(dataset, found, metric="voc07")
        calibration = fit_calibration([Evidence.of(one) for one in classes])
        _tell(calibration, dataset)
    if context.ranks.is_first:
        made_for = context.files.detection_fingerprint(config)
        names = dataset.class_names
        save_detections(context.files.cross_fitted, found, names, made_by=made_by)
        save_calibration(path, calibration, made_by=made_by, made_for=made_for)
    return True


def _tell(calibration: Calibration | None, dataset: Dataset) -> None:
    if calibration is None:
        text = "calibrate: too few detections to tell right ones from wrong ones; no probabilities"
        LOGGER.warning("%s", text, extra=event("not calibrated"))
        return
    few = [dataset.class_names[k] for k in calibration.borrowing()]
    borrowed = f"; so few of {shorten(few)} that the other classes decide" if few else ""
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
    _, held_out = split_for_tuning(config.finetune, len(data.dataset), seed=data.seed)
    if len(held_out) < _LEAST_IMAGES:
        text = (
            f"calibrate: fine-tuning has held out {len(held_out)} images, expected {_LEAST_IMAGES}"
        )
        remedy = "probabilities of a softmax need more; raise finetune.val_fraction"
        LOGGER.warning("%s; %s", text, remedy, extra=event("few held out"))
        held_out = held_out[:0]
    detector = Detector.load(context.run, device=context.ranks.device)
    found = _detect(context, lambda _: detector.parts, held_out.tolist())
    images = tuple(data.dataset.images[p] for p in held_out.tolist())
    return replace(data.dataset, images=images), found


def _by_folds(context: Context) -> tuple[Dataset, dict[str, Detections]]:
    """Detect in each fold of the training images by SVMs and regressors of the other folds.

    An image is in no fold if it has all objects of a class that can be learned from.
    """
    config, data, folds = context.config, context.training_data, context.folds
    if folds is None:
        return replace(data.dataset, images=()), {}
    data.ranks.wait()  # the folds' models are written
    names, files = data.dataset.class_names, context.files
    classifiers = read_fold_classifiers(files.fold_svm, config, classes=len(names))
    regressors: Sequence[Regressors | None] = [None] * folds.count
    if config.bbox is not None and config.bbox.source == "finetune":
        regressors = [read_regressors(files.read("bbox"), classes=len(names))] * folds.count
    elif config.bbox is not None:
        regressors = read_fold_regressors(files.fold_bbox, config, classes=len(names))
    ranking = None
    if config.detect.max_windows is not None:
        ranking = read_ranking(
            files.read("ranking"), levels=config.spp_levels, channels=data.maps.channels
        )
    device = data.maps.device
    parts = [
        DetectionParts(
            *(names, data.extractor, c.to(device), r and r.to(device), config.detect),
            ranking=ranking and ranking.to(device),
        )
        for c, r in zip(classifiers, regressors, strict=True)
    ]
    positions = np.flatnonzero(folds.of_image >= 0).tolist()
    of_image = folds.of_image.tolist()
    found = _detect(context, lambda p: parts[of_image[p]], positions)
    images = tuple(data.dataset.images[p] for p in positions)
    return replace(data.dataset, images=images), found


def _detect(
    context: Context, parts_of: Callable[[int], DetectionParts], positions: Sequence[int]
) -> dict[str, Detections]:
    """Detect in training images, each by the parts of its position; returns them by the image's id.

    Those that are there are kept until the stage is done.
    """
    data, made_by = context.training_data, context.plan.made_by["calibration"]

    def detect(sample: Sample) -> Tensors:
        image, parts = sample.image, parts_of(sample.position)
        flip = parts.config.flip
        mirrored = data.maps.of_image(image, mirrored=True) if flip else None
        scored = score(parts, sample.maps, sample.proposals, width=image.width, mirrored=mirrored)
        made = suppress([scored], parts.config, width=image.width, height=image.height)
        arrays = {"boxes": made.boxes, "scores": made.scores, "labels": made.labels}
        return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}

    path, names = data.state_path("calibrate"), data.dataset.class_names
    found = read_detections(path) if is_intact(path, made_by) else {}
    data.ranks.wait()  # all have looked before the first writes it
    missing = [p for p in positions if data.dataset.images[p].id not in found]
    if done := len(positions) - len(missing):
        text = f"calibrate: going on after {done} images"
        LOGGER.info("%s", text, extra=event("calibrate resumed"))
    saved = time.monotonic()
    gathered = data.gather(
        missing, detect, lambda made: made, label="calibrate, detecting", done=done
    )
    for position, tensors in zip(missing, gathered, strict=True):
        boxes, scores, labels = (tensors[k].cpu().numpy() for k in ("boxes", "scores", "labels"))
        found[data.dataset.images[position].id] = Detections(boxes, scores, labels, names)
        if data.ranks.is_first and time.monotonic() - saved >= data.checkpoint_seconds:
            save_detections(path, found, names, made_by=made_by)
            saved = time.monotonic()
    return found

"""The box regression stage: class by class, so that memory holds the examples of one class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.boxes import box_iou, encode_deltas
from sppdet.detection.detect import Regressors
from sppdet.features.head import DELTA_DEVIATIONS
from sppdet.io.dataset_digest import dataset_digest
from sppdet.randomness import rng
from sppdet.runs.artifacts import is_intact, read_checkpoint, write_tensors
from sppdet.runs.log import LOGGER, event
from sppdet.runs.progress import track
from sppdet.stages.context import Context
from sppdet.stages.crossfit import save_fold_models
from sppdet.stages.model import save_regressors
from sppdet.stages.training_data import TrainingData, feature_scale
from sppdet.training.bbox import BoxRegression, BoxRegressor
from sppdet.training.pool import Pool, Rows
from sppdet.training.processes import Tensors
from sppdet.training_config import BboxConfig, Layer, SvmConfig
from sppdet.types import Boxes


@dataclass(frozen=True)
class _Examples:
    """Proposals of one image that regress to objects of one class."""

    position: int
    boxes: Boxes
    targets: Boxes


def train_regressors(context: Context) -> bool:
    """Fit the box regressors that are due, then mark the model as trained.

    Returns:
        False if the regressors were there already.
    """
    trained = _train_and_save(context)
    if context.ranks.is_first:
        digest = dataset_digest(context.training_set, context.images)
        arithmetic = context.training_data.maps.arithmetic
        context.files.seal(context.config, training_data=digest, arithmetic=arithmetic)
    context.ranks.wait()  # the others evaluate what is sealed
    svm = context.plan.made_by["svm"]
    LOGGER.debug("trained", extra=event("trained", svm=svm))
    return trained


def _train_and_save(context: Context) -> bool:
    config, path = context.config, context.files.bbox
    if config.bbox is None:
        if context.ranks.is_first:
            path.unlink(missing_ok=True)
        return True
    if not context.is_due("bbox"):
        return False
    made_by = context.plan.made_by["bbox"]
    data, folds = context.training_data, context.folds
    if config.bbox.source == "finetune":
        regressors = _of_head(data, config.layers()[-1])
    else:
        left_out = folds.masks() if folds else ()
        with_folds = folds.made_by(made_by) if folds else made_by
        regressors, *of_folds = train_box_regressors(
            data, config.bbox, config.svm, left_out, made_by=with_folds
        )
        if context.ranks.is_first and folds:
            save_fold_models(context.files.fold_bbox, of_folds, made_by=with_folds)
    if context.ranks.is_first:
        save_regressors(path, regressors, made_by=made_by)
    return True


def _of_head(data: TrainingData, layer: Layer) -> Regressors:
    """Take the regressors that fine-tuning has trained beside the classes."""
    head = data.extractor.head
    assert head is not None and head.box is not None
    unit = torch.tensor(DELTA_DEVIATIONS, device=head.box.weight.device)
    weights = head.box.weight.unflatten(0, (-1, 4)).transpose(1, 2) * unit  # [K, D, 4]
    return Regressors(layer, weights.contiguous(), head.box.bias.unflatten(0, (-1, 4)) * unit)


def train_box_regressors(
    data: TrainingData,
    config: BboxConfig,
    svm: SvmConfig,
    left_out: Sequence[NDArray[np.bool_]] = (),
    *,
    made_by: str,
) -> list[Regressors]:
    """Fit one regressor per class: to the examples of all images, then without those of some.

    Args:
        svm: its `target_norm` and sample sizes scale the features here too.
        left_out: masks (I,) of images.
        made_by: fingerprint under which finished classes' results are kept and found.
    """
    scale = feature_scale(data, config.layer, svm)
    names = data.dataset.class_names
    width = data.extractor.width(config.layer, data.maps.channels)
    weights = torch.zeros((1 + len(left_out), len(names), width, 4))
    biases = torch.zeros((1 + len(left_out), len(names), 4))
    found = _find_examples(data, config)
    there = [n for k, n in enumerate(names) if is_intact(_path(data, k), made_by)]
    if there:
        LOGGER.info("bbox: going on after %s", ", ".join(there))
    own = data.ranks.share(range(len(names)))
    fitted = (_fitted(data, k, found[k], left_out, config, scale, width, made_by) for k in own)
    results = data.ranks.in_turn(fitted, len(names), lambda made: made)
    for k, (name, made) in enumerate(zip(names, results, strict=True)):
        examples, left = made["facts"].tolist()
        if not examples:
            LOGGER.info("bbox: %s: no example; its boxes stay as proposed", name)
            continue
        weights[:, k], biases[:, k] = made["weights"], made["biases"]
        text = f"bbox: {name}: {examples:.0f} examples, {left:.1%} of the squared deltas left"
        extra = event("bbox trained", class_name=name, examples=int(examples))
        LOGGER.info("%s", text, extra=extra)
    device = data.maps.device
    return [
        Regressors(config.layer, w.to(device), b.to(device))
        for w, b in zip(weights, biases, strict=True)
    ]


def _find_examples(data: TrainingData, config: BboxConfig) -> list[list[_Examples]]:
    """Find for each class the proposals with IoU >= `min_iou` to their nearest object, if not difficult."""
    found: list[list[_Examples]] = [[] for _ in data.dataset.class_names]
    images = enumerate(data.dataset.images)
    for position, image in track(
        images, total=len(data.dataset), label="bbox, proposals near objects"
    ):
        boxes = data.proposals(position).boxes
        if len(image.gt_boxes) == 0 or len(boxes) == 0:
            continue
        iou = box_iou(boxes, image.gt_boxes)
        nearest = iou.argmax(axis=1)
        usable = (iou.max(axis=1) >= config.min_iou) & ~image.difficult[nearest]
        labels = image.gt_labels[nearest]
        for label in np.unique(labels[usable]).tolist():
            rows = np.flatnonzero(usable & (labels == label))
            targets = image.gt_boxes[nearest[rows]]
            found[label - 1].append(_Examples(position, boxes[rows], targets))
    return found


def _limit(
    examples: list[_Examples], config: BboxConfig, *, rng: np.random.Generator
) -> list[_Examples]:
    """Draw at most `max_examples` of them."""
    total = sum(len(e.boxes) for e in examples)
    if total <= config.max_examples:
        return examples
    keep = np.zeros(total, dtype=np.bool_)
    keep[rng.permutation(total)[: config.max_examples]] = True
    limited, start = [], 0
    for e in examples:
        rows: NDArray[np.bool_] = keep[start : start + len(e.boxes)]
        start += len(e.boxes)
        if rows.any():
            limited.append(_Examples(e.position, e.boxes[rows], e.targets[rows]))
    return limited


def _path(data: TrainingData, k: int) -> Path:
    """Return the checkpoint of class k's regressor, which exists until the stage is finished."""
    return data.state_path(f"bbox-{k + 1}")


def _fitted(
    data: TrainingData,
    k: int,
    found: list[_Examples],
    left_out: Sequence[NDArray[np.bool_]],
    config: BboxConfig,
    scale: float,
    width: int,
    made_by: str,
) -> Tensors:
    """Load the regressors of class k from their checkpoint, or fit them.

    The facts are the number of examples and the part of the squared deltas that the first one leaves.
    """
    path = _path(data, k)
    if checkpoint := read_checkpoint(path, made_by):
        return checkpoint[0]
    if not found:
        return {"facts": torch.zeros(2, dtype=torch.float64)}
    examples = _limit(found, config, rng=rng(data.seed, "box regression examples", k))
    pool, rows = _features(data, data.dataset.class_names[k], examples, config, width)
    targets = np.concatenate([encode_deltas(e.boxes, e.targets) for e in examples])
    images = np.repeat([e.position for e in examples], [len(e.boxes) for e in examples])
    regression = BoxRegression(pool, rows, targets, config, scale=scale)
    kept = [np.ones(len(rows), np.bool_), *(~mask[images] for mask in left_out)]
    label = f"bbox, {data.dataset.class_names[k]}, without each fold"
    # without an example the boxes stay as proposed
    regressor, *without = [
        regression.fit(some) if some.any() else BoxRegressor.none(width)
        for some in track(kept, total=len(kept), label=label)
    ]
    weight = torch.from_numpy(regressor.weight.T).to(pool.device)
    predicted = pool.scores(rows, weight) + regressor.bias
    left = float(np.square(predicted - targets).mean() / np.square(targets).mean())
    made = {
        "weights": torch.stack([torch.from_numpy(r.weight) for r in (regressor, *without)]),
        "biases": torch.stack([torch.from_numpy(r.bias) for r in (regressor, *without)]),
        "facts": torch.tensor([len(rows), left], dtype=torch.float64),
    }
    write_tensors(path, made, made_by=made_by)
    return made


def _features(
    data: TrainingData, name: str, examples: list[_Examples], config: BboxConfig, width: int
) -> tuple[Pool, Rows]:
    """Compute the features of the examples, a pool's rows (N,); examples on one window have the same."""
    samples = track(
        data.samples([e.position for e in examples]), total=len(examples), label=f"bbox, {name}"
    )
    pool = Pool(width, device=data.maps.device, dtype=data.extractor.held_in(config.layer))
    rows = []
    for example, sample in zip(examples, samples, strict=True):
        features = data.extractor(sample.maps, example.boxes, config.layer)
        keys = [(example.position, i) for i in range(len(features.values))]
        rows.append(pool.add(features.values, keys)[features.index])
    return pool, np.concatenate(rows)

"""The SVM stage: positives, one pass of hard-negative mining over the images, a checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.detection.detect import Classifiers
from sppdet.runs.artifacts import read_checkpoint, write_tensors
from sppdet.runs.log import LOGGER, event
from sppdet.runs.progress import track
from sppdet.stages.context import Context
from sppdet.stages.crossfit import save_fold_models
from sppdet.stages.model import save_classifiers
from sppdet.stages.training_data import Sample, TrainingData, feature_scale
from sppdet.training.dual import LinearSvm
from sppdet.training.processes import Tensors
from sppdet.training.sampling import negatives_of_class, thin_out
from sppdet.training.svm import Candidates, Miner, cached_images, cached_negatives
from sppdet.training_config import Layer, SvmConfig


def train_classifiers(context: Context) -> bool:
    """Train the SVMs that are due; returns False if they were there already."""
    if not context.is_due("svm"):
        return False
    config, made_by = context.config, context.plan.made_by["svm"]
    data, folds = context.training_data, context.folds
    if config.classifier == "softmax":
        head = data.extractor.head
        assert head is not None
        classifiers = Classifiers(config.svm_layer(), head.fc8.weight, head.fc8.bias, "softmax")
    else:
        left_out = folds.masks() if folds else ()
        classifiers, *of_folds = train_svms(
            data, config.svm_layer(), config.svm, left_out, made_by=made_by
        )
        if context.ranks.is_first and folds:
            path = context.files.fold_svm
            save_fold_models(path, of_folds, made_by=folds.made_by(made_by))
    if context.ranks.is_first:
        names = context.training_set.class_names
        save_classifiers(context.files.svm, classifiers, names, made_by=made_by)
    return True


def train_svms(
    data: TrainingData,
    layer: Layer,
    config: SvmConfig,
    left_out: Sequence[NDArray[np.bool_]] = (),
    *,
    made_by: str,
) -> list[Classifiers]:
    """Train one SVM per class on the features of `layer`: on all images, then without some of them.

    Args:
        left_out: masks (I,) of images.
        made_by: fingerprint under which an unfinished stage's checkpoint is kept and found.
    """
    scale = feature_scale(data, layer, config)
    # scaling features by s is scaling C by s² and the constant by 1 / s; so they stay what they are
    raw = config.model_copy(update={"C": config.C * scale**2, "bias": config.bias / scale})
    positives, images = _positives(data, layer)
    names = data.dataset.class_names
    counts = ", ".join(f"{name} {len(x)}" for name, x in zip(names, positives, strict=True))
    text = f"svm: {layer} features × {scale:.4g}; positives: {counts}"
    LOGGER.info("%s", text, extra=event("svm positives", scale=scale))

    def report(k: int, svm: LinearSvm, cached: int, evicted: int) -> None:
        remark = "" if svm.converged else "; stopped at svm.max_iterations"
        objective = svm.objective / scale**2  # of scaled features
        text = f"svm: {names[k]}: objective {objective:.6g} with {cached} negatives, "
        facts = {"objective": objective, "negatives": cached, "evicted": evicted}
        extra = event("svm trained", class_name=names[k], **facts)
        level = logging.DEBUG if svm.converged else logging.INFO  # several lines a class
        LOGGER.log(level, "%s", f"{text}{evicted} evicted{remark}", extra=extra)

    miner = Miner(
        positives,
        names,
        raw,
        seed=data.seed,
        ranks=data.ranks,
        device=data.maps.device,
        dtype=data.extractor.held_in(layer),
        report=report,
    )
    del positives  # the miner has them
    _mine(data, miner, layer, config, made_by=made_by)
    counts = ", ".join(f"{name} {count}" for name, count in zip(names, miner.cached(), strict=True))
    LOGGER.info("svm: hard negatives: %s", counts)
    parts = [(mask, [mask[of] for of in images]) for mask in left_out]
    without = track(miner.leave_out(parts), total=len(parts), label="svm, without each fold")
    return [
        Classifiers(layer, weights, biases)
        for weights, biases in [(miner.weights, miner.biases), *without]
    ]


def _positives(
    data: TrainingData, layer: Layer
) -> tuple[list[NDArray[Any]], list[NDArray[np.int64]]]:
    """Compute for each class the features (P, D) of its ground-truth boxes, difficult ones left out.

    The second list has the positions (P,) of their images.
    """
    images = data.dataset.images
    with_objects = [i for i, image in enumerate(images) if (~image.difficult).any()]

    def of_objects(sample: Sample) -> Tensors:
        keep = ~sample.image.difficult
        features = data.extractor(sample.maps, sample.image.gt_boxes[keep], layer)
        rows = torch.from_numpy(features.index).to(features.values.device)
        labels = torch.from_numpy(sample.image.gt_labels[keep])
        position = torch.full_like(labels, sample.position)
        return {
            "values": features.values[rows].to(data.extractor.held_in(layer)),
            "labels": labels,
            "position": position,
        }

    found: list[list[NDArray[Any]]] = [[] for _ in data.dataset.class_names]
    positions: list[list[int]] = [[] for _ in data.dataset.class_names]
    for made in data.gather(with_objects, of_objects, lambda made: made, label="svm, objects"):
        values = made["values"].cpu().numpy()
        for row, label, position in zip(
            values, made["labels"].tolist(), made["position"].tolist(), strict=True
        ):
            found[label - 1].append(row)
            positions[label - 1].append(position)
    stacked = [np.stack(rows) if rows else np.zeros((0, 0), dtype=np.float32) for rows in found]
    return stacked, [np.array(p, dtype=np.int64) for p in positions]


def _mine(
    data: TrainingData,
    miner: Miner,
    layer: Layer,
    config: SvmConfig,
    *,
    made_by: str,
) -> None:
    def candidates(sample: Sample) -> Candidates:
        return _candidates(data, sample, layer, config)

    count = len(data.dataset) * config.passes
    path = data.state_path("svm")
    done = 0
    if checkpoint := read_checkpoint(path, made_by):
        state, about = checkpoint
        done = int(about["done"])
        LOGGER.info("svm: going on after image %d of %d", done, count, extra=event("svm resumed"))
        again = data.gather(
            cached_images(state),
            candidates,
            lambda made: cached_negatives(state, made, miner.pool.dtype),
            label="svm, hard negatives of before",
        )
        miner.restore(state, again)
    data.ranks.wait()  # all have read the checkpoint before the first writes the next
    saved = time.monotonic()
    positions = [i % len(data.dataset) for i in range(done, count)]
    label = "svm, hard negatives"
    for hard in data.gather(positions, candidates, miner.hard_of, label=label, done=done):
        miner.add(hard)
        done += 1
        if data.ranks.is_first and time.monotonic() - saved >= data.checkpoint_seconds:
            write_tensors(path, miner.state(), made_by=made_by, about={"done": done})
            saved = time.monotonic()
    miner.finish()


def _candidates(data: TrainingData, sample: Sample, layer: Layer, config: SvmConfig) -> Candidates:
    """Select an image's negatives of all classes; windows that coincide count once.

    A window is a negative of a class if all its proposals are. One process on a CPU scores them without
    storing vectors, and then pools those that are hard.
    """
    boxes, image = sample.proposals.boxes, sample.image
    classes = len(data.dataset.class_names)
    windows = data.extractor.windows(sample.maps, boxes)
    negative = np.zeros((len(windows), classes), dtype=np.bool_)
    everywhere = thin_out(boxes, np.ones(len(boxes), dtype=np.bool_), max_iou=config.negative_nms)
    for k in range(classes):
        far = negatives_of_class(boxes, image, k + 1, max_iou=config.negative_iou)
        thinned = everywhere if far.all() else thin_out(boxes, far, max_iou=config.negative_nms)
        negative[windows.index[thinned], k] = True
        negative[windows.index[~far], k] = False
    rows = np.flatnonzero(negative.any(axis=1))
    cells = windows.cells[rows]

    def features(part: NDArray[np.int64]) -> torch.Tensor:
        return data.extractor.layer(data.extractor.pool(sample.maps, cells[part]), layer)

    if data.ranks.count > 1 or data.maps.device.type != "cpu":
        return Candidates.of(sample.position, features(np.arange(len(cells))), negative[rows])

    def products(weights: torch.Tensor) -> torch.Tensor:
        return data.extractor.products(sample.maps, cells, layer, weights)

    return Candidates(sample.position, products, features, negative[rows])

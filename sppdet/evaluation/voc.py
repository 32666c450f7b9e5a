"""Average precision by the rules of the PASCAL VOC devkit."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sppdet.boxes import box_iou
from sppdet.errors import shorten
from sppdet.evaluation.curves import (
    VocMetric,
    _check_metric,
    average_precision,
    mean_of_known,
)
from sppdet.evaluation.inputs import (
    FlatDetections,
    FlatGroundTruth,
    flatten_detections,
    flatten_ground_truth,
)
from sppdet.types import (
    Boxes,
    ClassResult,
    Dataset,
    Detections,
    EvalResult,
    Flags,
    Labels,
    Matches,
    Scores,
)

log = logging.getLogger("sppdet")


FALSE_POSITIVE, TRUE_POSITIVE, IGNORED = 0, 1, -1


def evaluate_voc(
    dataset: Dataset,
    detections: Mapping[str, Detections],
    *,
    metric: VocMetric,
    min_iou: float = 0.5,
) -> EvalResult:
    """Compute mean average precision over the classes of a split.

    A class without objects, or with difficult ones only, gets AP = NaN and a warning and is left out
    of the mean; the mean of no class is NaN.

    Args:
        dataset: the split with its ground truth.
        detections: by image id; an image that is missing has none.
        metric: "voc07", 11-point; "voc10", area under the monotone curve.
        min_iou: a detection matches if IoU >= min_iou; in (0, 1].

    Raises:
        DataError: detections that do not fit the data set (see `flatten_detections`).
        ValueError: an unknown metric or a `min_iou` out of range.
    """
    classes = class_results(dataset, detections, metric=metric, min_iou=min_iou)
    warn_uncounted([c.name for c in classes if c.ground_truths == 0], dataset.name)
    return EvalResult(
        metric=metric,
        split=dataset.name,
        mean_ap=mean_of_known([c.ap for c in classes]),
        classes=classes,
        images=len(dataset),
        min_iou=min_iou,
        image_ids=tuple(image.id for image in dataset.images),
    )


def class_results(
    dataset: Dataset,
    detections: Mapping[str, Detections],
    *,
    metric: VocMetric,
    min_iou: float = 0.5,
) -> tuple[ClassResult, ...]:
    """Compute the curves of all classes; arguments and errors are those of `evaluate_voc`."""
    _check_metric(metric)
    found = flatten_detections(dataset, detections)
    truth = flatten_ground_truth(dataset)
    by_label = np.argsort(found.labels, kind="stable")
    starts = np.searchsorted(found.labels[by_label], np.arange(1, len(dataset.class_names) + 2))
    return tuple(
        _evaluate_class(
            name,
            found.at(by_label[starts[k] : starts[k + 1]]),
            truth.at(truth.labels == k + 1),
            images=len(dataset),
            metric=metric,
            min_iou=min_iou,
        )
        for k, name in enumerate(dataset.class_names)
    )


def match_class(
    boxes: Boxes,
    scores: Scores,
    image_index: NDArray[np.int64],
    *,
    gt_boxes: Boxes,
    gt_image_index: NDArray[np.int64],
    gt_difficult: Flags,
    min_iou: float,
) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Match the detections of one class with its ground truth over all images.

    In descending score (ties in the order given), each detection takes the ground truth of maximum
    IoU in its image (ties: the first), difficult ones and ones already matched included. It is

    - a false positive where that IoU < min_iou or its image has no ground truth of the class,
    - ignored where that ground truth is difficult,
    - a true positive where it is the first to take that ground truth, else a false positive.

    Args:
        boxes: (D, 4), scores: (D,), image_index: (D,) any numbers that name the images.
        gt_boxes: (G, 4), gt_image_index: (G,), gt_difficult: (G,).
        min_iou: in (0, 1].

    Returns:
        (D,) rows in descending score, and (D,) int8 outcomes in that order: `TRUE_POSITIVE`,
        `FALSE_POSITIVE` or `IGNORED`.

    Raises:
        ValueError: `min_iou` out of range.
    """
    order, outcomes, _ = match_targets(
        boxes,
        scores,
        image_index,
        gt_boxes=gt_boxes,
        gt_image_index=gt_image_index,
        gt_difficult=gt_difficult,
        min_iou=min_iou,
    )
    return order, outcomes


def match_targets(
    boxes: Boxes,
    scores: Scores,
    image_index: NDArray[np.int64],
    *,
    gt_boxes: Boxes,
    gt_image_index: NDArray[np.int64],
    gt_difficult: Flags,
    min_iou: float,
) -> tuple[NDArray[np.int64], NDArray[np.int8], NDArray[np.int64]]:
    """Match like `match_class`; returns also the row of the ground truth that each detection takes.

    Returns:
        The rows and outcomes of `match_class`, and (D,) int64 rows of `gt_boxes` in the same order, -1
        where IoU < `min_iou`. Several detections may take one ground truth.

    Raises:
        ValueError: `min_iou` out of range.
    """
    if not 0 < min_iou <= 1:
        raise ValueError(f"min_iou: {min_iou}, expected a number in (0, 1]")
    iou, target = _nearest_gt(boxes, image_index, gt_boxes, gt_image_index)
    order = np.argsort(-scores, kind="stable").astype(np.int64)
    target = target[order]
    hit = np.flatnonzero(iou[order] >= min_iou)
    ignored = hit[gt_difficult[target[hit]]]
    counted = hit[~gt_difficult[target[hit]]]
    _, first = np.unique(target[counted], return_index=True)  # the first in descending score
    outcomes = np.full(len(order), FALSE_POSITIVE, dtype=np.int8)
    outcomes[ignored] = IGNORED
    outcomes[counted[first]] = TRUE_POSITIVE
    taken = np.full(len(order), -1, dtype=np.int64)
    taken[hit] = target[hit]
    return order, outcomes, taken


def match_image(
    found: Detections,
    *,
    gt_boxes: Boxes,
    gt_labels: Labels,
    gt_difficult: Flags,
    min_iou: float,
) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Match the detections of one image with its ground truth, class by class, as `match_targets` does.

    Args:
        gt_boxes: (G, 4), gt_labels: (G,), gt_difficult: (G,).

    Returns:
        (D,) outcomes in the order of `found`, and (D,) int64 rows of `gt_boxes` that are taken, or -1.
    """
    outcomes = np.full(len(found), IGNORED, dtype=np.int8)
    targets = np.full(len(found), -1, dtype=np.int64)
    for label in np.unique(found.labels):
        rows, objects = (np.flatnonzero(labels == label) for labels in (found.labels, gt_labels))
        order, of_class, taken = match_targets(
            found.boxes[rows],
            found.scores[rows],
            np.zeros(len(rows), dtype=np.int64),
            gt_boxes=gt_boxes[objects],
            gt_image_index=np.zeros(len(objects), dtype=np.int64),
            gt_difficult=gt_difficult[objects],
            min_iou=min_iou,
        )
        outcomes[rows[order]] = of_class
        hit = taken >= 0
        targets[rows[order[hit]]] = objects[taken[hit]]
    return outcomes, targets


def precision_recall(
    outcomes: NDArray[np.int8], *, ground_truths: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute recall and precision after each detection.

    Args:
        outcomes: (D,) in descending score, as from `match_class`.
        ground_truths: objects that count, difficult ones left out.

    Returns:
        (D,) recall, zeros if there is no ground truth, and (D,) precision, 0 until the first
        detection that is not ignored.
    """
    tp = np.cumsum(outcomes == TRUE_POSITIVE)
    fp = np.cumsum(outcomes == FALSE_POSITIVE)
    recall: NDArray[np.float64] = tp / max(ground_truths, 1)
    precision: NDArray[np.float64] = tp / np.maximum(tp + fp, 1)
    return recall, precision


def warn_uncounted(names: list[str], split: str) -> None:
    """Warn of classes without ground truth that counts, which the mean leaves out."""
    if names:
        log.warning("%s: left out of the mean, no object that counts: %s", split, shorten(names))


def _evaluate_class(
    name: str,
    found: FlatDetections,
    truth: FlatGroundTruth,
    *,
    images: int,
    metric: VocMetric,
    min_iou: float,
) -> ClassResult:
    order, outcomes = match_class(
        found.boxes,
        found.scores,
        found.image_index,
        gt_boxes=truth.boxes,
        gt_image_index=truth.image_index,
        gt_difficult=truth.difficult,
        min_iou=min_iou,
    )
    objects = np.bincount(truth.image_index[~truth.difficult], minlength=images)
    ground_truths = int(objects.sum())
    recall, precision = precision_recall(outcomes, ground_truths=ground_truths)
    ap = average_precision(recall, precision, metric=metric) if ground_truths else float("nan")
    return ClassResult(
        name=name,
        ap=ap,
        recall=recall,
        precision=precision,
        scores=found.scores[order].astype(np.float64),
        ground_truths=ground_truths,
        detections=len(order),
        image_index=found.image_index[order],
        boxes=found.boxes[order],
        outcomes=outcomes,
        matches=Matches(found.image_index[order], outcomes[None], objects),
    )


def _nearest_gt(
    boxes: Boxes,
    image_index: NDArray[np.int64],
    gt_boxes: Boxes,
    gt_image_index: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    # (D,) the maximum IoU and its row of gt_boxes; 0 and -1 where the image has no ground truth
    iou = np.zeros(len(boxes))
    target = np.full(len(boxes), -1, dtype=np.int64)
    by_image = np.argsort(image_index, kind="stable")
    gt_by_image = np.argsort(gt_image_index, kind="stable")
    images, gt_starts = np.unique(gt_image_index[gt_by_image], return_index=True)
    lows = np.searchsorted(image_index[by_image], images, side="left")
    highs = np.searchsorted(image_index[by_image], images, side="right")
    gt_groups = np.split(gt_by_image, gt_starts[1:])
    for low, high, gt_rows in zip(lows, highs, gt_groups, strict=False):
        if low == high:
            continue
        rows = by_image[low:high]
        pairs = box_iou(boxes[rows], gt_boxes[gt_rows])  # [rows, gt_rows]
        best = pairs.argmax(axis=1)
        iou[rows] = pairs[np.arange(len(rows)), best]
        target[rows] = gt_rows[best]
    return iou, target

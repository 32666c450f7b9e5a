"""Detections that count at thresholds, image by image, and the confusion matrix with background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sppdet.boxes import box_iou, empty_boxes
from sppdet.evaluation.voc import FALSE_POSITIVE, TRUE_POSITIVE, match_image
from sppdet.types import AnnotatedImage, Dataset, Detections, Flags

MIN_IOU = 0.5


@dataclass(frozen=True)
class Verdict:
    """The detections of one image that count, and what became of its objects.

    `outcomes` are those of the VOC matching. A false detection may be `confused`: it has taken an object
    of another class, IoU >= 0.5, that isn't difficult and that no detection has taken, neither a true one
    nor a confused one of a higher score; of several it takes that of the largest IoU.
    """

    image: AnnotatedImage
    detections: Detections  # D of them
    outcomes: NDArray[np.int8]  # (D,)
    confused: NDArray[np.int64]  # (D,) rows of the image's objects, -1 for none
    found: Flags  # (G,) objects with a true detection

    @property
    def missed(self) -> Flags:
        """Objects (G,) that aren't difficult and have no true detection."""
        return ~self.found & ~self.image.difficult

    @property
    def false(self) -> Flags:
        """False detections (D,)."""
        wrong: Flags = self.outcomes == FALSE_POSITIVE
        return wrong

    @property
    def errors(self) -> int:
        """Number of missed objects and false detections."""
        return int(self.missed.sum() + self.false.sum())


def judge_images(
    dataset: Dataset, detections: Mapping[str, Detections], least: NDArray[np.float32]
) -> list[Verdict]:
    """Judge the detections of every image with a score >= the class's `least` (K,).

    Args:
        detections: by image id, in descending score; an image that is missing has none.
    """
    none = Detections(empty_boxes(), np.zeros(0, np.float32), np.zeros(0, np.int64))
    return [_judge(image, detections.get(image.id, none).above(least)) for image in dataset.images]


def _judge(image: AnnotatedImage, found: Detections) -> Verdict:
    outcomes, targets = match_image(
        found,
        gt_boxes=image.gt_boxes,
        gt_labels=image.gt_labels,
        gt_difficult=image.difficult,
        min_iou=MIN_IOU,
    )
    hit = np.zeros(len(image.gt_boxes), dtype=np.bool_)
    hit[targets[outcomes == TRUE_POSITIVE]] = True
    confused = np.full(len(found), -1, dtype=np.int64)
    left = ~hit & ~image.difficult
    iou = box_iou(found.boxes, image.gt_boxes)  # [D, G]
    for d in np.flatnonzero(outcomes == FALSE_POSITIVE).tolist():
        free = np.where(left & (image.gt_labels != found.labels[d]), iou[d], 0.0)
        if free.max(initial=0.0) >= MIN_IOU:
            confused[d] = free.argmax()
            left[confused[d]] = False
    return Verdict(image, found, outcomes, confused, hit)


def confusion_matrix(verdicts: Sequence[Verdict], classes: int) -> NDArray[np.int64]:
    """Count objects by their class (row) and the class that they are detected as (column).

    Row 0 are detections on the background: false ones that aren't confused, duplicates among them;
    column 0 are objects that no detection has taken. So a row k > 0 adds up to the objects of class k,
    a column k > 0 to the detections of class k that count neither way left out, and the diagonal has the
    true detections. [0, 0] is 0.

    Returns:
        (K + 1, K + 1) int64.
    """
    matrix = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    for one in verdicts:
        labels, objects = one.detections.labels, one.image.gt_labels
        rows = np.append(objects, 0)[one.confused]
        rows = np.where(one.outcomes == TRUE_POSITIVE, labels, rows)
        counted = (one.outcomes == TRUE_POSITIVE) | one.false
        np.add.at(matrix, (rows[counted], labels[counted]), 1)
        lost = one.missed
        lost[one.confused[one.confused >= 0]] = False
        np.add.at(matrix[:, 0], objects[lost], 1)
    return matrix

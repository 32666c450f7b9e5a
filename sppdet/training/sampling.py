"""Labelling of proposals as positives and negatives by IoU, and sampling."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sppdet.boxes import box_iou, nms
from sppdet.types import AnnotatedImage, Boxes, Flags, Labels

IGNORED = -1


def label_boxes(
    boxes: Boxes,
    image: AnnotatedImage,
    *,
    positive_iou: float,
    negative_iou: tuple[float, float],
) -> Labels:
    """Label boxes for fine-tuning: the class of the ground truth of maximum IoU, or background.

    Args:
        boxes: (P, 4) original pixels.
        positive_iou: positive if the maximum IoU >= this.
        negative_iou: background if the maximum IoU is in [first, second).

    Returns:
        (P,) int64: 1..K, 0 for background, `IGNORED` for the rest and for boxes whose nearest
        object is difficult. Ties take the earlier object.
    """
    labels = np.full(len(boxes), IGNORED, dtype=np.int64)
    if len(image.gt_boxes) == 0:
        if negative_iou[0] <= 0:
            labels[:] = 0
        return labels
    iou = box_iou(boxes, image.gt_boxes)  # [P, G]
    nearest, best = iou.argmax(axis=1), iou.max(axis=1)
    labels[(best >= negative_iou[0]) & (best < negative_iou[1])] = 0
    positive = best >= positive_iou
    labels[positive] = image.gt_labels[nearest[positive]]
    labels[(best > 0) & image.difficult[nearest] & (best >= negative_iou[0])] = IGNORED
    return labels


def negatives_of_class(boxes: Boxes, image: AnnotatedImage, label: int, *, max_iou: float) -> Flags:
    """Select boxes (P,) with IoU < `max_iou` with all objects of a class, difficult ones included."""
    targets = image.gt_boxes[image.gt_labels == label]
    if len(targets) == 0 or len(boxes) == 0:
        return np.ones(len(boxes), dtype=np.bool_)
    far: Flags = box_iou(boxes, targets).max(axis=1) < max_iou
    return far


def thin_out(boxes: Boxes, chosen: Flags, *, max_iou: float) -> Flags:
    """Drop chosen boxes (P,) with IoU > `max_iou` with an earlier chosen one (paper §4.1)."""
    if max_iou >= 1.0:
        return chosen
    rows = np.flatnonzero(chosen)
    kept = nms(boxes[rows], np.zeros(len(rows), dtype=np.float32), max_iou=max_iou)
    thinned = np.zeros_like(chosen)
    thinned[rows[kept]] = True
    return thinned


def draw(rows: NDArray[np.int64], count: int, *, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw at most `count` of the rows without replacement, in random order."""
    return rng.permutation(rows)[:count]

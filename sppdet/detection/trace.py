"""Intermediate results of detection: which box has suppressed which, and where regression moves boxes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sppdet.boxes import box_iou, find_suppressors
from sppdet.config import DetectConfig
from sppdet.detection.detect import ScoredProposals, Selection
from sppdet.types import Boxes, Labels


def suppressors(
    scored: ScoredProposals, selection: Selection, config: DetectConfig
) -> NDArray[np.int64]:
    """Find for each class the proposal by which `select` has dropped or lowered each proposal.

    Args:
        scored: proposals of one image by one model, and `selection`: what `select` has made of them by
            the same `config`.

    Returns:
        (P, K) int64 rows of `scored`; -1 where a score is below the minimum, where NMS has kept the
        proposal, and where only `max_per_class` has cut it. With soft-NMS several boxes lower a score:
        the one of the largest IoU is named, and -1 where none overlaps.
    """
    lowest = config.lowest_score(scored.parts.classifiers.kind)
    found = np.full(scored.scores.shape, -1, dtype=np.int64)
    for k in range(scored.scores.shape[1]):
        rows = np.flatnonzero(scored.scores[:, k] >= np.float32(lowest))
        kept = np.searchsorted(rows, selection.rows[selection.detections.labels == k + 1])
        boxes = scored.boxes[rows]
        if config.soft_nms is None:
            by = find_suppressors(boxes, kept, max_iou=config.nms)
        else:
            by = _largest_before(boxes, kept)
        found[rows, k] = np.where(by >= 0, rows[by], -1) if len(rows) else by
    return found


def _largest_before(boxes: Boxes, kept: NDArray[np.int64]) -> NDArray[np.int64]:
    """Find for each box the row of largest IoU > 0 in `kept`, before its own place there; else -1."""
    if len(kept) == 0:
        return np.full(len(boxes), -1, dtype=np.int64)
    place = np.full(len(boxes), len(kept))
    place[kept] = np.arange(len(kept))
    iou = box_iou(boxes, boxes[kept])  # [N, M]
    iou[np.arange(len(kept))[None, :] >= place[:, None]] = 0.0
    return np.where(iou.max(axis=1) > 0, kept[iou.argmax(axis=1)], -1)


def regressed_boxes(
    scored: ScoredProposals,
    selection: Selection,
    config: DetectConfig,
    *,
    targets: Boxes,
    labels: Labels,
    min_iou: float,
    width: int,
    height: int,
) -> NDArray[np.float32]:
    """Regress for each class the proposals that are on an object of this class.

    Args:
        targets: (G, 4) objects, labels: (G,).
        min_iou: a proposal is on an object if IoU >= this.
        width, height: size of the image in original pixels.

    Returns:
        (P, K, 4) float32. A proposal that is on no object of the class stays where it is. Without box
        voting, the boxes of detections are those of `selection`, bit by bit.
    """
    classes = scored.scores.shape[1]
    moved = np.repeat(scored.boxes[:, None, :], classes, axis=1)  # [P, K, 4]
    on = box_iou(scored.boxes, targets) >= min_iou  # [P, G]
    chosen = [np.flatnonzero(on[:, labels == k + 1].any(axis=1)) for k in range(classes)]
    for k, boxes in enumerate(scored.move(chosen, width=width, height=height)):
        moved[chosen[k], k] = boxes
    if config.box_voting is None:
        moved[selection.rows, selection.detections.labels - 1] = selection.detections.boxes
    return moved

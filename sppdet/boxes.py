"""Operations on boxes (IoU, clipping, flips, deltas, NMS, votes): float32 `xyxy`, 0-based, half-open."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.types import Boxes, Scores
from sppdet.vision import ops


def empty_boxes() -> Boxes:
    """Return a (0, 4) float32 array."""
    return np.zeros((0, 4), dtype=np.float32)


def box_iou(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """Compute the IoU of every box of `a` with every box of `b`.

    On half-open boxes this equals the VOC devkit's IoU with its "+1" on inclusive boxes.

    Args:
        a: (N, 4), b: (M, 4), in the same frame.

    Returns:
        (N, M) float64 in [0, 1]; 0 for boxes that only touch. In float64 an IoU of exactly 0.5 on
        whole pixels is 0.5.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    inter = intersections(a, b)
    area_x = np.prod(x[:, 2:] - x[:, :2], axis=1)
    area_y = np.prod(y[:, 2:] - y[:, :2], axis=1)
    union = area_x[:, None] + area_y[None, :] - inter
    iou: NDArray[np.float64] = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    return iou


def intersections(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """Compute the area (N, M) that every box of `a` (N, 4) shares with every box of `b` (M, 4)."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    low = np.maximum(x[:, None, :2], y[None, :, :2])  # [N, M, 2]
    high = np.minimum(x[:, None, 2:], y[None, :, 2:])
    inter: NDArray[np.float64] = np.prod(np.clip(high - low, 0.0, None), axis=2)
    return inter


def clip_boxes(boxes: Boxes, *, width: int, height: int) -> Boxes:
    """Clip boxes (N, 4) to the image; a box outside the image is left without area."""
    limit = np.array([width, height, width, height], dtype=np.float32)
    clipped: Boxes = np.clip(boxes, np.float32(0), limit)
    return clipped


def whole_pixels(boxes: Boxes) -> NDArray[np.int64]:
    """Round boxes (N, 4) to whole pixels; each keeps at least one pixel, the one that it begins in."""
    rounded: NDArray[np.int64] = np.rint(boxes).astype(np.int64)
    for low, high in ((0, 2), (1, 3)):
        thin = rounded[:, high] <= rounded[:, low]
        rounded[thin, low] = np.floor(boxes[thin, low]).astype(np.int64)
        rounded[thin, high] = rounded[thin, low] + 1
    return rounded


def flip_boxes(boxes: Boxes, *, width: int) -> Boxes:
    """Mirror boxes (N, 4) left to right with their image."""
    flipped: Boxes = boxes.copy()
    flipped[:, 0] = width - boxes[:, 2]
    flipped[:, 2] = width - boxes[:, 0]
    return flipped


def encode_deltas(proposals: Boxes, targets: Boxes) -> NDArray[np.float32]:
    """Compute the box deltas (dx, dy, dw, dh) that map each proposal to its target.

    dx, dy are the shift of the centre divided by the proposal's width and height; dw, dh are the
    logarithms of the size ratios (Girshick et al., R-CNN, appendix C).

    Args:
        proposals: (N, 4), targets: (N, 4), row by row, all with area.

    Returns:
        (N, 4) float32.
    """
    p, t = proposals.astype(np.float64), targets.astype(np.float64)
    p_size, t_size = p[:, 2:] - p[:, :2], t[:, 2:] - t[:, :2]
    shift = ((t[:, :2] + t[:, 2:]) - (p[:, :2] + p[:, 2:])) / 2 / p_size
    deltas: NDArray[np.float32] = np.hstack([shift, np.log(t_size / p_size)]).astype(np.float32)
    return deltas


def decode_deltas(proposals: Boxes, deltas: NDArray[np.float32]) -> Boxes:
    """Apply box deltas (N, 4) to proposals (N, 4); inverse of `encode_deltas`.

    dw, dh are clamped to a factor of 1000 either way, so that an extreme prediction stays finite.
    """
    p, d = proposals.astype(np.float64), deltas.astype(np.float64)
    size = p[:, 2:] - p[:, :2]
    centre = p[:, :2] + size / 2 + d[:, :2] * size
    half = size * np.exp(np.clip(d[:, 2:], -np.log(1000), np.log(1000))) / 2
    boxes: Boxes = np.hstack([centre - half, centre + half]).astype(np.float32)
    return boxes


def nms(
    boxes: Boxes, scores: Scores, *, max_iou: float, max_boxes: int | None = None
) -> NDArray[np.int64]:
    """Run greedy non-maximum suppression (torchvision's).

    A box is dropped if its IoU with a kept box of higher score is > `max_iou`.

    Args:
        max_boxes: maximum number of boxes to keep.

    Returns:
        (M,) rows of the boxes kept, in descending score; ties keep the earlier row first.
    """
    if len(boxes) == 0:
        return np.zeros(0, dtype=np.int64)
    # torchvision's sort may be unstable: pass the boxes in a stable order and map the rows back
    order = np.argsort(-scores, kind="stable")
    # torchvision compares in float32, where 3/10 exceeds float64 0.3 but not float32 0.3
    max_iou32 = float(np.float32(max_iou))
    # boxes of lower score never affect those of higher score, so try the best first
    tried = len(order) if max_boxes is None else _CANDIDATES_PER_BOX * max_boxes
    while True:
        best = order[:tried]
        rank = torch.arange(len(best), 0, -1, dtype=torch.float32)
        kept = ops.nms(torch.from_numpy(boxes[best]), rank, max_iou32).numpy()[:max_boxes]
        if tried >= len(order) or len(kept) == max_boxes:
            break
        tried *= 2
    rows: NDArray[np.int64] = order[kept].astype(np.int64)
    return rows


_CANDIDATES_PER_BOX = 4  # that NMS tries first


def find_suppressors(boxes: Boxes, kept: NDArray[np.int64], *, max_iou: float) -> NDArray[np.int64]:
    """Find the box by which `nms` has dropped each box.

    Args:
        boxes: (N, 4), max_iou: as passed to `nms`.
        kept: (M,) the rows that it has returned, in descending score.

    Returns:
        (N,) int64: the first kept box whose IoU with the box is > `max_iou`; -1 for a box that is kept
        or that only `max_boxes` has cut.
    """
    found = np.full(len(boxes), -1, dtype=np.int64)
    if len(kept) == 0:
        return found
    # the first that a dropped box meets has a higher score: NMS would have kept the box otherwise
    iou = box_iou(boxes, boxes[kept])  # [N, M]
    over = iou > float(np.float32(max_iou))
    # NMS computes in float32: where no IoU is above the bound in float64, the largest was by rounding
    first = np.where(over.any(axis=1), over.argmax(axis=1), iou.argmax(axis=1))
    dropped = iou[np.arange(len(boxes)), first] > max_iou * (1 - _FLOAT32_ERROR)
    dropped[kept] = False
    found[dropped] = kept[first[dropped]]
    return found


_FLOAT32_ERROR = 1e-6  # relative error of an IoU in float32


def soft_nms(
    boxes: Boxes, scores: Scores, *, sigma: float, min_score: float, max_boxes: int
) -> tuple[NDArray[np.int64], Scores]:
    """Run Gaussian soft-NMS (Bodla et al. 2017): decay the scores of neighbours, drop none for its IoU.

    The box of highest score is kept; the probability p of every other box is multiplied by
    exp(-IoU² / sigma); and so on. A margin can be negative, so that a factor below 1 would raise it:
    p is the margin's sigmoid, and the score is the margin whose sigmoid is the decayed p. A box that
    nothing overlaps keeps its score, and neither p nor the factor depends on `min_score`: raising
    it drops boxes, but changes none that remain.

    Args:
        boxes: (N, 4), scores: (N,) margins, in any order.
        sigma: > 0; larger decays less.
        min_score: a box whose decayed score is < this is dropped.
        max_boxes: maximum number of boxes to keep.

    Returns:
        (M,) rows of the boxes kept, in descending decayed score, ties the earlier row first; and their
        decayed scores (M,).
    """
    # -log p; a product of factors is a sum here, and nothing underflows
    cost = np.logaddexp(0.0, -scores.astype(np.float64))
    left = np.arange(len(boxes))
    current = scores.astype(np.float64)
    rows: list[int] = []
    kept: list[float] = []
    while len(left) and len(rows) < max_boxes:
        best = int(np.argmax(current))
        if current[best] < min_score:
            break
        rows.append(int(left[best]))
        kept.append(float(current[best]))
        near = box_iou(boxes[left[[best]]], boxes[left])[0]
        others = np.arange(len(left)) != best
        left, near, cost, current = left[others], near[others], cost[others], current[others]
        met = near > 0
        with np.errstate(over="ignore", divide="ignore"):  # an extreme sigma
            cost[met] += near[met] ** 2 / sigma
            margin = -cost[met] - np.log(-np.expm1(-cost[met]))  # logit of p = exp(-cost)
        current[met] = np.minimum(margin, current[met])
    return np.array(rows, dtype=np.int64), np.array(kept, dtype=np.float32)


def vote_boxes(kept: Boxes, boxes: Boxes, weights: NDArray[np.float64], *, min_iou: float) -> Boxes:
    """Replace every kept box by the weighted mean of its neighbours (Gidaris and Komodakis 2015, §4.2).

    Args:
        kept: (M, 4), boxes: (N, 4) that vote, the kept ones among them.
        weights: (N,), > 0.
        min_iou: a box votes for each kept box with which its IoU is >= this.

    Returns:
        (M, 4), row by row; a kept box without a neighbour is returned as it is.
    """
    votes = np.where(box_iou(kept, boxes) >= min_iou, weights, 0.0)  # [M, N]
    total = votes.sum(axis=1, keepdims=True)
    mean = np.divide(votes @ boxes, total, out=kept.astype(np.float64), where=total > 0)
    voted: Boxes = mean.astype(np.float32)
    return voted

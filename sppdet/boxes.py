"""Boxes: IoU, clipping, deltas, flips and NMS, all on float32 `xyxy`, 0-based, half-open."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import nms as _nms

from sppdet.types import Boxes, Scores


def empty_boxes() -> Boxes:
    """A (0, 4) float32 array."""
    return np.zeros((0, 4), dtype=np.float32)


def box_iou(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """IoU of every box of `a` with every box of `b`.

    On half-open boxes this equals the VOC devkit's IoU with its "+1" on inclusive ones.

    Args:
        a: (N, 4), b: (M, 4), in the same frame.

    Returns:
        (N, M) float64 in [0, 1]; boxes that only touch give 0. Float64, so that an IoU of exactly
        0.5 on whole pixels is 0.5.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    low = np.maximum(x[:, None, :2], y[None, :, :2])  # [N, M, 2]
    high = np.minimum(x[:, None, 2:], y[None, :, 2:])
    inter = np.prod(np.clip(high - low, 0.0, None), axis=2)
    area_x = np.prod(x[:, 2:] - x[:, :2], axis=1)
    area_y = np.prod(y[:, 2:] - y[:, :2], axis=1)
    union = area_x[:, None] + area_y[None, :] - inter
    iou: NDArray[np.float64] = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    return iou


def clip_boxes(boxes: Boxes, *, width: int, height: int) -> Boxes:
    """The boxes cut to the image; a box wholly outside ends without area."""
    limit = np.array([width, height, width, height], dtype=np.float32)
    clipped: Boxes = np.clip(boxes, np.float32(0), limit)
    return clipped


def flip_boxes(boxes: Boxes, *, width: int) -> Boxes:
    """The boxes in the image mirrored left to right."""
    flipped: Boxes = boxes.copy()
    flipped[:, 0] = width - boxes[:, 2]
    flipped[:, 2] = width - boxes[:, 0]
    return flipped


def encode_deltas(proposals: Boxes, targets: Boxes) -> NDArray[np.float32]:
    """Box deltas (dx, dy, dw, dh) that take each proposal to its target.

    dx, dy are the centre's shift over the proposal's width and height; dw, dh are the logarithms
    of the size ratios (Girshick et al., R-CNN, appendix C).

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
    """The boxes that `deltas` make of `proposals`: the inverse of `encode_deltas`.

    dw, dh are bounded to a factor of 1000 either way, so that a wild prediction stays finite.
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
    """Greedy non-maximum suppression by torchvision.

    A box goes if its IoU with a kept box of higher score is > `max_iou`.

    Args:
        max_boxes: maximum number of boxes to keep.

    Returns:
        (M,) rows of the boxes kept, in descending score; ties keep the earlier row first.
    """
    if len(boxes) == 0:
        return np.zeros(0, dtype=np.int64)
    # torchvision's sort need not be stable: hand the boxes over in a stable order and map back
    order = np.argsort(-scores, kind="stable")
    # torchvision compares float32 IoUs: 3/10 there is more than 0.3, but not than float32 0.3
    bound = float(np.float32(max_iou))
    # what is kept among the best doesn't depend on the rest, which is looked at only if it must be
    tried = len(order) if max_boxes is None else _TRIED * max_boxes
    while True:
        best = order[:tried]
        rank = torch.arange(len(best), 0, -1, dtype=torch.float32)
        kept = _nms(torch.from_numpy(boxes[best]), rank, bound).numpy()[:max_boxes]
        if tried >= len(order) or len(kept) == max_boxes:
            break
        tried *= 2
    rows: NDArray[np.int64] = order[kept].astype(np.int64)
    return rows


_TRIED = 4  # candidates that NMS looks at first, for each box that it may keep

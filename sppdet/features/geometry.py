"""Mapping of proposals to image scales and to cells of the feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sppdet.types import Boxes

Geometry = tuple[
    int, float
]  # stride S and first centre c₀ of a map, in pixels of the network's input

# distances that differ by less than this fraction of the canonical area count as equal: factors such
# as 1.4 are rounded, even in float64
_TIE = 1e-9


def scale_factors_of(
    scales: Sequence[int], *, width: int, height: int, max_side: int
) -> NDArray[np.float64]:
    """Compute the distinct scale factors of an image of `width` × `height` original pixels.

    Args:
        scales: shorter sides in resized pixels.
        max_side: cap on the longer side in resized pixels; it may make scales coincide.

    Returns:
        (S,) ascending, 1 <= S <= `len(scales)`.
    """
    return np.unique(
        [scale_factor(width=width, height=height, scale=s, max_side=max_side) for s in scales]
    )


def scale_factor(*, width: int, height: int, scale: int, max_side: int) -> float:
    """Compute resized / original pixels for a shorter side `scale` and a longer one <= `max_side`."""
    return min(scale / min(width, height), max_side / max(width, height))


def choose_scales(
    boxes: Boxes, scale_factors: NDArray[np.float64], *, canonical_area: float = 224 * 224
) -> NDArray[np.int64]:
    """Pick for each proposal the image scale that brings its area nearest to `canonical_area`.

    Paper §4.1; the released code compares side lengths with 208.

    Args:
        boxes: (P, 4) original pixels.
        scale_factors: (S,) ascending.
        canonical_area: resized pixels; the crop on which the network was pre-trained.

    Returns:
        (P,) int64 indices into `scale_factors`; ties take the smaller; empty if P = 0.

    Raises:
        ValueError: no scales, or a box without area (its row is named).
    """
    if len(scale_factors) == 0:
        raise ValueError("scale_factors: expected one or more")
    b = boxes.astype(np.float64)
    area = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    if (area <= 0).any():
        raise ValueError(f"boxes, row {int(np.flatnonzero(area <= 0)[0])}: no area")
    scaled = area[:, None] * np.square(scale_factors.astype(np.float64))[None, :]  # [P, S]
    distance = np.abs(scaled - canonical_area)
    near = distance <= distance.min(axis=1, keepdims=True) + _TIE * canonical_area
    nearest: NDArray[np.int64] = near.argmax(axis=1)
    return nearest


def project(
    boxes: Boxes,
    scale_factors: NDArray[np.float64],
    *,
    stride: int,
    offset: float,
    map_width: int,
    map_height: int,
) -> NDArray[np.int64]:
    """Project boxes to windows: the cells whose receptive-field centres are strictly inside.

    left = ⌊(x − c₀)/S⌋ + 1 and right = ⌈(x − c₀)/S⌉ − 1, both inclusive; if left > right, both
    become their floor-mean; then they are clamped to the map (paper, appendix A, with c₀ for any
    padding). A centre that rounds to the edge in float32, the precision of boxes, is on the edge and
    not inside.

    Args:
        boxes: (P, 4) original pixels.
        scale_factors: (P,) factor of the scale chosen for each box.
        stride: resized pixels between cells (S).
        offset: centre of the first cell's receptive field, continuous resized pixels (c₀).
        map_width, map_height: cells.

    Returns:
        (P, 4) int64 windows (left, top, right, bottom) in cells, inclusive.
    """
    factors = scale_factors.astype(np.float64)[:, None]
    cells = (boxes.astype(np.float64) * factors - offset) / stride
    nearest = np.rint(cells)
    centres = (nearest * stride + offset) / factors  # original pixels
    cells = np.where(centres.astype(np.float32) == boxes, nearest, cells)
    low = np.floor(cells[:, :2]).astype(np.int64) + 1
    high = np.ceil(cells[:, 2:]).astype(np.int64) - 1
    middle = (low + high) // 2
    crossed = low > high
    low, high = np.where(crossed, middle, low), np.where(crossed, middle, high)
    limit = np.array([map_width, map_height]) - 1
    windows: NDArray[np.int64] = np.hstack([np.clip(low, 0, limit), np.clip(high, 0, limit)])
    return windows


def unique_windows(
    scale_index: NDArray[np.int64], windows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the distinct (scale, window) pairs and the row of each proposal in them.

    Args:
        scale_index: (P,), windows: (P, 4).

    Returns:
        (U, 5) int64 rows (scale, left, top, right, bottom), sorted, and (P,) int64 indices of its rows.
    """
    rows = np.hstack([scale_index[:, None], windows])
    if len(rows) == 0:
        return rows.astype(np.int64).reshape(0, 5), np.zeros(0, dtype=np.int64)
    # sorting one number per row is far faster than sorting rows
    keys = np.ravel_multi_index(tuple(rows.T), tuple(rows.max(axis=0) + 1))
    _, first, index = np.unique(keys, return_index=True, return_inverse=True)
    return rows[first].astype(np.int64), index.astype(np.int64)

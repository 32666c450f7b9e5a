"""Compiled loops of spatial pyramid pooling on a CPU, over maps whose channels come last.

The maximum of a bin is that of a few squares of 1, 2, 4 or 8 cells a side, whose maxima are computed once a
map. They are exact, since squares may overlap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sppdet.compiled import ONE, ZERO, compiled, compiled_part, compiled_sum


def fill_square_maxima(maxima: NDArray[np.float32]) -> None:
    """Fill maxima (K, H, W, C): at [k, y, x] of the 2ᵏ×2ᵏ cells from (y, x), where these are in the map.

    maxima[0], the map itself, is given.
    """
    _, _, width, channels = maxima.shape
    flat = maxima.reshape(len(maxima), -1)
    wide = np.empty_like(flat[0])  # of 2ᵏ cells across, 2ᵏ⁻¹ down
    for k in range(1, len(flat)):
        half = channels << (k - 1)
        _fill_maximum(flat[k - 1], np.uint64(half), wide)
        _fill_maximum(wide, np.uint64(half * width), flat[k])


@compiled
def _fill_maximum(values: NDArray[np.float32], far: np.uint64, best: NDArray[np.float32]) -> None:
    """Fill best with the larger of each value and that `far` further on, as far as there are any."""
    for i in range(np.uint64(values.shape[0]) - far):
        first, second = values[i], values[i + far]
        best[i] = first if first > second else second


def pool(
    maxima: NDArray[np.float32],
    windows: NDArray[np.int64],
    levels: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Pool a map by the maxima of its squares into out (U, D), all levels of a window at once."""
    _pool(*_flat(maxima), _unsigned(windows), _unsigned(levels), out.reshape(-1))


def multiply(
    maxima: NDArray[np.float32],
    windows: NDArray[np.int64],
    levels: NDArray[np.int64],
    weights: NDArray[np.float32],
    out: NDArray[np.float64],
) -> None:
    """Add the products of pooled vectors with weights (K, D) to out (U, K), bin by bin.

    A bin's weights stay in the cache for all windows, and no vector is stored.
    """
    best = np.empty(maxima.shape[3], np.float32)
    _multiply(*_flat(maxima), _unsigned(windows), _unsigned(levels), weights, best, out)


def _flat(maxima: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.uint64]]:
    return maxima.reshape(-1), np.array(maxima.shape, np.uint64)


def _unsigned(numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(numbers, np.uint64)


@compiled_part
def _max_of_bin(
    maxima: NDArray[np.float32],
    shape: NDArray[np.uint64],
    x0: np.uint64,
    y0: np.uint64,
    x1: np.uint64,
    y1: np.uint64,
    best: NDArray[np.float32],
    start: np.uint64,
) -> None:
    """Fill best[start : start + C] with the maximum of the cells [y0, y1) × [x0, x1)."""
    squares, height, width, channels = shape[0], shape[1], shape[2], shape[3]
    w, h = x1 - x0, y1 - y0
    k, side = ZERO, ONE  # the largest squares that fit into the bin
    while k + ONE < squares and side + side <= w and side + side <= h:
        k += ONE
        side += side
    row = width * channels
    # squares in the bin's corners, which may overlap or be one and the same
    first = (k * height + y0) * row + x0 * channels
    right, below = (w - side) * channels, (h - side) * row
    for m in range(channels):  # plain loops vectorise best
        a, b = maxima[first + m], maxima[first + right + m]
        c, d = maxima[first + below + m], maxima[first + below + right + m]
        upper = a if a > b else b
        lower = c if c > d else d
        best[start + m] = upper if upper > lower else lower
    if h > side + side or w > side + side:  # and between the corners
        for y in range(ZERO, h, side):
            for x in range(ZERO, w, side):
                cell = first + (y * row if y + side < h else below)
                cell += x * channels if x + side < w else right
                for m in range(channels):
                    a, b = best[start + m], maxima[cell + m]
                    best[start + m] = a if a > b else b


@compiled
def _pool(
    maxima: NDArray[np.float32],
    shape: NDArray[np.uint64],
    windows: NDArray[np.uint64],
    levels: NDArray[np.uint64],
    out: NDArray[np.float32],
) -> None:
    at = ZERO
    for u in range(windows.shape[0]):
        left, top = windows[u, 0], windows[u, 1]
        w, h = windows[u, 2] - left + ONE, windows[u, 3] - top + ONE
        for level in range(levels.shape[0]):
            n = levels[level]
            for i in range(n):
                y0, y1 = top + (i * h) // n, top + ((i + ONE) * h + n - ONE) // n
                for j in range(n):
                    x0, x1 = left + (j * w) // n, left + ((j + ONE) * w + n - ONE) // n
                    _max_of_bin(maxima, shape, x0, y0, x1, y1, out, at)
                    at += shape[3]


@compiled_sum
def _multiply(
    maxima: NDArray[np.float32],
    shape: NDArray[np.uint64],
    windows: NDArray[np.uint64],
    levels: NDArray[np.uint64],
    weights: NDArray[np.float32],
    best: NDArray[np.float32],
    out: NDArray[np.float64],
) -> None:
    at = ZERO
    for level in range(levels.shape[0]):
        n = levels[level]
        for i in range(n):
            for j in range(n):
                for u in range(windows.shape[0]):
                    left, top = windows[u, 0], windows[u, 1]
                    w, h = windows[u, 2] - left + ONE, windows[u, 3] - top + ONE
                    y0, y1 = top + (i * h) // n, top + ((i + ONE) * h + n - ONE) // n
                    x0, x1 = left + (j * w) // n, left + ((j + ONE) * w + n - ONE) // n
                    _max_of_bin(maxima, shape, x0, y0, x1, y1, best, ZERO)
                    for k in range(weights.shape[0]):
                        total = np.float32(0)
                        for m in range(shape[3]):
                            total += best[m] * weights[k, at + m]
                        out[u, k] += total
                at += shape[3]


@compiled
def spread(
    feature_map: NDArray[np.float32],
    windows: NDArray[np.int64],
    gradients: NDArray[np.float32],
    result: NDArray[np.float32],
) -> None:
    """Add gradients (U, n, n, C) of bins to the first maximum cells (H · W, C) of a map (H, W, C)."""
    n, channels = gradients.shape[1], gradients.shape[3]
    width = feature_map.shape[1]
    best = np.empty(channels, dtype=np.float32)
    place = np.empty(channels, dtype=np.int32)
    for u in range(windows.shape[0]):
        left, top = windows[u, 0], windows[u, 1]
        w, h = windows[u, 2] - left + 1, windows[u, 3] - top + 1
        for i in range(n):
            y0, y1 = top + (i * h) // n, top + ((i + 1) * h + n - 1) // n
            for j in range(n):
                x0, x1 = left + (j * w) // n, left + ((j + 1) * w + n - 1) // n
                for c in range(channels):
                    best[c] = feature_map[y0, x0, c]
                    place[c] = y0 * width + x0
                for y in range(y0, y1):
                    for x in range(x0, x1):
                        # over all channels of a cell, which lie together, without a branch
                        for c in range(channels):
                            larger = feature_map[y, x, c] > best[c]
                            best[c] = feature_map[y, x, c] if larger else best[c]
                            place[c] = y * width + x if larger else place[c]
                for c in range(channels):
                    result[place[c], c] += gradients[u, i, j, c]

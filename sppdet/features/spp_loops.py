"""Compiled loops of spatial pyramid pooling on a CPU, over maps whose channels come last.

The maximum of a bin is that of a few squares of 1, 2, 4 or 8 cells a side, whose maxima are computed once a
map. They are exact, since squares may overlap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sppdet.compiled import compiled, compiled_sum


@compiled
def fill_square_maxima(maxima: NDArray[np.float32]) -> None:
    """Fill maxima (K, H, W, C): at [k, y, x] of the 2ᵏ×2ᵏ cells from (y, x), where these are in the map.

    maxima[0], the map itself, is given.
    """
    levels, height, width, channels = maxima.shape
    for k in range(1, levels):
        half = 1 << (k - 1)
        for y in range(height - 2 * half + 1):
            for x in range(width - 2 * half + 1):
                a, b = maxima[k - 1, y, x], maxima[k - 1, y, x + half]
                c, d = maxima[k - 1, y + half, x], maxima[k - 1, y + half, x + half]
                best = maxima[k, y, x]
                for i in range(channels):  # plain loops vectorise best
                    upper = a[i] if a[i] > b[i] else b[i]
                    lower = c[i] if c[i] > d[i] else d[i]
                    best[i] = upper if upper > lower else lower


@compiled
def _max_of_bin(
    maxima: NDArray[np.float32], x0: int, y0: int, x1: int, y1: int, best: NDArray[np.float32]
) -> None:
    """Fill best (C,) with the maximum of the cells [y0, y1) × [x0, x1), by the maxima of squares."""
    squares, channels = maxima.shape[0], maxima.shape[3]
    k = 0  # the largest squares that fit into the bin
    while k + 1 < squares and 2 << k <= min(y1 - y0, x1 - x0):
        k += 1
    side = 1 << k
    # squares in the bin's corners, which may overlap or be one and the same
    a, b = maxima[k, y0, x0], maxima[k, y0, x1 - side]
    c, d = maxima[k, y1 - side, x0], maxima[k, y1 - side, x1 - side]
    for m in range(channels):  # plain loops vectorise best
        upper = a[m] if a[m] > b[m] else b[m]
        lower = c[m] if c[m] > d[m] else d[m]
        best[m] = upper if upper > lower else lower
    if y1 - y0 > 2 * side or x1 - x0 > 2 * side:  # and between the corners
        for y in range(y0, y1, side):
            for x in range(x0, x1, side):
                cell = maxima[k, min(y, y1 - side), min(x, x1 - side)]
                for m in range(channels):
                    best[m] = best[m] if best[m] > cell[m] else cell[m]


@compiled
def pool(
    maxima: NDArray[np.float32],
    windows: NDArray[np.int64],
    levels: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Pool a map by the maxima of its squares into out (U, D), all levels of a window at once."""
    channels = maxima.shape[3]
    for u in range(windows.shape[0]):
        left, top = windows[u, 0], windows[u, 1]
        w, h = windows[u, 2] - left + 1, windows[u, 3] - top + 1
        at = 0
        for n in levels:
            for i in range(n):
                y0, y1 = top + (i * h) // n, top + ((i + 1) * h + n - 1) // n
                for j in range(n):
                    x0, x1 = left + (j * w) // n, left + ((j + 1) * w + n - 1) // n
                    _max_of_bin(maxima, x0, y0, x1, y1, out[u, at : at + channels])
                    at += channels


@compiled_sum
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
    channels = maxima.shape[3]
    best = np.empty(channels, dtype=np.float32)
    at = 0
    for n in levels:
        for i in range(n):
            for j in range(n):
                end = at + channels
                for u in range(windows.shape[0]):
                    left, top = windows[u, 0], windows[u, 1]
                    w, h = windows[u, 2] - left + 1, windows[u, 3] - top + 1
                    y0, y1 = top + (i * h) // n, top + ((i + 1) * h + n - 1) // n
                    x0, x1 = left + (j * w) // n, left + ((j + 1) * w + n - 1) // n
                    _max_of_bin(maxima, x0, y0, x1, y1, best)
                    for k in range(weights.shape[0]):
                        row = weights[k, at:end]
                        total = np.float32(0)
                        for m in range(channels):
                            total += best[m] * row[m]
                        out[u, k] += total
                at = end


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

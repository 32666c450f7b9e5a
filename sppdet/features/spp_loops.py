"""Compiled loops of spatial pyramid pooling on a CPU, over maps whose channels come last.

The maximum of a bin is that of a few squares of 1, 2, 4 or 8 cells a side, whose maxima are computed once a
map. They are exact, since squares may overlap.

Values of float16 are compared by their bits, as int16 keys in the order of the values: half the memory
traffic of float32, which is what bounds these loops, and twice as many comparisons an instruction. Only
the maximum of a bin becomes float32 again, exactly; only a thread that was told to flush denormal numbers
(`torch.set_flush_denormal`) takes float16's own ones, below 6.1e-5, for 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sppdet.compiled import ONE, ZERO, compiled, compiled_part, compiled_sum

Values = NDArray[np.float32] | NDArray[np.int16]  # of maps: floats, or keys of float16
Floats = NDArray[np.float32]
KeysOfBin = tuple[NDArray[np.int16], NDArray[np.int32]]


def fill_square_maxima(maxima: Values) -> None:
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
def _fill_maximum(values: Values, far: np.uint64, best: Values) -> None:
    """Fill best with the larger of each value and that `far` further on, as far as there are any."""
    for i in range(np.uint64(values.shape[0]) - far):
        first, second = values[i], values[i + far]
        best[i] = first if first > second else second


def pool(
    maxima: Values,
    windows: NDArray[np.int64],
    levels: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Pool a map by the maxima of its squares into out (U, D), all levels of a window at once."""
    flat = out.reshape(-1)
    _pool(*_flat(maxima), _unsigned(windows), _unsigned(levels), *_bin_of(maxima, flat), flat)


def multiply(
    maxima: Values,
    windows: NDArray[np.int64],
    levels: NDArray[np.int64],
    weights: NDArray[np.float32],
    out: NDArray[np.float64],
) -> None:
    """Add the products of pooled vectors with weights (K, D) to out (U, K), bin by bin.

    A bin's weights stay in the cache for all windows, and no vector is stored.
    """
    bin_values = np.empty(maxima.shape[3], np.float32)
    parts = (*_flat(maxima), _unsigned(windows), _unsigned(levels))
    _multiply(*parts, *_bin_of(maxima, bin_values), weights, bin_values, out)


def _bin_of(maxima: Values, values: Floats) -> tuple[KeysOfBin | None, Floats | None]:
    """Return where a bin's maxima go: room for keys and the bits of `values`, or `values` themselves.

    The other one is None: numba drops a branch `if x is not None` only where x is None, hence both.
    """
    if maxima.dtype == np.int16:
        return (np.empty(maxima.shape[3], np.int16), values.view(np.int32)), None
    return None, values


def _flat(maxima: Values) -> tuple[Values, NDArray[np.uint64]]:
    return maxima.reshape(-1), np.array(maxima.shape, np.uint64)


def _unsigned(numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(numbers, np.uint64)


@compiled_part
def _max_of_bin(
    maxima: Values,
    shape: NDArray[np.uint64],
    x0: np.uint64,
    y0: np.uint64,
    x1: np.uint64,
    y1: np.uint64,
    best: Values,
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


_BEHIND_SIGN = np.int32(0x7FFF)
_INFINITE = np.int32(0x7C00)  # float16's, and bits below are finite
_EXPONENT = np.int32(0x7F800000)  # of float32, all ones
_SIGN = np.int32(-(2**31))
_LONGER, _TO_SIGN = np.int32(13), np.int32(15)
_BIAS = np.float32(2.0**112)  # by which float16's exponents, read as float32's, are too small


@compiled_part
def _decode(
    keys: NDArray[np.int16],
    bits: NDArray[np.int32],
    values: NDArray[np.float32],
    start: np.uint64,
) -> None:
    """Convert keys (C,) to values[start : start + C]; `bits` is the same memory as `values`."""
    for m in range(np.uint64(keys.shape[0])):
        key = np.int32(keys[m])
        half = key ^ (
            (key >> _TO_SIGN) & _BEHIND_SIGN
        )  # sign-extended, which leaves the sign's bit
        size = half & _BEHIND_SIGN
        special = _EXPONENT if size >= _INFINITE else np.int32(0)
        bits[start + m] = (size << _LONGER) | (half & _SIGN) | special
    for m in range(np.uint64(keys.shape[0])):
        values[start + m] *= _BIAS


@compiled
def _pool(
    maxima: Values,
    shape: NDArray[np.uint64],
    windows: NDArray[np.uint64],
    levels: NDArray[np.uint64],
    keys: KeysOfBin | None,
    floats: Floats | None,
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
                    if floats is not None:
                        _max_of_bin(maxima, shape, x0, y0, x1, y1, floats, at)
                    if keys is not None:
                        _max_of_bin(maxima, shape, x0, y0, x1, y1, keys[0], ZERO)
                        _decode(keys[0], keys[1], out, at)
                    at += shape[3]


@compiled_sum
def _multiply(
    maxima: Values,
    shape: NDArray[np.uint64],
    windows: NDArray[np.uint64],
    levels: NDArray[np.uint64],
    keys: KeysOfBin | None,
    floats: Floats | None,
    weights: NDArray[np.float32],
    bin_values: NDArray[np.float32],
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
                    if floats is not None:
                        _max_of_bin(maxima, shape, x0, y0, x1, y1, floats, ZERO)
                    if keys is not None:
                        _max_of_bin(maxima, shape, x0, y0, x1, y1, keys[0], ZERO)
                        _decode(keys[0], keys[1], bin_values, ZERO)
                    for k in range(weights.shape[0]):
                        total = np.float32(0)
                        for m in range(shape[3]):
                            total += bin_values[m] * weights[k, at + m]
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

"""Spatial pyramid pooling of windows on feature maps, exact by bins.

For a level of n×n bins over a window of w×h cells, bin (i, j), counted from 0, covers the columns
[⌊i·w/n⌋, ⌈(i+1)·w/n⌉) and the rows likewise; neighbouring bins may share cells and none is empty.

A bin of level n is exactly the union of the bins of level m that lie under it where n divides m,
so that only levels that divide no other one look at the map: {6, 3, 2, 1} costs as much as {6}.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torchvision.ops import roi_pool

Kernel = Callable[[NDArray[np.float32], NDArray[np.int64], int, NDArray[np.float32]], None]

VERSION = 1  # raised when the same settings give other values


def spp_width(channels: int, levels: Sequence[int]) -> int:
    """Length of the pooled vector: channels × bins of all levels."""
    return channels * sum(n * n for n in levels)


def level_columns(channels: int, levels: Sequence[int], level: int) -> slice:
    """Where a level's values stand in the pooled vector, in the order (row, column, channel)."""
    if level not in levels:
        raise ValueError(f"level {level}: expected one of {list(levels)}")
    before = list(levels)[: list(levels).index(level)]
    return slice(spp_width(channels, before), spp_width(channels, [*before, level]))


def spp_windows(
    feature_map: torch.Tensor, windows: NDArray[np.int64], levels: Sequence[int]
) -> torch.Tensor:
    """Max-pool windows of one feature map into fixed vectors.

    Args:
        feature_map: (C, H, W) float, on any device.
        windows: (U, 4) int64 (left, top, right, bottom) in cells, inclusive, inside the map.
        levels: bins a side.

    Returns:
        (U, D) float32 on the map's device, D = `spp_width`; level by level, each in the order
        (row, column, channel). (0, D) for no windows.

    Raises:
        ValueError: a window outside the map or with left > right.
    """
    channels, height, width = feature_map.shape
    _check_windows(windows, height, width)
    pooled = feature_map.new_empty((len(windows), spp_width(channels, levels)), dtype=torch.float32)
    if len(windows) == 0:
        return pooled
    for n in sorted(levels, reverse=True):
        out = pooled[:, level_columns(channels, levels, n)].unflatten(1, (n, n, channels))
        finer = next((m for m in levels if m > n and m % n == 0), None)
        if finer is None:
            _pool_level(feature_map, windows, n, out)
        else:
            source = pooled[:, level_columns(channels, levels, finer)]
            step = finer // n
            blocks = source.unflatten(1, (n, step, n, step, channels))
            _maximum_of_blocks(blocks, out)
    return pooled


def _maximum_of_blocks(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """out (U, n, n, C) = the maximum of `blocks` (U, n, s, n, s, C) over both s."""
    out.copy_(blocks[:, :, 0, :, 0])
    for i in range(blocks.shape[2]):
        for j in range(blocks.shape[4]):
            torch.maximum(out, blocks[:, :, i, :, j], out=out)


def _pool_level(
    feature_map: torch.Tensor, windows: NDArray[np.int64], n: int, out: torch.Tensor
) -> None:
    if feature_map.device.type != "cpu":
        # on whole windows roi_pool's bins are ours: its rounding meets nothing to round
        rois = torch.zeros((len(windows), 5), device=feature_map.device)
        rois[:, 1:] = torch.from_numpy(windows).to(rois)
        out.copy_(roi_pool(feature_map[None].float(), rois, n).permute(0, 2, 3, 1))
        return
    channels_last = feature_map.permute(1, 2, 0).float().contiguous().numpy()
    target = out.numpy()
    threads = min(torch.get_num_threads(), len(windows))
    parts = np.array_split(np.arange(len(windows)), threads)
    with ThreadPoolExecutor(threads) as pool:  # the kernel holds no lock
        list(
            pool.map(
                lambda p: _pool_compiled(channels_last, windows[p], n, target[p[0] : p[-1] + 1]),
                parts,
            )
        )


def _pool(
    feature_map: NDArray[np.float32], windows: NDArray[np.int64], n: int, out: NDArray[np.float32]
) -> None:
    """out (U, n, n, C) from a map (H, W, C)."""
    channels = feature_map.shape[2]
    for u in range(windows.shape[0]):
        left, top = windows[u, 0], windows[u, 1]
        w, h = windows[u, 2] - left + 1, windows[u, 3] - top + 1
        for i in range(n):
            y0, y1 = top + (i * h) // n, top + ((i + 1) * h + n - 1) // n
            for j in range(n):
                x0, x1 = left + (j * w) // n, left + ((j + 1) * w + n - 1) // n
                best = out[u, i, j]
                for c in range(channels):
                    best[c] = feature_map[y0, x0, c]
                for y in range(y0, y1):
                    for x in range(x0, x1):
                        cell = feature_map[y, x]
                        for c in range(channels):
                            best[c] = best[c] if best[c] > cell[c] else cell[c]


def _compiled(function: Kernel) -> Kernel:
    """Compiled by Numba, and kept on disk where there is a folder for it."""
    try:
        kept: Kernel = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written
        return njit(nogil=True)(function)
    return kept


_pool_compiled = _compiled(_pool)


def _check_windows(windows: NDArray[np.int64], height: int, width: int) -> None:
    if windows.ndim != 2 or windows.shape[1] != 4:
        raise ValueError(f"windows: {windows.shape}, expected (U, 4)")
    limit = np.array([width, height])
    bad = (
        (windows[:, :2] < 0) | (windows[:, :2] > windows[:, 2:]) | (windows[:, 2:] >= limit)
    ).any(axis=1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"windows, row {row}: {windows[row].tolist()} isn't inside a map of {width}x{height}"
        )

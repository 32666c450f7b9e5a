"""Spatial pyramid pooling of windows on feature maps, exact by bins.

For a level of n×n bins over a window of w×h cells, bin (i, j), counted from 0, covers the columns
[⌊i·w/n⌋, ⌈(i+1)·w/n⌉) and the rows likewise; neighbouring bins may share cells and none is empty.

If n divides m, a bin of level n is exactly a union of bins of level m, so that on a CPU only levels
that divide no other one read the map: {6, 3, 2, 1} costs little more than {6}. On a GPU a Triton kernel
runs a program per bin; without Triton, `roi_pool` is used.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd.function import once_differentiable

from sppdet.compiled import compiled
from sppdet.features.levels import level_columns, spp_width
from sppdet.parallel import shares
from sppdet.vision import ops

_log = logging.getLogger("sppdet")

VERSION = 2  # raise it when the same settings give other values


def empty_vectors(count: int, width: int, device: torch.device) -> torch.Tensor:
    """Allocate (count, width) float32."""
    if device.type == "cpu":
        # NumPy requests huge pages; without them allocating 100 MB costs as much as the pooling
        return torch.from_numpy(np.empty((count, width), dtype=np.float32))
    return torch.empty((count, width), device=device)


def spp_windows(
    feature_map: torch.Tensor,
    windows: NDArray[np.int64],
    levels: Sequence[int],
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Max-pool windows of one feature map into fixed vectors.

    Differentiable: the gradient of a bin goes to the first of its maximum cells in reading order, as
    in torch's own pooling.

    Args:
        feature_map: (C, H, W) float, on any device.
        windows: (U, 4) int64 (left, top, right, bottom) in cells, inclusive, inside the map.
        levels: bins a side.
        out: (U, D) float32, contiguous, filled and returned; only if no gradient is required.

    Returns:
        (U, D) float32 on the map's device, D = `spp_width`; level by level, each in the order
        (row, column, channel). (0, D) for no windows.

    Raises:
        ValueError: a window outside the map or with left > right, or `out` with gradients.
    """
    channels, height, width = feature_map.shape
    _check_windows(windows, height, width)
    on_cpu = feature_map.device.type == "cpu"
    result: torch.Tensor
    if torch.is_grad_enabled() and feature_map.requires_grad:
        if out is not None:
            raise ValueError("out: expected None, since the map requires a gradient")
        if on_cpu:
            result = _WindowPooling.apply(feature_map, windows, tuple(levels))
        elif _has_triton(feature_map.device):
            from sppdet.features import spp_triton

            result = spp_triton.WindowPooling.apply(feature_map, windows, tuple(levels))
        else:
            result = _by_roi_pool(feature_map, windows, levels)
        return result
    if out is None:
        out = empty_vectors(len(windows), spp_width(channels, levels), feature_map.device)
    if on_cpu:
        _pool_into(out.numpy(), feature_map, windows, levels)
    elif _has_triton(feature_map.device):
        from sppdet.features import spp_triton

        spp_triton.pool_into(out, feature_map, windows, levels)
    else:
        out.copy_(_by_roi_pool(feature_map, windows, levels))
    return out


def _by_roi_pool(
    feature_map: torch.Tensor, windows: NDArray[np.int64], levels: Sequence[int]
) -> torch.Tensor:
    # roi_pool divides windows in float32: 57 cells make 7 bins of 8.142858, the last of which ends at
    # 57.000004; so every bin is passed as a region of its own
    cells = _cells_of_bins(windows, levels)
    rois = torch.zeros((cells.shape[0] * cells.shape[1], 5), device=feature_map.device)
    rois[:, 1:] = torch.from_numpy(cells.reshape(-1, 4)).to(rois)
    pooled: torch.Tensor = ops.roi_pool(feature_map[None].float(), rois, 1)
    return pooled.view(len(windows), spp_width(feature_map.shape[0], levels))


def _cells_of_bins(windows: NDArray[np.int64], levels: Sequence[int]) -> NDArray[np.int64]:
    """Compute the cells (U, B, 4) of all levels' bins: (left, top, right, bottom), inclusive."""
    bins = np.array([(n, i, j) for n in levels for i in range(n) for j in range(n)])
    n, at = bins[:, :1], bins[:, [2, 1]]  # [B, 1], [B, 2] column and row
    first, sides = windows[:, None, :2], windows[:, None, 2:] - windows[:, None, :2] + 1
    low, high = (at * sides) // n, -(-((at + 1) * sides) // n) - 1
    cells: NDArray[np.int64] = np.concatenate([first + low, first + high], axis=2)
    return cells


@functools.cache
def _has_triton(device: torch.device) -> bool:
    """Check that Triton works; it needs a C compiler and Python's headers."""
    if importlib.util.find_spec("triton") is None:
        return False
    from sppdet.features import spp_triton

    try:
        spp_triton.try_out(device)
    except Exception as error:  # compilers, drivers and Triton raise errors of their own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        _log.warning("SPP by torch alone, which is slower: Triton can't be used: %s", first)
        return False
    return True


def _pool_into(
    target: NDArray[np.float32],
    feature_map: torch.Tensor,
    windows: NDArray[np.int64],
    levels: Sequence[int],
) -> None:
    """Fill target (U, D), with as many threads as torch uses."""
    channels_last = feature_map.permute(1, 2, 0).float().contiguous().numpy()
    plan = _plan(feature_map.shape[0], levels)

    def pool(part: slice) -> None:
        _pool(channels_last, windows[part], plan, target[part])  # releases the GIL

    parts = shares(len(windows)) if len(windows) else []
    with ThreadPoolExecutor(len(parts) or 1) as threads:
        list(threads.map(pool, parts))


def _plan(channels: int, levels: Sequence[int]) -> NDArray[np.int64]:
    """Plan the levels (L, 4), finest first: n, first column, finer level m or 0, its first column."""
    rows = []
    for n in sorted(levels, reverse=True):
        finer = min((m for m in levels if m > n and m % n == 0), default=0)
        start = level_columns(channels, levels, n).start
        rows.append((n, start, finer, level_columns(channels, levels, finer).start if finer else 0))
    return np.array(rows, dtype=np.int64)


class _WindowPooling(torch.autograd.Function):
    """Pooling of windows on the CPU, with a gradient for the map."""

    @staticmethod
    def forward(
        ctx: Any, feature_map: torch.Tensor, windows: NDArray[np.int64], levels: tuple[int, ...]
    ) -> torch.Tensor:
        ctx.save_for_backward(feature_map)
        ctx.windows, ctx.levels = windows, levels
        return spp_windows(feature_map, windows, levels)  # gradients are disabled here

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (feature_map,) = ctx.saved_tensors
        channels = feature_map.shape[0]
        source = feature_map.permute(1, 2, 0).float().contiguous().numpy()
        result = np.zeros_like(source)
        cells = result.reshape(-1, channels)  # the same memory
        for n in ctx.levels:
            columns = level_columns(channels, ctx.levels, n)
            gradient = gradients[0][:, columns].unflatten(1, (n, n, channels)).contiguous().numpy()
            # each thread has its own channels, so that the order of additions is fixed
            parts = shares(channels)
            with ThreadPoolExecutor(len(parts)) as pool:
                list(
                    pool.map(
                        lambda p, gradient=gradient: _spread(
                            source[:, :, p], ctx.windows, gradient[..., p], cells[:, p]
                        ),
                        parts,
                    )
                )
        return torch.from_numpy(result).permute(2, 0, 1).to(feature_map.dtype), None, None


@compiled
def _pool(
    feature_map: NDArray[np.float32],
    windows: NDArray[np.int64],
    plan: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Pool a map (H, W, C) into out (U, D), all levels of a window at once, by `_plan`."""
    channels = feature_map.shape[2]
    for u in range(windows.shape[0]):
        left, top = windows[u, 0], windows[u, 1]
        w, h = windows[u, 2] - left + 1, windows[u, 3] - top + 1
        row = out[u]
        for k in range(plan.shape[0]):
            n, start, finer, finer_start = plan[k]
            for i in range(n):
                for j in range(n):
                    at = start + (i * n + j) * channels
                    best = row[at : at + channels]
                    if finer == 0:
                        y0, y1 = top + (i * h) // n, top + ((i + 1) * h + n - 1) // n
                        x0, x1 = left + (j * w) // n, left + ((j + 1) * w + n - 1) // n
                        cell = feature_map[y0, x0]
                        for c in range(channels):  # plain loops vectorise best
                            best[c] = cell[c]
                        for y in range(y0, y1):
                            for x in range(x0, x1):
                                cell = feature_map[y, x]
                                for c in range(channels):
                                    best[c] = best[c] if best[c] > cell[c] else cell[c]
                    else:
                        step = finer // n
                        first = finer_start + (i * finer + j) * step * channels
                        cell = row[first : first + channels]
                        for c in range(channels):
                            best[c] = cell[c]
                        for y in range(i * step, (i + 1) * step):
                            for x in range(j * step, (j + 1) * step):
                                at = finer_start + (y * finer + x) * channels
                                cell = row[at : at + channels]
                                for c in range(channels):
                                    best[c] = best[c] if best[c] > cell[c] else cell[c]


@compiled
def _spread(
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

"""Spatial pyramid pooling of windows on feature maps, exact by bins.

For a level of n×n bins over a window of w×h cells, bin (i, j), counted from 0, covers the columns
[⌊i·w/n⌋, ⌈(i+1)·w/n⌉) and the rows likewise; neighbouring bins may share cells and none is empty.

On a CPU a bin's maximum is taken of few squares of cells (`spp_loops`). On a GPU a Triton kernel runs a
program per bin; without Triton, `roi_pool` is used.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd.function import once_differentiable

from sppdet.features import spp_loops
from sppdet.features.levels import level_columns, spp_width
from sppdet.parallel import by_shares
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
        ValueError: a window outside the map or with left > right, `out` with gradients or of another type.
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
    if out is not None and out.dtype != torch.float32:
        raise ValueError(f"out: {out.dtype}, expected float32")
    if out is None:
        out = empty_vectors(len(windows), spp_width(channels, levels), feature_map.device)
    if on_cpu:
        _by_threads(spp_loops.pool, feature_map, windows, levels, out.numpy())
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


def multiply_windows(
    feature_map: torch.Tensor,
    windows: NDArray[np.int64],
    levels: Sequence[int],
    weights: torch.Tensor,
) -> torch.Tensor:
    """Multiply the pooled vectors of windows with weights; on a CPU no vector is stored.

    Args:
        feature_map, windows, levels: as for `spp_windows`; no gradients.
        weights: (K, D) float32, on the map's device.

    Returns:
        (U, K) float32, on the map's device.

    Raises:
        ValueError: a window outside the map or with left > right.
    """
    _check_windows(windows, *feature_map.shape[1:])
    if feature_map.device.type != "cpu":
        return spp_windows(feature_map, windows, levels) @ weights.T
    found = np.zeros((len(windows), len(weights)))
    if len(weights) > _MANY:
        for start in range(0, len(windows), _BLOCK):
            block = slice(start, start + _BLOCK)
            pooled = spp_windows(feature_map, windows[block], levels)
            found[block] = (pooled @ weights.T).numpy()
    else:
        rows = weights.contiguous().numpy()
        _by_threads(spp_loops.multiply, feature_map, windows, levels, found, rows)
    return torch.from_numpy(found).float()


_MANY = 32  # classes, for whose weights a matrix product of stored vectors is faster
_BLOCK = 256  # windows whose vectors are stored at once


def _by_threads(
    loop: Callable[..., None],
    feature_map: torch.Tensor,
    windows: NDArray[np.int64],
    levels: Sequence[int],
    target: NDArray[Any],
    *more: NDArray[np.float32],
) -> None:
    """Run a loop that fills target (U, ...) for windows, with as many threads as torch uses."""
    maxima = square_maxima(feature_map, windows, levels)
    sides = np.array(levels, dtype=np.int64)
    by_shares(len(windows), lambda p: loop(maxima, windows[p], sides, *more, target[p]))


def square_maxima(
    feature_map: torch.Tensor, windows: NDArray[np.int64], levels: Sequence[int]
) -> spp_loops.Values:
    """Compute the maxima (K, H, W, C) of the squares that serve a map's windows, the map itself first.

    They are float32, or of a float16 map its `ordered_keys`.
    """
    bin_side = int((windows[:, 2:] - windows[:, :2]).max(initial=0)) // min(levels) + 2
    fitting = min(bin_side, *feature_map.shape[1:]).bit_length()
    squares = min(_SQUARES, fitting) if len(windows) > _FEW else 1
    channels, height, width = feature_map.shape
    by_keys = feature_map.dtype == torch.float16
    maxima = np.empty((squares, height, width, channels), dtype=np.int16 if by_keys else np.float32)
    cells = feature_map.permute(1, 2, 0)
    torch.from_numpy(maxima[0]).copy_(ordered_keys(cells) if by_keys else cells)
    spp_loops.fill_square_maxima(maxima)
    return maxima


def ordered_keys(values: torch.Tensor) -> torch.Tensor:
    """Return int16 keys in the order of float16 values: their bits, reversed behind a negative sign."""
    bits = values.view(torch.int16)
    return bits ^ ((bits >> 15) & 0x7FFF)


_FEW = 32  # windows, for which maxima of squares take longer than they save
_SQUARES = 4  # sides of 1, 2, 4 and 8 cells


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
            by_shares(
                channels,
                lambda p, gradient=gradient: spp_loops.spread(  # type: ignore[misc]
                    source[:, :, p], ctx.windows, gradient[..., p], cells[:, p]
                ),
            )
        return torch.from_numpy(result).permute(2, 0, 1).to(feature_map.dtype), None, None


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

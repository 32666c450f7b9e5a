"""Spatial pyramid pooling of windows on a GPU, by a Triton kernel.

Imported only for a map on a GPU (or with Triton's interpreter), if Triton is installed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch.autograd.function import once_differentiable

from sppdet.features.levels import spp_width

_MAX_CHANNELS = 256  # per program


def try_out(device: torch.device) -> None:
    """Pool a window of one cell; raises Triton's error if it can't compile or run."""
    pool_into(
        torch.empty((1, 1), device=device),
        torch.zeros((1, 1, 1), device=device),
        np.zeros((1, 4), np.int64),
        (1,),
    )


@triton.jit
def _cells_of_bin(window, bin_of):  # type: ignore[no-untyped-def]
    """Compute rows y0..y1 and columns x0..x1 (half-open) of bin (n, i, j) of a window."""
    n, i, j = tl.load(bin_of), tl.load(bin_of + 1), tl.load(bin_of + 2)
    left, top = tl.load(window), tl.load(window + 1)
    w, h = tl.load(window + 2) - left + 1, tl.load(window + 3) - top + 1
    y0, y1 = top + (i * h) // n, top + ((i + 1) * h + n - 1) // n
    x0, x1 = left + (j * w) // n, left + ((j + 1) * w + n - 1) // n
    return y0, y1, x0, x1


@triton.jit(do_not_specialize=["width"])  # type: ignore[untyped-decorator]
def _pool_kernel(  # type: ignore[no-untyped-def]
    feature_map, windows, bins, out, width, channels, total_bins, BLOCK: tl.constexpr
):
    """Pool a block of channels of one bin of one window; map (H, W, C), out (U, B, C)."""
    window, at = tl.program_id(0), tl.program_id(1)
    y0, y1, x0, x1 = _cells_of_bin(windows + 4 * window, bins + 3 * at)
    c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    for y in range(y0, y1):
        for x in range(x0, x1):
            cell = feature_map + (y * width + x).to(tl.int64) * channels
            value = tl.load(cell + c, mask=inside, other=float("-inf"))
            best = tl.maximum(best, value.to(tl.float32))
    start = (window.to(tl.int64) * total_bins + at) * channels
    tl.store(out + start + c, best, mask=inside)


@triton.jit(do_not_specialize=["width"])  # type: ignore[untyped-decorator]
def _spread_kernel(  # type: ignore[no-untyped-def]
    feature_map, windows, bins, gradients, result, width, channels, total_bins, BLOCK: tl.constexpr
):
    """Add each bin's gradient to the first of its maximum cells."""
    window, at = tl.program_id(0), tl.program_id(1)
    y0, y1, x0, x1 = _cells_of_bin(windows + 4 * window, bins + 3 * at)
    c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    where = tl.zeros((BLOCK,), tl.int32) + (y0 * width + x0)
    for y in range(y0, y1):
        for x in range(x0, x1):
            cell = feature_map + (y * width + x).to(tl.int64) * channels
            value = tl.load(cell + c, mask=inside, other=float("-inf")).to(tl.float32)
            greater = value > best
            best = tl.where(greater, value, best)
            where = tl.where(greater, y * width + x, where)
    start = (window.to(tl.int64) * total_bins + at) * channels
    gradient = tl.load(gradients + start + c, mask=inside, other=0.0)
    tl.atomic_add(result + where.to(tl.int64) * channels + c, gradient, mask=inside)


def pool_into(
    out: torch.Tensor,
    feature_map: torch.Tensor,
    windows: NDArray[np.int64],
    levels: Sequence[int],
) -> None:
    """Pool windows of a map (C, H, W) into out (U, D) float32, like `spp_windows`."""
    _launch(_pool_kernel, feature_map, windows, levels, out)


class WindowPooling(torch.autograd.Function):
    """`pool_into` with a gradient for the map; atomic sums, so reproducible up to rounding only."""

    @staticmethod
    def forward(
        ctx: Any, feature_map: torch.Tensor, windows: NDArray[np.int64], levels: tuple[int, ...]
    ) -> torch.Tensor:
        ctx.save_for_backward(feature_map)
        ctx.windows, ctx.levels = windows, levels
        width = spp_width(feature_map.shape[0], levels)
        out = torch.empty((len(windows), width), device=feature_map.device)
        pool_into(out, feature_map, windows, levels)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (feature_map,) = ctx.saved_tensors
        channels, height, width = feature_map.shape
        result = torch.zeros((height, width, channels), device=feature_map.device)
        gradient = gradients[0].float().contiguous()
        _launch(_spread_kernel, feature_map, ctx.windows, ctx.levels, gradient, result)
        return result.permute(2, 0, 1).to(feature_map.dtype), None, None


def _launch(
    kernel: Any,
    feature_map: torch.Tensor,
    windows: NDArray[np.int64],
    levels: Sequence[int],
    *tensors: torch.Tensor,
) -> None:
    """Run a program for every window, bin and block of channels."""
    if len(windows) == 0:
        return
    device = feature_map.device
    channels_last = feature_map.permute(1, 2, 0).contiguous()
    cells = torch.from_numpy(windows.astype(np.int32)).to(device, non_blocking=True)
    bins = _bins(tuple(levels), device)
    _, width, channels = channels_last.shape
    block = min(_MAX_CHANNELS, triton.next_power_of_2(channels))
    grid = (len(windows), len(bins), triton.cdiv(channels, block))
    # Triton launches on the thread's current GPU, which may be another
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](
            *(channels_last, cells, bins, *tensors, width, channels, len(bins)), BLOCK=block
        )


@functools.lru_cache(maxsize=16)
def _bins(levels: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return all bins (B, 3) int32 as (n, i, j), cached on the device: a copy would block."""
    table = [(n, i, j) for n in levels for i in range(n) for j in range(n)]
    return torch.tensor(table, dtype=torch.int32, device=device)

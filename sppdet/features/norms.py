"""Local response normalisation, within a channel and across channels.

torch's own layer pools a five-dimensional view, which takes longer than the convolution before it. Here
a compiled loop reads a channels-last map once on a CPU if no gradient is required; otherwise the
squares are summed by a pooling or by shifted adds. The power 3/4 is computed by two square roots.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from sppdet.compiled import compiled_sum
from sppdet.parallel import shares

Maps = NDArray[np.float32]  # (N, H, W, C)


class WithinChannelNorm(nn.Module):
    """Local response normalisation over a square of cells in each channel.

    y = x / (1 + α · mean of x² over the size×size square)^β, with zeros outside the map (Caffe's
    WITHIN_CHANNEL; the released detector has size 3, α 5e-5, β 0.75).
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ValueError(f"size: {size}, expected an odd number")
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise maps (N, C, H, W); returns the same shape and dtype."""
        wide = _to_float32(x)
        if _use_loop(wide) and self.beta == 0.75:
            found = _run_loop(wide, _within_row, self.size // 2, self.alpha / self.size**2)
            return found.to(x.dtype)
        mean_square = F.avg_pool2d(wide * wide, self.size, stride=1, padding=self.size // 2)
        factor = _inverse_power(mean_square.mul(self.alpha).add(1.0), self.beta)
        return (wide * factor).to(x.dtype)


class CrossChannelNorm(nn.Module):
    """Local response normalisation over neighbouring channels; equals `nn.LocalResponseNorm`.

    y = x / (k + α · mean of x² over `size` channels)^β, with zeros outside (Krizhevsky
    et al. 2012, in Caffe's form: size 5, α 1e-4, β 0.75, k 1).
    """

    def __init__(
        self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
    ) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise maps (N, C, H, W); returns the same shape and dtype."""
        wide = _to_float32(x)
        if _use_loop(wide) and self.beta == 0.75:
            found = _run_loop(wide, _across_row, self.size, self.alpha / self.size, self.k)
            return found.to(x.dtype)
        channels = x.shape[1]
        before = self.size // 2
        padded = F.pad(wide * wide, (0, 0, 0, 0, before, self.size - 1 - before))
        total = padded[:, :channels]
        for shift in range(1, self.size):
            total = total + padded[:, shift : shift + channels]
        factor = _inverse_power(total.mul(self.alpha / self.size).add(self.k), self.beta)
        return (wide * factor).to(x.dtype)


def _to_float32(x: torch.Tensor) -> torch.Tensor:
    """Convert 16-bit maps to float32: the squares would overflow in float16."""
    return x.float() if x.element_size() < 4 else x


def _inverse_power(base: torch.Tensor, beta: float) -> torch.Tensor:
    """Compute base^-β of positive numbers."""
    if beta == 0.75:
        root = base.rsqrt()
        return root * root.sqrt()
    return base.pow(-beta)


def _use_loop(x: torch.Tensor) -> bool:
    needs_gradient = torch.is_grad_enabled() and x.requires_grad
    return x.device.type == "cpu" and x.dtype == torch.float32 and not needs_gradient


def _run_loop(x: torch.Tensor, row: Callable[..., None], *settings: Any) -> torch.Tensor:
    source = x.detach().contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(source)
    x_hwc, out_hwc = (t.permute(0, 2, 3, 1).numpy() for t in (source, out))
    parts = shares(x_hwc.shape[0] * x_hwc.shape[1])
    with ThreadPoolExecutor(len(parts)) as pool:  # the loops release the GIL
        list(pool.map(lambda p: row(x_hwc, out_hwc, p.start, p.stop, *settings), parts))
    return out


@compiled_sum
def _within_row(x: Maps, out: Maps, start: int, stop: int, reach: int, factor: float) -> None:
    """Compute rows start..stop (counted over all maps) of the norm over (2·reach + 1)² cells."""
    height, width, channels = x.shape[1:]
    columns = np.empty((width, channels), np.float32)
    factor32, one = np.float32(factor), np.float32(1)
    for index in range(start, stop):
        n, y = index // height, index % height
        columns[:] = 0
        for near in range(max(0, y - reach), min(height, y + reach + 1)):
            for i in range(width):
                for c in range(channels):
                    columns[i, c] += x[n, near, i, c] * x[n, near, i, c]
        total = np.empty(channels, np.float32)
        for i in range(width):
            total[:] = 0
            for near in range(max(0, i - reach), min(width, i + reach + 1)):
                for c in range(channels):
                    total[c] += columns[near, c]
            for c in range(channels):
                root = np.sqrt(one + factor32 * total[c])
                out[n, y, i, c] = x[n, y, i, c] / (root * np.sqrt(root))


@compiled_sum
def _across_row(
    x: Maps, out: Maps, start: int, stop: int, size: int, factor: float, k: float
) -> None:
    """Compute rows start..stop (counted over all maps) of the norm over `size` channels."""
    height, width, channels = x.shape[1:]
    before = size // 2
    squares = np.zeros(channels + size - 1, np.float32)
    total = np.empty(channels, np.float32)
    factor32, k32 = np.float32(factor), np.float32(k)
    for index in range(start, stop):
        n, y = index // height, index % height
        for i in range(width):
            for c in range(channels):
                squares[before + c] = x[n, y, i, c] * x[n, y, i, c]
            total[:] = 0
            for shift in range(size):
                for c in range(channels):
                    total[c] += squares[shift + c]
            for c in range(channels):
                root = np.sqrt(k32 + factor32 * total[c])
                out[n, y, i, c] = x[n, y, i, c] / (root * np.sqrt(root))

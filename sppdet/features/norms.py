"""Local response normalisation, within a channel and across channels.

torch's own layer pools a five-dimensional view, which takes longer than the convolution beside it;
here the squares are summed by shifted adds, and the power 3/4 by two square roots.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class WithinChannelNorm(nn.Module):
    """Local response normalisation over a square of cells in each channel.

    y = x / (1 + α · mean of x² over the size×size square)^β, the outside counting as zero (Caffe's
    WITHIN_CHANNEL; the released detector has size 3, α 5e-5, β 0.75).
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same shape."""
        mean_square = F.avg_pool2d(x * x, self.size, stride=1, padding=self.size // 2)
        return x * _inverse_power(mean_square.mul(self.alpha).add(1.0), self.beta)


class CrossChannelNorm(nn.Module):
    """Local response normalisation over neighbouring channels; equals `nn.LocalResponseNorm`.

    y = x / (k + α · mean of x² over `size` channels)^β, the outside counting as zero (Krizhevsky
    et al. 2012, in Caffe's form: size 5, α 1e-4, β 0.75, k 1).
    """

    def __init__(
        self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
    ) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same shape."""
        channels = x.shape[1]
        before = self.size // 2
        padded = F.pad(x * x, (0, 0, 0, 0, before, self.size - 1 - before))
        total = padded[:, :channels]
        for shift in range(1, self.size):
            total = total + padded[:, shift : shift + channels]
        return x * _inverse_power(total.mul(self.alpha / self.size).add(self.k), self.beta)


def _inverse_power(base: torch.Tensor, beta: float) -> torch.Tensor:
    """base^-β of positive numbers."""
    if beta == 0.75:
        root = base.rsqrt()
        return root * root.sqrt()
    return base.pow(-beta)

"""The convolutional layers of ZF-5, as in the paper's detector."""

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
        return x * torch.pow(1.0 + self.alpha * mean_square, -self.beta)


def zf5() -> nn.Sequential:
    """conv1 to conv5: stride 16, 256 channels; every layer padded by ⌊k/2⌋, so that c₀ = 0.5."""
    return nn.Sequential(
        nn.Conv2d(3, 96, 7, stride=2, padding=3),
        nn.ReLU(inplace=True),
        WithinChannelNorm(),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Conv2d(96, 256, 5, stride=2, padding=2),
        nn.ReLU(inplace=True),
        WithinChannelNorm(),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Conv2d(256, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(inplace=True),
    )

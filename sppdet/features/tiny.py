"""A small convolutional network that two CPU cores can train in a minute or two."""

from __future__ import annotations

import torch
from torch import nn


class Tiny(nn.Module):
    """Four convolutional layers of stride 8; every layer padded by ⌊k/2⌋, so that c₀ = 0.5.

    A cell sees 57 pixels: a good part of a window at a canonical size of 96, which is 12 cells a side
    (stride 16 would leave 6, too few for the finest SPP level).

    Attributes:
        features: the layers in their order, the last one a ReLU.
        channels: of the last map.
    """

    def __init__(self) -> None:
        super().__init__()
        self.channels = 128
        self.features = nn.Sequential(
            *_conv(3, 24, kernel=5, stride=2),
            nn.MaxPool2d(3, stride=2, padding=1),
            *_conv(24, 48, kernel=3),
            nn.MaxPool2d(3, stride=2, padding=1),
            *_conv(48, 96, kernel=3),
            *_conv(96, self.channels, kernel=3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) normalised RGB to (N, `channels`, ⌈H / 8⌉, ⌈W / 8⌉), >= 0."""
        maps: torch.Tensor = self.features(x)
        return maps


def _conv(inputs: int, outputs: int, *, kernel: int, stride: int = 1) -> list[nn.Module]:
    # BatchNorm brings the bias
    return [
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]

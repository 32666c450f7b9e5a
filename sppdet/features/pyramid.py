"""Spatial pyramid pooling as modules for any PyTorch model.

`SpatialPyramid` pools whole maps of any size, `FixedPyramid` is the paper's form for one size, and
`SppBlock` is the block of later one-stage detectors. Windows of a map are pooled by
`sppdet.features.spp.spp_windows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from sppdet.features.levels import spp_width

Mode = Literal["max", "average"]


class SpatialPyramid(nn.Module):
    """Spatial pyramid pooling of maps of any size into fixed vectors: n×n bins for every level n.

    Every level equals `nn.AdaptiveMaxPool2d(n)` (or `AdaptiveAvgPool2d`), and every vector that of
    `spp_windows` for the whole map: level by level, each in the order (row, column, channel).

    Args:
        levels: bins a side.
        mode: max, as in the paper, or average.
    """

    def __init__(self, levels: Sequence[int] = (6, 3, 2, 1), *, mode: Mode = "max") -> None:
        super().__init__()
        _check(levels, mode)
        self.levels = tuple(levels)
        self.mode = mode

    def width(self, channels: int) -> int:
        """Compute the length of the vectors of maps with `channels`."""
        return spp_width(channels, self.levels)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Pool maps (N, C, H, W) into vectors (N, `width(C)`)."""
        pool = F.adaptive_max_pool2d if self.mode == "max" else F.adaptive_avg_pool2d
        return torch.cat([_flat(pool(maps, n)) for n in self.levels], dim=1)

    def extra_repr(self) -> str:
        return f"levels={list(self.levels)}, mode={self.mode}"


class FixedPyramid(nn.Module):
    """Pooling layers of the paper for a×a maps: kernel ⌈a/n⌉ and stride ⌊a/n⌋ at level n.

    Its bins may differ from those of `SpatialPyramid`: they don't adapt to other sizes, and at some
    sizes they don't reach the last cells.

    Args:
        side: a, cells a side of the maps.

    Raises:
        ValueError: a level that wouldn't have n×n bins at this size (such as n = 3 on 5×5, n = 6 on
            8×8).
    """

    def __init__(
        self, side: int, levels: Sequence[int] = (6, 3, 2, 1), *, mode: Mode = "max"
    ) -> None:
        super().__init__()
        _check(levels, mode)
        for n in levels:
            bins = _fixed_bins(side, n)
            if bins != n:
                raise ValueError(
                    f"side {side}, level {n}: kernel {-(-side // n)} and stride {side // n} make "
                    f"{bins}×{bins} bins, expected {n}×{n}; SpatialPyramid takes any size"
                )
        self.side = side
        self.levels = tuple(levels)
        self.mode = mode

    def width(self, channels: int) -> int:
        """Compute the length of the vectors of maps with `channels`."""
        return spp_width(channels, self.levels)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Pool maps (N, C, a, a) into vectors (N, `width(C)`), in the order of `SpatialPyramid`.

        Raises:
            ValueError: maps of another size.
        """
        if maps.shape[-2:] != (self.side, self.side):
            height, width = maps.shape[-2:]
            raise ValueError(f"maps of {width}×{height}, expected {self.side}×{self.side}")
        pool = F.max_pool2d if self.mode == "max" else F.avg_pool2d
        parts = [pool(maps, -(-self.side // n), self.side // n) for n in self.levels]
        return torch.cat([_flat(part) for part in parts], dim=1)

    def extra_repr(self) -> str:
        return f"side={self.side}, levels={list(self.levels)}, mode={self.mode}"


class SppBlock(nn.Module):
    """Max poolings of stride 1 concatenated with their input: the block of YOLOv3-SPP and later.

    The map keeps its size; padding is never the maximum. Pooling 5×5 two and three times in a row
    equals 9×9 and 13×13, so that `chained` gives the same values with less work.

    Args:
        kernels: odd.
        chained: pool each result from the previous one; only for kernels that grow by a fixed step.
    """

    def __init__(self, kernels: Sequence[int] = (5, 9, 13), *, chained: bool = False) -> None:
        super().__init__()
        if not kernels or any(k < 1 or k % 2 == 0 for k in kernels):
            raise ValueError(f"kernels: {list(kernels)}, expected odd numbers")
        step = kernels[0] - 1
        if chained and list(kernels) != [1 + step * (i + 1) for i in range(len(kernels))]:
            raise ValueError(
                f"kernels: {list(kernels)}, expected k, 2k−1, 3k−2, ... for chained pooling"
            )
        self.kernels = tuple(kernels)
        self.chained = chained

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Pool (N, C, H, W) into (N, C · (1 + number of kernels), H, W), the input first."""
        parts = [maps]
        for kernel in self.kernels:
            if self.chained:
                kernel = self.kernels[0]
            source = parts[-1] if self.chained else maps
            parts.append(F.max_pool2d(source, kernel, stride=1, padding=kernel // 2))
        return torch.cat(parts, dim=1)

    def extra_repr(self) -> str:
        return f"kernels={list(self.kernels)}, chained={self.chained}"


def _flat(bins: torch.Tensor) -> torch.Tensor:
    return bins.permute(0, 2, 3, 1).flatten(1)


def _fixed_bins(side: int, n: int) -> int:
    """Count the bins a side with the paper's kernel and stride; 0 for a level > side."""
    kernel, stride = -(-side // n), side // n
    return (side - kernel) // stride + 1 if stride > 0 else 0


def _check(levels: Sequence[int], mode: str) -> None:
    if not levels or any(n < 1 for n in levels) or len(set(levels)) != len(levels):
        raise ValueError(f"levels: {list(levels)}, expected distinct numbers > 0")
    if mode not in ("max", "average"):
        raise ValueError(f"mode: {mode}, expected max or average")

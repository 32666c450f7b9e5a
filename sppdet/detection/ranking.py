"""Learned ranking of windows by the coarse levels of the pyramid, before all levels are pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.features.levels import level_columns
from sppdet.features.regions import FeatureExtractor, Windows, pool_windows
from sppdet.types import Boxes, FeatureMaps

_COARSE = 2  # bins per side of the finest level that is coarse


def coarse_levels(levels: Sequence[int]) -> tuple[int, ...]:
    """Select the levels of a pyramid that windows are ranked by: up to 2 bins a side, or the coarsest."""
    return tuple(n for n in levels if n <= _COARSE) or (min(levels),)


@dataclass(frozen=True)
class Ranking:
    """Linear estimate of a window's IoU with its nearest object of any class."""

    levels: tuple[int, ...]
    weights: torch.Tensor  # (D,) float32
    bias: float

    def to(self, device: torch.device) -> Ranking:
        """Return the same on a device."""
        return replace(self, weights=self.weights.to(device))

    def first(
        self, extractor: FeatureExtractor, maps: FeatureMaps, boxes: Boxes, count: int
    ) -> Boxes:
        """Keep the boxes (P, 4), in original pixels, of the `count` windows ranked first."""
        return boxes[self.best(maps, extractor.windows(maps, boxes), count)]

    @torch.inference_mode()
    def best(self, maps: FeatureMaps, windows: Windows, count: int) -> NDArray[np.int64]:
        """Choose the proposals of the `count` windows ranked first; equal ones in the order of windows.

        Returns:
            (n,) rows of `windows.index`, ascending.
        """
        if len(windows) <= count:
            return np.arange(len(windows.index))
        pooled = pool_windows(maps, windows.cells, self.levels)
        estimates = self.of_pooled(pooled, self.levels).cpu().numpy()
        first = np.zeros(len(windows), dtype=np.bool_)
        first[np.argsort(-estimates, kind="stable")[:count]] = True
        return np.flatnonzero(first[windows.index])

    def of_pooled(self, pooled: torch.Tensor, levels: Sequence[int]) -> torch.Tensor:
        """Estimate the IoU (N,) of windows from vectors (N, D) that are pooled at these levels or more."""
        channels = pooled.shape[1] // sum(n * n for n in levels)
        columns = [pooled[:, level_columns(channels, levels, n)] for n in self.levels]
        return torch.cat(columns, dim=1) @ self.weights + self.bias

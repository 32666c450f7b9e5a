"""Features of proposals: windows on the maps, pooled vectors, fully connected layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.config import FeaturesConfig
from sppdet.features import spp
from sppdet.features.geometry import choose_scales, project, unique_windows
from sppdet.features.head import Head
from sppdet.features.levels import spp_width
from sppdet.features.spp import empty_vectors, spp_windows
from sppdet.parallel import compute_type, multiplying_in
from sppdet.training_config import Layer
from sppdet.types import Boxes, FeatureMaps, RegionFeatures


@dataclass(frozen=True)
class Windows:
    """Distinct windows of an image's proposals.

    `cells[index[p]]` is the window of proposal p.
    """

    cells: NDArray[np.int64]  # (U, 5): scale, left, top, right, bottom; inclusive
    index: NDArray[np.int64]  # (P,) rows of `cells`

    def __len__(self) -> int:
        return len(self.cells)


def find_windows(
    maps: FeatureMaps,
    boxes: Boxes,
    *,
    canonical_size: int,
    scale_index: NDArray[np.int64] | None = None,
) -> Windows:
    """Find the windows of boxes on the maps.

    Args:
        boxes: (P, 4) original pixels.
        canonical_size: each box gets the scale at which its area is nearest to the square of this.
        scale_index: (P,) indices of the scales to use instead.
    """
    if scale_index is None:
        scale_index = choose_scales(boxes, maps.scale_factors, canonical_area=canonical_size**2)
    windows = np.zeros((len(boxes), 4), dtype=np.int64)
    for s, feature_map in enumerate(maps.maps):
        at_scale = scale_index == s
        windows[at_scale] = project(
            boxes[at_scale],
            maps.scale_factors[scale_index[at_scale]],
            stride=maps.stride,
            offset=maps.offset,
            map_width=feature_map.shape[2],
            map_height=feature_map.shape[1],
        )
    return Windows(*unique_windows(scale_index, windows))


def pool_windows(
    maps: FeatureMaps, cells: NDArray[np.int64], levels: Sequence[int]
) -> torch.Tensor:
    """Pool windows (U, 5) into vectors (U, D) float32, on the maps' device.

    Raises:
        ValueError: the windows aren't sorted by scale, or one is outside the maps.
    """
    first = maps.maps[0]
    pooled = empty_vectors(len(cells), spp_width(first.shape[0], levels), first.device)
    for feature_map, rows in _by_scale(maps, cells):
        spp_windows(feature_map, cells[rows, 1:], levels, out=pooled[rows])
    return pooled


def whole_image_vector(maps: FeatureMaps) -> NDArray[np.float32]:
    """Pool the map of the smallest scale as one bin: the maximum (C,) of each channel."""
    return np.asarray(maps.maps[0].float().amax(dim=(1, 2)).cpu().numpy())


def multiply_windows(
    maps: FeatureMaps, cells: NDArray[np.int64], levels: Sequence[int], weights: torch.Tensor
) -> torch.Tensor:
    """Multiply the pooled vectors of windows (U, 5) with weights (K, D); returns (U, K) float32.

    Raises:
        ValueError: as for `pool_windows`.
    """
    parts = [
        spp.multiply_windows(feature_map, cells[rows, 1:], levels, weights)
        for feature_map, rows in _by_scale(maps, cells)
    ]
    return torch.cat(parts) if parts else weights.new_zeros((0, len(weights)))


def _by_scale(maps: FeatureMaps, cells: NDArray[np.int64]) -> Iterator[tuple[torch.Tensor, slice]]:
    """Yield each map that windows (U, 5) are on, and their rows."""
    scales = np.concatenate([[0], cells[:, 0], [len(maps.maps) - 1]])
    if (np.diff(scales) < 0).any():
        raise ValueError(f"cells: expected in ascending scales from 0 to {len(maps.maps) - 1}")
    ends = np.searchsorted(cells[:, 0], np.arange(len(maps.maps) + 1))
    for feature_map, (start, end) in zip(maps.maps, pairwise(ends), strict=True):
        if start < end:
            yield feature_map, slice(start, end)


_BLOCK = 1024  # windows that go through the fully connected layers at once


@dataclass(frozen=True)
class FeatureExtractor:
    """Extractor of the features of any layer for the windows of an image."""

    levels: tuple[int, ...]
    canonical_size: int
    head: Head | None
    precision: torch.dtype = torch.float32  # of the head's products

    @classmethod
    def by(
        cls,
        levels: Sequence[int],
        config: FeaturesConfig,
        head: Head | None,
        device: torch.device,
    ) -> FeatureExtractor:
        """Build an extractor from the settings, for a device."""
        precision = compute_type(config.precision, device)
        return cls(tuple(levels), config.canonical_size, head, precision)

    def width(self, layer: Layer, channels: int) -> int:
        """Return the length of a layer's features over maps of `channels`."""
        if layer == "pool5" or self.head is None:
            return spp_width(channels, self.levels)
        fc = self.head.fc6 if layer == "fc6" or self.head.fc7 is None else self.head.fc7
        return fc.out_features

    def windows(self, maps: FeatureMaps, boxes: Boxes) -> Windows:
        """Find the distinct windows of boxes (P, 4), original pixels."""
        return find_windows(maps, boxes, canonical_size=self.canonical_size)

    def pool(self, maps: FeatureMaps, cells: NDArray[np.int64]) -> torch.Tensor:
        """Pool windows (U, 5); returns pool5 features (U, D)."""
        return pool_windows(maps, cells, self.levels)

    def held_in(self, layer: Layer) -> torch.dtype:
        """Return the type that holds a layer's features without loss; pooled maps are float16."""
        return torch.float16 if layer == "pool5" or self.head is None else torch.float32

    @torch.inference_mode()
    def products(
        self,
        maps: FeatureMaps,
        cells: NDArray[np.int64],
        layer: Layer,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """Multiply the features of windows (U, 5) with weights (K, D'); returns (U, K) float32.

        Only some of the windows' features are in memory at once.
        """
        if layer == "pool5":
            return multiply_windows(maps, cells, self.levels, weights)
        parts = [
            self.layer(self.pool(maps, cells[start : start + _BLOCK]), layer) @ weights.T
            for start in range(0, len(cells), _BLOCK)
        ]
        return torch.cat(parts) if parts else weights.new_zeros((0, len(weights)))

    @torch.inference_mode()
    def layer(self, pooled: torch.Tensor, layer: Layer) -> torch.Tensor:
        """Compute features (U, D') of `layer` from pool5 features (U, D)."""
        if layer == "pool5":
            return pooled
        if self.head is None:
            raise ValueError(f"{layer}: there is no head")
        with multiplying_in(self.precision, pooled.device):
            return self.head.features(pooled, layer).float()

    def __call__(self, maps: FeatureMaps, boxes: Boxes, layer: Layer) -> RegionFeatures:
        """Compute features of boxes (P, 4); windows that coincide are computed once."""
        windows = self.windows(maps, boxes)
        values = self.layer(self.pool(maps, windows.cells), layer)
        return RegionFeatures(values, windows.index)

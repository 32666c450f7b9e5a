"""From proposals to features: windows on the maps, pooled vectors, fully connected layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.config import Config, Layer
from sppdet.features.geometry import choose_scales, project, unique_windows
from sppdet.features.head import Head
from sppdet.features.spp import spp_width, spp_windows
from sppdet.parallel import compute_type, multiplying_in
from sppdet.types import Boxes, FeatureMaps, RegionFeatures


@dataclass(frozen=True)
class Windows:
    """The distinct windows of a picture's proposals.

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
    """The windows of boxes on the maps.

    Args:
        boxes: (P, 4) original pixels.
        canonical_size: the scale is chosen at which a box's area is nearest to its square.
        scale_index: (P,) scales to use instead.
    """
    if scale_index is None:
        scale_index = choose_scales(boxes, maps.scale_factors, canonical_area=canonical_size**2)
    windows = np.zeros((len(boxes), 4), dtype=np.int64)
    for s, feature_map in enumerate(maps.maps):
        here = scale_index == s
        windows[here] = project(
            boxes[here],
            maps.scale_factors[scale_index[here]],
            stride=maps.stride,
            offset=maps.offset,
            map_width=feature_map.shape[2],
            map_height=feature_map.shape[1],
        )
    return Windows(*unique_windows(scale_index, windows))


def pool_windows(
    maps: FeatureMaps, cells: NDArray[np.int64], levels: Sequence[int]
) -> torch.Tensor:
    """Pooled vectors (U, D) float32 of windows (U, 5), on the maps' device."""
    parts = [
        spp_windows(feature_map, cells[cells[:, 0] == s, 1:], levels)
        for s, feature_map in enumerate(maps.maps)
    ]
    if len(parts) == 1:
        return parts[0]
    order = np.argsort(cells[:, 0], kind="stable")
    pooled = torch.cat(parts)
    if np.array_equal(order, np.arange(len(order))):
        return pooled
    return pooled[torch.from_numpy(np.argsort(order, kind="stable")).to(pooled.device)]


@dataclass(frozen=True)
class Extractor:
    """The features of a layer for the windows of a picture."""

    levels: tuple[int, ...]
    canonical_size: int
    head: Head | None
    precision: torch.dtype = torch.float32  # that the head multiplies in

    @classmethod
    def by(cls, config: Config, head: Head | None, device: torch.device) -> Extractor:
        """As the settings say, on a device."""
        precision = compute_type(config.features.precision, device)
        return cls(tuple(config.spp_levels), config.features.canonical_size, head, precision)

    def width(self, layer: Layer, channels: int) -> int:
        """Length of the layer's features over maps of `channels`."""
        if layer == "pool5" or self.head is None:
            return spp_width(channels, self.levels)
        fc = self.head.fc6 if layer == "fc6" or self.head.fc7 is None else self.head.fc7
        return fc.out_features

    def windows(self, maps: FeatureMaps, boxes: Boxes) -> Windows:
        """The distinct windows of boxes (P, 4), original pixels."""
        return find_windows(maps, boxes, canonical_size=self.canonical_size)

    def pool(self, maps: FeatureMaps, cells: NDArray[np.int64]) -> torch.Tensor:
        """(U, D) pool5 features of windows (U, 5)."""
        return pool_windows(maps, cells, self.levels)

    @torch.inference_mode()
    def layer(self, pooled: torch.Tensor, layer: Layer) -> torch.Tensor:
        """(U, D') features of `layer` from pool5 features (U, D)."""
        if layer == "pool5":
            return pooled
        if self.head is None:
            raise ValueError(f"{layer}: there is no head")
        with multiplying_in(self.precision, pooled.device):
            return self.head.features(pooled, layer).float()

    def __call__(self, maps: FeatureMaps, boxes: Boxes, layer: Layer) -> RegionFeatures:
        """Features of boxes (P, 4); windows that coincide are computed once."""
        windows = self.windows(maps, boxes)
        values = self.layer(self.pool(maps, windows.cells), layer)
        return RegionFeatures(values, windows.index)

"""Maps of several stages of a network, joined into one: brought to the same cells, scaled, projected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sppdet.features.geometry import Geometry

VERSION = 1  # raise it when the same maps are joined in another way


class JoinedMaps(nn.Module):
    """A network whose maps of several strides become one, on the cells of the first.

    The cells of a coarser map are interpolated bilinearly at the centres of the first one's; beyond
    its outermost centres its values are repeated. Each map is multiplied by a factor; `fit_joined`
    sets them so that all have the same mean square. Then the channels are concatenated and, with
    `project`, reduced by a 1×1 convolution.

    Args:
        trunk: (1, 3, H, W) to a map (1, C, h, w), or to a tuple of maps.
        geometries: (S, c₀) of each map, the finest first.
        channels: of each map.
        project: channels of the projection; None leaves it out.
    """

    def __init__(
        self,
        trunk: nn.Module,
        geometries: Sequence[Geometry],
        channels: Sequence[int],
        project: int | None,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.geometries = tuple(geometries)
        self.factors = nn.Parameter(torch.ones(len(channels)), requires_grad=False)
        self.projection = nn.Conv2d(sum(channels), project, 1) if project else None

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Compute all maps (N, C, h, w), on the cells of the first and unscaled."""
        found = self.trunk(x)
        first, *others = found if isinstance(found, tuple) else (found,)
        sides = first.shape[2], first.shape[3]
        pairs = zip(others, self.geometries[1:], strict=True)
        return [first, *(resampled(m, g, self.geometries[0], sides) for m, g in pairs)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the joined map (N, C, h, w) of images (N, 3, H, W)."""
        maps = self.maps(x)
        joined = torch.cat([m * f for m, f in zip(maps, self.factors, strict=True)], dim=1)
        return joined if self.projection is None else self.projection(joined)


def resampled(
    coarse: torch.Tensor, geometry: Geometry, target: Geometry, sides: tuple[int, int]
) -> torch.Tensor:
    """Interpolate a map (N, C, h', w') bilinearly at the centres of another map's cells (h, w)."""
    rows, columns = (
        _interpolation(count, length, geometry, target).to(coarse)
        for count, length in zip(sides, coarse.shape[2:], strict=True)
    )
    result: torch.Tensor = rows @ coarse @ columns.T
    return result.contiguous(memory_format=torch.channels_last)


def _interpolation(count: int, length: int, geometry: Geometry, target: Geometry) -> torch.Tensor:
    """Weights (count, length) of linear interpolation along one axis."""
    (stride, offset), (target_stride, target_offset) = geometry, target
    centres = target_offset + target_stride * torch.arange(count, dtype=torch.float64)
    position = ((centres - offset) / stride).clamp(0, length - 1)
    distance = (position[:, None] - torch.arange(length, dtype=torch.float64)).abs()
    return (1 - distance).clamp(min=0)


@torch.no_grad()
def fit_joined(joined: JoinedMaps, cells: Iterable[Sequence[NDArray[np.float32]]]) -> None:
    """Fit factors and projection to cells of training images.

    The factors bring each map's mean square to 1. The projection is onto the principal components of
    the joined cells, less their mean. The sign of each component is the one with a positive third
    moment: max-pooling then keeps the rare, large responses.

    Args:
        cells: for each image the same cells of every map, (n, C) each.
    """
    maps = [np.concatenate(parts).astype(np.float64) for parts in zip(*cells, strict=True)]
    factors = [1 / max(float(np.sqrt(np.square(m).mean())), 1e-12) for m in maps]
    joined.factors.copy_(torch.tensor(factors))
    if joined.projection is None:
        return
    x = np.concatenate([m * f for m, f in zip(maps, factors, strict=True)], axis=1)
    mean = x.mean(axis=0)
    x = x - mean
    _, vectors = np.linalg.eigh(x.T @ x)
    components = vectors[:, ::-1][:, : joined.projection.out_channels].T  # [P, C], largest first
    skew = ((x @ components.T) ** 3).mean(axis=0)
    components = components * np.where(skew < 0, -1.0, 1.0)[:, None]
    joined.projection.weight.copy_(torch.from_numpy(components)[:, :, None, None])
    assert joined.projection.bias is not None
    joined.projection.bias.copy_(torch.from_numpy(-components @ mean))

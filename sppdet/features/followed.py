"""Stride and first centre of a network's maps, followed through one run of its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sppdet.features.geometry import Geometry

_ROWS, _COLUMNS = 4, 6  # of the probe, in units of about 32 pixels; unlike, to tell the axes apart
_aten = torch.ops.aten


@dataclass(frozen=True)
class _Axes:
    """The dimensions of a tensor that are rows and columns of a map, and (S, c₀) along each."""

    dims: tuple[int, int]
    along: tuple[Geometry, Geometry]

    def sides(self, tensor: torch.Tensor) -> tuple[int, int]:
        return tensor.shape[self.dims[0]], tensor.shape[self.dims[1]]


class FollowedGeometry(TorchDispatchMode):
    """While it is entered, follows (S, c₀) of every map that is computed from an image.

    Convolutions and poolings change both by their kernels, strides, dilations and paddings; whatever
    else keeps the sides of a map keeps its geometry. Where branches of different centres meet, their
    mean is taken: how much each counts is a matter of the weights. A map whose sides are changed
    otherwise (resizing, windows of attention, linear layers over cells) has no known geometry, nor has
    anything computed from it alone.
    """

    def __init__(self, image: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # with the tensors, so that their ids stay theirs
        self._known: dict[int, tuple[torch.Tensor, _Axes]] = {}
        self._known[id(image)] = (image, _Axes((2, 3), ((1, 0.5), (1, 0.5))))

    def along(self, tensor: Any) -> tuple[Geometry, Geometry] | None:
        """Return (S, c₀) down and across of a map (N, C, h, w); None if they aren't known."""
        axes = self._axes(tensor)
        return axes.along if axes is not None and axes.dims == (2, 3) else None

    def of(self, tensor: torch.Tensor) -> Geometry:
        """Return (S, c₀) of a map.

        Raises:
            ValueError: they aren't known, or differ between the axes.
        """
        along = self.along(tensor)
        if along is None:
            raise ValueError("its stride can't be followed through the layers")
        down, across = along
        if down != across:
            raise ValueError(
                f"stride and centre are {down} down, {across} across: expected the same"
            )
        return down

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and note the geometry of its results."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        leaves = pytree.tree_leaves((args, kwargs))
        inputs = [(t, axes) for t in leaves if (axes := self._axes(t)) is not None]
        for made in pytree.tree_leaves(result) if inputs else ():
            if isinstance(made, torch.Tensor):
                axes = _through(func, args, inputs, made)
                if axes is not None:
                    self._known[id(made)] = (made, axes)
                else:
                    self._known.pop(id(made), None)
        return result

    def _axes(self, tensor: Any) -> _Axes | None:
        entry = self._known.get(id(tensor))
        return entry[1] if entry else None


def _through(
    func: Any,
    args: Sequence[Any],
    inputs: list[tuple[torch.Tensor, _Axes]],
    made: torch.Tensor,
) -> _Axes | None:
    """Find the axes of a result of an operation on tensors of known axes, if it has any."""
    first, axes = inputs[0]
    packet = func.overloadpacket
    layer = _layer_of(packet, args)
    if layer is not None:
        if first is not args[0] or axes.dims != (2, 3):
            return None
        down, across = (_passed(g, *sizes) for g, sizes in zip(axes.along, layer, strict=True))
        return _Axes((2, 3), (down, across))
    if packet is _aten.permute:
        order = [d % made.ndim for d in args[1]]
        return _Axes((order.index(axes.dims[0]), order.index(axes.dims[1])), axes.along)
    alike = [kept for tensor, axes in inputs if (kept := _kept(tensor, axes, made)) is not None]
    for axis in (0, 1):
        strides = sorted({kept.along[axis][0] for kept in alike})
        if len(strides) > 1:
            raise ValueError(f"branches of strides {strides} meet in {packet}")
    if not alike:
        return None
    down, across = (_mean([kept.along[axis] for kept in alike]) for axis in (0, 1))
    return _Axes(alike[0].dims, (down, across))


def _mean(branches: Sequence[Geometry]) -> Geometry:
    """Average the centres of branches of one stride."""
    return branches[0][0], sum(centre for _, centre in branches) / len(branches)


def _kept(tensor: torch.Tensor, axes: _Axes, made: torch.Tensor) -> _Axes | None:
    """Return the axes of a result in which the sides of a map are where they were."""
    more = made.ndim - tensor.ndim
    if more and axes.dims != (tensor.ndim - 2, tensor.ndim - 1):
        return None
    dims = (axes.dims[0] + more, axes.dims[1] + more)
    kept = _Axes(dims, axes.along)
    if min(dims) < 0 or max(dims) >= made.ndim or kept.sides(made) != axes.sides(tensor):
        return None
    return kept


def _layer_of(packet: Any, args: Sequence[Any]) -> list[tuple[int, int, int]] | None:
    """Return for both axes kernel (with dilation), stride and padding; None for what is no layer."""
    if packet is _aten.convolution and not args[6]:
        return _both(tuple(args[1].shape[2:]), args[3], args[4], args[5])
    if packet in (_aten.max_pool2d, _aten.max_pool2d_with_indices):
        sizes: list[Any] = [*args[1:5], *((), 0, 1)[len(args) - 2 :]]
        return _both(sizes[0], sizes[1] or sizes[0], sizes[2], sizes[3])
    if packet is _aten.avg_pool2d:
        sizes = [*args[1:4], *((), 0)[len(args) - 2 :]]
        return _both(sizes[0], sizes[1] or sizes[0], sizes[2], 1)
    if packet is _aten.constant_pad_nd:
        left, top = args[1][0], args[1][2] if len(args[1]) > 2 else 0
        return [(1, 1, top), (1, 1, left)]
    return None


def _both(kernel: Any, stride: Any, padding: Any, dilation: Any) -> list[tuple[int, int, int]]:
    sizes = [_pair(value) for value in (kernel, stride, padding, dilation)]
    return [((k - 1) * d + 1, s, p) for k, s, p, d in zip(*sizes, strict=True)]


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return int(values[0]), int(values[-1])


def _passed(geometry: Geometry, kernel: int, step: int, padding: int) -> Geometry:
    stride, centre = geometry
    return stride * step, centre + ((kernel - 1) / 2 - padding) * stride


@torch.no_grad()
def followed_geometries(layers: nn.Module, *, multiple: int = 32) -> list[Geometry]:
    """Follow (S, c₀) of the layers' map, or of each of their maps.

    Args:
        layers: (N, 3, H, W) to a map (N, C, h, w) or a tuple of maps, in inference mode.
        multiple: the sides of the image are multiples of it.

    Raises:
        ValueError: the geometry of a map isn't known, or the layers don't run.
    """
    image = probe(layers, multiple)
    with FollowedGeometry(image) as geometry:
        try:
            found = layers(image)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ValueError(f"its layers can't be run: {error}") from None
    return [geometry.of(m) for m in (found if isinstance(found, tuple) else (found,))]


def probe(layers: nn.Module, multiple: int = 32) -> torch.Tensor:
    """Make an image (1, 3, h, w) to follow through layers; h and w are multiples of `multiple`."""
    weight = next(layers.parameters(), torch.zeros(1, 3))
    unit = -(-32 // multiple) * multiple
    channels = weight.shape[1] if weight.ndim == 4 else 3
    return weight.new_zeros(1, channels, _ROWS * unit, _COLUMNS * unit)

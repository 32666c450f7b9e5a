"""Rounded feature maps as the named tensors of a file, without their zeros where that is shorter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.features.rounding import EightBitMap
from sppdet.features.sparse import with_zeros, without_zeros
from sppdet.tensor_types import TensorType, Types

RoundedMap = torch.Tensor | EightBitMap  # (C, H, W) float16, or what `half()` makes into that


def to_tensors(
    maps: Sequence[RoundedMap], scale_factors: NDArray[np.float64]
) -> dict[str, torch.Tensor]:
    """Name the tensors of an image's maps at its scales.

    `map0` is the values (H, W, C) of the first one, channels last, as the layers make them and pooling
    wants them; or with `bits0` (H, W, ⌈C / 8⌉), which has a bit for each value, those that aren't 0 alone.
    Maps in eight bits have `steps0` and `zeros0` (C,) as well.
    """
    named = {"scale_factors": torch.from_numpy(scale_factors)}
    for s, one in enumerate(maps):
        values = one.permute(1, 2, 0) if isinstance(one, torch.Tensor) else one.values
        dense = values.cpu().contiguous().numpy()
        bits, found = without_zeros(dense.view(f"u{dense.itemsize}"))
        if bits.nbytes + found.nbytes < dense.nbytes:
            named[f"bits{s}"] = torch.from_numpy(bits)
            dense = found.view(dense.dtype)
        named[f"map{s}"] = torch.from_numpy(dense)
        if isinstance(one, EightBitMap):
            named[f"steps{s}"], named[f"zeros{s}"] = one.steps, one.zeros
    return named


def from_tensors(
    named: dict[str, torch.Tensor], channels: int
) -> tuple[list[RoundedMap], NDArray[np.float64]]:
    """Return maps and scale factors from their tensors, whose types are the expected ones.

    Raises:
        ValueError: values that can't be.
    """
    factors = named["scale_factors"].numpy()
    maps: list[RoundedMap] = []
    for s in range(len(factors)):
        values = named[f"map{s}"]
        if f"bits{s}" in named:
            found = values.numpy()
            codes = with_zeros(
                named[f"bits{s}"].numpy(), found.view(f"u{found.itemsize}"), channels
            )
            values = torch.from_numpy(codes.view(found.dtype))
        if f"steps{s}" in named:
            maps.append(EightBitMap(values, named[f"steps{s}"], named[f"zeros{s}"]))
        else:
            maps.append(values.permute(2, 0, 1))
    return maps, factors


def expected_types(found: Types, *, scales: int, channels: int, eight_bits: bool) -> Types:
    """Return the expected types of a file's tensors: as many maps as scale factors, `scales` at most."""
    factors = found.get("scale_factors", TensorType(None, ())).shape
    count = min(factors[0] if factors and factors[0] else scales, scales)
    dtype = torch.uint8 if eight_bits else torch.float16
    expected = {"scale_factors": TensorType(torch.float64, (count,))}
    for s in range(count):
        expected[f"map{s}"] = TensorType(dtype, (None, None, channels))
        if f"bits{s}" in found:
            expected[f"map{s}"] = TensorType(dtype, (None,))
            expected[f"bits{s}"] = TensorType(torch.uint8, (None, None, -(-channels // 8)))
        if eight_bits:
            expected[f"steps{s}"] = TensorType(torch.float16, (channels,))
            expected[f"zeros{s}"] = TensorType(torch.uint8, (channels,))
    return expected

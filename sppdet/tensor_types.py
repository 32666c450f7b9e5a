"""Checks of named tensors: names, dtypes, shapes and finite values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TensorType:
    """A dtype and a shape; None in an expected shape accepts any length.

    `dtype` is None for a type that sppdet doesn't write.
    """

    dtype: torch.dtype | None
    shape: tuple[int | None, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorType:
        """Return the type of a tensor."""
        return cls(tensor.dtype, tuple(tensor.shape))

    def __str__(self) -> str:
        lengths = ", ".join("any" if n is None else str(n) for n in self.shape)
        return f"{str(self.dtype).removeprefix('torch.')} ({lengths})"

    def fits(self, expected: TensorType) -> bool:
        """Check that the dtype and every fixed length are as expected."""
        return (
            self.dtype == expected.dtype
            and len(self.shape) == len(expected.shape)
            and all(e in (None, n) for n, e in zip(self.shape, expected.shape, strict=True))
        )


Types = Mapping[str, TensorType]


def types_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorType]:
    """Return the types of named tensors."""
    return {name: TensorType.of(tensor) for name, tensor in tensors.items()}


def misfit(found: Types, expected: Types) -> str | None:
    """Describe the first tensor that is missing, not expected, or of another type.

    Returns:
        such as "tensor biases is float32 (3), expected float32 (4)"; None if all fit.
    """
    for name, wanted in expected.items():
        if name not in found:
            return f"tensor {name} is missing, expected {wanted}"
        if not found[name].fits(wanted):
            return f"tensor {name} is {found[name]}, expected {wanted}"
    for name in found:
        if name not in expected:
            return f"tensor {name} isn't expected"
    return None


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Find the first tensor with a NaN or an infinite value; returns its name, None if all are finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and not _all_finite(tensor.detach()):
            return name
    return None


def _all_finite(tensor: torch.Tensor) -> bool:
    import torch

    # NaN propagates to the extremes: 2 ms for 18 MiB of float16, isfinite of all values takes 50
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())

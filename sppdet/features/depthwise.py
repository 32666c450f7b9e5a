"""Gradients of depthwise convolutions on a CPU, by compiled loops.

A depthwise convolution filters every channel for itself. torch has fast gradients of filters of 3×3 on a
CPU; those of larger ones take it two to fifteen times as long as loops over channels that come last, and
were a third of what an EfficientNet costs in training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from sppdet.compiled import compiled
from sppdet.parallel import by_shares

Floats = NDArray[np.float32]
Pair = tuple[int, int]
_TORCHS = 3  # the side of filters up to which torch's own gradients are faster
_CHANNELS = 16  # from which on the loops over them are faster


class FastDepthwise(TorchFunctionMode):
    """Within it, depthwise convolutions of one image on a CPU get their gradients from compiled loops.

    It applies to `torch.conv2d`, called with arguments by position as torch's layers do, of one image by
    filters beyond 3×3, in float32, with as many groups as channels in and out, 16 or more, and without
    dilation, where a gradient is required; everything else is torch's own. Values of the convolution stay
    the same to the bit; gradients differ by rounding, and not by the number of threads. They are
    first ones, by `backward`: gradients of gradients and `torch.func` raise RuntimeError.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func`, or the convolution with gradients of our own."""
        if func is torch.conv2d and not kwargs:
            found = _depthwise(*args)
            if found is not None:
                return found
        return func(*args, **(kwargs or {}))


def _depthwise(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> torch.Tensor | None:
    """Convolve if it is a case for the loops; None otherwise."""
    if groups < _CHANNELS or not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return None
    if not x.ndim == weight.ndim == 4:
        return None
    one_filter_each = x.shape[0] == 1 and x.shape[1] == weight.shape[0] == groups
    large = max(weight.shape[2:]) > _TORCHS
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    steps, edges = _pair(stride), _pair(padding)
    if steps is None or edges is None or _pair(dilation) != (1, 1):
        return None
    if not (one_filter_each and large and plain and (x.requires_grad or weight.requires_grad)):
        return None
    found: torch.Tensor = _Depthwise.apply(x, weight, bias, steps, edges)
    return found


def _pair(value: object) -> Pair | None:
    """Read one number for rows and columns, or two; None for what else torch takes or refuses."""
    values: Sequence[object] = value if isinstance(value, tuple | list) else [value]
    if len(values) not in (1, 2):
        return None
    rows, columns = values[0], values[-1]
    return (rows, columns) if type(rows) is int and type(columns) is int else None


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution of (1, C, H, W) by filters (C, 1, h, w)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        stride: Pair,
        padding: Pair,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(x, weight, bias, stride, padding, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, *gradients: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        values, above = _channels_last(x[0]), _channels_last(gradients[0][0])
        filters = _channels_last(weight[:, 0])
        of_values, of_filters = np.zeros_like(values), np.zeros_like(filters)
        (down, right), (top, left) = ctx.stride, ctx.padding

        def add(part: slice) -> None:
            _add_gradients(
                values,
                filters,
                above,
                np.uint64(down),
                np.uint64(right),
                np.uint64(top),
                np.uint64(left),
                np.uint64(part.start),
                np.uint64(part.stop),
                of_values,
                of_filters,
            )

        by_shares(
            len(weight), add
        )  # a thread has channels of its own, which fixes the order of sums
        of_bias = gradients[0].sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return (
            torch.from_numpy(of_values).permute(2, 0, 1)[None],
            torch.from_numpy(of_filters).permute(2, 0, 1)[:, None],
            of_bias,
            None,
            None,
        )


def _channels_last(tensor: torch.Tensor) -> Floats:
    """Bring (C, H, W) to (H, W, C); without a copy if that is its order in memory."""
    result: Floats = tensor.detach().permute(1, 2, 0).contiguous().numpy()
    return result


@compiled
def _add_gradients(
    values: Floats,
    filters: Floats,
    above: Floats,
    row_stride: np.uint64,
    column_stride: np.uint64,
    row_padding: np.uint64,
    column_padding: np.uint64,
    first: np.uint64,
    end: np.uint64,
    of_values: Floats,
    of_filters: Floats,
) -> None:
    """Add what the gradient (h', w', C) above contributes to those of values and filters.

    Args:
        values: (H, W, C). filters: (h, w, C). of_values, of_filters: their gradients.
        first, end: channels [first, end) are done.
    """
    height, width = np.uint64(values.shape[0]), np.uint64(values.shape[1])
    of_row = np.zeros(values.shape[2], np.float32)  # a sum a row: sums of sums lose fewer digits
    for y in range(np.uint64(above.shape[0])):
        for i in range(np.uint64(filters.shape[0])):
            row = y * row_stride + i
            if row < row_padding or row - row_padding >= height:
                continue
            row -= row_padding
            for j in range(np.uint64(filters.shape[1])):
                of_row[first:end] = 0
                for x in range(np.uint64(above.shape[1])):
                    column = x * column_stride + j
                    if column < column_padding or column - column_padding >= width:
                        continue
                    column -= column_padding
                    for n in range(first, end):
                        gradient = above[y, x, n]
                        of_row[n] += values[row, column, n] * gradient
                        of_values[row, column, n] += filters[i, j, n] * gradient
                for n in range(first, end):
                    of_filters[i, j, n] += of_row[n]

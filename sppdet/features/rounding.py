"""Feature maps in eight bits: one step and one zero point for each channel of a map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

VERSION = 1  # raise it when the same map is rounded to other values
_LEAST = 4 * 2.0**-24  # step of a channel without values: float16 has all its multiples up to 255


@dataclass(frozen=True)
class EightBitMap:
    """A map whose values are `(values - zeros) * steps`.

    A step has three significant bits, so that each value has eleven and is exact in float16: the
    map is the same wherever it was stored and on whatever device it is expanded.
    """

    values: torch.Tensor  # (H, W, C) uint8
    steps: torch.Tensor  # (C,) float16 > 0
    zeros: torch.Tensor  # (C,) uint8, the value of 0; 0 for channels without negative values

    def half(self) -> torch.Tensor:
        """Return the map as (C, H, W) float16, channels last in memory."""
        values = self.values.float().sub_(self.zeros).mul_(self.steps)
        return values.half().permute(2, 0, 1)


def to_eight_bits(feature_map: torch.Tensor) -> EightBitMap:
    """Round a map to 256 levels a channel; 0 stays 0, other values move by half a step at most.

    Args:
        feature_map: (C, H, W) float. Values that aren't finite show in `half()`.
    """
    channels_last = feature_map.permute(1, 2, 0).float().contiguous()
    # both at once, by torch.aminmax, takes four times as long
    low, high = (f(channels_last, dim=(0, 1)) for f in (torch.amin, torch.amax))
    low, high = low.clamp(max=0), high.clamp(min=0)
    steps = torch.from_numpy(_steps((high - low).cpu().numpy())).to(channels_last.device)
    zeros = (-low / steps).round_()
    values = (channels_last / steps).round_().add_(zeros).clamp_(0, 255)
    return EightBitMap(values.to(torch.uint8), steps.half(), zeros.to(torch.uint8))


def _steps(ranges: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute the smallest steps of three significant bits of which 255 cover each range.

    Each is m · 2^e with m from 4 to 7, and at most a quarter larger than a 255th of the range.
    """
    fractions, exponents = np.frexp(np.maximum(ranges / np.float32(255), np.float32(_LEAST)))
    steps: NDArray[np.float32] = np.ldexp(np.ceil(fractions * 8), exponents - 3)
    return steps

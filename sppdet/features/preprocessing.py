"""The input that a network expects: colours, interpolation, sides."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from sppdet.resizing import Interpolation, resized
from sppdet.types import ImageArray

MIN_SIDE = 64  # resized pixels; some networks make no cell of a narrower image


@dataclass(frozen=True)
class Preprocessing:
    """How images become a network's input.

    Attributes:
        mean, std: of RGB / 255.
        interpolation: of images that are enlarged.
        multiple: that the sides of the input are padded to, in pixels.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"
    multiple: int = 1

    def normalised(
        self, images: NDArray[np.uint8] | NDArray[np.float32] | torch.Tensor
    ) -> torch.Tensor:
        """Normalise RGB images (N, H, W, 3) in 0..255; returns (N, 3, H, W) float32."""
        x = torch.as_tensor(images).permute(0, 3, 1, 2).float()
        mean, std = _mean_and_std(self, x.device)
        return (x - mean) / std

    def to_input(self, image: ImageArray, factor: float) -> torch.Tensor:
        """Resize an image by `factor`, normalise and pad it; returns (1, 3, h, w) float32."""
        return self.padded_input(torch.from_numpy(resized(image, factor, self.interpolation)))

    def padded_input(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise an image (h, w, 3) in 0..255; returns (1, 3, h, w) float32 on its device.

        Sides shorter than `MIN_SIDE`, or between multiples of `multiple`, are padded with zeros on the
        right or below.
        """
        x = self.normalised(pixels[None])
        wanted = [
            -(-max(MIN_SIDE, side) // self.multiple) * self.multiple
            for side in (x.shape[3], x.shape[2])
        ]
        padded = F.pad(x, (0, wanted[0] - x.shape[3], 0, wanted[1] - x.shape[2]))
        return padded.contiguous(memory_format=torch.channels_last)


IMAGENET = Preprocessing()
"""The input of torchvision's networks with ImageNet weights, and of our own."""


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)
def _mean_and_std(
    preprocessing: Preprocessing, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation (1, 3, 1, 1) of 0..255, cached on the device: a copy would block."""
    mean = torch.tensor(preprocessing.mean, device=device).view(1, 3, 1, 1) * 255
    std = torch.tensor(preprocessing.std, device=device).view(1, 3, 1, 1) * 255
    return mean, std

"""Backbones: convolutional layers and their geometry."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.models as tv
from numpy.typing import NDArray
from torch import nn

from sppdet.config import FeaturesConfig
from sppdet.errors import ConfigError
from sppdet.features.geometry import scale_factors_of
from sppdet.features.graph import before_last_pooling, geometry_of
from sppdet.features.nets import OWN_NETS, problem_with_name
from sppdet.parallel import multiplying_in
from sppdet.randomness import keeping_torch_state
from sppdet.resizing import resized
from sppdet.types import FeatureMaps, ImageArray

VERSION = 4  # raise it when the same weights give other maps, or maps are stored in another form

# RGB / 255, as torchvision's ImageNet weights expect
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class FcLayers:
    """Fully connected layers of a pre-trained classifier.

    The columns of fc6 are in the order of `SpatialPyramid(levels)`: level by level, each (row, column,
    channel).
    """

    levels: tuple[int, ...]
    fc6: nn.Linear
    fc7: nn.Linear | None


@dataclass(frozen=True)
class Backbone:
    """Convolutional layers with their geometry.

    `stride` is S, the product of the strides; `offset` is c₀, the centre of the first cell's
    receptive field in continuous pixels of the network's input.
    """

    name: str
    layers: nn.Module
    channels: int
    stride: int
    offset: float
    fc: FcLayers | None

    def scaled(self, image: ImageArray, scales: list[int], config: FeaturesConfig) -> ScaledImage:
        """Resize an image (H, W, 3) RGB to every distinct scale (shorter sides in resized pixels).

        Runs on the CPU, in threads beside the layers.
        """
        height, width = image.shape[:2]
        factors = scale_factors_of(scales, width=width, height=height, max_side=config.max_side)
        pixels = [torch.from_numpy(resized(image, f)) for f in factors.tolist()]
        if next(self.layers.parameters()).is_cuda:
            pixels = [p.pin_memory() for p in pixels]  # for asynchronous copies
        return ScaledImage(tuple(pixels), factors)

    @torch.inference_mode()
    def feature_maps(
        self, image: ScaledImage, precision: torch.dtype = torch.float32
    ) -> FeatureMaps:
        """Run the layers once on the whole image at every distinct scale.

        Args:
            precision: dtype in which the layers multiply.

        Returns:
            maps on the layers' device, float32 or of the type `precision`.
        """
        device = next(self.layers.parameters()).device
        maps = []
        for pixels in image.pixels:
            x = padded_input(pixels.to(device, non_blocking=True))
            with multiplying_in(precision, device):
                maps.append(self.layers(x)[0])
        return FeatureMaps(tuple(maps), image.scale_factors, self.stride, self.offset)


@dataclass(frozen=True)
class ScaledImage:
    """An image resized to its distinct scales."""

    pixels: tuple[torch.Tensor, ...]  # S × (h, w, 3) RGB uint8
    scale_factors: NDArray[np.float64]  # (S,) resized / original pixels, ascending


def to_input(image: ImageArray, factor: float) -> torch.Tensor:
    """Resize an image by `factor`, normalise and pad it; returns (1, 3, h, w) float32."""
    return padded_input(torch.from_numpy(resized(image, factor)))


def padded_input(pixels: torch.Tensor) -> torch.Tensor:
    """Normalise an image (h, w, 3) in 0..255; returns (1, 3, h, w) float32 on its device.

    Sides shorter than `_MIN_SIDE` are padded with zeros on the right or below.
    """
    x = normalised(pixels[None])
    missing = [max(0, _MIN_SIDE - side) for side in (x.shape[3], x.shape[2])]
    padded = F.pad(x, (0, missing[0], 0, missing[1]))
    return padded.contiguous(memory_format=torch.channels_last)


_MIN_SIDE = 64  # resized pixels; some networks make no cell of a narrower image


def normalised(
    images: NDArray[np.uint8] | NDArray[np.float32] | torch.Tensor,
) -> torch.Tensor:
    """Normalise RGB images (N, H, W, 3) in 0..255 for the networks; returns (N, 3, H, W) float32."""
    x = torch.as_tensor(images).permute(0, 3, 1, 2).float()
    mean, std = _mean_and_std(x.device)
    return (x - mean) / std


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)
def _mean_and_std(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation (1, 3, 1, 1) of 0..255, cached on the device: a copy would block."""
    mean = torch.tensor(PIXEL_MEAN, device=device).view(1, 3, 1, 1) * 255
    std = torch.tensor(PIXEL_STD, device=device).view(1, 3, 1, 1) * 255
    return mean, std


def conv_backbone(name: str, *, whole: bool = False) -> Backbone:
    """Build convolutional layers without pre-trained weights, to load those of a run."""
    if problem := problem_with_name(name):
        raise ConfigError(f"backbone.name: {problem}")
    with keeping_torch_state():
        model = random_model(name)
    return backbone_of(name, model, whole=whole, with_fc=False)


def random_model(name: str) -> nn.Module:
    if name in OWN_NETS:
        return OWN_NETS[name]()
    # without it these two warn that their initialisation is slow
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = tv.get_model(name, weights=None, **options)
    return model


def filled_linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta").to_empty(device="cpu")
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def backbone_of(name: str, model: nn.Module, *, whole: bool, with_fc: bool) -> Backbone:
    try:
        layers = _conv_layers(name, model, whole=whole).eval().requires_grad_(False)
        layers = layers.to(memory_format=torch.channels_last)
        stride, offset = geometry_of(layers)
    except ValueError as error:
        raise ConfigError(f"{name}: can't be used as a backbone: {error}") from None
    with torch.inference_mode():
        channels = layers(torch.zeros(1, 3, 96, 96)).shape[1]
    fc = _fc_layers(name, model, channels) if with_fc else None
    return Backbone(name, layers, channels, stride, offset, fc)


def _conv_layers(name: str, model: nn.Module, *, whole: bool) -> nn.Module:
    """Return the layers up to the last map; the last pooling belongs to the classifier."""
    if name in OWN_NETS:
        return model
    if name.startswith(("alexnet", "vgg")):
        return nn.Sequential(*list(model.features)[:-1])  # type: ignore[arg-type]
    if name.startswith("squeezenet"):
        return model.features  # type: ignore[return-value]
    if isinstance(model, tv.ResNet):
        order = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        return nn.Sequential(*(getattr(model, part) for part in order[: None if whole else -1]))
    return before_last_pooling(model.eval())


def _fc_layers(name: str, model: nn.Module, channels: int) -> FcLayers | None:
    """Extract fc6 and fc7 of AlexNet and VGG, whose columns are in the order (channel, row, column)."""
    if name.startswith("alexnet"):
        grid, fc6, fc7 = 6, model.classifier[1], model.classifier[4]  # type: ignore[index]
    elif name.startswith("vgg"):
        grid, fc6, fc7 = 7, model.classifier[0], model.classifier[3]  # type: ignore[index]
    else:
        return None
    assert isinstance(fc6, nn.Linear) and isinstance(fc7, nn.Linear)
    weight = fc6.weight.detach().unflatten(1, (channels, grid, grid)).permute(0, 2, 3, 1)
    return FcLayers((grid,), filled_linear(weight.flatten(1), fc6.bias.detach()), fc7)

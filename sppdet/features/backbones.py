"""Backbones: convolutional layers and their geometry."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sppdet.config import FeaturesConfig
from sppdet.errors import ConfigError
from sppdet.features.followed import followed_geometries
from sppdet.features.geometry import Geometry, scale_factors_of
from sppdet.features.graph import before_last_pooling, cut_at_strides
from sppdet.features.joined import JoinedMaps
from sppdet.features.measured import measured_geometry
from sppdet.features.nets import OWN_NETS, problem_with_name
from sppdet.features.preprocessing import IMAGENET, Preprocessing
from sppdet.features.timm_nets import PREFIX as TIMM
from sppdet.features.timm_nets import timm_layers, timm_model
from sppdet.parallel import multiplying_in
from sppdet.randomness import keeping_torch_state
from sppdet.resizing import resized
from sppdet.types import FeatureMaps, ImageArray
from sppdet.vision import models as tv

VERSION = 4  # raise it when the same weights give other maps, or maps are stored in another form


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

    `geometries` are (S, c₀) of the maps that are joined, the finest first: S, the product of the
    strides, and c₀, the centre of the first cell's receptive field in continuous pixels of the
    network's input.
    """

    name: str
    layers: nn.Module
    channels: int
    geometries: tuple[Geometry, ...]
    fc: FcLayers | None
    preprocessing: Preprocessing = IMAGENET
    origin: str = ""  # where the weights are from, and their licence

    @property
    def stride(self) -> int:
        """S of the map."""
        return self.geometries[0][0]

    @property
    def offset(self) -> float:
        """c₀ of the map."""
        return self.geometries[0][1]

    def scaled(self, image: ImageArray, scales: list[int], config: FeaturesConfig) -> ScaledImage:
        """Resize an image (H, W, 3) RGB to every distinct scale (shorter sides in resized pixels).

        Runs on the CPU, in threads beside the layers.
        """
        height, width = image.shape[:2]
        factors = scale_factors_of(scales, width=width, height=height, max_side=config.max_side)
        kind = self.preprocessing.interpolation
        pixels = [torch.from_numpy(resized(image, f, kind)) for f in factors.tolist()]
        if next(self.layers.parameters()).is_cuda:
            pixels = [p.pin_memory() for p in pixels]  # for asynchronous copies
        return ScaledImage(tuple(pixels), factors)

    @torch.inference_mode()
    def feature_maps(
        self,
        image: ScaledImage,
        precision: torch.dtype = torch.float32,
        layers: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> FeatureMaps:
        """Run the layers once on the whole image at every distinct scale.

        Args:
            precision: dtype in which the layers multiply.
            layers: to run in place of torch's; the same function.

        Returns:
            maps on the layers' device, float32 or of the type `precision`.
        """
        device = next(self.layers.parameters()).device
        maps = []
        for pixels in image.pixels:
            x = self.preprocessing.padded_input(pixels.to(device, non_blocking=True))
            with multiplying_in(precision, device):
                maps.append((layers or self.layers)(x)[0])
        return FeatureMaps(tuple(maps), image.scale_factors, self.stride, self.offset)


@dataclass(frozen=True)
class ScaledImage:
    """An image resized to its distinct scales."""

    pixels: tuple[torch.Tensor, ...]  # S × (h, w, 3) RGB uint8
    scale_factors: NDArray[np.float64]  # (S,) resized / original pixels, ascending


def conv_backbone(
    name: str,
    *,
    whole: bool = False,
    stages: Sequence[int] | None = None,
    project: int | None = None,
    geometries: Sequence[Geometry] | None = None,
) -> Backbone:
    """Build convolutional layers without pre-trained weights, to load those of a run.

    See `backbone_of` for the arguments.
    """
    if problem := problem_with_name(name):
        raise ConfigError(f"backbone.name: {problem}")
    with keeping_torch_state():
        model = random_model(name)
        return backbone_of(
            name,
            model,
            whole=whole,
            with_fc=False,
            stages=stages,
            project=project,
            geometries=geometries,
        )


def random_model(name: str) -> nn.Module:
    if name in OWN_NETS:
        return OWN_NETS[name]()
    if name.startswith(TIMM):
        return timm_model(name)
    # without it these two warn that their initialisation is slow
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = tv.get_model(name, weights=None, **options)
    return model


def filled_linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta").to_empty(device="cpu")
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def backbone_of(
    name: str,
    model: nn.Module,
    *,
    whole: bool,
    with_fc: bool,
    stages: Sequence[int] | None = None,
    project: int | None = None,
    geometries: Sequence[Geometry] | None = None,
) -> Backbone:
    """Take the convolutional layers of a model.

    Args:
        whole: up to the last pooling, for a classifier; otherwise up to stride 16 where a network
            goes beyond.
        with_fc: keep fc6 and fc7 as well, where the model has them.
        stages: strides of the maps to join, ascending; None takes the last map.
        project: channels to which the map is projected; None leaves them as they are.
        geometries: (S, c₀) of the maps, where they are known; measured otherwise.
    """
    preprocessing = IMAGENET
    try:
        if name.startswith(TIMM):
            layers, preprocessing = timm_layers(name, model, whole=whole, strides=stages or ())
        else:
            layers = _conv_layers(name, model, whole=whole or stages is not None)
            if stages is not None:
                try:
                    layers = cut_at_strides(layers, stages)
                except ValueError as error:
                    raise ConfigError(f"backbone.stages: {name}: {error}") from None
        layers = layers.eval().requires_grad_(False)
        if geometries is None:
            geometries = _geometries(layers, len(stages or (0,)), preprocessing.multiple)
    except ValueError as error:
        raise ConfigError(f"{name}: can't be used as a backbone: {error}") from None
    except (AssertionError, RuntimeError, TypeError) as error:
        if not name.startswith(TIMM):
            raise
        # such as transformers that take images of one size alone
        raise ConfigError(f"{name}: can't be used as a backbone: {error}") from None
    side = math.lcm(32, preprocessing.multiple) * 3
    with torch.inference_mode():
        found = layers(torch.zeros(1, 3, side, side))
    channels = [m.shape[1] for m in (found if isinstance(found, tuple) else (found,))]
    if project is not None and project > sum(channels):
        raise ConfigError(
            f"features.project: {project}, expected at most the {sum(channels)} channels of the maps"
        )
    fc = (
        _fc_layers(name, model, channels[0])
        if with_fc and stages is None and project is None
        else None
    )
    if stages is not None or project is not None:
        layers = JoinedMaps(layers, geometries, channels, project).eval().requires_grad_(False)
    layers = layers.to(memory_format=torch.channels_last)
    return Backbone(name, layers, project or sum(channels), tuple(geometries), fc, preprocessing)


class _Nth(nn.Module):
    """Layers that return one of their maps alone."""

    def __init__(self, layers: nn.Module, number: int) -> None:
        super().__init__()
        self.layers = layers
        self.number = number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.layers(x)
        result: torch.Tensor = found[self.number] if isinstance(found, tuple) else found
        return result


def _geometries(layers: nn.Module, count: int, multiple: int) -> list[Geometry]:
    """Find (S, c₀) of each map: followed through the layers, or measured where that can't tell."""
    try:
        return followed_geometries(layers, multiple=multiple)
    except ValueError as error:
        try:
            return [measured_geometry(_Nth(layers, k).eval()) for k in range(count)]
        except (ValueError, RuntimeError):
            raise ValueError(
                f"{error}, nor be measured; expected a convolutional network, or a transformer whose "
                "cells are patches"
            ) from None


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

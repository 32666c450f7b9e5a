"""Backbones: convolutional layers, their geometry and the weights they start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import torchvision.models as tv
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sppdet.config import BackboneName, FeaturesConfig
from sppdet.errors import WeightsError
from sppdet.features.geometry import scale_factor
from sppdet.features.tiny import Tiny
from sppdet.features.zf5 import zf5
from sppdet.types import FeatureMaps, Picture

VERSION = 1  # raised when the same weights give other maps

# RGB / 255, as torchvision's ImageNet weights expect
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class FcLayers:
    """Fully connected layers of a pre-trained classifier.

    fc6's columns are in torchvision's order (channel, row, column) of a `grid`×`grid` map.
    """

    grid: int
    fc6: nn.Linear
    fc7: nn.Linear


@dataclass(frozen=True)
class Backbone:
    """Convolutional layers with their geometry.

    `stride` is S, the product of the strides; `offset` is c₀, the centre of the first cell's
    receptive field in continuous pixels of the network's input.
    """

    name: BackboneName
    layers: nn.Module
    channels: int
    stride: int
    offset: float
    fc: FcLayers | None

    @torch.inference_mode()
    def feature_maps(
        self, picture: Picture, scales: list[int], config: FeaturesConfig
    ) -> FeatureMaps:
        """Run the layers once on the whole picture at every scale.

        Args:
            picture: (H, W, 3) RGB uint8.
            scales: shorter sides in resized pixels, ascending.

        Returns:
            float32 maps on the layers' device.
        """
        height, width = picture.shape[:2]
        factors = [
            scale_factor(width=width, height=height, scale=s, max_side=config.max_side)
            for s in scales
        ]
        device = next(self.layers.parameters()).device
        maps = tuple(self.layers(to_input(picture, f).to(device))[0] for f in factors)
        return FeatureMaps(maps, np.array(factors, dtype=np.float32), self.stride, self.offset)


def to_input(picture: Picture, factor: float) -> torch.Tensor:
    """(1, 3, h, w) float32: the picture resized by `factor` (bilinear) and normalised.

    One that is thinner than `_LEAST_SIDE` is padded with zeros on the right or below.
    """
    height, width = picture.shape[:2]
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    resized = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
    x = torch.from_numpy(resized).permute(2, 0, 1)[None].float()
    mean = torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1) * 255
    std = torch.tensor(PIXEL_STD).view(1, 3, 1, 1) * 255
    missing = [max(0, _LEAST_SIDE - side) for side in size]
    padded = F.pad((x - mean) / std, (0, missing[0], 0, missing[1]))
    return padded.contiguous(memory_format=torch.channels_last)


_LEAST_SIDE = 64  # resized pixels; a thinner picture would leave some networks no cell


def geometry_of(layers: nn.Module) -> tuple[int, float]:
    """(S, c₀) of a chain of layers, from their kernels, strides and paddings.

    A parallel branch that keeps the cell grid (a Fire module's 1×1 and 3×3) adds nothing; a
    ResNet's shortcut repeats the stride of the branch beside it and is passed over.
    """
    stride, centre = 1, 0.5
    for name, module in layers.named_modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d) and "downsample" not in name.split("."):
            kernel, step, padding = (
                _side(v) for v in (module.kernel_size, module.stride, module.padding)
            )
            centre += ((kernel - 1) / 2 - padding) * stride
            stride *= step
    return stride, centre


def _side(value: Any) -> int:
    first, second = value if isinstance(value, tuple) else (value, value)
    if first != second:
        raise ValueError(f"a layer of {first}x{second}: expected square ones")
    return int(first)


def load_backbone(name: BackboneName, weights: str, *, seed: int = 0) -> Backbone:
    """Build a backbone with the weights of `backbone.weights`.

    Args:
        weights: imagenet (torchvision's own, fetched on first use), none (random from `seed`), or
            a file of tensors: the whole torchvision model's or the convolutional layers' alone.

    Raises:
        WeightsError: no such file, not a file of tensors, tensors that don't fit, no download.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if weights == "imagenet":
            return _from_torchvision(name, _imagenet_model(name), with_fc=True)
        model = _random_model(name)
    with_fc = _load_weights(model, Path(weights), name) if weights != "none" else False
    return _from_torchvision(name, model, with_fc=with_fc)


def conv_backbone(name: BackboneName) -> Backbone:
    """The convolutional layers alone, to be filled with a run's own weights."""
    return _from_torchvision(name, _random_model(name), with_fc=False)


_MODELS: Mapping[str, Any] = {
    "alexnet": (tv.alexnet, tv.AlexNet_Weights.IMAGENET1K_V1),
    "vgg16": (tv.vgg16, tv.VGG16_Weights.IMAGENET1K_V1),
    "squeezenet1_0": (tv.squeezenet1_0, tv.SqueezeNet1_0_Weights.IMAGENET1K_V1),
    "squeezenet1_1": (tv.squeezenet1_1, tv.SqueezeNet1_1_Weights.IMAGENET1K_V1),
    "resnet18": (tv.resnet18, tv.ResNet18_Weights.IMAGENET1K_V1),
    "resnet50": (tv.resnet50, tv.ResNet50_Weights.IMAGENET1K_V1),
}
_OWN: Mapping[str, Any] = {"zf5": zf5, "tiny": lambda: Tiny().features}


def _imagenet_model(name: BackboneName) -> nn.Module:
    if name not in _MODELS:
        raise WeightsError(
            f"backbone.weights: there are no imagenet weights for {name}; expected a file or none"
        )
    build, weights = _MODELS[name]
    try:
        model: nn.Module = build(weights=weights)
    except Exception as error:  # the network's and the hub's errors have no common base
        raise WeightsError(
            f"backbone.weights: imagenet weights of {name} can't be fetched from {weights.url}: {error}"
        ) from None
    return model


def _random_model(name: BackboneName) -> nn.Module:
    model: nn.Module = _OWN[name]() if name in _OWN else _MODELS[name][0](weights=None)
    return model


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a `.safetensors` file or of a torch state dict, loaded without running code."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such file of weights")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(str(path))
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: can't be read: {error}") from None
    except Exception:  # what torch raises depends on where the file goes wrong
        raise WeightsError(f"{path}: not a plain file of tensors") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise WeightsError(f"{path}: expected a state dict of tensors")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _load_weights(model: nn.Module, path: Path, name: BackboneName) -> bool:
    """Fill the model from a file; returns whether its fc6 and fc7 were filled too."""
    state = read_state_dict(path)
    # the classes' layer is of no use here: it may be missing, or have other classes
    last = "classifier.6." if name in ("alexnet", "vgg16") else "classifier."
    own = {k: v for k, v in model.state_dict().items() if not k.startswith((last, "fc."))}
    for key, tensor in state.items():
        if key in own and own[key].shape != tensor.shape:
            raise WeightsError(
                f"{path}: {key} is {tuple(tensor.shape)}, expected {tuple(own[key].shape)} for {name}"
            )
    # a file may hold the convolutional layers alone; BatchNorm's counter is of no use here
    absent = [key for key in own if key not in state and "num_batches" not in key]
    missing = [key for key in absent if not key.startswith("classifier.")]
    if missing:
        raise WeightsError(
            f"{path}: has no {missing[0]}; expected the tensors of {name} ({len(missing)} missing)"
        )
    model.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)
    return not absent


def _from_torchvision(name: BackboneName, model: nn.Module, *, with_fc: bool) -> Backbone:
    layers = _conv_layers(name, model).eval().requires_grad_(False)
    layers = layers.to(memory_format=torch.channels_last)
    stride, offset = geometry_of(layers)
    with torch.inference_mode():
        channels = layers(torch.zeros(1, 3, 96, 96)).shape[1]
    return Backbone(name, layers, channels, stride, offset, _fc_layers(name, model, with_fc))


def _conv_layers(name: BackboneName, model: nn.Module) -> nn.Module:
    """Everything up to the last map of stride 16 (the last pooling belongs to the classifier)."""
    if name in _OWN:
        return model
    if name in ("alexnet", "vgg16"):
        return nn.Sequential(*list(model.features)[:-1])  # type: ignore[arg-type]
    if name.startswith("squeezenet"):
        return model.features  # type: ignore[return-value]
    order = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
    return nn.Sequential(*(getattr(model, part) for part in order))


def _fc_layers(name: BackboneName, model: nn.Module, wanted: bool) -> FcLayers | None:
    if wanted and name == "alexnet":
        return FcLayers(6, model.classifier[1], model.classifier[4])  # type: ignore[index, arg-type]
    if wanted and name == "vgg16":
        return FcLayers(7, model.classifier[0], model.classifier[3])  # type: ignore[index, arg-type]
    return None

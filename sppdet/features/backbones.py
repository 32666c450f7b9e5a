"""Backbones: convolutional layers, their geometry and the weights they start from."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.models as tv
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sppdet.config import FeaturesConfig
from sppdet.errors import ArtifactError, ConfigError, WeightsError
from sppdet.features.geometry import scale_factors_of
from sppdet.features.graph import before_last_pooling, geometry_of
from sppdet.features.nets import OWN_NETS, problem_with_name
from sppdet.features.spp import spp_width
from sppdet.parallel import multiplying_in
from sppdet.randomness import keeping_torch_state, torch_stream
from sppdet.resizing import resized
from sppdet.runs.artifacts import read_tensors
from sppdet.runs.tensor_types import TensorType, misfit, not_finite, types_of
from sppdet.types import FeatureMaps, ImageArray

VERSION = 4  # raised when the same weights give other maps, or these are stored otherwise

# RGB / 255, as torchvision's ImageNet weights expect
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class FcLayers:
    """Fully connected layers of a pre-trained classifier.

    fc6's columns are those of `SpatialPyramid(levels)`: level by level, each in the order (row,
    column, channel).
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

        Work for the CPU, which other threads do while the layers run.
        """
        height, width = image.shape[:2]
        factors = scale_factors_of(scales, width=width, height=height, max_side=config.max_side)
        resized_ones = [torch.from_numpy(resized(image, f)) for f in factors.tolist()]
        if next(self.layers.parameters()).is_cuda:
            resized_ones = [one.pin_memory() for one in resized_ones]  # so that copies don't wait
        return ScaledImage(tuple(resized_ones), factors)

    @torch.inference_mode()
    def feature_maps(
        self, image: ScaledImage, precision: torch.dtype = torch.float32
    ) -> FeatureMaps:
        """Run the layers once on the whole image at every distinct scale.

        Args:
            precision: what the layers multiply in.

        Returns:
            maps on the layers' device, float32 or of the type `precision`.
        """
        device = next(self.layers.parameters()).device
        maps = []
        for one in image.pixels:
            x = padded_input(one.to(device, non_blocking=True))
            with multiplying_in(precision, device):
                maps.append(self.layers(x)[0])
        return FeatureMaps(tuple(maps), image.scale_factors, self.stride, self.offset)


@dataclass(frozen=True)
class ScaledImage:
    """An image at its distinct scales, before the layers."""

    pixels: tuple[torch.Tensor, ...]  # S × (h, w, 3) RGB uint8
    scale_factors: NDArray[np.float64]  # (S,) resized / original pixels, ascending


def to_input(image: ImageArray, factor: float) -> torch.Tensor:
    """(1, 3, h, w) float32: the image resized by `factor`, normalised, padded."""
    return padded_input(torch.from_numpy(resized(image, factor)))


def padded_input(pixels: torch.Tensor) -> torch.Tensor:
    """(1, 3, h, w) float32, normalised, of an image (h, w, 3) in 0..255, on its device.

    One that is thinner than `_LEAST_SIDE` is padded with zeros on the right or below.
    """
    x = normalised(pixels[None])
    missing = [max(0, _LEAST_SIDE - side) for side in (x.shape[3], x.shape[2])]
    padded = F.pad(x, (0, missing[0], 0, missing[1]))
    return padded.contiguous(memory_format=torch.channels_last)


_LEAST_SIDE = 64  # resized pixels; a thinner image would leave some networks no cell


def normalised(
    images: NDArray[np.uint8] | NDArray[np.float32] | torch.Tensor,
) -> torch.Tensor:
    """(N, 3, H, W) float32, as the networks expect it, of RGB images (N, H, W, 3) in 0..255."""
    x = torch.as_tensor(images).permute(0, 3, 1, 2).float()
    mean, std = _mean_and_std(x.device)
    return (x - mean) / std


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)
def _mean_and_std(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, 3, 1, 1) each, of values in 0..255, kept on the device: a copy there waits for it."""
    mean = torch.tensor(PIXEL_MEAN, device=device).view(1, 3, 1, 1) * 255
    std = torch.tensor(PIXEL_STD, device=device).view(1, 3, 1, 1) * 255
    return mean, std


def load_backbone(name: str, weights: str, *, seed: int = 0, whole: bool = False) -> Backbone:
    """Build a backbone with the weights of `backbone.weights`.

    Args:
        name: one for which `problem_with_name` is None.
        weights: imagenet (torchvision's own, fetched on first use), none (random from `seed`), a
            file of tensors (the whole torchvision model's or the convolutional layers' alone), or
            the folder of a `sppdet pretrain` run.
        whole: all layers up to the last pooling, as a classifier has them; otherwise a ResNet ends
            at stride 16.

    Raises:
        ConfigError: an unknown name, or a network without a convolutional map.
        WeightsError: no such file, not a file of tensors, tensors that don't fit, no download.
    """
    problem = problem_with_name(name)
    if problem:
        raise ConfigError(f"backbone.name: {problem}")
    with torch_stream(seed, "initial convolutional layers"):
        if weights == "imagenet":
            return _backbone(name, _imagenet_model(name), whole=whole, with_fc=True)
        model = _random_model(name)
    if weights == "none":
        return _backbone(name, model, whole=whole, with_fc=False)
    path = Path(weights)
    if path.is_dir():
        backbone = _backbone(name, model, whole=whole, with_fc=False)
        return replace(backbone, fc=_load_run(backbone, path))
    return _backbone(name, model, whole=whole, with_fc=_load_weights(model, path, name))


def conv_backbone(name: str, *, whole: bool = False) -> Backbone:
    """The convolutional layers alone, to be filled with a run's own weights."""
    with keeping_torch_state():
        model = _random_model(name)
    return _backbone(name, model, whole=whole, with_fc=False)


def _imagenet_model(name: str) -> nn.Module:
    if name in OWN_NETS:
        raise WeightsError(
            f"backbone.weights: there are no imagenet weights for {name}; expected a file, the run "
            "of a classifier, or none"
        )
    weights = tv.get_model_weights(name).DEFAULT
    for entry in tv.get_model_weights(name):
        if entry.name == "IMAGENET1K_V1":  # the plain recipe, the nearest to the paper's
            weights = entry
    try:
        model: nn.Module = tv.get_model(name, weights=weights)
    except Exception as error:  # the network's and the hub's errors have no common base
        raise WeightsError(
            f"backbone.weights: imagenet weights of {name} can't be fetched from {weights.url}: {error}"
        ) from None
    return model


def _random_model(name: str) -> nn.Module:
    if name in OWN_NETS:
        return OWN_NETS[name]()
    # these two warn that their initialisation is slow unless told whether it is wanted
    known = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = tv.get_model(name, weights=None, **known)
    return model


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a `.safetensors` file or of a torch state dict, loaded without running code."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such file of weights")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(str(path))
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a pickle protocol, before the error
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


def _load_weights(model: nn.Module, path: Path, name: str) -> bool:
    """Fill the model from a file; returns whether its fc6 and fc7 were filled too."""
    state = read_state_dict(path)
    # the classes' layer is of no use here: it may be missing, or have other classes
    last = "classifier.6." if name.startswith(("alexnet", "vgg")) else "classifier."
    own = {k: v for k, v in model.state_dict().items() if not k.startswith((last, "fc."))}
    for key, tensor in state.items():
        if key in own and own[key].shape != tensor.shape:
            raise WeightsError(
                f"{path}: {key} is {tuple(tensor.shape)}, expected {tuple(own[key].shape)} for {name}"
            )
    if broken := not_finite({key: tensor for key, tensor in state.items() if key in own}):
        raise WeightsError(f"{path}: {broken} has values that aren't finite")
    # a file may hold the convolutional layers alone; BatchNorm's counter is of no use here
    absent = [key for key in own if key not in state and "num_batches" not in key]
    missing = [key for key in absent if not key.startswith("classifier.")]
    if missing:
        raise WeightsError(
            f"{path}: has no {missing[0]}; expected the tensors of {name} ({len(missing)} missing)"
        )
    model.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)
    return not absent


def _load_run(backbone: Backbone, run: Path) -> FcLayers | None:
    """Fill the layers from a run of `sppdet pretrain`; its fc6 and fc7, where it has them.

    Layers that a ResNet's classifier has beyond the backbone's are left out, and its fully
    connected ones with them.
    """
    path = run / "model" / "net.safetensors"
    try:
        tensors, about = read_tensors(path)
    except ArtifactError as error:
        raise WeightsError(f"backbone.weights: {run} isn't a classifier's run: {error}") from None
    if about.get("net") != backbone.name:
        raise WeightsError(
            f"backbone.weights: {run} has a {about.get('net')}, expected a {backbone.name}"
        )
    if broken := not_finite(tensors):
        raise WeightsError(f"{path}: tensor {broken} has values that aren't finite")
    conv = {k.removeprefix("conv."): v for k, v in tensors.items() if k.startswith("conv.")}
    own = backbone.layers.state_dict()
    found = types_of({key: tensor for key, tensor in conv.items() if key in own})
    if problem := misfit(found, types_of(own)):
        raise WeightsError(f"{path}: doesn't fit {backbone.name}: {problem}")
    backbone.layers.load_state_dict({key: conv[key] for key in own})
    return None if len(conv) > len(own) else _fc_of_run(tensors, about, backbone, path)


def _fc_of_run(
    tensors: dict[str, torch.Tensor], about: dict[str, Any], backbone: Backbone, path: Path
) -> FcLayers | None:
    """The fc6 and fc7 in a classifier's file, where it has them."""
    if "head.fc6.weight" not in tensors:
        return None
    levels = about.get("levels")
    if not isinstance(levels, list) or not all(type(n) is int and n > 0 for n in levels):
        raise WeightsError(f"{path}: damaged: expected the pyramid's levels in its header")
    fc: list[nn.Linear] = []
    width = spp_width(backbone.channels, levels)
    for name in ("head.fc6", "head.fc7"):
        own = {k: t for k, t in tensors.items() if k in (f"{name}.weight", f"{name}.bias")}
        if own or not fc:
            units = own[f"{name}.weight"].shape[0] if f"{name}.weight" in own else None
            expected = {
                f"{name}.weight": TensorType(torch.float32, (units, width)),
                f"{name}.bias": TensorType(torch.float32, (units,)),
            }
            if problem := misfit(types_of(own), expected):
                raise WeightsError(f"{path}: {problem}")
            fc.append(_filled_linear(own[f"{name}.weight"], own[f"{name}.bias"]))
            width = fc[-1].out_features
    return FcLayers(tuple(levels), fc[0], fc[1] if len(fc) > 1 else None)


def _filled_linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta").to_empty(device="cpu")
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def _backbone(name: str, model: nn.Module, *, whole: bool, with_fc: bool) -> Backbone:
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
    """Everything up to the last map (the last pooling belongs to the classifier)."""
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
    """AlexNet's and VGG's fc6 and fc7; their columns come in the order (channel, row, column)."""
    if name.startswith("alexnet"):
        grid, fc6, fc7 = 6, model.classifier[1], model.classifier[4]  # type: ignore[index]
    elif name.startswith("vgg"):
        grid, fc6, fc7 = 7, model.classifier[0], model.classifier[3]  # type: ignore[index]
    else:
        return None
    assert isinstance(fc6, nn.Linear) and isinstance(fc7, nn.Linear)
    weight = fc6.weight.detach().unflatten(1, (channels, grid, grid)).permute(0, 2, 3, 1)
    return FcLayers((grid,), _filled_linear(weight.flatten(1), fc6.bias.detach()), fc7)

"""Initial weights of a backbone: torchvision's, a file's, or those of a classifier's run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sppdet.errors import ArtifactError, ConfigError, WeightsError
from sppdet.features.backbones import Backbone, FcLayers, backbone_of, filled_linear, random_model
from sppdet.features.joined import JoinedMaps
from sppdet.features.levels import spp_width
from sppdet.features.nets import OWN_NETS, problem_with_name
from sppdet.features.timm_nets import PREFIX as TIMM
from sppdet.features.timm_nets import timm_model
from sppdet.io.timm_weights import cached_weights, weights_address
from sppdet.randomness import torch_stream
from sppdet.runs.artifacts import read_tensors
from sppdet.runs.log import LOGGER
from sppdet.tensor_types import TensorType, misfit, not_finite, types_of
from sppdet.vision import models as tv


def load_backbone(
    name: str,
    weights: str,
    *,
    seed: int = 0,
    whole: bool = False,
    stages: Sequence[int] | None = None,
    project: int | None = None,
) -> Backbone:
    """Build a backbone with the weights of `backbone.weights`.

    Args:
        name: one for which `problem_with_name` is None.
        weights: imagenet (torchvision's own, fetched on first use), none (random from `seed`), a
            file of tensors (the whole torchvision model's or the convolutional layers' alone), or
            the folder of a `sppdet pretrain` run.
        whole: build all layers up to the last pooling, for a classifier; otherwise a ResNet ends at
            stride 16.
        stages, project: maps to join, and channels of their projection; see `backbone_of`.

    Raises:
        ConfigError: an unknown name, or a network without a convolutional map.
        WeightsError: no such file, not a file of tensors, tensors that don't fit, no download.
    """
    build = partial(backbone_of, name, whole=whole, stages=stages, project=project)
    problem = problem_with_name(name)
    if problem:
        raise ConfigError(f"backbone.name: {problem}")
    with torch_stream(seed, "initial convolutional layers"):
        model = _imagenet_model(name) if weights == "imagenet" else random_model(name)
        path = Path(weights)
        if weights == "imagenet":
            backbone, origin = build(model, with_fc=True), _origin_of_imagenet(name, model)
        elif weights == "none":
            backbone, origin = build(model, with_fc=False), "random"
        elif path.is_dir():
            backbone = build(model, with_fc=False)
            backbone = replace(backbone, fc=_load_run(backbone, path))
            origin = f"the run {path.name}"
        else:
            backbone = build(model, with_fc=_load_weights(model, path, name))
            origin = f"the file {path.name}, licence not stated"
    return replace(backbone, origin=origin)


def _origin_of_imagenet(name: str, model: nn.Module) -> str:
    """Describe the source of downloaded weights and their licence."""
    if not name.startswith(TIMM):
        return f"torchvision, {_imagenet_weights(name).url}, licence not stated"
    config: Any = model.pretrained_cfg
    source = config.get("hf_hub_id") or config.get("url") or config.get("file")
    return f"timm, {source}, licence {config.get('license') or 'not stated'}"


def _imagenet_weights(name: str) -> Any:
    weights = tv.get_model_weights(name).DEFAULT
    for entry in tv.get_model_weights(name):
        if entry.name == "IMAGENET1K_V1":  # the plain recipe, the nearest to the paper's
            weights = entry
    return weights


def _imagenet_model(name: str) -> nn.Module:
    if name in OWN_NETS:
        raise WeightsError(
            f"backbone.weights: there are no imagenet weights for {name}; expected a file, the run "
            "of a classifier, or none"
        )
    if name.startswith(TIMM):
        return _timm_model(name)
    weights = _imagenet_weights(name)
    try:
        model: nn.Module = tv.get_model(name, weights=weights)
    except Exception as error:  # the network's and the hub's errors have no common base
        raise _not_fetched(name, weights.url, error) from None
    return model


def _timm_model(name: str) -> nn.Module:
    url, file = weights_address(name), cached_weights(name)
    if url and not file:
        LOGGER.info("downloading the weights of %s, once: %s", name, url)
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.CRITICAL)  # it warns of each of its attempts
    try:
        return timm_model(name, pretrained=True, file=file)
    except ConfigError:
        raise
    except Exception as error:  # the hub's errors have no common base
        raise _not_fetched(name, url, error) from None
    finally:
        hub.setLevel(level)


_LONGEST_REASON = 60  # so that the command line cuts nothing off


def _not_fetched(name: str, url: str | None, error: Exception) -> WeightsError:
    """Say in one line where weights are and what to do offline, with the system's reason if any."""
    reason, cause = error, error.__cause__ or error.__context__
    while cause is not None:
        reason = cause if isinstance(cause, OSError) else reason
        cause = cause.__cause__ or cause.__context__
    said = " ".join(str(reason).split()) or type(reason).__name__
    said = said if len(said) <= _LONGEST_REASON else said[: _LONGEST_REASON - 1] + "…"
    offline = f"download {url} elsewhere, then" if url else "expected"
    return WeightsError(
        f"backbone.weights: those of {name} can't be fetched ({said}); offline: {offline} "
        "--set backbone.weights=FILE"
    )


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a `.safetensors` file or of a torch state dict without running code."""
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
    """Load a file into the model; returns True if its fc6 and fc7 were loaded, too."""
    state = read_state_dict(path)
    # the classification layer isn't used: it may be missing, or have other classes
    last = "classifier.6." if name.startswith(("alexnet", "vgg")) else "classifier."
    of_timm = getattr(model, "default_cfg", {}).get("classifier") or last
    unused = (last, "fc.", *([of_timm] if isinstance(of_timm, str) else of_timm))
    own = {k: v for k, v in model.state_dict().items() if not k.startswith(unused)}
    for key, tensor in state.items():
        if key in own and own[key].shape != tensor.shape:
            raise WeightsError(
                f"{path}: {key} is {tuple(tensor.shape)}, expected {tuple(own[key].shape)} for {name}"
            )
    if broken := not_finite({key: tensor for key, tensor in state.items() if key in own}):
        raise WeightsError(f"{path}: {broken} has values that aren't finite")
    # a file may hold the convolutional layers alone; BatchNorm's counter isn't used
    absent = [key for key in own if key not in state and "num_batches" not in key]
    missing = [key for key in absent if not key.startswith("classifier.")]
    if missing:
        raise WeightsError(
            f"{path}: has no {missing[0]}; expected the tensors of {name} ({len(missing)} missing)"
        )
    model.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)
    return not absent


def _load_run(backbone: Backbone, run: Path) -> FcLayers | None:
    """Load the layers from a run of `sppdet pretrain`; returns its fc6 and fc7, if any.

    Layers that a ResNet's classifier has beyond the backbone's are ignored, and its fully connected
    ones with them.
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
    layers = backbone.layers.trunk if isinstance(backbone.layers, JoinedMaps) else backbone.layers
    own = layers.state_dict()
    found = types_of({key: tensor for key, tensor in conv.items() if key in own})
    if problem := misfit(found, types_of(own)):
        raise WeightsError(f"{path}: doesn't fit {backbone.name}: {problem}")
    layers.load_state_dict({key: conv[key] for key in own})
    joined = layers is not backbone.layers
    return None if joined or len(conv) > len(own) else _fc_of_run(tensors, about, backbone, path)


def _fc_of_run(
    tensors: dict[str, torch.Tensor], about: dict[str, Any], backbone: Backbone, path: Path
) -> FcLayers | None:
    """Build fc6 and fc7 from a classifier's file, if it has them."""
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
            fc.append(filled_linear(own[f"{name}.weight"], own[f"{name}.bias"]))
            width = fc[-1].out_features
    return FcLayers(tuple(levels), fc[0], fc[1] if len(fc) > 1 else None)

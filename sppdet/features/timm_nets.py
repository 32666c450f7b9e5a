"""Networks of timm as backbones: their maps at a stride, convolutional or of a vision transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from sppdet.errors import ConfigError, did_you_mean
from sppdet.features.preprocessing import Preprocessing
from sppdet.resizing import Interpolation
from sppdet.vision import import_timm

PREFIX = "timm/"
_STRIDE = 16  # the detector's, as for torchvision's networks


class TimmLayers(nn.Module):
    """Layers of a timm network up to one or several of its maps; (N, 3, H, W) to (N, C, h, w) each."""

    def __init__(self, model: nn.Module, indices: list[int]) -> None:
        super().__init__()
        model.prune_intermediate_layers(indices, prune_norm=False, prune_head=True)  # type: ignore[operator]
        self.model = model
        self._indices = indices

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Return the maps of images (N, 3, H, W) whose sides are multiples of the stride."""
        found = self.model.forward_intermediates(  # type: ignore[operator]
            x, indices=self._indices, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        maps: tuple[torch.Tensor, ...] = tuple(found)
        return maps if len(maps) > 1 else maps[0]


def timm_name_problem(name: str) -> str | None:
    """Describe why `timm/NAME` can't be built; None if it can."""
    timm = _timm()
    if timm is None:
        return f"{name}: needs timm, which isn't installed: pip install 'sppdet[timm]'"
    model = name.removeprefix(PREFIX)
    if timm.is_model(model):
        return None
    hint = did_you_mean(model.split(".")[0], timm.list_models(), most=3, prefix=PREFIX)
    return f"{name}: timm has no such network{hint}"


def timm_model(name: str, *, pretrained: bool = False, file: str | None = None) -> nn.Module:
    """Build a network of timm, with random weights or those of timm's hub.

    Args:
        file: of the hub's weights, where it is there.
    """
    timm = _timm()
    if timm is None:
        raise ConfigError(f"backbone.name: {timm_name_problem(name)}")
    create = partial(timm.create_model, name.removeprefix(PREFIX), pretrained=pretrained)
    if file is not None:
        create = partial(create, pretrained_cfg_overlay={"file": file})
    try:
        try:
            model: nn.Module = create(dynamic_img_size=True)  # else transformers take one size
        except TypeError:  # the network has no such option
            model = create()
    except RuntimeError as error:
        if "tag" not in str(error):
            raise
        raise ConfigError(f"backbone.name: {name}: {error}") from None
    return model


def timm_layers(
    name: str, model: nn.Module, *, whole: bool, strides: Sequence[int] = ()
) -> tuple[nn.Module, Preprocessing]:
    """Cut a network at its last map of stride 16 or less; `whole`: at its last map.

    Args:
        strides: of the maps to return instead.

    Returns:
        the layers, and how the network wants its input.

    Raises:
        ConfigError: the network has no maps, or none of a stride.
    """
    stages = getattr(model, "feature_info", None)
    stages = getattr(stages, "info", stages)
    if not stages or not hasattr(model, "forward_intermediates"):
        raise ConfigError(f"{name}: can't be used as a backbone: timm gives no maps of it")
    last = {int(stage["reduction"]): k for k, stage in enumerate(stages)}
    if missing := [stride for stride in strides if stride not in last]:
        raise ConfigError(
            f"backbone.stages: {name} has no map of stride {missing[0]}; it has {sorted(last)}"
        )
    fine = [stride for stride in last if whole or stride <= _STRIDE] or list(last)
    indices = [last[stride] for stride in strides or [max(fine)]]
    return TimmLayers(model, indices), _preprocessing(model.pretrained_cfg, stages)  # type: ignore[arg-type]


def _preprocessing(config: Mapping[str, Any], stages: list[dict[str, Any]]) -> Preprocessing:
    # sides of whole strides: vision transformers take whole patches, and where the paddings of
    # "same" convolutions depend on the sides, cells stay where they are
    multiple = max(int(stage["reduction"]) for stage in stages)
    kind: Interpolation = "bicubic" if config["interpolation"] == "bicubic" else "bilinear"
    return Preprocessing(tuple(config["mean"]), tuple(config["std"]), kind, multiple)


def _timm() -> Any:
    try:
        return import_timm()
    except ImportError:
        return None

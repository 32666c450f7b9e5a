"""Folding of batch normalisation into the convolution before it."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from sppdet.features.backbones import Backbone

_TOLERANCE = 1e-3  # of the largest value of the map


def folded(backbone: Backbone) -> Backbone:
    """Fold every frozen batch normalisation that follows a convolution into its weights and bias.

    A network for detection normalises by fixed statistics, so that this changes nothing but rounding
    and saves passes over the largest maps. What follows the normalisation inside of a module of its
    own (timm's `BatchNormAct2d`) stays. Whether a convolution feeds a normalisation is seen by running
    the layers once; should the result differ, the backbone is returned as it is.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in backbone.layers.modules()):
        return backbone
    layers = copy.deepcopy(backbone.layers)
    side = 3 * math.lcm(32, backbone.preprocessing.multiple)
    probe = torch.linspace(-2, 2, 3 * side**2).sin().view(1, 3, side, side)
    before, pairs = _pairs(layers, probe)
    if not pairs:
        return backbone
    parents = {child: (m, name) for m in layers.modules() for name, child in m.named_children()}
    for conv, norm in pairs:
        weight, bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        conv.weight, conv.bias = (
            nn.Parameter(t.detach(), requires_grad=False) for t in (weight, bias)
        )
        parent, name = parents[norm]
        setattr(parent, name, getattr(norm, "act", nn.Identity()))
    with torch.inference_mode():
        after = layers(probe)
    if not (after - before).abs().max() <= _TOLERANCE * before.abs().max():  # or NaN
        return backbone
    return replace(backbone, layers=layers.to(memory_format=torch.channels_last))


def _pairs(
    layers: nn.Module, probe: torch.Tensor
) -> tuple[torch.Tensor, list[tuple[nn.Conv2d, Any]]]:
    """Run the layers; find the normalisations whose input is a convolution's output, each used once."""
    outputs: list[tuple[torch.Tensor, nn.Conv2d]] = []  # holds the tensors, so that ids stay theirs
    fed: list[tuple[nn.Conv2d, Any]] = []

    def after_conv(conv: nn.Conv2d, _: Any, output: torch.Tensor) -> None:
        outputs.append((output, conv))

    def before_norm(norm: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        for output, conv in reversed(outputs):
            if output is inputs[0]:
                fed.append((conv, norm))
                return

    hooks: list[Any] = []
    for module in layers.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after_conv))
        elif isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(before_norm))
    with torch.inference_mode():
        result: torch.Tensor = layers(probe)
    for hook in hooks:
        hook.remove()
    uses = Counter(conv for _, conv in outputs) + Counter(norm for _, norm in fed)
    return result, [(conv, norm) for conv, norm in fed if uses[conv] == uses[norm] == 1]

"""Classifiers with spatial pyramid pooling, and reading and writing them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from sppdet.classification.config import PretrainConfig, read_classifier_config
from sppdet.errors import ConfigError
from sppdet.features.backbones import Backbone, conv_backbone
from sppdet.features.head import FC8_DEVIATION, build_head, empty_head
from sppdet.features.pyramid import SpatialPyramid
from sppdet.features.timm_nets import PREFIX as TIMM
from sppdet.io.backbone_weights import load_backbone
from sppdet.randomness import keeping_torch_state, torch_stream
from sppdet.runs.weights import class_names_in, fill, read_weights, write_weights


class SppClassifier(nn.Module):
    """Convolutional layers, spatial pyramid pooling, fully connected layers: any image size.

    Attributes:
        conv: (N, 3, H, W) normalised RGB to maps (N, C, h, w).
        pyramid: maps to (N, D).
        head: (N, D) to (N, K).
        stride, offset: S and c₀ of the maps, as in `Backbone`.
    """

    def __init__(
        self, backbone: Backbone, levels: Sequence[int], head: nn.Module, class_names: Sequence[str]
    ) -> None:
        super().__init__()
        self.conv = backbone.layers
        self.pyramid = SpatialPyramid(levels)
        self.head = head
        self.net = backbone.name
        self.stride, self.offset = backbone.stride, backbone.offset
        self.class_names = tuple(class_names)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) normalised RGB to scores (N, K)."""
        scores: torch.Tensor = self.head(self.pyramid(self.conv(x)))
        return scores


def build_classifier(config: PretrainConfig, class_names: Sequence[str]) -> SppClassifier:
    """Build the classifier that training starts from, in float32 on the CPU.

    Raises:
        ConfigError, WeightsError: see `load_backbone`.
    """
    name = config.backbone.name
    if name.startswith(TIMM):
        raise ConfigError(
            f"backbone.name: {name}: a classifier is trained on torchvision's networks or our own"
        )
    backbone = load_backbone(name, config.backbone.weights, seed=config.seed, whole=True)
    levels, count = config.spp_levels, len(class_names)
    if config.head is None:
        with torch_stream(config.seed, "initial linear classifier"):
            head: nn.Module = _linear(backbone, levels, count)
    else:
        head = build_head(backbone, levels, config.head, outputs=count, seed=config.seed)
    return SppClassifier(backbone, levels, head, class_names).requires_grad_(True)


def _linear(backbone: Backbone, levels: Sequence[int], count: int) -> nn.Linear:
    layer = nn.Linear(SpatialPyramid(levels).width(backbone.channels), count)
    nn.init.normal_(layer.weight, std=FC8_DEVIATION)
    nn.init.zeros_(layer.bias)
    return layer


def save_classifier(path: Path, classifier: SppClassifier, *, made_by: str) -> None:
    """Write all tensors, with the net, levels and class names."""
    about = {
        "net": classifier.net,
        "levels": list(classifier.pyramid.levels),
        "class_names": list(classifier.class_names),
    }
    write_weights(path, classifier.state_dict(), made_by=made_by, about=about)


def load_classifier(run: Path) -> SppClassifier:
    """Read the best classifier of a run, ready for inference on the CPU.

    Raises:
        ArtifactError: not a classifier's run, or a run without weights.
    """
    config = read_classifier_config(run)
    path = run / "model" / "net.safetensors"
    tensors, about = read_weights(path)
    names = class_names_in(about, path)
    backbone = conv_backbone(config.backbone.name, whole=True)
    if config.head is None:
        with keeping_torch_state():
            head: nn.Module = _linear(backbone, config.spp_levels, len(names))
    else:
        head = empty_head(backbone, config.spp_levels, config.head, len(names))
    classifier = SppClassifier(backbone, config.spp_levels, head, names)
    fill(classifier, tensors, path)
    return classifier.eval().requires_grad_(False)

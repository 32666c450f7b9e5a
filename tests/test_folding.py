"""Folded batch normalisation: the same maps, fewer layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sppdet.features.backbones import Backbone, conv_backbone
from sppdet.features.folding import folded


def with_statistics(backbone: Backbone) -> Backbone:
    """Random statistics, weights and biases of every normalisation."""
    torch.manual_seed(5)
    for module in backbone.layers.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias.data):
                assert tensor is not None
                nn.init.normal_(tensor, std=0.2)
            for tensor in (module.running_var, module.weight.data):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 2.0)
    return backbone


def norms_in(layers: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in layers.modules())


@pytest.mark.parametrize(
    "name", ["tiny", "resnet18", "mobilenet_v2", "timm/test_efficientnet", "timm/test_resnet"]
)
def test_maps_stay_and_no_normalisation_is_left(name: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    backbone = with_statistics(conv_backbone(name))
    x = torch.randn(1, 3, 128, 160)
    with torch.inference_mode():
        before, after = backbone.layers(x), folded(backbone).layers(x)
    assert torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max()))
    assert norms_in(backbone.layers) > 0
    assert norms_in(folded(backbone).layers) == 0


class Twice(nn.Module):
    """A convolution whose output is used beside the normalisation as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        z: torch.Tensor = self.norm(y)
        return y + z


class Shared(Twice):
    """A convolution that is run twice, normalised once."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.conv(self.conv(x)))
        return y


@pytest.mark.parametrize("layers", [Twice(), Shared()])
def test_what_would_change_the_map_is_left(layers: nn.Module) -> None:
    backbone = with_statistics(Backbone("own", layers.eval(), 3, ((1, 0.5),), None))
    x = torch.randn(1, 3, 32, 32)
    assert folded(backbone) is backbone
    assert torch.equal(folded(backbone).layers(x), backbone.layers(x))


def test_a_network_without_normalisation_stays_itself() -> None:
    backbone = conv_backbone("alexnet")
    assert folded(backbone) is backbone

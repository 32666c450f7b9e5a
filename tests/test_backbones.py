"""Strides and offsets against the input that a cell really sees, its normalisation, and maps."""

from __future__ import annotations

import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from runs import CommandLine, write_settings
from samples import random_image
from sppdet.config import FeaturesConfig
from sppdet.features.backbones import Backbone, conv_backbone
from sppdet.features.followed import followed_geometries
from sppdet.features.norms import CrossChannelNorm, WithinChannelNorm
from sppdet.features.preprocessing import IMAGENET

GEOMETRY: list[tuple[str, int, float, int]] = [
    ("alexnet", 16, 15.5, 256),
    ("vgg16", 16, 8.0, 512),
    ("squeezenet1_0", 16, 17.5, 512),
    ("squeezenet1_1", 16, 15.5, 512),
    ("resnet18", 16, 0.5, 256),
    ("zf5", 16, 14.5, 256),
    ("zf5_detector", 16, 0.5, 256),
    ("convnet5", 16, 15.5, 256),
    ("overfeat5", 12, 8.5, 512),
    ("overfeat7", 12, 8.5, 512),
    ("tiny", 8, 0.5, 128),
]


class Box(nn.Module):
    """A convolution of one channel with all weights equal: what matters is where it looks."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        kernel, stride, padding = (
            v[0] if isinstance(v, tuple) else int(v)
            for v in (conv.kernel_size, conv.stride, conv.padding)
        )
        self.conv = nn.Conv2d(1, 1, kernel, stride, padding, bias=False, dtype=torch.float64)
        nn.init.ones_(self.conv.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x.mean(dim=1, keepdim=True))
        return y


def linearised(module: nn.Module) -> nn.Module:
    """A copy whose every output depends on every input of its receptive field."""
    module = copy.deepcopy(module)
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            new: nn.Module = Box(child)
        elif isinstance(child, nn.MaxPool2d):
            new = nn.AvgPool2d(
                child.kernel_size, child.stride, child.padding, ceil_mode=child.ceil_mode
            )
        elif isinstance(child, nn.BatchNorm2d | nn.ReLU | WithinChannelNorm | CrossChannelNorm):
            new = nn.Identity()
        else:
            new = linearised(child)
        setattr(module, name, new)
    return module


def support(layers: nn.Module, row: int, column: int) -> list[int]:
    """(left, top, right, bottom), half-open: the input pixels that cell (row, column) sees."""
    x = torch.ones(1, 1, 400, 432, dtype=torch.float64, requires_grad=True)
    layers(x)[0, 0, row, column].backward()
    assert x.grad is not None
    seen = x.grad[0, 0] != 0
    ys, xs = torch.nonzero(seen.any(dim=1))[:, 0], torch.nonzero(seen.any(dim=0))[:, 0]
    return [int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1]


@pytest.mark.parametrize(("name", "stride", "offset", "channels"), GEOMETRY)
def test_geometry_is_that_of_the_input_a_cell_sees(
    name: str, stride: int, offset: float, channels: int
) -> None:
    backbone = conv_backbone(name)
    assert (backbone.stride, backbone.offset, backbone.channels) == (stride, offset, channels)
    layers = linearised(backbone.layers)
    row, column = 200 // stride, 216 // stride  # far from the edges
    for i, j in ((row, column), (row - 1, column + 1)):
        left, top, right, bottom = support(layers, i, j)
        assert left > 0 and top > 0 and right < 432 and bottom < 400
        assert (left + right) / 2 == backbone.offset + backbone.stride * j
        assert (top + bottom) / 2 == backbone.offset + backbone.stride * i


def test_geometry_by_hand() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 11, 4, 2), nn.MaxPool2d(3, 2), nn.Conv2d(4, 4, 5, 1, 2))
    # 0.5 + (5 − 2) + (1 − 0) · 4 + 0
    assert followed_geometries(layers) == [(8, 7.5)]
    with pytest.raises(
        ValueError, match=r"\(1, 0.5\) down, \(1, 0.5\) across|\(1, 1.5\) down, \(1, 2.5\) across"
    ):
        followed_geometries(nn.Sequential(nn.Conv2d(1, 1, (3, 5))))


def test_tiny_sees_57_pixels(tiny: Backbone) -> None:
    left, top, right, bottom = support(linearised(tiny.layers), 20, 20)
    assert (right - left, bottom - top) == (57, 57)


def test_within_channel_norm_against_a_slow_loop() -> None:
    x = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0)) * 100
    expected = torch.zeros_like(x)
    for n, c, i, j in np.ndindex(*x.shape):
        square = x[n, c, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
        mean = float((square**2).sum()) / 9  # outside counts as zero
        expected[n, c, i, j] = x[n, c, i, j] / (1 + 5e-5 * mean) ** 0.75
    torch.testing.assert_close(WithinChannelNorm()(x), expected)


def test_the_detectors_zf5_maps_a_224_image_to_14() -> None:
    # 112, 56 (pool), 28, 14 (pool): every layer padded by ⌊k/2⌋
    layers = conv_backbone("zf5_detector").layers
    with torch.inference_mode():
        assert layers(torch.zeros(1, 3, 224, 224)).shape == (1, 256, 14, 14)


def test_input_is_normalised_rgb(rng: np.random.Generator) -> None:
    image = random_image(rng, width=90, height=70)
    x = IMAGENET.to_input(image, 1.0)
    expected = (torch.from_numpy(image).float() / 255 - torch.tensor([0.485, 0.456, 0.406])) / (
        torch.tensor([0.229, 0.224, 0.225])
    )
    torch.testing.assert_close(x[0].permute(1, 2, 0).contiguous(), expected, rtol=1e-5, atol=1e-5)
    larger = IMAGENET.to_input(image, 1.5)
    assert larger.shape == (1, 3, 105, 135)
    resized = cv2.resize(image, (135, 105), interpolation=cv2.INTER_LINEAR)
    torch.testing.assert_close(larger, IMAGENET.to_input(np.asarray(resized, np.uint8), 1.0))
    assert IMAGENET.to_input(image, 0.01).shape == (1, 3, 64, 64)


def test_feature_maps(tiny: Backbone, rng: np.random.Generator) -> None:
    image = random_image(rng, width=100, height=80)
    maps = tiny.feature_maps(tiny.scaled(image, [80, 120, 160], FeaturesConfig(max_side=150)))
    assert maps.scale_factors.tolist() == [1.0, 1.5]  # the cap makes the last two one
    assert [tuple(m.shape) for m in maps.maps] == [(128, 10, 13), (128, 15, 19)]
    assert (maps.stride, maps.offset) == (8, 0.5)
    with torch.inference_mode():
        assert torch.equal(maps.maps[0], tiny.layers(IMAGENET.to_input(image, 1.0))[0])


def test_a_network_without_maps_is_one_clear_error(
    sppdet: CommandLine, demo_root: Path, tmp_path: Path
) -> None:
    backbone = {"name": "vit_b_16", "weights": "none"}
    settings = write_settings(tmp_path / "vit.yaml", demo_root, backbone=backbone)
    status, _, said = sppdet("train", settings, "--run", tmp_path / "run", "--device", "cpu")
    assert status == 1
    (line,) = (line for line in said.splitlines() if not line.startswith("warning: "))
    assert line.startswith("error: vit_b_16: can't be used as a backbone: ")

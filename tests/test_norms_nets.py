"""Normalisation against torch's own layer; the paper's networks against its Table 1."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from samples import random_picture
from torch import nn

from sppdet.features import nets
from sppdet.features.backbones import conv_backbone, to_input
from sppdet.features.norms import CrossChannelNorm, WithinChannelNorm
from sppdet.features.nets import OWN_NETS, problem_with_name
from sppdet.features.pyramid import SpatialPyramid


def random_maps(*shape: int, scale: float = 50.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator) * scale


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("k", [1.0, 2.0])
@pytest.mark.parametrize("channels", [2, 7, 16])
def test_across_channels_equals_torchs_layer(size: int, k: float, channels: int) -> None:
    x = random_maps(2, channels, 4, 3)
    for alpha, beta in ((1e-4, 0.75), (0.02, 0.75), (1e-3, 0.5)):
        ours, theirs = (
            layer(size, alpha, beta, k) for layer in (CrossChannelNorm, nn.LocalResponseNorm)
        )
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
        if alpha == 0.02:  # it does something
            assert not torch.allclose(ours(x), x, rtol=0.1)


def test_the_usual_sizes_are_caffes() -> None:
    x = random_maps(1, 8, 2, 2)
    theirs = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)
    torch.testing.assert_close(CrossChannelNorm()(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_within_a_channel_against_unfolded_squares(size: int) -> None:
    x = random_maps(2, 3, 6, 5)
    squares = F.unfold(x * x, size, padding=size // 2).unflatten(1, (3, size * size))
    mean = squares.mean(dim=2).reshape(x.shape)
    for beta in (0.75, 0.5):
        ours = WithinChannelNorm(size, 1e-2, beta)(x)
        torch.testing.assert_close(ours, x / (1 + 1e-2 * mean) ** beta, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        CrossChannelNorm(5, 0.1, 0.75, 1.0),
        CrossChannelNorm(4, 0.1, 0.6, 2.0),
        WithinChannelNorm(3, 0.1, 0.75),
        WithinChannelNorm(5, 0.1, 0.4),
    ],
)
def test_gradients(layer: nn.Module) -> None:
    x = random_maps(2, 6, 4, 3, scale=3.0).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))


def map_sizes(net: nn.Sequential, side: int) -> list[int]:
    """Cells a side whenever they get fewer."""
    x, sizes = torch.zeros(1, 3, side, side), [side]
    with torch.inference_mode():
        for layer in net:
            x = layer(x)
            assert x.shape[2] == x.shape[3]
            sizes += [x.shape[2]] if x.shape[2] != sizes[-1] else []
    return sizes[1:]


# the paper's Table 1: the sizes of its maps; between them those that it doesn't print
TABLE = {
    "zf5": ([109, 54, 27, 13], 16, 256, 5),
    "convnet5": ([55, 27, 13], 16, 256, 5),
    "overfeat5": ([109, 36, 18], 12, 512, 5),
    "overfeat7": ([109, 36, 18], 12, 512, 7),
}
CONVOLUTIONS: dict[str, list[tuple[int, int]]] = {  # (outputs, kernel)
    "zf5": [(96, 7), (256, 5), (384, 3), (384, 3), (256, 3)],
    "convnet5": [(96, 11), (256, 5), (384, 3), (384, 3), (256, 3)],
    "overfeat5": [(96, 7), (256, 5), (512, 3), (512, 3), (512, 3)],
    "overfeat7": [(96, 7), (256, 5)] + [(512, 3)] * 5,
}


@pytest.mark.parametrize("name", TABLE)
def test_the_papers_networks(name: str) -> None:
    sizes, stride, channels, depth = TABLE[name]
    net = OWN_NETS[name]()
    convolutions = [layer for layer in net if isinstance(layer, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size[0]) for c in convolutions] == CONVOLUTIONS[name]
    assert len(convolutions) == depth
    steps = [layer.stride for layer in net if isinstance(layer, nn.Conv2d | nn.MaxPool2d)]
    flat = [step if isinstance(step, int) else step[0] for step in steps]
    assert int(np.prod(flat)) == stride
    assert isinstance(net[-1], nn.ReLU)
    weights = 0
    for inputs, (outputs, kernel) in zip(
        [3, *(o for o, _ in CONVOLUTIONS[name])], CONVOLUTIONS[name], strict=False
    ):
        weights += outputs * (inputs * kernel * kernel + 1)
    assert sum(p.numel() for p in net.parameters()) == weights
    assert map_sizes(net, 224)[-1] == sizes[-1]
    with torch.inference_mode():
        assert net(torch.zeros(1, 3, 224, 224)).shape == (1, channels, sizes[-1], sizes[-1])

"""Normalisation against torch's own layer; the paper's networks against its Table 1."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from samples import random_image
from sppdet.features import nets
from sppdet.features.backbones import conv_backbone
from sppdet.features.nets import OWN_NETS, problem_with_name
from sppdet.features.norms import CrossChannelNorm, WithinChannelNorm
from sppdet.features.preprocessing import IMAGENET
from sppdet.features.pyramid import SpatialPyramid

pytestmark = pytest.mark.usefixtures("two_threads")


def random_maps(*shape: int, scale: float = 50.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator) * scale


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("k", [1.0, 2.0])
@pytest.mark.parametrize("channels", [2, 7, 16])
def test_across_channels_equals_torchs_layer(size: int, k: float, channels: int) -> None:
    x = random_maps(2, channels, 4, 3)
    for alpha, beta in ((1e-4, 0.75), (0.02, 0.75), (1e-3, 0.5), (1e-3, 0.9)):
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
    for beta in (0.75, 0.5, 0.9):
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
    x = random_maps(1, 5, 3, 2, scale=3.0).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))


LAYERS = [
    CrossChannelNorm(5, 1e-2, 0.75, 1.0),
    CrossChannelNorm(4, 1e-2, 0.75, 2.0),
    WithinChannelNorm(3, 1e-2, 0.75),
    WithinChannelNorm(5, 1e-2, 0.75),
]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("shape", [(3, 8, 7, 5), (1, 1, 4, 6), (2, 9, 1, 1), (1, 3, 1, 8)])
def test_with_and_without_gradients_the_values_are_the_same(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    x = random_maps(*shape)
    wanted = layer(x.clone().requires_grad_())
    assert wanted.requires_grad
    for source in (x, x.contiguous(memory_format=torch.channels_last), x.double()):
        before = source.clone()
        plain = layer(source)
        assert not plain.requires_grad and plain.dtype == source.dtype
        torch.testing.assert_close(plain.float(), wanted.detach(), rtol=1e-5, atol=1e-5)
        assert torch.equal(source, before)  # it is left as it was
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), wanted.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_number_of_threads_changes_no_bit(
    layer: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, found = random_maps(2, 7, 5, 6), []
    for threads in (1, 2, 30):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(layer(x))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_gradients_equal_those_of_torchs_layer() -> None:
    x = random_maps(2, 7, 4, 3)
    weights, found = random_maps(2, 7, 4, 3, scale=1.0), []
    for layer in (CrossChannelNorm(5, 1e-2), nn.LocalResponseNorm(5, 1e-2)):
        leaf = x.clone().requires_grad_()
        (layer(leaf) * weights).sum().backward()
        assert leaf.grad is not None
        found.append(leaf.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def map_sizes(net: nn.Sequential, side: int) -> list[int]:
    """Cells a side whenever they get fewer."""
    x, sizes = torch.zeros(1, 3, side, side), [side]
    with torch.inference_mode():
        for layer in net:
            x = layer(x)
            assert x.shape[2] == x.shape[3]
            sizes += [x.shape[2]] if x.shape[2] != sizes[-1] else []
    return sizes[1:]


# the paper's Table 1: cells a side at 224 pixels, whenever they get fewer, and (outputs, kernel)
SIZES = {
    "zf5": [112, 55, 27, 13],
    "convnet5": [55, 27, 13],
    "overfeat5": [109, 36, 18],
    "overfeat7": [109, 36, 18],
}
CONVOLUTIONS: dict[str, list[tuple[int, int]]] = {
    "zf5": [(96, 7), (256, 5), (384, 3), (384, 3), (256, 3)],
    "convnet5": [(96, 11), (256, 5), (384, 3), (384, 3), (256, 3)],
    "overfeat5": [(96, 7), (256, 5), (512, 3), (512, 3), (512, 3)],
    "overfeat7": [(96, 7), (256, 5), (512, 3), (512, 3), (512, 3), (512, 3), (512, 3)],
}
STRIDES = {"zf5": 16, "convnet5": 16, "overfeat5": 12, "overfeat7": 12}


@pytest.mark.parametrize("layer", [CrossChannelNorm(), WithinChannelNorm()])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_types_are_squared_in_full(layer: nn.Module, kind: torch.dtype) -> None:
    x = random_maps(1, 8, 6, 7, scale=400.0).to(kind)  # squares beyond float16
    expected = layer(x.float())
    for found in (layer(x), layer(x.clone().requires_grad_()).detach()):
        assert found.dtype == kind
        torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", SIZES)
def test_the_papers_networks(name: str) -> None:
    net, table = OWN_NETS[name](), CONVOLUTIONS[name]
    assert map_sizes(net, 224) == SIZES[name]
    convolutions = [layer for layer in net if isinstance(layer, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size[0]) for c in convolutions] == table
    assert isinstance(net[-1], nn.ReLU) and isinstance(net[-2], nn.Conv2d)
    inputs = [3, *(outputs for outputs, _ in table[:-1])]
    weights = [o * (i * k * k + 1) for i, (o, k) in zip(inputs, table, strict=True)]
    assert sum(p.numel() for p in net.parameters()) == sum(weights)
    backbone = conv_backbone(name)
    assert (backbone.channels, backbone.stride) == (table[-1][0], STRIDES[name])


@pytest.mark.parametrize(
    ("name", "stride"), [("zf5", 2), ("convnet5", 2), ("overfeat5", 3), ("overfeat7", 3)]
)
def test_six_bins_are_the_last_pooling_of_the_net_without_a_pyramid(name: str, stride: int) -> None:
    side = SIZES[name][-1]
    maps = random_maps(2, 5, side, side)
    plain = F.max_pool2d(maps, 3, stride).permute(0, 2, 3, 1).flatten(1)
    assert plain.shape == (2, 5 * 36)
    assert torch.equal(SpatialPyramid([6])(maps), plain)


@pytest.mark.parametrize("name", OWN_NETS)
@pytest.mark.parametrize(("width", "height"), [(64, 384), (384, 64)])
def test_thin_images(name: str, width: int, height: int, rng: np.random.Generator) -> None:
    image = random_image(rng, width=width, height=height)
    layers = conv_backbone(name).layers
    with torch.inference_mode():
        maps = layers(IMAGENET.to_input(image, 1.0))
        pooled = SpatialPyramid()(maps)
    assert maps.shape[2] >= 1 and maps.shape[3] >= 1 and torch.isfinite(pooled).all()
    assert (maps.shape[2] > maps.shape[3]) == (height > width)
    assert pooled.shape == (1, 50 * maps.shape[1])
    assert pooled.any()


def test_the_detectors_zf5_has_the_weights_of_zf5() -> None:
    one, other = (OWN_NETS[name]() for name in ("zf5", "zf5_detector"))
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (one, other)]
    assert shapes[0] == shapes[1]
    other.load_state_dict(one.state_dict())
    x = random_maps(1, 3, 240, 240, scale=1.0)
    with torch.inference_mode():
        a, b = one(x[..., 2:, 2:]), other(x)  # c₀ is 14.5 and 0.5: 14 + 2 pixels are one cell
    torch.testing.assert_close(a[..., 4:9, 4:9], b[..., 5:10, 5:10])


def test_a_start_that_keeps_the_size_of_activations() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 160, 160)
    for name in SIZES:
        with torch.inference_mode():
            deviation = float(OWN_NETS[name]()(x).std())
        assert 0.1 < deviation < 10, name


def test_names() -> None:
    assert all(problem_with_name(name) is None for name in (*OWN_NETS, "alexnet", "resnet50"))
    assert problem_with_name("zf") == "zf: unknown here and in torchvision; did you mean zf5?"
    near = problem_with_name("resnet5O")
    assert near is not None and near.endswith("; did you mean resnet50?")
    far = problem_with_name("qqqqqqqq")
    assert far == "qqqqqqqq: unknown here and in torchvision"
    assert problem_with_name("fcn_resnet50") is not None  # not a classifier
    assert set(nets.OWN_NETS) >= set(SIZES)


@pytest.mark.parametrize("name", ["zf5", "convnet5", "overfeat7", "zf5_detector"])
def test_biases_start_at_zero(name: str) -> None:
    layers = [m for m in nets.OWN_NETS[name]().modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(layers) >= 5
    assert all(m.bias is not None and not m.bias.any() and m.weight.std() > 0 for m in layers)

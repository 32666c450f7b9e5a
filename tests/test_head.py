"""The first forward pass equals the pre-trained classifier's."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models as tv
from safetensors.torch import save_file
from torch import nn

from samples import random_image
from sppdet.config import Config, FeaturesConfig, JoinedBackboneConfig
from sppdet.data_config import DataConfig
from sppdet.errors import ConfigError
from sppdet.features.backbones import Backbone
from sppdet.features.head import (
    Head,
    build_head,
    check_start,
    pretrained_fc,
    standardise,
    truncated,
)
from sppdet.features.preprocessing import IMAGENET
from sppdet.features.regions import FeatureExtractor
from sppdet.io.backbone_weights import load_backbone
from sppdet.training_config import HeadConfig, Layer
from sppdet.types import ImageArray

WHOLE = np.array([[0, 0, 224, 224]], np.float32)


def with_head(widths: list[int], **settings: Any) -> Config:
    data = DataConfig(root=[Path("set")], train=["trainval"])
    backbone = JoinedBackboneConfig(name="alexnet", weights="some.pth")
    head = HeadConfig(widths=widths)
    return Config(data=data, backbone=backbone, head=head, bbox=None, **settings)


def image_224() -> ImageArray:
    return random_image(np.random.default_rng(3), width=224, height=224)


def activations(model: nn.Module, last: type[nn.Module], count: int) -> list[torch.Tensor]:
    """Outputs of the first `count` layers of kind `last` in the classifier, eval mode."""
    found: list[torch.Tensor] = []
    for layer in model.classifier:  # type: ignore[union-attr]
        if isinstance(layer, last):
            layer.register_forward_hook(lambda _m, _i, out: found.append(out.clone()))
    with torch.inference_mode():
        model.eval()(IMAGENET.to_input(image_224(), 1.0))
    return found[:count]


@pytest.fixture(scope="module", params=["alexnet", "vgg16"])
def pretrained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Backbone, list[torch.Tensor]]]:
    """A network read from a file of seeded weights, and its classifier's fc6 and fc7."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(7)
    if request.param == "alexnet":
        model: nn.Module = tv.alexnet(weights=None)
        path = folder / "alexnet.pth"
        torch.save(model.state_dict(), path)
        name = "alexnet"
    else:
        model = tv.vgg16(weights=None)
        path = folder / "vgg16.safetensors"
        save_file(dict(model.state_dict()), str(path))
        name = "vgg16"
    for layer in model.classifier:  # type: ignore[union-attr]
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    expected = activations(model, nn.ReLU, 2)
    del model
    backbone = load_backbone("alexnet" if name == "alexnet" else "vgg16", str(path))
    path.unlink()
    yield backbone, expected


def test_first_pass_equals_the_pretrained_classifier(
    pretrained: tuple[Backbone, list[torch.Tensor]],
) -> None:
    backbone, (fc6, fc7) = pretrained
    levels = (6, 3, 2, 1) if backbone.name == "alexnet" else (7, 3, 2, 1)
    maps = backbone.feature_maps(backbone.scaled(image_224(), [224], FeaturesConfig()))
    side = maps.maps[0].shape[1]
    head = build_head(backbone, levels, HeadConfig(), outputs=21, seed=0)
    extractor = FeatureExtractor(levels, 224, head)
    assert extractor.windows(maps, WHOLE).cells.tolist() == [[0, 0, 0, side - 1, side - 1]]
    expected: list[tuple[Layer, torch.Tensor]] = [("fc6", fc6), ("fc7", fc7)]
    for layer, theirs in expected:
        ours = extractor(maps, WHOLE, layer).values
        assert float(theirs.abs().max()) > 0.01
        atol = 1e-4 * float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=atol)


@pytest.fixture(scope="module")
def small() -> Backbone:
    """Tiny with a classifier of narrow layers on a 3×3 grid."""
    from dataclasses import replace

    from sppdet.features.backbones import FcLayers

    tiny = load_backbone("tiny", "none")
    torch.manual_seed(1)
    fc = FcLayers((3,), nn.Linear(128 * 9, 12), nn.Linear(12, 10))
    return replace(tiny, fc=fc)


def test_pretrained_columns_go_to_the_level_of_their_grid(small: Backbone) -> None:
    assert small.fc is not None
    head = build_head(small, (4, 3, 1), HeadConfig(widths=[12, 10]), outputs=3, seed=0)
    before, level = 128 * 16, 128 * 9
    assert not head.fc6.weight[:, :before].any() and not head.fc6.weight[:, before + level :].any()
    x = torch.randn(5, 128, 3, 3)
    pooled = torch.randn(5, 128 * 26)
    pooled[:, before : before + level] = x.permute(0, 2, 3, 1).flatten(1)
    torch.testing.assert_close(
        head.features(pooled, "fc6"),
        torch.relu(small.fc.fc6(x.permute(0, 2, 3, 1).flatten(1))),
        rtol=1e-4,
        atol=1e-5,
    )


def test_one_layer_takes_fc6_alone(small: Backbone) -> None:
    assert small.fc is not None
    config = HeadConfig(widths=[12])
    head = build_head(small, (3, 1), config, outputs=3, seed=0)
    assert head.fc7 is None
    assert torch.equal(head.fc6.bias, small.fc.fc6.bias)
    with pytest.raises(ValueError, match="fc7: the head has fc6 alone"):
        head.features(torch.zeros(1, 1280), "fc7")


def test_other_widths_start_at_random(small: Backbone) -> None:
    assert small.fc is not None
    for widths in ([12, 11], [11, 10], [16]):
        config = HeadConfig(widths=widths)
        head = build_head(small, (3, 1), config, outputs=3, seed=0)
        assert head.fc6.weight[:, 128 * 9 :].any()


def test_the_grid_must_be_a_level(small: Backbone) -> None:
    with pytest.raises(ConfigError, match=r"spp_levels: \[4, 1\] has no 3"):
        check_start(small, with_head([12, 10], spp_levels=[4, 1]))
    check_start(small, with_head([12, 10], spp_levels=[3, 1]))
    check_start(small, with_head([16], spp_levels=[4, 1]))  # random: any level will do


def test_a_random_head_needs_fine_tuning(small: Backbone, tiny: Backbone) -> None:
    check_start(small, with_head([12], finetune=None, spp_levels=[3, 1]))
    for backbone, widths in ((small, [16]), (tiny, [12])):
        with pytest.raises(ConfigError, match="has no fc6/fc7 to start from"):
            check_start(backbone, with_head(widths, finetune=None, spp_levels=[3, 1]))


def test_random_start(tiny: Backbone) -> None:
    config = HeadConfig(widths=[64, 32])
    state = torch.get_rng_state()
    heads = [build_head(tiny, (2, 1), config, outputs=101, seed=s) for s in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    a, b, c = (head.state_dict() for head in heads)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["fc6.weight"], c["fc6.weight"])
    assert a["fc8.weight"].shape == (101, 32) and not a["fc8.bias"].any()
    assert float(a["fc8.weight"].std()) == pytest.approx(0.01, rel=0.05)


def test_pretrained_or_not(small: Backbone, tiny: Backbone) -> None:
    assert pretrained_fc(small, HeadConfig(widths=[12, 10])) is small.fc
    assert pretrained_fc(small, HeadConfig(widths=[12])) is small.fc
    assert pretrained_fc(small, HeadConfig(widths=[16])) is None
    assert pretrained_fc(tiny, HeadConfig(widths=[12])) is None


def offset_windows(count: int) -> torch.Tensor:
    """Non-negative features whose mean is large, as those of pool5."""
    return 30 + 5 * torch.rand(count, 20, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("widths", [[40], [40, 30]])
def test_standardised_units_have_mean_0_and_variance_1(widths: list[int]) -> None:
    torch.manual_seed(0)
    head = Head(20, widths, 3, 0.5)
    before = copy.deepcopy(head)
    x = offset_windows(500)
    standardise(head, x)
    inputs = x.numpy().astype(np.float64)
    for name in ("fc6", "fc7")[: len(widths)]:
        layer, old = getattr(head, name), getattr(before, name)
        units = inputs @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        np.testing.assert_allclose(units.mean(axis=0), 0.0, atol=1e-4)
        np.testing.assert_allclose(units.var(axis=0), 1.0, rtol=1e-4)
        ratio = layer.weight / old.weight  # every unit is scaled as a whole
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
        inputs = np.maximum(units, 0.0)
    assert torch.equal(head.fc8.weight, before.fc8.weight)


def test_nothing_is_standardised_without_windows_that_differ() -> None:
    torch.manual_seed(0)
    head = Head(20, [6], 3, 0.5)
    before = copy.deepcopy(head.state_dict())
    for x in (torch.zeros(0, 20), torch.ones(1, 20)):
        standardise(head, x)
        assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())
    standardise(head, torch.zeros(5, 20))
    assert torch.equal(head.fc6.weight, before["fc6.weight"]) and not head.fc6.bias.any()


def test_forward_is_the_layers_in_their_order() -> None:
    torch.manual_seed(0)
    head = Head(6, [5, 4], 3, 0.5)
    assert head.fc7 is not None
    x = torch.randn(7, 6)
    plain = nn.Sequential(head.fc6, nn.ReLU(), head.fc7, nn.ReLU(), head.fc8)
    torch.testing.assert_close(head.eval()(x), plain(x))
    torch.testing.assert_close(head.features(x, "fc6"), plain[:2](x))
    torch.testing.assert_close(head.features(x, "fc7"), plain[:4](x))
    head.train()
    torch.testing.assert_close(head.features(x, "fc7"), plain[:4](x))  # no dropout in features
    assert not torch.equal(head(x), plain(x))


def test_truncation_leaves_the_greatest_singular_values() -> None:
    torch.manual_seed(0)
    head = Head(60, [40, 30], 3, 0.5).eval().requires_grad_(False)
    assert head.fc7 is not None
    fc6, fc7 = head.fc6, head.fc7
    x = torch.randn(5, 60)
    expected = head.features(x, "fc7")
    whole = truncated(copy.deepcopy(head), [40, 30])
    assert torch.equal(whole.features(x, "fc7"), expected)
    thin = truncated(copy.deepcopy(head), [8])
    assert thin.fc7 is not None and torch.equal(thin.fc7.weight, fc7.weight)
    product = thin.fc6[1].weight @ thin.fc6[0].weight  # type: ignore[index]
    values = torch.linalg.svdvals(fc6.weight)
    error = torch.linalg.matrix_norm(product - fc6.weight)
    # no matrix of rank 8 is nearer (Eckart and Young)
    assert float(error) == pytest.approx(float(values[8:].norm()), rel=1e-3)
    assert torch.equal(thin.fc6[1].bias, fc6.bias)  # type: ignore[index]

"""Networks cut before their last pooling, and geometry that is followed through layers."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import nn

from sppdet.errors import ConfigError
from sppdet.features.followed import followed_geometries
from sppdet.features.geometry import Geometry
from sppdet.features.graph import before_last_pooling
from sppdet.io.backbone_weights import load_backbone


def geometry_of(layers: nn.Module) -> Geometry:
    (geometry,) = followed_geometries(layers.eval())
    return geometry


def layers_until_pooling(model: nn.Module) -> nn.Module:
    """What stands before the pooling of the nets whose authors put it all into `features`."""
    return model.features  # type: ignore[return-value]


def cut_densenet(model: nn.Module) -> nn.Module:
    return nn.Sequential(model.features, nn.ReLU())  # type: ignore[arg-type]


def cut_resnet(model: nn.Module) -> nn.Module:
    return nn.Sequential(*list(model.children())[:-2])


def cut_regnet(model: nn.Module) -> nn.Module:
    return nn.Sequential(model.stem, model.trunk_output)  # type: ignore[arg-type]


def cut_googlenet(model: nn.Module) -> nn.Module:
    before = ("aux", "avgpool", "dropout", "fc")
    return nn.Sequential(*(m for n, m in model.named_children() if not n.startswith(before)))


CUTS: dict[str, tuple[Callable[[nn.Module], nn.Module], int, float]] = {
    "resnet18": (cut_resnet, 32, 0.5),
    "mobilenet_v3_small": (layers_until_pooling, 32, 0.5),
    "densenet121": (cut_densenet, 32, 14.5),
    "googlenet": (cut_googlenet, 32, 22.5),
    "squeezenet1_1": (layers_until_pooling, 16, 15.5),
    "efficientnet_b0": (layers_until_pooling, 32, 0.5),
    "regnet_x_400mf": (cut_regnet, 32, 0.5),
}


def random_model(name: str) -> nn.Module:
    torch.manual_seed(3)
    known = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model: nn.Module = tv.get_model(name, weights=None, **known)
    return model.eval()


@pytest.mark.parametrize("name", CUTS)
def test_the_part_before_the_last_pooling(name: str) -> None:
    cut, stride, _ = CUTS[name]
    model = random_model(name)
    seen: list[torch.Tensor] = []
    pooling = [m for m in model.modules() if isinstance(m, nn.AdaptiveAvgPool2d)]
    if pooling and name != "squeezenet1_1":  # whose pooling follows the classes' layer
        pooling[-1].register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].clone()))
    backbone = load_backbone(name, "none", seed=3, whole=True)
    backbone.layers.load_state_dict(cut_state(backbone.layers, cut(model)))
    x = torch.randn(1, 3, 160, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        model(x)
        expected, ours = cut(model)(x), backbone.layers(x)
    assert expected.abs().max() > 0
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    if name not in ("squeezenet1_1", "densenet121"):  # the latter pools by a function
        assert len(seen) == 1
        torch.testing.assert_close(ours, seen[0], rtol=1e-4, atol=1e-5)
    assert ours.shape[1] == backbone.channels and backbone.stride == stride


def cut_state(layers: nn.Module, cut: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a manual cut under the names that the same layers have in ours."""
    ours, theirs = layers.state_dict(), cut.state_dict()
    assert [v.shape for v in ours.values()] == [v.shape for v in theirs.values()]
    return dict(zip(ours, theirs.values(), strict=True))


@pytest.mark.parametrize("name", CUTS)
def test_stride_and_centre(name: str) -> None:
    _, stride, centre = CUTS[name]
    backbone = load_backbone(name, "none", whole=True)
    assert (backbone.stride, backbone.offset) == (stride, centre)
    assert geometry_of(backbone.layers) == (stride, centre)
    with torch.inference_mode():
        sides = [backbone.layers(torch.zeros(1, 3, side, 96)).shape[2] for side in (128, 256)]
    assert abs((sides[1] - sides[0]) * stride - 128) <= stride


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t"])
def test_transformers_are_refused(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: can't be used as a backbone: ") as caught:
        load_backbone(name, "none")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


class Pooling(nn.Module):
    """A convolution, a max pooling, the global pooling in one of its forms, a layer of classes."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.max = nn.MaxPool2d(3, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.max(F.relu(self.conv(x)))
        if self.form == "layer":
            x = self.pool(x).flatten(1)
        elif self.form == "function":
            x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        elif self.form == "mean":
            x = x.mean([2, 3])
        else:
            x = x.flatten(1)[:, :4]
        result: torch.Tensor = self.fc(x)
        return result


@pytest.mark.parametrize("form", ["layer", "function", "mean"])
def test_forms_of_global_pooling(form: str) -> None:
    model = Pooling(form).eval()
    layers = before_last_pooling(model)
    x = torch.randn(2, 3, 33, 40)
    # a max pooling just before it is left out: spatial pyramid pooling takes its place
    assert torch.equal(layers(x), F.relu(model.conv(x)))
    assert geometry_of(layers) == (2, 1.5)


def test_a_model_without_pooling() -> None:
    with pytest.raises(ValueError, match="it has no global pooling of a map"):
        before_last_pooling(Pooling("none"))


class Untraceable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_a_model_that_cannot_be_traced() -> None:
    with pytest.raises(ValueError, match="its layers can't be traced: "):
        before_last_pooling(Untraceable())


class Branches(nn.Module):
    """Two branches of given strides, joined by a function."""

    def __init__(self, first: nn.Module, second: nn.Module, join: Callable[..., torch.Tensor]):
        super().__init__()
        self.first, self.second, self.join = first, second, join

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.join(self.first(x), self.second(x))


def conv(kernel: int, stride: int, padding: int, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(3, 3, kernel, stride, padding, dilation)


def test_branches() -> None:
    even = Branches(conv(3, 2, 1), conv(1, 2, 0), operator.add)
    assert geometry_of(even) == (2, 0.5)
    narrow = Branches(conv(3, 2, 1), conv(3, 1, 1), lambda a, b: a + F.pad(b, (0, -96, 0, -64)))
    with pytest.raises(ValueError, match=r"branches of strides \[1, 2\] meet"):
        geometry_of(narrow)
    pooled = Branches(conv(3, 2, 1), nn.AvgPool2d(2), operator.add)  # centres 0.5 and 1
    assert geometry_of(pooled) == (2, 0.75)
    twice = Branches(conv(3, 2, 1), nn.AvgPool2d(2), lambda a, b: torch.cat([b, a, b, b], dim=1))
    assert geometry_of(twice) == (2, 0.875)
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(1, 1, 0))
    assert geometry_of(Branches(conv(3, 1, 1), gate, operator.mul)) == (1, 0.5)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (nn.Sequential(conv(3, 1, 0, dilation=2)), (1, 2.5)),  # as wide as 5
        (nn.Sequential(conv(3, 2, 1), nn.AvgPool2d(2)), (4, 1.5)),
        (nn.Sequential(conv(1, 1, 0), nn.MaxPool2d(3, 3), nn.MaxPool2d(2, 2)), (6, 3.0)),
        (nn.Sequential(conv(7, 2, 3), nn.BatchNorm2d(3), nn.ReLU(), conv(5, 3, 0)), (6, 4.5)),
    ],
)
def test_geometry_by_hand(layers: nn.Module, expected: tuple[int, float]) -> None:
    assert geometry_of(layers) == expected


class Pooled(nn.Module):
    """A 1×1 convolution, then a function."""

    def __init__(self, call: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.call = conv(1, 1, 0), call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(self.conv(x))


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x: F.max_pool2d(x, 3, 2, 1), (2, 0.5)),
        (lambda x: F.max_pool2d(x, kernel_size=3, stride=2), (2, 1.5)),
        (lambda x: F.avg_pool2d(x, 2), (2, 1.0)),  # the stride is the kernel
        (lambda x: F.avg_pool2d(x, (3, 3), stride=(1, 1), padding=1), (1, 0.5)),
    ],
)
def test_pooling_by_functions(
    call: Callable[[torch.Tensor], torch.Tensor], expected: tuple[int, float]
) -> None:
    assert geometry_of(Pooled(call)) == expected


def test_geometry_that_is_not_known() -> None:
    upsampled = nn.Sequential(conv(3, 2, 1), nn.Upsample(scale_factor=2))
    with pytest.raises(ValueError, match="its stride can't be followed through the layers"):
        geometry_of(upsampled)
    pooled = nn.Sequential(conv(3, 2, 1), nn.AdaptiveAvgPool2d(7))
    with pytest.raises(ValueError, match="its stride can't be followed through the layers"):
        geometry_of(pooled)
    only_one = nn.Sequential(conv(1, 1, 0), nn.Flatten(2), nn.Linear(128 * 128, 9))
    with pytest.raises(ValueError, match="its layers can't be run: "):
        geometry_of(only_one)


def permuted(x: torch.Tensor) -> torch.Tensor:
    rows_last = F.layer_norm(x.permute(0, 2, 3, 1), [3])
    return x + F.linear(rows_last, torch.eye(3)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x: F.pad(x, (1, 2, 1, 2)), (2, -1.5)),  # one cell of 2 pixels before the first
        (lambda x: F.conv2d(F.pad(x, (0, 1, 0, 1)), torch.ones(3, 3, 3, 3), stride=2), (4, 2.5)),
        (lambda x: F.relu_(x).add_(1), (2, 0.5)),
        (lambda x: x.unflatten(1, (3, 1)).transpose(1, 2).flatten(1, 2), (2, 0.5)),  # shuffled
        (permuted, (2, 0.5)),
        (lambda x: torch.cat([x, F.max_pool2d(x, 3, 1, 1)], dim=1), (2, 0.5)),
        (lambda x: F.conv2d(x, torch.ones(3, 3, 3, 3), padding="same", dilation=2), (2, 0.5)),
    ],
)
def test_geometry_through_functions(
    call: Callable[[torch.Tensor], torch.Tensor], expected: Geometry
) -> None:
    assert geometry_of(nn.Sequential(conv(3, 2, 1), Pooled(call))) == expected


def test_axes_that_were_exchanged_are_no_map() -> None:
    for call in (lambda x: x.transpose(2, 3), lambda x: x.permute(0, 2, 3, 1)):
        with pytest.raises(ValueError, match="its stride can't be followed"):
            geometry_of(Pooled(call))
    back = Pooled(lambda x: F.avg_pool2d(x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), 2))
    assert geometry_of(back) == (2, 1.0)


def test_several_maps_at_once() -> None:
    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = conv(3, 2, 1), conv(3, 2, 0)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.first(x)
            return x, self.second(x)

    assert followed_geometries(Maps().eval(), multiple=14) == [(2, 0.5), (4, 2.5)]

"""Gradients of depthwise convolutions by compiled loops against torch's own."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sppdet.features import depthwise
from sppdet.features.backbones import conv_backbone
from sppdet.features.depthwise import FastDepthwise
from sppdet.features.folding import folded
from sppdet.features.head import build_head
from sppdet.training.finetune_images import TrainingImage, WindowNetwork
from sppdet.training_config import HeadConfig

CHANNELS = 19
CASES: dict[str, dict[str, Any]] = {
    "5x5": {"padding": (2, 2)},
    "7x7 without bias": {"kernel": (7, 7), "padding": 3, "bias": False},
    "other rows than columns": {"kernel": (3, 5), "stride": (2, 1), "padding": (0, 2)},
    "wide padding": {"kernel": (2, 4), "padding": (3, 5)},
    "steps over values": {"kernel": (4, 2), "stride": 5},
    "two steps in a list": {"stride": [2], "padding": [1, 2]},
    "a single cell": {"side": (1, 1), "padding": 2},
    "channels first": {"padding": 1, "memory_format": torch.contiguous_format},
    "fixed filters": {"padding": 1, "trained": ("x",)},
    "the first layer": {"padding": 1, "trained": ("weight", "bias")},
}


def tensors(
    kernel: tuple[int, int] = (5, 5),
    side: tuple[int, int] = (9, 12),
    bias: bool = True,
    trained: tuple[str, ...] = ("x", "weight", "bias"),
    memory_format: torch.memory_format = torch.channels_last,
    **more: Any,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Channels of noise, their filters, and the further arguments of the convolution."""
    torch.manual_seed(3)
    shapes = {"x": (1, CHANNELS, *side), "weight": (CHANNELS, 1, *kernel)}
    made = {k: torch.randn(s).contiguous(memory_format=memory_format) for k, s in shapes.items()}
    if bias:
        made["bias"] = torch.randn(CHANNELS)
    for key, tensor in made.items():
        tensor.requires_grad_(key in trained)
    return made, {"groups": CHANNELS, **more}


def gradients(
    made: dict[str, torch.Tensor], more: dict[str, Any], *, fast: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    for tensor in made.values():
        tensor.grad = None
    x, weight, bias = made["x"], made["weight"], made.get("bias")
    stride, padding = more.get("stride", 1), more.get("padding", 0)
    with FastDepthwise() if fast else nullcontext():
        result = F.conv2d(x, weight, bias, stride, padding, more.get("dilation", 1), more["groups"])
    (result * torch.linspace(-1, 2, result.numel()).view_as(result)).sum().backward()
    return result, {key: tensor.grad for key, tensor in made.items()}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the runs of the loops."""
    found: list[int] = []
    loops = depthwise._add_gradients

    def counted(*args: Any) -> None:
        found.append(1)
        loops(*args)

    monkeypatch.setattr(depthwise, "_add_gradients", counted)
    return found


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_gradients_are_those_of_torch(case: dict[str, Any], calls: list[int]) -> None:
    made, more = tensors(**case)
    expected, wanted = gradients(made, more, fast=False)
    assert calls == []
    found, got = gradients(made, more, fast=True)
    assert calls
    assert torch.equal(found, expected)
    for key, gradient in wanted.items():
        if gradient is None:
            assert got[key] is None, key
        else:
            torch.testing.assert_close(got[key], gradient, rtol=1e-5, atol=1e-5)


def test_every_number_of_threads_adds_in_the_same_order() -> None:
    made, more = tensors(padding=2)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3, 4, 8):
            torch.set_num_threads(threads)
            found.append(gradients(made, more, fast=True)[1])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(found[0][key], other[key]) for key in made)  # type: ignore[arg-type]


def test_sums_over_a_large_map_keep_their_digits() -> None:
    """Of positive numbers in float64, the worst case: one sum after another loses four digits."""
    torch.manual_seed(5)
    made = {"x": torch.rand(1, 16, 400, 500), "weight": torch.rand(16, 1, 5, 5)}
    with FastDepthwise():
        (got,) = torch.autograd.grad(
            F.conv2d(made["x"], made["weight"].requires_grad_(), None, 1, 2, 1, 16).sum(),
            made["weight"],
        )
    exact = made["weight"].detach().double().requires_grad_()
    F.conv2d(made["x"].double(), exact, None, 1, 2, 1, 16).sum().backward()
    torch.testing.assert_close(got.double(), exact.grad, rtol=2e-6, atol=0)


@pytest.mark.parametrize(
    "kind",
    [
        "3x3",
        "two images",
        "float64",
        "dilation",
        "dilation of columns",
        "two filters a channel",
        "groups of channels",
        "few channels",
        "same",
        "numpy's numbers",
        "autocast",
    ],
)
def test_other_convolutions_are_of_torch(kind: str, calls: list[int]) -> None:
    made, more = tensors(kernel=(3, 3) if kind == "3x3" else (5, 5))
    with torch.no_grad():
        if kind == "two images":
            made["x"] = torch.cat([made["x"], made["x"]])
        if kind == "float64":
            made = {key: tensor.double() for key, tensor in made.items()}
        if kind == "two filters a channel":
            weight = made["weight"].repeat(2, 1, 1, 1)
            made = {**made, "weight": weight, "bias": torch.ones(2 * CHANNELS)}
        if kind == "groups of channels":
            made = {"x": torch.randn(1, 36, 9, 12), "weight": torch.randn(36, 2, 5, 5)}
            more["groups"] = 18
        if kind == "few channels":
            made = {"x": torch.randn(1, 8, 9, 12), "weight": torch.randn(8, 1, 5, 5)}
            more["groups"] = 8
    if kind.startswith("dilation"):
        more["dilation"] = 2 if kind == "dilation" else (1, 2)
    if kind == "same":
        more["padding"] = "same"
    if kind == "numpy's numbers":
        more["stride"] = np.int64(2)
    for tensor in made.values():
        tensor.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16) if kind == "autocast" else nullcontext():
        expected, wanted = gradients(made, more, fast=False)
        found, got = gradients(made, more, fast=True)
    assert not calls
    assert torch.equal(found, expected)
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)  # type: ignore[arg-type]


def test_without_gradients_torch_convolves(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = tensors()
    used: list[int] = []
    monkeypatch.setattr(depthwise._Depthwise, "apply", lambda *_: used.append(1))
    with FastDepthwise():
        with torch.no_grad():
            F.conv2d(made["x"], made["weight"], None, 1, 0, 1, CHANNELS)
        x, weight = made["x"].detach(), made["weight"].detach()
        F.conv2d(x, weight, made["bias"], 1, 0, 1, CHANNELS)
        assert not used
        F.conv2d(made["x"], made["weight"], None, 1, 0, 1, CHANNELS)
    assert used


@pytest.mark.parametrize("wrong", [{"stride": (1, 2, 3)}, {"padding": ()}, {"weight": 2}])
def test_what_torch_refuses_is_refused(wrong: dict[str, Any]) -> None:
    made, _ = tensors()
    if "weight" in wrong:
        made["weight"] = torch.randn(CHANNELS, 5)
    more: Any = (wrong.get("stride", 1), wrong.get("padding", 0), 1, CHANNELS)
    with pytest.raises((RuntimeError, TypeError)) as torchs:
        F.conv2d(made["x"], made["weight"], None, *more)
    with FastDepthwise(), pytest.raises(type(torchs.value)) as ours:
        F.conv2d(made["x"], made["weight"], None, *more)
    assert str(ours.value) == str(torchs.value)


def test_gradients_of_gradients_are_refused() -> None:
    made, _ = tensors()
    with FastDepthwise():
        result = F.conv2d(made["x"], made["weight"], None, 1, 2, 1, CHANNELS)
    (first,) = torch.autograd.grad(result.square().sum(), made["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.square().sum().backward()


def test_a_whole_network(calls: list[int]) -> None:
    """Every gradient of the layers of an MNASNet, some of which have filters of 5×5."""
    torch.manual_seed(1)
    layers = folded(conv_backbone("mnasnet0_5")).layers.requires_grad_(True)
    image = torch.randn(1, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    found: list[list[torch.Tensor]] = []
    for context in (nullcontext(), FastDepthwise()):
        with context:
            result = layers(image)
        weights = list(layers.parameters())
        found.append(list(torch.autograd.grad(result.square().sum(), weights)))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(
            got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())
        )
    assert calls


def test_fine_tuning_takes_the_loops(calls: list[int]) -> None:
    backbone = folded(conv_backbone("mnasnet0_5"))
    backbone.layers.requires_grad_(True)
    levels = (1,)
    head = build_head(backbone, levels, HeadConfig(widths=[4]), outputs=2, seed=0)
    box = np.array([[0.0, 0.0, 63.0, 63.0]])
    pixels = torch.zeros(64, 64, 3, dtype=torch.uint8)
    image = TrainingImage(pixels, 1.0, box, np.array([1]), box)
    WindowNetwork(backbone, head, levels).pooled([image]).sum().backward()
    assert calls

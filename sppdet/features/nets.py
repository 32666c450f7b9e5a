"""Convolutional layers of the paper's networks (its Table 1), and of a small one of ours.

Every network ends with the ReLU of its last convolution; spatial pyramid pooling follows. The
paddings are chosen to give the paper's map sizes at 224 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from sppdet.errors import did_you_mean
from sppdet.features.norms import CrossChannelNorm, WithinChannelNorm
from sppdet.features.timm_nets import PREFIX, timm_name_problem
from sppdet.vision import models as tv


def _conv(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int | None = None
) -> list[nn.Module]:
    padding = kernel // 2 if padding is None else padding
    return [
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding),
        nn.ReLU(inplace=True),
    ]


def _initialised(*layers: nn.Module) -> nn.Sequential:
    """Chain layers with He-initialised weights, for training from scratch."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def zf5() -> nn.Sequential:
    """Build ZF-5: stride 16, 256 channels; 55, 27 and 13 cells a side at 224 pixels."""
    return _zf5(pool_padding=0, conv2_padding=1)


def zf5_detector() -> nn.Sequential:
    """Build ZF-5 as in the paper's detector: every layer padded by ⌊k/2⌋, so that c₀ = 0.5.

    The weights are those of `zf5`; at 224 pixels it has 14 cells a side.
    """
    return _zf5(pool_padding=1, conv2_padding=2)


def _zf5(*, pool_padding: int, conv2_padding: int) -> nn.Sequential:
    return _initialised(
        *_conv(3, 96, 7, stride=2),
        WithinChannelNorm(),
        nn.MaxPool2d(3, stride=2, padding=pool_padding),
        *_conv(96, 256, 5, stride=2, padding=conv2_padding),
        WithinChannelNorm(),
        nn.MaxPool2d(3, stride=2, padding=pool_padding),
        *_conv(256, 384, 3),
        *_conv(384, 384, 3),
        *_conv(384, 256, 3),
    )


def convnet5() -> nn.Sequential:
    """Build Convnet*-5: stride 16, 256 channels; 55, 27 and 13 cells a side at 224 pixels."""
    return _initialised(
        *_conv(3, 96, 11, stride=4, padding=2),
        CrossChannelNorm(),
        *_conv(96, 256, 5),
        CrossChannelNorm(),
        nn.MaxPool2d(3, stride=2),
        *_conv(256, 384, 3),
        nn.MaxPool2d(3, stride=2),
        *_conv(384, 384, 3),
        *_conv(384, 256, 3),
    )


def overfeat5() -> nn.Sequential:
    """Build Overfeat-5: stride 12, 512 channels; 36 and 18 cells a side at 224 pixels."""
    return _overfeat(depth=5)


def overfeat7() -> nn.Sequential:
    """Build Overfeat-7: Overfeat-5 with two more layers."""
    return _overfeat(depth=7)


def _overfeat(*, depth: int) -> nn.Sequential:
    layers = [
        *_conv(3, 96, 7, stride=2, padding=0),
        nn.MaxPool2d(3, stride=3),
        CrossChannelNorm(),
        *_conv(96, 256, 5),
        nn.MaxPool2d(2, stride=2),
        *_conv(256, 512, 3),
    ]
    for _ in range(depth - 3):
        layers += _conv(512, 512, 3)
    return _initialised(*layers)


def tiny() -> nn.Sequential:
    """Build four layers of stride 8, 128 channels, that two CPU cores train in a minute or two.

    Every layer is padded by ⌊k/2⌋, so that c₀ = 0.5. The receptive field is 57 pixels, most of a
    window at a canonical size of 96, which is 12 cells a side (6 at stride 16, too few for the finest
    SPP level).
    """
    return nn.Sequential(
        *_conv_bn(3, 24, kernel=5, stride=2),
        nn.MaxPool2d(3, stride=2, padding=1),
        *_conv_bn(24, 48, kernel=3),
        nn.MaxPool2d(3, stride=2, padding=1),
        *_conv_bn(48, 96, kernel=3),
        *_conv_bn(96, 128, kernel=3),
    )


def _conv_bn(inputs: int, outputs: int, *, kernel: int, stride: int = 1) -> list[nn.Module]:
    # BatchNorm has the bias
    return [
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


OWN_NETS: Mapping[str, Callable[[], nn.Sequential]] = {
    "zf5": zf5,
    "zf5_detector": zf5_detector,
    "convnet5": convnet5,
    "overfeat5": overfeat5,
    "overfeat7": overfeat7,
    "tiny": tiny,
}


def problem_with_name(name: str) -> str | None:
    """Describe why a network's name is invalid; None for our networks and torchvision's classifiers.

    A network of torchvision's without a convolutional map is refused when it is built.
    """
    if name.startswith(PREFIX):
        return timm_name_problem(name)
    known = [*OWN_NETS, *tv.list_models(module=tv)]
    if name in known:
        return None
    return f"{name}: unknown here and in torchvision{did_you_mean(name, known)}"

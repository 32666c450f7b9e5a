"""Convolutional layers run by onnxruntime, which on a CPU takes half of torch's time.

The layers are exported to ONNX in memory and compared with torch's on made input of several sizes: what
can't be exported, or depends on the size of the image that it was exported with, is left to torch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from torch import nn

from sppdet.features.onnx_export import session, to_onnx

_log = logging.getLogger("sppdet")
TOLERANCE = 1e-4  # of the largest value of the map
# heights and widths that the results are compared at, in units of the network's padding
_SIZES = [(3, 4), (5, 3), (6, 7)]
_ODD_SIZES = [(97, 131), (130, 99), (115, 66), (128, 192)]  # for networks that pad nothing

Layers = Callable[[torch.Tensor], torch.Tensor]


def layers_to_onnx(layers: nn.Module, *, multiple: int = 1) -> bytes:
    """Export layers, `image` (1, 3, H, W) → `map` (1, C, h, w), with free height and width.

    Args:
        layers: on the CPU, in evaluation mode.
        multiple: that heights and widths are padded to.

    Raises:
        Exception: torch can't export them; errors of many kinds.
    """
    side = 2 * math.lcm(32, multiple)
    return to_onnx(
        layers,
        torch.zeros(1, 3, side, side),
        given={"image": {2: "height", 3: "width"}},
        made={"map": {2: "rows", 3: "columns"}},
    )


def runner(model: bytes) -> Layers:
    """Make a function of tensors that runs exported layers; see `session`."""
    run = session(model)
    return lambda image: run(image)[0]


def onnx_layers(layers: nn.Module, *, multiple: int = 1) -> Layers | None:
    """Make a function that runs layers by onnxruntime, on as many threads as torch uses.

    Args:
        layers, multiple: as for `layers_to_onnx`.

    Returns:
        A function (1, 3, H, W) → (1, C, h, w) of float32 tensors on the CPU, thread-safe; None where
        the layers can't be exported, or where the results differ.
    """
    try:
        run = runner(layers_to_onnx(layers, multiple=multiple))
        found = difference(run, layers, multiple)
    except Exception as error:  # torch's exporter and onnxruntime raise errors of their own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        _log.info("layers by torch: they can't be exported for onnxruntime: %s", first)
        return None
    if found > TOLERANCE:
        _log.info("layers by torch: onnxruntime's differ by %.1g of the largest value", found)
        return None
    return run


@torch.inference_mode()
def difference(run: Layers, layers: nn.Module, multiple: int) -> float:
    """Find the largest difference of two implementations, as a part of the largest value."""
    step = math.lcm(32, multiple)
    sizes = [(h * step, w * step) for h, w in _SIZES] + (_ODD_SIZES if multiple == 1 else [])
    worst = 0.0
    for height, width in sizes:
        image = torch.linspace(-2, 2, 3 * height * width).mul(1e4).sin().view(1, 3, height, width)
        expected, found = layers(image), run(image)
        if found.shape != expected.shape:
            return math.inf
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    return worst

"""Convolutional layers run by onnxruntime, which on a CPU takes half of torch's time.

The layers are exported to ONNX in memory and compared with torch's on made input of several sizes: what
can't be exported, or depends on the size of the image that it was exported with, is left to torch.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sppdet.vision import without_compiler

_log = logging.getLogger("sppdet")
_OPSET = 17
_TOLERANCE = 1e-4  # of the largest value of the map
# heights and widths that the results are compared at, in units of the network's padding
_SIZES = [(3, 4), (5, 3), (6, 7)]
_ODD_SIZES = [(97, 131), (130, 99), (115, 66), (128, 192)]  # for networks that pad nothing

Layers = Callable[[torch.Tensor], torch.Tensor]


def is_installed() -> bool:
    """Check whether onnxruntime and onnx, which the export needs, are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxruntime"))


def to_onnx(layers: nn.Module, *, multiple: int = 1) -> bytes:
    """Export layers (1, 3, H, W) → (1, C, h, w) with free height and width to an ONNX model.

    Args:
        layers: on the CPU, in evaluation mode.
        multiple: that heights and widths are padded to.

    Raises:
        Exception: torch can't export them; errors of many kinds.
    """
    with without_compiler():
        import torch.onnx

    side = 2 * math.lcm(32, multiple)
    file: Any = io.BytesIO()  # the exporter by tracing takes it, though torch's types say no
    free = {"image": {2: "height", 3: "width"}, "map": {2: "rows", 3: "columns"}}
    with warnings.catch_warnings(), torch.no_grad():
        # of sizes that become constants: `onnx_layers` tries other sizes; of the exporter's future
        warnings.simplefilter("ignore")
        torch.onnx.export(
            layers,
            (torch.zeros(1, 3, side, side),),
            file,
            dynamo=False,
            opset_version=_OPSET,
            input_names=list(free)[:1],
            output_names=list(free)[1:],
            dynamic_axes=free,
        )
    exported: bytes = file.getvalue()
    return exported


def onnx_layers(layers: nn.Module, *, multiple: int = 1) -> Layers | None:
    """Make a function that runs layers by onnxruntime, on as many threads as torch uses.

    Args:
        layers, multiple: as for `to_onnx`.

    Returns:
        A function (1, 3, H, W) → (1, C, h, w) of float32 tensors on the CPU, thread-safe; None where
        the layers can't be exported, or where the results differ.
    """
    try:
        run = _session(to_onnx(layers, multiple=multiple))
        difference = _difference(run, layers, multiple)
    except Exception as error:  # torch's exporter and onnxruntime raise errors of their own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        _log.info("layers by torch: they can't be exported for onnxruntime: %s", first)
        return None
    if difference > _TOLERANCE:
        _log.info("layers by torch: onnxruntime's differ by %.1g of the largest value", difference)
        return None
    return run


def _session(model: bytes) -> Layers:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # threads that wait for work must sleep: others search for proposals meanwhile
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(image: torch.Tensor) -> torch.Tensor:
        (found,) = session.run(None, {"image": image.detach().contiguous().numpy()})
        return torch.from_numpy(found)

    return run


@torch.inference_mode()
def _difference(run: Layers, layers: nn.Module, multiple: int) -> float:
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

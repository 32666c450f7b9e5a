"""Modules as ONNX models in memory, and functions that run these by onnxruntime."""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sppdet.vision import without_compiler

OPSET = 17
Axes = Mapping[str, Mapping[int, str]]  # names of tensors to the names of their free axes
Runner = Callable[[torch.Tensor], list[torch.Tensor]]


def is_installed() -> bool:
    """Check whether onnxruntime and onnx, which the export needs, are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxruntime"))


def to_onnx(module: nn.Module, example: torch.Tensor, *, given: Axes, made: Axes) -> bytes:
    """Export a module of one input to an ONNX model.

    Args:
        module: on the CPU, in evaluation mode.
        example: an input; the sizes of its free axes don't matter.
        given, made: name and free axes of the input and of the outputs.

    Raises:
        Exception: torch can't export it; errors of many kinds.
    """
    with without_compiler():
        import torch.onnx

    file: Any = io.BytesIO()  # the exporter by tracing takes it, though torch's types say no
    with warnings.catch_warnings(), torch.no_grad(), _without_a_dump():
        # of sizes that become constants: who calls compares at other sizes; of the exporter's future
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (example,),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(given),
            output_names=list(made),
            dynamic_axes={name: dict(axes) for name, axes in {**given, **made}.items()},
        )
    exported: bytes = file.getvalue()
    return exported


@contextmanager
def _without_a_dump() -> Iterator[None]:
    """Keep torch from printing the whole graph of what it can't export on the standard output.

    It does so in C++, where Python can't redirect it, even with its own logging of exports off.
    """
    name = "_jit_onnx_log"
    log = getattr(torch._C, name, None)
    if log is None:
        yield
        return
    setattr(torch._C, name, lambda *_: None)
    try:
        yield
    finally:
        setattr(torch._C, name, log)


def session(model: bytes) -> Runner:
    """Make a function that runs a model of one input, on as many threads as torch uses.

    Its tensors are float32 on the CPU; it is thread-safe.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # threads that wait for work must sleep: others search for proposals meanwhile
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    made = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (name,) = (one.name for one in made.get_inputs())

    def run(given: torch.Tensor) -> list[torch.Tensor]:
        found: Sequence[Any] = made.run(None, {name: given.detach().contiguous().numpy()})
        return [torch.from_numpy(one) for one in found]

    return run

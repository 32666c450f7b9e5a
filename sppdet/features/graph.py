"""Analysis of networks as graphs of layers: where to cut them, and the geometry of cells."""

from __future__ import annotations

import contextlib
import io
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from sppdet.features.geometry import Geometry
from sppdet.features.norms import CrossChannelNorm, WithinChannelNorm

_SMALL_PROBE, _LARGE_PROBE = 128, 320  # resized pixels a side


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, WithinChannelNorm | CrossChannelNorm):
            return True
        leaf: bool = super().is_leaf_module(m, module_qualified_name)
        return leaf


def before_last_pooling(model: nn.Module) -> nn.Module:
    """Cut a classifier before its last adaptive or global pooling; returns the layers up to its map.

    Raises:
        ValueError: a model that pools no map (a transformer) or that can't be traced.
    """
    graph = _trace(model)
    modules = dict(model.named_modules())
    pooling = [node for node in graph.nodes if _is_global_pooling(node, modules)]
    if not pooling:
        raise ValueError("it has no global pooling of a map")
    source = pooling[-1].args[0]
    while _is_dropping(source, modules):  # a max pooling just before it counts as the last
        source = source.args[0]
    return fx.GraphModule(model, _up_to(graph, source))


def cut_at_strides(layers: nn.Module, strides: Sequence[int]) -> nn.Module:
    """Let layers return the last map of each stride, as a tuple, instead of their last map.

    Raises:
        ValueError: there is no map of a stride, or the layers can't be traced.
    """
    graph, modules = _trace(layers), dict(layers.named_modules())
    geometry = _geometry_along(0, graph, modules)
    last = {stride: node for node, (stride, _) in geometry.items() if node.op != "output"}
    if missing := [stride for stride in strides if stride not in last]:
        raise ValueError(f"it has no map of stride {missing[0]}; it has {sorted(last)}")
    return fx.GraphModule(layers, _up_to(graph, *(last[stride] for stride in strides)))


def _up_to(graph: fx.Graph, *sources: fx.Node) -> fx.Graph:
    """Copy a graph up to a node, which becomes its output; of several nodes, a tuple of them."""
    cut = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copied[node] = cut.node_copy(node, lambda n: copied[n])
        if all(source in copied for source in sources):
            break
    outputs = tuple(copied[source] for source in sources)
    cut.output(outputs if len(outputs) > 1 else outputs[0])
    return cut


def _trace(model: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(model)
    except Exception as error:  # tracing runs the forward pass, which may raise anything
        raise ValueError(f"its layers can't be traced: {error}") from None


def _is_global_pooling(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.AdaptiveAvgPool2d)
    if node.op == "call_function":
        return node.target is F.adaptive_avg_pool2d
    return node.op == "call_method" and node.target == "mean"


def _is_dropping(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    layer = modules.get(str(node.target)) if node.op == "call_module" else None
    return isinstance(layer, nn.MaxPool2d | nn.Dropout | nn.Flatten)


def geometry_of(layers: nn.Module) -> Geometry:
    """Compute (S, c₀) of the last map: the product of the strides, and the centre of the first cell.

    Propagated through the graph by the kernels, strides and paddings of the layers; where branches
    meet, their strides must agree and the centre of the first is taken.

    Raises:
        ValueError: branches of different strides, strides or centres that differ between the axes, or
            a map whose size contradicts the stride.
    """
    graph, modules = _trace(layers), dict(layers.named_modules())
    output = next(iter(node for node in reversed(graph.nodes) if node.op == "output"))
    down, across = (_geometry_along(axis, graph, modules)[output] for axis in (0, 1))
    if down != across:
        raise ValueError(f"stride and centre are {down} down, {across} across: expected the same")
    _check_size(layers, down[0])
    return down


def _geometry_along(
    axis: int, graph: fx.Graph, modules: dict[str, nn.Module]
) -> dict[fx.Node, Geometry]:
    """Compute (S, c₀) of every node that depends on the image."""
    geometry: dict[fx.Node, Geometry] = {}
    for node in graph.nodes:
        inputs = [geometry[source] for source in node.all_input_nodes if source in geometry]
        if node.op == "placeholder":
            geometry[node] = (1, 0.5)
        elif node.op == "output":
            if not inputs:
                raise ValueError("its layers have no output")
            geometry[node] = inputs[0]
        elif inputs:
            stride, centre = _joined(node, inputs)
            kernel, step, padding = (_along(axis, v) for v in _sizes_of(node, modules))
            geometry[node] = (stride * step, centre + ((kernel - 1) / 2 - padding) * stride)
    return geometry


def _joined(node: fx.Node, inputs: list[Geometry]) -> Geometry:
    if node.target in (operator.mul, operator.imul):  # squeeze-and-excitation: a gate of one cell
        return min(inputs)
    if len({stride for stride, _ in inputs}) > 1:
        raise ValueError(f"{node.name}: branches of strides {sorted(s for s, _ in inputs)} meet")
    return inputs[0]


def _sizes_of(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[Any, Any, Any]:
    """Return kernel (with dilation), stride and padding of a node's layer."""
    layer = modules.get(str(node.target)) if node.op == "call_module" else None
    if isinstance(layer, nn.Conv2d):
        kernels = zip(layer.kernel_size, layer.dilation, strict=True)
        return tuple((k - 1) * d + 1 for k, d in kernels), layer.stride, layer.padding
    if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
        return layer.kernel_size, layer.stride, layer.padding
    if node.target in (F.max_pool2d, F.avg_pool2d):
        names = ("kernel_size", "stride", "padding")
        arguments = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
        kernel = arguments["kernel_size"]
        return kernel, arguments.get("stride") or kernel, arguments.get("padding", 0)
    return 1, 1, 0


def _along(axis: int, value: Any) -> int:
    return int(value[axis] if isinstance(value, tuple | list) else value)


@torch.no_grad()
def _check_size(layers: nn.Module, stride: int) -> None:
    """Check the stride against maps of two sizes, in case the graph missed a layer."""
    weight = next(layers.parameters(), None)
    if weight is None or weight.ndim != 4:
        return
    was_training = layers.training
    layers.eval()
    sides = []
    try:
        for probe in (_SMALL_PROBE, _LARGE_PROBE):
            x = torch.zeros(1, weight.shape[1], probe, probe).to(weight)
            with contextlib.redirect_stderr(io.StringIO()):  # a failing graph prints its code
                sides.append(int(layers(x).shape[-1]))
    except RuntimeError:
        raise ValueError("it doesn't take images of any size") from None
    finally:
        layers.train(was_training)
    expected = (_LARGE_PROBE - _SMALL_PROBE) / stride
    if abs((sides[1] - sides[0]) - expected) > 1:
        raise ValueError(f"maps of {sides} cells a side don't fit a stride of {stride}")

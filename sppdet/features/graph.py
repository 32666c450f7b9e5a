"""Networks as graphs of layers: where to cut them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from sppdet.features.followed import FollowedGeometry, probe
from sppdet.features.geometry import Geometry
from sppdet.features.norms import CrossChannelNorm, WithinChannelNorm


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
    graph = _trace(layers)
    image = probe(layers)
    with torch.no_grad(), FollowedGeometry(image) as geometry:
        along = _Followed(fx.GraphModule(layers, graph), geometry).run_on(image)
    last = {down[0]: node for node, (down, _) in along.items()}
    if missing := [stride for stride in strides if stride not in last]:
        raise ValueError(f"it has no map of stride {missing[0]}; it has {sorted(last)}")
    return fx.GraphModule(layers, _up_to(graph, *(last[stride] for stride in strides)))


class _Followed(fx.Interpreter):
    """Notes the geometry of every node of a graph that is run."""

    def __init__(self, module: fx.GraphModule, geometry: FollowedGeometry) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._geometry = geometry
        self._along: dict[fx.Node, tuple[Geometry, Geometry]] = {}

    def run_on(self, image: torch.Tensor) -> dict[fx.Node, tuple[Geometry, Geometry]]:
        """Run the graph; returns (S, c₀) down and across of the nodes where they are known."""
        self.run(image)
        return self._along

    def run_node(self, n: fx.Node) -> Any:
        """Run a node."""
        result = super().run_node(n)
        along = self._geometry.along(result)
        if along is not None and n.op != "output":
            self._along[n] = along
        return result


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

"""torchvision and timm, imported without torch's compiler.

Both import `torch._dynamo`, 2 CPU seconds of modules, and use of it only what sppdet never calls: a check
in `roi_align` and decorators that keep functions from being compiled. While they are imported a stand-in
takes that module's place; its functions import the real one when they are called.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch  # noqa: F401  (before the stand-in, since it has uses of its own for the compiler)

_COMPILER = ("torch._dynamo", "torch._dynamo.utils")


class _StandIn(ModuleType):
    """A module whose functions import the real module on their first call."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "disable":
            return _disable
        return _deferred(lambda: getattr(importlib.import_module(self.__name__), name))


def _disable(function: Callable[..., Any] | None = None, *args: Any, **kw: Any) -> Any:
    """Decorate like `torch._dynamo.disable`, which is applied on the first call."""
    if function is None:
        return lambda own: _disable(own, *args, **kw)

    def real() -> Callable[..., Any]:
        disable = importlib.import_module("torch._dynamo").disable
        decorated: Callable[..., Any] = disable(function, *args, **kw)
        return decorated

    return functools.wraps(function)(_deferred(real))


def _deferred(find: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    found = functools.cache(find)

    def call(*args: Any, **kw: Any) -> Any:
        return found()(*args, **kw)

    return call


@contextmanager
def without_compiler() -> Iterator[None]:
    """Let modules that are imported meanwhile find a stand-in for torch's compiler, unless it is loaded."""
    if _COMPILER[0] in sys.modules:
        yield
        return
    stand_ins = {name: _StandIn(name) for name in _COMPILER}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def import_timm() -> Any:
    """Import timm.

    Raises:
        ImportError: it isn't installed.
    """
    with without_compiler():
        return importlib.import_module("timm")


with without_compiler():
    from torchvision import datasets, models, ops

__all__ = ["datasets", "import_timm", "models", "ops", "without_compiler"]

"""Numba decorators of the compiled loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile a function on its first call; it releases the GIL and is cached on disk if possible."""
    return _compile(function, set())


def compiled_sum(function: F) -> F:
    """Compile like `compiled`, but let sums of floats be reordered for vector instructions.

    Results are reproducible on one machine.
    """
    return _compile(function, {"reassoc", "nsz"})


def _compile(function: F, fastmath: set[str]) -> F:
    try:
        return cast(F, njit(nogil=True, cache=True, fastmath=fastmath)(function))
    except RuntimeError:  # no folder for the cache is writable
        return cast(F, njit(nogil=True, fastmath=fastmath)(function))

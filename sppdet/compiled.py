"""Numba decorators of the compiled loops.

The first image of a fresh environment waits for the compilation, most of whose time goes into types
and into numba's own implementations of NumPy's functions. Hence the loops get their arrays from plain
Python, call little besides each other, and are called with one set of types.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit

F = TypeVar("F", bound=Callable[..., Any])

ZERO, ONE = np.uint64(0), np.uint64(1)  # unsigned indices save the check for negative ones
_REORDERED = {"reassoc", "nsz"}
_OPTIONS = {"error_model": "numpy", "no_cfunc_wrapper": True}  # the wrapper is for callers in C


def compiled(function: F) -> F:
    """Compile a function on its first call; it releases the GIL and is cached on disk if possible.

    Like NumPy, and unlike Python, it raises no error when it divides by zero.
    """
    return _compile(function, set())


def compiled_sum(function: F) -> F:
    """Compile like `compiled`, but let sums of floats be reordered for vector instructions.

    Results are reproducible on one machine.
    """
    return _compile(function, _REORDERED)


def compiled_part(function: F) -> F:
    """Compile a function that only compiled ones call."""
    return _compile_part(function, set())


def compiled_part_sum(function: F) -> F:
    """Compile like `compiled_part`, and let sums be reordered like `compiled_sum`."""
    return _compile_part(function, _REORDERED)


def _compile(function: F, fastmath: set[str]) -> F:
    options: dict[str, Any] = {"nogil": True, "fastmath": fastmath, **_OPTIONS}
    try:
        return cast(F, njit(cache=True, **options)(function))
    except RuntimeError:  # no folder for the cache is writable
        return cast(F, njit(**options)(function))


def _compile_part(function: F, fastmath: set[str]) -> F:
    options: dict[str, Any] = {"fastmath": fastmath, "no_cpython_wrapper": True, **_OPTIONS}
    return cast(F, njit(**options)(function))

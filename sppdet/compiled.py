"""Numba, as every compiled loop of the package uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compiled on its first call, without the GIL, and kept on disk where there is a folder for it."""
    return _compile(function, set())


def compiled_sum(function: F) -> F:
    """Compile like `compiled`, but let sums of floats be reordered, for vector instructions.

    On one machine they come out the same every time.
    """
    return _compile(function, {"reassoc", "nsz"})


def _compile(function: F, fastmath: set[str]) -> F:
    try:
        return cast(F, njit(nogil=True, cache=True, fastmath=fastmath)(function))
    except RuntimeError:  # neither the package's folder nor the user's can be written
        return cast(F, njit(nogil=True, fastmath=fastmath)(function))

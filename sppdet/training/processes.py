"""The processes that train together, as far as the mathematics of training knows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

Tensors = Mapping[str, torch.Tensor]


class Processes(Protocol):
    """Processes that train together; `sppdet.runs.distributed.Ranks` is one implementation."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def count(self) -> int:
        """Number of processes."""

    def sums(self, values: Sequence[float], /) -> list[float]:
        """Sum each value over all processes."""

    def broadcast(self, tensors: Tensors | None, *, owner: int) -> Tensors:
        """Return the tensors of process `owner` in every process."""


class OneProcess:
    """A process that trains alone."""

    rank, count = 0, 1

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return the values."""
        return list(values)

    def broadcast(self, tensors: Tensors | None, *, owner: int) -> Tensors:
        """Return the tensors."""
        assert tensors is not None and owner == 0
        return tensors

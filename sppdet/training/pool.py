"""Examples that several SVMs are trained on, each held once, and products of them that are exact.

Features are rounded to multiples of a power of two, about 10⁻⁷ of the norm that they are scaled to.
Sums of their products then fit into the 53 bits of a float64 without a rounding, so that they
don't depend on the order of summation: the same bits come from any number of threads, any size of
a block, before and after an interruption, on a CPU and on a GPU. This holds for norms up to five
times the target; beyond, sums may differ by a rounding at the 53rd bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Rows = NDArray[np.int64]  # of a pool
Key = tuple[int, int]
BLOCK = 2**20  # values converted to float64 at a time: 8 MiB


class Pool:
    """Rows of features; each has a key, by which it is recognised when it is added again.

    Memory: (rows ever held at once, a quarter more at most) × width float32.

    Args:
        target_norm: what norm the features are scaled to; it sets the step of the rounding.
    """

    def __init__(self, width: int, *, target_norm: float, device: torch.device) -> None:
        self._step = 2.0 ** (math.ceil(math.log2(target_norm)) - 24)
        self._features = torch.empty((0, width), device=device)
        self._row_of: dict[Key, int] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._row_of)

    def add(self, features: torch.Tensor, keys: Sequence[Key]) -> Rows:
        """The rows of these examples; those that the pool has already aren't stored again.

        Args:
            features: (n, D) float32; keys: n, distinct.
        """
        new = [i for i, key in enumerate(keys) if key not in self._row_of]
        if new:
            self._reserve(len(new))
            rows = np.array([self._free.pop() for _ in new])
            self._row_of.update((keys[i], row) for i, row in zip(new, rows.tolist(), strict=True))
            values = features[new].to(self._features.device)  # a copy
            values.div_(self._step).round_().mul_(self._step)
            self._features.index_copy_(0, self._index(rows), values)
        return np.array([self._row_of[key] for key in keys], dtype=np.int64)

    def keep(self, rows: Rows) -> None:
        """Forget all other rows; their places are used again."""
        kept = set(rows.tolist())
        lost = [key for key, row in self._row_of.items() if row not in kept]
        self._free += [self._row_of.pop(key) for key in lost]

    def _reserve(self, count: int) -> None:
        missing = count - len(self._free)
        if missing <= 0:
            return
        size, width = self._features.shape
        more = max(missing, size // 4)
        self._features = torch.cat([self._features, self._features.new_empty((more, width))])
        self._free = [*range(size + more - 1, size - 1, -1), *self._free]

    def features(self, rows: Rows) -> torch.Tensor:
        """(n, D) float32, on the pool's device."""
        return self._features[self._index(rows)]

    def products(self, rows: Rows, others: Rows) -> NDArray[np.float64]:
        """Scalar products (n, m) of rows with others."""
        a, b = self._index(rows), self._index(others)
        total = self._features.new_zeros((len(a), len(b)), dtype=torch.float64)
        width = self._features.shape[1]
        step = max(256, BLOCK // max(1, len(a) + len(b)))
        for start in range(0, width, step):
            part = self._features[:, start : start + step]
            total.addmm_(part[a].double(), part[b].double().T)
        return np.asarray(total.cpu().numpy())

    def scores(self, rows: Rows, weights: NDArray[np.float32]) -> NDArray[np.float64]:
        """Scalar products (n, K) of rows with weights (K, D) that `round_weights` made."""
        index = self._index(rows)
        transposed = torch.from_numpy(weights).to(self._features.device).double().T
        found = transposed.new_empty((len(index), len(weights)))
        for part in self._blocks(len(index)):
            torch.mm(self._features[index[part]].double(), transposed, out=found[part])
        return np.asarray(found.cpu().numpy())

    def combine(self, rows: Rows, factors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums (K, D) of the rows, each times its factor (K, n), multiples of 2⁻⁴² with |f| < 2¹⁰."""
        index = self._index(rows)
        coarse = np.rint(factors * 2**20) / 2**20
        both = np.concatenate([coarse, factors - coarse])  # each of few bits: both sums are exact
        left = torch.from_numpy(both).to(self._features.device)
        width = self._features.shape[1]
        total = left.new_zeros((len(both), width))
        for part in self._blocks(len(index)):
            total.addmm_(left[:, part], self._features[index[part]].double())
        sums = total.cpu().numpy()
        return np.asarray(sums[: len(factors)] + sums[len(factors) :])

    def _index(self, rows: Rows) -> torch.Tensor:
        return torch.from_numpy(rows).to(self._features.device)

    def _blocks(self, count: int) -> list[slice]:
        size = max(1, BLOCK // self._features.shape[1])
        return [slice(start, start + size) for start in range(0, count, size)]


def round_weights(weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """Weights (K, D) as multiples of a power of two near 2⁻²⁶ of a row's norm, so that scores are exact."""
    norms = np.sqrt(np.square(weights).sum(axis=1, keepdims=True))
    steps = np.ldexp(1.0, np.ceil(np.log2(np.where(norms > 0, norms, 1.0))).astype(int) - 26)
    return np.asarray(np.rint(weights / steps) * steps, dtype=np.float32)

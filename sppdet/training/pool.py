"""Training examples shared by several SVMs, each stored once, and their products, in float32.

The last bits of a product depend on the number of threads, the device and the order of the requested
rows, but not on where the pool stores them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
Rows = NDArray[np.int64]  # of a pool
Key = tuple[int, int]
BLOCK = 2**25  # values gathered at once, 128 MiB; on busy cores a few large products are fastest


class Pool:
    """Rows of features with keys, by which an example that is added again is recognised.

    Memory: the maximum number of rows so far, plus up to a quarter, × width float32, and a block.
    """

    def __init__(self, width: int, *, device: torch.device) -> None:
        self.width, self.device = width, device
        self._features = torch.empty((0, width), device=device)
        # reused, since allocating costs as much as a product
        self._buffer = self._features.new_empty(0)
        self._row_of: dict[Key, int] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._row_of)

    def add(self, features: torch.Tensor, keys: Sequence[Key]) -> Rows:
        """Store the examples that are new; returns the rows of all.

        Args:
            features: (n, D) float32; keys: n, distinct.
        """
        new = [i for i, key in enumerate(keys) if key not in self._row_of]
        if new:
            self._reserve(len(new))
            rows = np.array([self._free.pop() for _ in new])
            self._row_of.update((keys[i], row) for i, row in zip(new, rows.tolist(), strict=True))
            values = features if len(new) == len(keys) else features[new]
            self._features.index_copy_(0, self._index(rows), values.to(self.device))
        return np.array([self._row_of[key] for key in keys], dtype=np.int64)

    def keep(self, rows: Rows) -> None:
        """Drop all other rows; their memory is reused."""
        kept = set(rows.tolist())
        dropped = [key for key, row in self._row_of.items() if row not in kept]
        self._free += [self._row_of.pop(key) for key in dropped]

    def _reserve(self, count: int) -> None:
        missing = count - len(self._free)
        if missing <= 0:
            return
        size = len(self._features)
        growth = max(missing, size // 4)
        old, self._features = self._features, self._features.new_empty((size + growth, self.width))
        self._features[:size] = old
        self._free = [*range(size + growth - 1, size - 1, -1), *self._free]

    def features(self, rows: Rows) -> torch.Tensor:
        """Copy rows (n, D) float32, on the pool's device."""
        return self._features[self._index(rows)]

    def view(self, rows: Rows) -> torch.Tensor:
        """Copy rows like `features`, into a buffer that the pool's next call overwrites."""
        return self._gather(self._features, self._index(rows))

    def products(self, rows: Rows, *, known: int) -> Matrix:
        """Compute the products (n − known, n) of the rows from position `known` with all rows."""
        total = self._features.new_zeros((len(rows) - known, len(rows)))
        index = self._index(rows)
        for part in self._features.split(max(1, BLOCK // max(1, len(rows))), dim=1):
            block = self._gather(part, index)
            total.addmm_(block[known:], block.T)
        return np.asarray(total.cpu().numpy())

    def scores(self, rows: Rows, weights: torch.Tensor) -> Matrix:
        """Compute the products (n, K) of rows with weights (K, D)."""
        scores = self._features.new_empty((len(rows), len(weights)))
        for part in self._blocks(len(rows)):
            torch.mm(self.view(rows[part]), weights.T, out=scores[part])
        return np.asarray(scores.cpu().numpy())

    def combine(self, rows: Rows, factors: Matrix) -> torch.Tensor:
        """Compute the sums (K, D) of rows times factors (K, n), on the pool's device."""
        left = torch.tensor(factors, device=self.device)  # a copy is aligned, for the same bits
        total = left.new_zeros((len(left), self.width))
        for part in self._blocks(len(rows)):
            total.addmm_(left[:, part], self.view(rows[part]))
        return total

    def _index(self, rows: Rows) -> torch.Tensor:
        return torch.from_numpy(rows).to(self.device)

    def _blocks(self, count: int) -> list[slice]:
        size = max(1, BLOCK // self.width)
        return [slice(start, start + size) for start in range(0, count, size)]

    def _gather(self, features: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Copy rows of features, or of some of their columns, into the buffer."""
        count = len(index) * features.shape[1]
        if len(self._buffer) < count:
            self._buffer = features.new_empty(count)
        out = self._buffer[:count].view(len(index), -1)
        return torch.index_select(features, 0, index, out=out)

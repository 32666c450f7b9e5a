"""Examples that several SVMs are trained on, each held once, and products with them, in float32.

A product's last bits depend on the number of threads, on the device and on the order in which its
rows are named, but not on where the pool keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
Rows = NDArray[np.int64]  # of a pool
Key = tuple[int, int]
BLOCK = 2**25  # values gathered at a time, 128 MiB: busy cores make few large products best


class Pool:
    """Rows of features; each has a key, by which it is recognised when it is added again.

    Memory: (rows ever held at once, a quarter more at most) × width float32, and a block of them.
    """

    def __init__(self, width: int, *, device: torch.device) -> None:
        self.width, self.device = width, device
        self._features = torch.empty((0, width), device=device)
        # used again and again: fresh memory costs as much as a product
        self._room = self._features.new_empty(0)
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
            values = features if len(new) == len(keys) else features[new]
            self._features.index_copy_(0, self._index(rows), values.to(self.device))
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
        held, self._features = self._features, self._features.new_empty((size + more, width))
        self._features[:size] = held
        self._free = [*range(size + more - 1, size - 1, -1), *self._free]

    def features(self, rows: Rows) -> torch.Tensor:
        """(n, D) float32, on the pool's device."""
        return self._features[self._index(rows)]

    def view(self, rows: Rows) -> torch.Tensor:
        """As `features`, in memory that the pool's next call overwrites."""
        return self._gather(self._features, self._index(rows))

    def products(self, rows: Rows, *, known: int) -> Matrix:
        """Scalar products (n − known, n) of the rows from position `known` on with all of them."""
        total = self._features.new_zeros((len(rows) - known, len(rows)))
        index = self._index(rows)
        for part in self._features.split(max(1, BLOCK // max(1, len(rows))), dim=1):
            block = self._gather(part, index)
            total.addmm_(block[known:], block.T)
        return np.asarray(total.cpu().numpy())

    def scores(self, rows: Rows, weights: torch.Tensor) -> Matrix:
        """Scalar products (n, K) of rows with weights (K, D)."""
        found = self._features.new_empty((len(rows), len(weights)))
        for here in self._blocks(len(rows)):
            block = self.view(rows[here])
            torch.mm(block, weights.T, out=found[here])
        return np.asarray(found.cpu().numpy())

    def combine(self, rows: Rows, factors: Matrix) -> torch.Tensor:
        """Sums (K, D) of the rows, each times its factor (K, n), on the pool's device."""
        left = torch.tensor(factors, device=self.device)  # aligned, as products to the bit need it
        total = left.new_zeros((len(left), self._features.shape[1]))
        for here in self._blocks(len(rows)):
            block = self.view(rows[here])
            total.addmm_(left[:, here], block)
        return total

    def _index(self, rows: Rows) -> torch.Tensor:
        return torch.from_numpy(rows).to(self.device)

    def _blocks(self, count: int) -> list[slice]:
        size = max(1, BLOCK // self._features.shape[1])
        return [slice(start, start + size) for start in range(0, count, size)]

    def _gather(self, features: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """These rows of the features or of some of their columns, until the next call."""
        count = len(index) * features.shape[1]
        if len(self._room) < count:
            self._room = features.new_empty(count)
        room = self._room[:count].view(len(index), -1)
        return torch.index_select(features, 0, index, out=room)

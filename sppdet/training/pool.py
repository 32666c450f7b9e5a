"""Training examples shared by several SVMs, each stored once, and their products, in float32.

The last bits of a product depend on the number of threads, the device and the order of the requested
rows, but not on where the pool stores them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
Rows = NDArray[np.int64]  # of a pool
Key = tuple[int, int]
BLOCK = 2**24  # values gathered at once, 64 MiB; on busy cores a few large products are fastest
CHUNK = 2**24  # values stored together
PANEL = 256  # rows whose products are computed at once


class Pool:
    """Rows of features with keys, by which an example that is added again is recognised.

    Memory: the maximum number of rows so far × width values, in chunks, so that growing copies nothing,
    and a block.

    Args:
        dtype: type in which values are stored; float16 suits those that are float16 already.
    """

    def __init__(
        self, width: int, *, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.width, self.device, self.dtype = width, device, dtype
        self._rows = max(1, CHUNK // width)  # of a chunk
        self._chunks: list[torch.Tensor] = []
        # reused, since allocating costs as much as a product
        self._buffer = torch.empty(0, device=device)
        self._row_of: dict[Key, int] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._row_of)

    def add(self, features: torch.Tensor, keys: Sequence[Key]) -> Rows:
        """Store the examples that are new; returns the rows of all.

        Args:
            features: (n, D) float; keys: n, distinct.
        """
        new = [i for i, key in enumerate(keys) if key not in self._row_of]
        if new:
            while len(self._free) < len(new):
                start = self._rows * len(self._chunks)
                self._free = [*range(start + self._rows - 1, start - 1, -1), *self._free]
                chunk = torch.empty((self._rows, self.width), dtype=self.dtype, device=self.device)
                self._chunks.append(chunk)
            rows = np.array([self._free.pop() for _ in new])
            self._row_of.update((keys[i], row) for i, row in zip(new, rows.tolist(), strict=True))
            values = features if len(new) == len(keys) else features[new]
            for chunk, own, places in self._by_chunk(rows):
                chunk.index_copy_(0, own, values[places].to(self.device, self.dtype))
        return np.array([self._row_of[key] for key in keys], dtype=np.int64)

    def keep(self, rows: Rows) -> None:
        """Drop all other rows; their memory is reused."""
        kept = set(rows.tolist())
        dropped = [key for key, row in self._row_of.items() if row not in kept]
        self._free += [self._row_of.pop(key) for key in dropped]

    def features(self, rows: Rows) -> torch.Tensor:
        """Copy rows (n, D) float32, on the pool's device."""
        return self.view(rows).clone()

    def view(self, rows: Rows, columns: slice = slice(None)) -> torch.Tensor:
        """Copy rows like `features`, into a buffer that the pool's next call overwrites."""
        width = len(range(self.width)[columns])
        count = len(rows) * width
        if len(self._buffer) < count:
            self._buffer = self._buffer.new_empty(count)
        out = self._buffer[:count].view(len(rows), width)
        if self.device.type != "cpu":
            for chunk, own, places in self._by_chunk(rows):
                out.index_copy_(0, places, chunk[:, columns][own].float())
            return out
        # rows that follow each other are copied together, and widened by the copy
        chunks, inside = np.divmod(rows, self._rows)
        starts = np.flatnonzero(np.diff(rows, prepend=-2) - 1 | (inside == 0))
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(rows)], strict=True):
            first = int(inside[start])
            part = self._chunks[int(chunks[start])][first : first + end - start, columns]
            out[start:end].copy_(part)
        return out

    def products(self, rows: Rows, *, known: int) -> Matrix:
        """Compute the products (n − known, n) of the rows from position `known` with all rows."""
        total = self._buffer.new_zeros((len(rows) - known, len(rows)))
        panels = [slice(at, min(at + PANEL, len(rows))) for at in range(known, len(rows), PANEL)]
        size = max(1, BLOCK // max(1, len(rows)))
        for start in range(0, self.width, size):
            block = self.view(rows, slice(start, start + size))
            for own in panels:  # what is above the diagonal is mirrored
                part = total[own.start - known : own.stop - known, : own.stop]
                part.addmm_(block[own], block[: own.stop].T)
        for own in panels:
            below = total[own.stop - known :, own]
            total[own.start - known : own.stop - known, own.stop :] = below.T
        return np.asarray(total.cpu().numpy())

    def scores(self, rows: Rows, weights: torch.Tensor) -> Matrix:
        """Compute the products (n, K) of rows with weights (K, D)."""
        scores = [x @ weights.T for x in self.blocks(rows)]
        return np.asarray(torch.cat([weights.new_empty((0, len(weights))), *scores]).cpu().numpy())

    def combine(self, rows: Rows, factors: Matrix) -> torch.Tensor:
        """Compute the sums (K, D) of rows times factors (K, n), on the pool's device."""
        left = torch.tensor(factors, device=self.device)  # a copy is aligned, for the same bits
        total = left.new_zeros((len(left), self.width))
        for x, part in zip(self.blocks(rows), left.split(self._block, dim=1), strict=False):
            total.addmm_(part, x)
        return total

    def blocks(self, rows: Rows) -> Iterator[torch.Tensor]:
        """Yield rows, block by block, like `view`."""
        for start in range(0, len(rows), self._block):
            yield self.view(rows[start : start + self._block])

    @property
    def _block(self) -> int:
        return max(1, BLOCK // self.width)  # rows

    def _by_chunk(self, rows: Rows) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Split rows by chunk: the chunk, its own rows and their positions in `rows`."""
        chunks, inside = np.divmod(rows, self._rows)
        parts = []
        for c in np.unique(chunks).tolist():
            places = np.flatnonzero(chunks == c)
            own, at = (torch.from_numpy(x).to(self.device) for x in (inside[places], places))
            parts.append((self._chunks[c], own, at))
        return parts

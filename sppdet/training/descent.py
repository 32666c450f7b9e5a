"""Coordinate descent on some examples of SVMs, by the products of these examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.compiled import compiled
from sppdet.parallel import ordered_map
from sppdet.randomness import rng
from sppdet.training.pool import Matrix, Pool, Rows
from sppdet.training_config import SvmConfig

Vector = NDArray[np.float64]


@dataclass
class Problem:
    """The examples and the duals of one class."""

    rows: Rows  # (n,) of the pool
    signs: Vector  # (n,) 1 or −1
    duals: Vector  # (n,) αᵢ / C, zero for new examples

    @classmethod
    def of(cls, positives: Rows, negatives: Rows) -> Problem:
        """Build a problem from rows, with zero duals."""
        signs = np.repeat([1.0, -1.0], [len(positives), len(negatives)])
        return cls(np.concatenate([positives, negatives]), signs, np.zeros(len(signs)))

    def add_negatives(self, rows: Rows) -> None:
        """Append negatives, with zero duals."""
        self.rows = np.concatenate([self.rows, rows])
        self.signs = np.concatenate([self.signs, np.full(len(rows), -1.0)])
        self.duals = np.concatenate([self.duals, np.zeros(len(rows))])

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Drop all examples outside the mask `kept` (n,)."""
        self.rows, self.signs, self.duals = self.rows[kept], self.signs[kept], self.duals[kept]


def limits_of(problem: Problem, config: SvmConfig) -> Vector:
    """Return the upper bounds (n,) of the duals."""
    return np.where(problem.signs > 0, config.positive_weight, 1.0)


class Gram:
    """Products of some rows of a pool with each other, including the constant feature; they only grow."""

    def __init__(self, pool: Pool, constant: float) -> None:
        self._pool, self._constant = pool, np.float32(constant)
        self.rows = np.zeros(0, dtype=np.int64)  # (m,) in the order in which they came
        self.matrix = np.zeros((0, 0), dtype=np.float32)  # (m, m)
        self._sorter = self.rows

    def extend(self, rows: Rows) -> None:
        """Add the rows that are missing; only their products are computed."""
        fresh = rows[~np.isin(rows, self.rows)]
        if len(fresh) == 0:
            return
        _, first = np.unique(fresh, return_index=True)
        old = len(self.rows)
        # in the order in which they came, which doesn't depend on where the pool stores them
        self.rows = np.concatenate([self.rows, fresh[np.sort(first)]])
        self._sorter = np.argsort(self.rows)
        stripe = self._pool.products(self.rows, known=old) + self._constant
        known, self.matrix = self.matrix, np.empty((len(self.rows),) * 2, dtype=np.float32)
        self.matrix[:old, :old] = known
        self.matrix[old:] = stripe
        self.matrix[:old, old:] = stripe[:, :old].T

    def places(self, rows: Rows) -> Rows:
        """Find rows (n,) that are there; returns their places (n,) in the matrix."""
        return self._sorter[np.searchsorted(self.rows, rows, sorter=self._sorter)]


@dataclass(frozen=True)
class Descent:
    """Arguments of a coordinate descent on some examples, with all other duals fixed."""

    gram: Matrix  # (n, n), n >= m
    places: (
        Rows | None
    )  # (m,) of the examples in `gram`; None: it has these examples alone, in order
    signs: Vector  # (m,), as all below
    limits: Vector
    duals: Vector  # changed
    scores: Vector  # changed
    passes: int  # maximum
    gap: float  # of these examples, at which to stop

    @classmethod
    def of(
        cls,
        gram: Gram,
        problem: Problem,
        at: Rows,
        scores: Vector,
        config: SvmConfig,
        *,
        passes: int,
        gap: float,
    ) -> Descent:
        """Build the descent on examples `at` (m,) of a problem from the scores (n,) of all."""
        signs, limits, duals = problem.signs[at], limits_of(problem, config)[at], problem.duals[at]
        places = gram.places(problem.rows[at])
        return cls(gram.matrix, places, signs, limits, duals, scores[at], passes, gap)


def descend_all(descents: Sequence[Descent], config: SvmConfig, *, seed: int) -> list[int]:
    """Run descents in parallel; returns the passes of each."""

    def descend(d: Descent) -> int:
        # a copy for one descent at a time, since a loop over a part of the matrix is slower
        gram = d.gram if d.places is None else d.gram[np.ix_(d.places, d.places)]
        passes: int = _descend(
            *(gram, d.signs, d.limits, config.C, d.duals, d.scores),
            rng(seed, "order of coordinates"),
            d.passes,
            d.gap,
        )
        return passes

    return list(ordered_map(descend, descents, workers=torch.get_num_threads()))


@compiled
def _descend(
    gram: Matrix,
    signs: Vector,
    limits: Vector,
    C: float,
    duals: Vector,
    scores: Vector,
    rng: np.random.Generator,
    passes: int,
    gap: float,
) -> int:
    """Run coordinate descent in random order until the gap is <= `gap`; updates duals and scores.

    Returns:
        the number of passes.
    """
    count = len(signs)
    for done in range(passes):
        current_gap = 0.0
        for i in range(count):
            slope = 1.0 - signs[i] * scores[i]
            current_gap += C * (limits[i] * max(0.0, slope) - duals[i] * slope)
        if current_gap <= gap:
            return done
        for i in rng.permutation(count):
            slope = 1.0 - signs[i] * scores[i]
            value = min(max(duals[i] + slope / (C * gram[i, i]), 0.0), limits[i])
            step = C * signs[i] * (value - duals[i])
            if step != 0.0:
                duals[i] = value
                products = gram[i]
                for j in range(count):
                    scores[j] += step * products[j]
    return passes

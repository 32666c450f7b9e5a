"""Linear SVMs of many classes at once, in the dual, to a given duality gap.

The hinge loss has the dual: minimise ½ΣΣ αᵢαⱼ yᵢyⱼ(xᵢ·xⱼ + bias²) − Σαᵢ, 0 ≤ αᵢ ≤ C·weightᵢ. Most αᵢ are
zero at the optimum. So a working set is solved by coordinate descent on its Gram matrix, where a
step costs m and not D operations; then all examples are scored, and those that violate the margin
most join the set (chunking: Vapnik 1982; Osuna, Freund & Girosi 1997). The scores of all examples
give the primal objective too, hence a bound of what is missing to the optimum.

Products and scores come from a `Pool`, exact, on its device; what follows from them is computed on
the CPU by loops of a fixed order. So the result depends neither on the device nor on the number of
threads, nor on what else is solved at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.compiled import compiled
from sppdet.config import SvmConfig
from sppdet.parallel import ordered_map
from sppdet.training.pool import Pool, Rows, round_weights

Matrix = NDArray[np.float32]
Vector = NDArray[np.float64]
FIRST = 128  # positives and negatives that the first working set has at most
MIN_GROWTH = 64  # examples that join a working set in a round at least, where there are so many
GROWTH = 0.25  # and as a share of those in it
INNER = 0.1  # a working set is solved to this share of the gap that all examples have,
LEAST_INNER = 0.3  # but not beyond this share of the gap that is asked for


@dataclass(frozen=True)
class LinearSvm:
    """score(x) = weight · x + bias, for scaled features."""

    weight: Matrix  # (D,)
    bias: float
    objective: float  # what was minimised, at the optimum found
    converged: bool = True


@dataclass
class Problem:
    """The examples of one class and the state of its solution."""

    rows: Rows  # (n,) of the pool
    signs: Vector  # (n,) 1 or −1
    duals: Vector  # (n,) αᵢ / C, zero for what is new
    working: Rows = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """(m,) positions in `rows` of the examples whose products are known."""
    gram: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))
    """(m, m) their products, the constant feature's included."""

    @classmethod
    def of(cls, positives: Rows, negatives: Rows) -> Problem:
        """A problem without a solution yet."""
        signs = np.repeat([1.0, -1.0], [len(positives), len(negatives)])
        return cls(np.concatenate([positives, negatives]), signs, np.zeros(len(signs)))

    def add_negatives(self, rows: Rows) -> None:
        """New negatives; they have no influence until the next solution."""
        self.rows = np.concatenate([self.rows, rows])
        self.signs = np.concatenate([self.signs, np.full(len(rows), -1.0)])
        self.duals = np.concatenate([self.duals, np.zeros(len(rows))])

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Drop examples (n,), and the products of all that don't support the solution."""
        places = np.cumsum(kept) - 1
        supports = kept & (self.duals > 0)
        order = np.argsort(self.working)
        order = order[supports[self.working[order]]]
        self.gram = self.gram[np.ix_(order, order)]
        self.working = places[self.working[order]]
        self.rows, self.signs, self.duals = self.rows[kept], self.signs[kept], self.duals[kept]


@dataclass(frozen=True)
class Fit:
    """A solution."""

    svm: LinearSvm
    scores: Vector  # (n,) of the problem's examples


def solve(pool: Pool, problems: Sequence[Problem], config: SvmConfig, *, seed: int) -> list[Fit]:
    """Solve problems on the rows of one pool, from the duals that they have; these are changed.

    A solution ends with a duality gap of `tolerance` × the objective or less, or after
    `max_iterations` passes over its working sets.

    Args:
        seed: of the order in which coordinates are visited.
    """
    found: dict[int, Fit] = {}
    passes = [0] * len(problems)
    for problem in problems:
        if len(problem.working) == 0:
            _extend(pool, problem, _first(problem), config)
    while len(found) < len(problems):
        open_ones = [i for i in range(len(problems)) if i not in found]
        due = []
        states = _evaluate(pool, [problems[i] for i in open_ones], config)
        for i, state in zip(open_ones, states, strict=True):
            converged = state.gap <= config.tolerance * state.objective
            if converged or passes[i] >= config.max_iterations:
                svm = LinearSvm(state.weight, state.bias, state.objective, converged)
                found[i] = Fit(svm, state.scores)
                continue
            _extend(pool, problems[i], _violators(problems[i], state.scores), config)
            due.append((i, state))

        def descend(task: tuple[int, _State]) -> tuple[int, int]:
            i, state = task
            left = config.max_iterations - passes[i]
            gap = max(LEAST_INNER * config.tolerance, INNER * state.gap / state.objective)
            return i, _descend_on(
                problems[i], state.scores, config, seed=seed, passes=left, gap=gap
            )

        for i, spent in ordered_map(descend, due, workers=torch.get_num_threads()):
            passes[i] += spent
    return [found[i] for i in range(len(problems))]


# -- one round -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _State:
    """What the duals amount to."""

    weight: Matrix
    bias: float
    scores: Vector
    objective: float
    gap: float  # ≥ objective − optimum


def _evaluate(pool: Pool, problems: Sequence[Problem], config: SvmConfig) -> list[_State]:
    """Weights by the duals, scores of all examples of all problems, objectives."""
    rows = np.unique(np.concatenate([p.rows for p in problems]))
    supports = np.unique(np.concatenate([p.rows[p.duals > 0] for p in problems]))
    factors = np.zeros((len(problems), len(supports)))
    for k, p in enumerate(problems):
        at = p.duals > 0
        factors[k, np.searchsorted(supports, p.rows[at])] = (p.duals * p.signs)[at]
    exact = config.C * pool.combine(supports, factors)
    weights = round_weights(exact)
    scores = pool.scores(rows, weights)
    states = []
    for k, p in enumerate(problems):
        value = config.C * config.bias * float((p.duals * p.signs).sum())
        bias = config.bias * value
        own = scores[np.searchsorted(rows, p.rows), k] + bias
        hinge = np.maximum(0.0, 1.0 - p.signs * own)
        norm = float(np.square(weights[k].astype(np.float64)).sum()) + value**2
        objective = 0.5 * norm + config.C * float((_limits(p, config) * hinge).sum())
        dual_norm = float(np.square(exact[k]).sum()) + value**2
        dual = config.C * float(p.duals.sum()) - 0.5 * dual_norm
        states.append(_State(weights[k], bias, own, objective, objective - dual))
    return states


def _limits(problem: Problem, config: SvmConfig) -> Vector:
    """(n,) upper bounds of the duals."""
    return np.where(problem.signs > 0, config.positive_weight, 1.0)


def _first(problem: Problem) -> Rows:
    """What supports the earlier solution; without one, positives and negatives evenly spread."""
    if problem.duals.any():
        return np.flatnonzero(problem.duals > 0)
    sides = [np.flatnonzero(problem.signs > 0), np.flatnonzero(problem.signs < 0)]
    counts = [min(len(side), FIRST) for side in sides]
    spread = [s[np.arange(c) * len(s) // c] for s, c in zip(sides, counts, strict=True)]
    return np.concatenate(spread)


def _violators(problem: Problem, scores: Vector) -> Rows:
    """Positions of examples inside the margin that the working set lacks, the worst first."""
    hinge = 1.0 - problem.signs * scores
    hinge[problem.working] = 0.0
    worst = np.argsort(-hinge, kind="stable")
    count = min(int((hinge > 0).sum()), max(MIN_GROWTH, int(GROWTH * len(problem.working))))
    return np.asarray(worst[:count])


def _extend(pool: Pool, problem: Problem, new: Rows, config: SvmConfig) -> None:
    """Let examples (positions) join the working set; only products with them are computed."""
    if len(new) == 0:
        return
    old = len(problem.working)
    problem.working = np.concatenate([problem.working, new])
    block = pool.products(problem.rows[new], problem.rows[problem.working]) + config.bias**2
    gram = np.empty((old + len(new), old + len(new)), dtype=np.float32)
    gram[:old, :old] = problem.gram
    gram[old:] = block
    gram[:old, old:] = block[:, :old].T
    problem.gram = gram


def _descend_on(
    problem: Problem, scores: Vector, config: SvmConfig, *, seed: int, passes: int, gap: float
) -> int:
    """Solve the working set; returns the passes used, `passes` if nothing can be improved."""
    at = problem.working
    before = problem.duals[at]
    duals = before.copy()
    limits = _limits(problem, config)[at]
    spent: int = _descend(
        problem.gram, problem.signs[at], limits, config.C, duals, scores[at], seed, passes, gap
    )
    problem.duals[at] = np.rint(duals * 2.0**42) / 2.0**42  # so that `combine` is exact
    return passes if np.array_equal(problem.duals[at], before) else spent


@compiled
def _descend(
    gram: Matrix,
    signs: Vector,
    limits: Vector,
    C: float,
    duals: Vector,
    scores: Vector,
    seed: int,
    passes: int,
    gap: float,
) -> int:
    """Coordinate descent in random order, until primal − dual ≤ `gap` × primal; changes duals, scores.

    Returns:
        the passes made.
    """
    np.random.seed(seed)  # noqa: NPY002 — the generator of this thread's compiled code
    count = len(signs)
    for done in range(passes):
        for i in np.random.permutation(count):  # noqa: NPY002
            slope = signs[i] * scores[i] - 1.0
            value = min(max(duals[i] - slope / (C * gram[i, i]), 0.0), limits[i])
            step = C * signs[i] * (value - duals[i])
            if step != 0.0:
                duals[i] = value
                products = gram[i]
                for j in range(count):
                    scores[j] += step * products[j]
        norm, total, loss = 0.0, 0.0, 0.0
        for i in range(count):
            margin = signs[i] * scores[i]
            norm += C * duals[i] * margin
            total += C * duals[i]
            loss += C * limits[i] * max(0.0, 1.0 - margin)
        primal = 0.5 * norm + loss
        if primal - (total - 0.5 * norm) <= gap * primal:
            return done + 1
    return passes

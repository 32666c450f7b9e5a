"""Dual solver of many linear SVMs at once, to a given duality gap.

The hinge loss has the dual: minimise ½ΣΣ αᵢαⱼ yᵢyⱼ(xᵢ·xⱼ + bias²) − Σαᵢ, 0 ≤ αᵢ ≤ C·weightᵢ. It is solved
by coordinate descent on Gram matrices, where a step costs as many operations as they have rows, and
not D. At the optimum most αᵢ are at a bound; two sweeps over blocks of examples find it for most of
them, with Gram matrices that all classes share. Then each class has a working set: the αᵢ between the
bounds and those at the wrong bound, worst first. It is solved with all other αᵢ fixed, all examples
are scored, and more of them join (decomposition: Osuna, Freund & Girosi 1997; Joachims 1999). The
scores of all examples also give the duality gap, which bounds the distance to the optimum.

The `Pool` computes products and scores in float32 on its device; the descent and sums over examples
are in float64 on the CPU. A training depends on examples and duals alone; no matrix is kept. So the same
problems, solved together in the same order, have bit-identical solutions on the same device with the
same number of threads, wherever the pool stores their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.compiled import compiled
from sppdet.parallel import ordered_map
from sppdet.randomness import rng
from sppdet.training.pool import Matrix, Pool, Rows
from sppdet.training_config import SvmConfig

Vector = NDArray[np.float64]
SWEEPS = 2  # over all examples of a problem without duals
SWEEP_ROWS = 512  # maximum number of examples per block
SWEEP_PASSES = 3  # over each block
MIN_GROWTH = 256  # examples that may join a working set per round,
GROWTH = 0.5  # or this fraction of its size if that is more
ROUND_PASSES = 50  # maximum per round: the working set may still lack examples
INNER_GAP = 0.01  # a working set is solved to this fraction of the gap over all examples,
MIN_INNER_GAP = 0.3  # but not below this fraction of the requested gap


@dataclass(frozen=True)
class LinearSvm:
    """Linear classifier score(x) = weight · x + bias, for scaled features."""

    weight: Matrix  # (D,)
    bias: float
    objective: float  # at the solution
    converged: bool = True


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


@dataclass(frozen=True)
class Fit:
    """Solution of a problem."""

    svm: LinearSvm
    scores: Vector  # (n,) of the problem's examples


def solve(pool: Pool, problems: Sequence[Problem], config: SvmConfig, *, seed: int) -> list[Fit]:
    """Solve problems on the rows of one pool, starting from their duals and updating them.

    Stops at a duality gap <= `tolerance` × the objective, or after `max_iterations` passes over the
    working sets. With scores in float32, gaps of 10⁻⁵ are reached, or of 10⁻³ if C is so large that
    hardly any example is inside the margin.

    Args:
        seed: seed of the order in which coordinates are visited.
    """
    fits: dict[int, Fit] = {}
    best: list[_State | None] = [None] * len(problems)
    left = [config.max_iterations] * len(problems)  # passes
    working = [_WorkingSet() for _ in problems]
    cold = [p for p in problems if not p.duals.any()]
    if cold:
        _sweep(pool, cold, config, seed=seed)
    while len(fits) < len(problems):
        unsolved = [i for i in range(len(problems)) if i not in fits]
        active, descents = [], []
        states = _evaluate(pool, [problems[i] for i in unsolved], config)
        for i, state in zip(unsolved, states, strict=True):
            converged = state.gap <= config.tolerance * state.objective
            lowest = best[i]
            if lowest is None or state.objective < lowest.objective:
                best[i] = lowest = state
            if converged or left[i] == 0:
                final = state if converged else lowest
                weight = np.asarray(final.weight.cpu().numpy())
                fits[i] = Fit(
                    LinearSvm(weight, final.bias, final.objective, converged), final.scores
                )
                working[i] = _WorkingSet()  # frees the memory
                continue
            new = _joining(problems[i], working[i], state.scores, config)
            working[i].extend(pool, problems[i], new, config)
            gap = max(MIN_INNER_GAP * config.tolerance * state.objective, INNER_GAP * state.gap)
            passes = min(left[i], ROUND_PASSES)
            descents.append(working[i].descent(problems[i], state.scores, config, passes, gap))
            active.append(i)
        spent = _descend_all(descents, config, seed=seed)
        for i, descent, passes in zip(active, descents, spent, strict=True):
            problems[i].duals[working[i].at] = descent.duals
            left[i] -= passes
    return [fits[i] for i in range(len(problems))]


def _sweep(pool: Pool, problems: Sequence[Problem], config: SvmConfig, *, seed: int) -> None:
    """Initialise the duals of problems block by block, given the duals of the previous blocks."""
    rows, places = _union([p.rows for p in problems])
    signs = np.ones((len(problems), len(rows)))
    limits = np.zeros(signs.shape)  # 0 for rows that the problem lacks
    duals = np.zeros(signs.shape)
    for k, p in enumerate(problems):
        signs[k, places[k]] = p.signs
        limits[k, places[k]] = _limits(p, config)
    count = -(-len(rows) // SWEEP_ROWS)
    blocks = [np.arange(b, len(rows), count) for b in range(count)]  # interleaved: mixed classes
    grams = [pool.products(rows[at], known=0) + np.float32(config.bias**2) for at in blocks]
    weights = torch.zeros((len(problems), pool.width), device=pool.device)
    values = np.zeros((len(problems), 1))  # weight of the constant feature
    for at, gram in [*zip(blocks, grams, strict=True)] * SWEEPS:
        features = pool.view(rows[at])
        scores = (weights @ features.T).cpu().numpy() + config.bias * values
        descents = [
            _Descent(gram, signs[k, at], limits[k, at], duals[k, at], scores[k], SWEEP_PASSES, 0.0)
            for k in range(len(problems))
        ]
        _descend_all(descents, config, seed=seed)
        after = np.stack([d.duals for d in descents])
        change = config.C * signs[:, at] * (after - duals[:, at])
        weights.addmm_(torch.from_numpy(change).to(weights), features)
        values += config.bias * change.sum(axis=1, keepdims=True)
        duals[:, at] = after
    for k, p in enumerate(problems):
        p.duals = duals[k, places[k]]


# -- one round -------------------------------------------------------------------------------------


@dataclass
class _WorkingSet:
    """Working set of a problem, with its Gram matrix."""

    at: Rows = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """(m,) positions in the problem's `rows`."""
    gram: Matrix = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))
    """(m, m) products, including the constant feature."""

    def extend(self, pool: Pool, problem: Problem, new: Rows, config: SvmConfig) -> None:
        """Add examples (positions); only their products are computed."""
        if len(new) == 0:
            return
        old = len(self.at)
        self.at = np.concatenate([self.at, new])
        stripe = pool.products(problem.rows[self.at], known=old) + np.float32(config.bias**2)
        known, self.gram = self.gram, np.empty((len(self.at), len(self.at)), dtype=np.float32)
        self.gram[:old, :old] = known
        self.gram[old:] = stripe
        self.gram[:old, old:] = stripe[:, :old].T

    def descent(
        self, problem: Problem, scores: Vector, config: SvmConfig, passes: int, gap: float
    ) -> _Descent:
        """Build the descent on this set from the scores (n,) of all examples."""
        signs, limits = problem.signs[self.at], _limits(problem, config)[self.at]
        duals = problem.duals[self.at]
        return _Descent(self.gram, signs, limits, duals, scores[self.at], passes, gap)


@dataclass(frozen=True)
class _State:
    """Weights, scores and duality gap of a problem's duals."""

    weight: torch.Tensor  # (D,)
    bias: float
    scores: Vector
    objective: float
    gap: float  # ≥ objective − optimum


def _evaluate(pool: Pool, problems: Sequence[Problem], config: SvmConfig) -> list[_State]:
    """Compute the weights, scores, objectives and gaps of problems from their duals."""
    supporting = [np.flatnonzero(p.duals) for p in problems]
    supports, places = _union([p.rows[at] for p, at in zip(problems, supporting, strict=True)])
    factors = np.zeros((len(problems), len(supports)), dtype=np.float32)
    for k, (p, at) in enumerate(zip(problems, supporting, strict=True)):
        factors[k, places[k]] = config.C * (p.duals * p.signs)[at]
    weights = pool.combine(supports, factors)
    norms = weights.double().square().sum(dim=1).tolist()
    rows, places = _union([p.rows for p in problems])
    scores = pool.scores(rows, weights)
    states = []
    for k, p in enumerate(problems):
        value = config.C * config.bias * float(p.duals @ p.signs)
        # float64, since the descent adds thousands of small changes
        own = scores[places[k], k].astype(np.float64) + config.bias * value
        margins = p.signs * own
        losses = _limits(p, config) * np.maximum(0.0, 1.0 - margins)
        objective = 0.5 * (norms[k] + value**2) + config.C * float(losses.sum())
        gap = config.C * float((losses - p.duals * (1.0 - margins)).sum())
        states.append(_State(weights[k], config.bias * value, own, objective, gap))
    return states


def _union(parts: Sequence[Rows]) -> tuple[Rows, list[Rows]]:
    """Find the distinct rows, in order of first occurrence, and the places of each part in them."""
    joined = np.concatenate(parts)
    _, first, which = np.unique(joined, return_index=True, return_inverse=True)
    places = np.argsort(np.argsort(first))[which]
    return joined[np.sort(first)], np.split(places, np.cumsum([len(p) for p in parts[:-1]]))


def _limits(problem: Problem, config: SvmConfig) -> Vector:
    """Return the upper bounds (n,) of the duals."""
    return np.where(problem.signs > 0, config.positive_weight, 1.0)


def _joining(problem: Problem, working: _WorkingSet, scores: Vector, config: SvmConfig) -> Rows:
    """Choose examples to join the working set; returns their positions, ascending.

    The worst ones at the wrong bound and, in the first round, all between their bounds.
    """
    slopes = 1.0 - problem.signs * scores  # a dual should grow if > 0
    below, above = problem.duals < _limits(problem, config), problem.duals > 0
    between = np.flatnonzero(below & above) if len(working.at) == 0 else working.at[:0]
    wrong = np.maximum(np.where(below, slopes, 0.0), np.where(above, -slopes, 0.0))
    wrong[working.at] = 0.0
    wrong[between] = 0.0
    worst = np.argsort(-wrong, kind="stable")
    limit = max(MIN_GROWTH, int(GROWTH * (len(working.at) + len(between))))
    chosen = worst[: min(int((wrong > 0).sum()), limit)]
    return np.sort(np.concatenate([between, chosen]))  # an order independent of rounding


# -- descent on a Gram matrix ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Descent:
    """Arguments of a coordinate descent on some examples, with all other duals fixed."""

    gram: Matrix  # (m, m)
    signs: Vector  # (m,), as all below
    limits: Vector
    duals: Vector  # changed
    scores: Vector  # changed
    passes: int  # maximum
    gap: float  # of these examples, at which to stop


def _descend_all(descents: Sequence[_Descent], config: SvmConfig, *, seed: int) -> list[int]:
    """Run descents in parallel; returns the passes of each."""

    def descend(d: _Descent) -> int:
        passes: int = _descend(
            *(d.gram, d.signs, d.limits, config.C, d.duals, d.scores),
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

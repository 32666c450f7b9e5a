"""Linear SVMs of many classes at once, in the dual, to a given duality gap.

The hinge loss has the dual: minimise ½ΣΣ αᵢαⱼ yᵢyⱼ(xᵢ·xⱼ + bias²) − Σαᵢ, 0 ≤ αᵢ ≤ C·weightᵢ. It is solved
by coordinate descent on Gram matrices, where a step costs as many operations as they have rows, and
not D. At the optimum most αᵢ are at a bound, which two sweeps over blocks of examples find for most of
them; the blocks' matrices serve all classes. Then each class has a working set: what is between the
bounds, and the examples that are at the wrong bound, the worst first. It is solved while all other αᵢ
rest, all examples are scored, and more of them join (decomposition: Osuna, Freund & Girosi 1997;
Joachims 1999). The scores of all examples give the duality gap too, which bounds what is missing to
the optimum.

Products and scores are a `Pool`'s, in float32 on its device; the descent and sums over examples are in
float64 on the CPU. A training starts from examples and duals alone: no matrix outlives it. So the same
problems, solved together in the same order, have the same solutions to the bit on the same device with
as many threads, wherever the pool keeps their rows.
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
from sppdet.randomness import rng
from sppdet.training.pool import Matrix, Pool, Rows

Vector = NDArray[np.float64]
SWEEPS = 2  # over all examples, of a problem without duals
SWEEP_ROWS = 512  # examples a block has at most
SWEEP_PASSES = 3  # over each block
MIN_GROWTH = 256  # examples that join a working set in a round at least, where there are so many
GROWTH = 0.5  # and as a share of those in it
INNER = 0.01  # a working set is solved to this share of the gap that all examples have,
ROUND_PASSES = 50  # over a working set in a round: it may lack what matters
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
    """The examples of one class and its solution."""

    rows: Rows  # (n,) of the pool
    signs: Vector  # (n,) 1 or −1
    duals: Vector  # (n,) αᵢ / C, zero for what is new

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
        """Drop the other examples (n,)."""
        self.rows, self.signs, self.duals = self.rows[kept], self.signs[kept], self.duals[kept]


@dataclass(frozen=True)
class Fit:
    """A solution."""

    svm: LinearSvm
    scores: Vector  # (n,) of the problem's examples


def solve(pool: Pool, problems: Sequence[Problem], config: SvmConfig, *, seed: int) -> list[Fit]:
    """Solve problems on the rows of one pool, from the duals that they have; these are changed.

    A solution ends with a duality gap of `tolerance` × the objective or less, or after
    `max_iterations` passes over its working sets. With the scores in float32, gaps of 10⁻⁵ are
    reached, or of 10⁻³ where C is so large that hardly any example is inside the margin.

    Args:
        seed: of the order in which coordinates are visited.
    """
    found: dict[int, Fit] = {}
    best: list[_State | None] = [None] * len(problems)
    left = [config.max_iterations] * len(problems)  # passes
    working = [_WorkingSet() for _ in problems]
    cold = [p for p in problems if not p.duals.any()]
    if cold:
        _sweep(pool, cold, config, seed=seed)
    while len(found) < len(problems):
        open_ones = [i for i in range(len(problems)) if i not in found]
        due, descents = [], []
        states = _evaluate(pool, [problems[i] for i in open_ones], config)
        for i, state in zip(open_ones, states, strict=True):
            converged = state.gap <= config.tolerance * state.objective
            least = best[i]
            if least is None or state.objective < least.objective:
                best[i] = least = state
            if converged or left[i] == 0:
                found[i] = _fit_of(state if converged else least, converged=converged)
                working[i] = _WorkingSet()  # its memory is given back
                continue
            new = _joining(problems[i], working[i], state.scores, config)
            working[i].extend(pool, problems[i], new, config)
            gap = max(LEAST_INNER * config.tolerance * state.objective, INNER * state.gap)
            passes = min(left[i], ROUND_PASSES)
            descents.append(working[i].descent(problems[i], state.scores, config, passes, gap))
            due.append(i)
        spent = _descend_all(descents, config, seed=seed)
        for i, descent, passes in zip(due, descents, spent, strict=True):
            problems[i].duals[working[i].at] = descent.duals
            left[i] -= passes
    return [found[i] for i in range(len(problems))]


def _sweep(pool: Pool, problems: Sequence[Problem], config: SvmConfig, *, seed: int) -> None:
    """First duals of problems: block after block, by the scores that the blocks before amount to."""
    rows, places = _union([p.rows for p in problems])
    signs = np.ones((len(problems), len(rows)))
    limits = np.zeros(signs.shape)  # 0: not an example of the problem
    duals = np.zeros(signs.shape)
    for k, p in enumerate(problems):
        signs[k, places[k]] = p.signs
        limits[k, places[k]] = _limits(p, config)
    count = -(-len(rows) // SWEEP_ROWS)
    blocks = [np.arange(b, len(rows), count) for b in range(count)]  # each has some of every kind
    grams = [pool.products(rows[at], known=0) + np.float32(config.bias**2) for at in blocks]
    weights = torch.zeros((len(problems), pool.width), device=pool.device)
    values = np.zeros((len(problems), 1))  # weights of the constant feature
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
    """The examples of a problem whose products are known."""

    at: Rows = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """(m,) positions in the problem's `rows`."""
    gram: Matrix = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))
    """(m, m) products, the constant feature's included."""

    def extend(self, pool: Pool, problem: Problem, new: Rows, config: SvmConfig) -> None:
        """Let examples (positions) join; only products with them are computed."""
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
        """Set up coordinate descent from the scores (n,) of all examples."""
        signs, limits = problem.signs[self.at], _limits(problem, config)[self.at]
        duals = problem.duals[self.at]
        return _Descent(self.gram, signs, limits, duals, scores[self.at], passes, gap)


@dataclass(frozen=True)
class _State:
    """The primal solution that belongs to the duals."""

    weight: torch.Tensor  # (D,)
    bias: float
    scores: Vector
    objective: float
    gap: float  # ≥ objective − optimum


def _fit_of(state: _State, *, converged: bool) -> Fit:
    weight = np.asarray(state.weight.cpu().numpy())
    return Fit(LinearSvm(weight, state.bias, state.objective, converged), state.scores)


def _evaluate(pool: Pool, problems: Sequence[Problem], config: SvmConfig) -> list[_State]:
    """Weights by the duals, scores of all examples of all problems, objectives."""
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
        # in float64: the descent adds thousands of small changes to these
        own = scores[places[k], k].astype(np.float64) + config.bias * value
        margins = p.signs * own
        losses = _limits(p, config) * np.maximum(0.0, 1.0 - margins)
        objective = 0.5 * (norms[k] + value**2) + config.C * float(losses.sum())
        gap = config.C * float((losses - p.duals * (1.0 - margins)).sum())
        states.append(_State(weights[k], config.bias * value, own, objective, gap))
    return states


def _union(parts: Sequence[Rows]) -> tuple[Rows, list[Rows]]:
    """The distinct rows in the order of their first mention, and where each part's are in them."""
    joined = np.concatenate(parts)
    _, first, which = np.unique(joined, return_index=True, return_inverse=True)
    places = np.argsort(np.argsort(first))[which]
    return joined[np.sort(first)], np.split(places, np.cumsum([len(p) for p in parts[:-1]]))


def _limits(problem: Problem, config: SvmConfig) -> Vector:
    """(n,) upper bounds of the duals."""
    return np.where(problem.signs > 0, config.positive_weight, 1.0)


def _joining(problem: Problem, working: _WorkingSet, scores: Vector, config: SvmConfig) -> Rows:
    """Ascending positions of examples that the working set lacks: at first those between their
    bounds, and always some at the wrong bound, the worst."""
    slopes = 1.0 - problem.signs * scores  # a dual should grow where > 0
    below, above = problem.duals < _limits(problem, config), problem.duals > 0
    between = np.flatnonzero(below & above) if len(working.at) == 0 else working.at[:0]
    wrong = np.maximum(np.where(below, slopes, 0.0), np.where(above, -slopes, 0.0))
    wrong[working.at] = 0.0
    wrong[between] = 0.0
    worst = np.argsort(-wrong, kind="stable")
    most = max(MIN_GROWTH, int(GROWTH * (len(working.at) + len(between))))
    chosen = worst[: min(int((wrong > 0).sum()), most)]
    return np.sort(np.concatenate([between, chosen]))  # an order that no rounding changes


# -- descent on a Gram matrix ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Descent:
    """Examples whose duals are to be solved while all others rest."""

    gram: Matrix  # (m, m)
    signs: Vector  # (m,), as all below
    limits: Vector
    duals: Vector  # changed
    scores: Vector  # changed
    passes: int  # at most
    gap: float  # to stop at, what these examples add to it


def _descend_all(descents: Sequence[_Descent], config: SvmConfig, *, seed: int) -> list[int]:
    """Solve them side by side; returns the passes that each took."""

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
    """Coordinate descent in random order, until the gap is ≤ `gap`; changes duals and scores.

    Returns:
        the passes made.
    """
    count = len(signs)
    for done in range(passes):
        missing = 0.0
        for i in range(count):
            slope = 1.0 - signs[i] * scores[i]
            missing += C * (limits[i] * max(0.0, slope) - duals[i] * slope)
        if missing <= gap:
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

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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sppdet.training.descent import Descent, Gram, Problem, Vector, descend_all, limits_of
from sppdet.training.pool import Matrix, Pool, Rows
from sppdet.training_config import SvmConfig

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


@dataclass(frozen=True)
class Fit:
    """Solution of a problem."""

    svm: LinearSvm
    scores: Vector  # (n,) of the problem's examples


def solve(
    pool: Pool,
    problems: Sequence[Problem],
    config: SvmConfig,
    *,
    seed: int,
    alike: Sequence[int] | None = None,
) -> list[Fit]:
    """Solve problems on the rows of one pool, starting from their duals and updating them.

    Stops at a duality gap <= `tolerance` × the objective, or after `max_iterations` passes over the
    working sets. With scores in float32, gaps of 10⁻⁵ are reached, or of 10⁻³ if C is so large that
    hardly any example is inside the margin.

    Args:
        seed: seed of the order in which coordinates are visited.
        alike: a number for each problem; those with the same one, whose solutions differ little, share
            their products. By default each problem has its own. Where it is less work, all share them.
    """
    fits: dict[int, Fit] = {}
    best: list[_State | None] = [None] * len(problems)
    left = [config.max_iterations] * len(problems)  # passes
    working = [np.zeros(0, dtype=np.int64) for _ in problems]  # positions in the problem's rows
    group = list(range(len(problems)) if alike is None else alike)
    grams: dict[int, Gram] = {}
    cold = [p for p in problems if not p.duals.any()]
    if cold:
        _sweep(pool, cold, config, seed=seed)
    while len(fits) < len(problems):
        unsolved = [i for i in range(len(problems)) if i not in fits]
        active: list[int] = []
        targets: dict[int, tuple[Vector, float]] = {}  # scores, and the gap to stop at
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
                best[i] = None  # frees the memory
                continue
            new = _joining(problems[i], working[i], state.scores, config)
            working[i] = np.concatenate([working[i], new])
            gap = max(MIN_INNER_GAP * config.tolerance * state.objective, INNER_GAP * state.gap)
            targets[i] = state.scores, gap
            active.append(i)
        rows = {i: problems[i].rows[working[i]] for i in active}
        if not grams and _overlap(rows, group):
            group = [0] * len(problems)
        grams = {
            g: grams[g] if g in grams else Gram(pool, config.bias**2)
            for g in sorted({group[i] for i in active})
        }
        for g, gram in grams.items():
            gram.extend(np.concatenate([rows[i] for i in active if group[i] == g]))
        descents = [
            Descent.of(
                *(grams[group[i]], problems[i], working[i], targets[i][0], config),
                passes=min(left[i], ROUND_PASSES),
                gap=targets[i][1],
            )
            for i in active
        ]
        spent = descend_all(descents, config, seed=seed)
        for i, descent, passes in zip(active, descents, spent, strict=True):
            problems[i].duals[working[i]] = descent.duals
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
        limits[k, places[k]] = limits_of(p, config)
    count = -(-len(rows) // SWEEP_ROWS)
    blocks = [np.arange(b, len(rows), count) for b in range(count)]  # interleaved: mixed classes
    grams = [pool.products(rows[at], known=0) + np.float32(config.bias**2) for at in blocks]
    weights = torch.zeros((len(problems), pool.width), device=pool.device)
    values = np.zeros((len(problems), 1))  # weight of the constant feature
    for at, gram in [*zip(blocks, grams, strict=True)] * SWEEPS:
        features = pool.view(rows[at])
        scores = (weights @ features.T).cpu().numpy() + config.bias * values
        descents = [
            Descent(
                gram, None, signs[k, at], limits[k, at], duals[k, at], scores[k], SWEEP_PASSES, 0.0
            )
            for k in range(len(problems))
        ]
        descend_all(descents, config, seed=seed)
        after = np.stack([d.duals for d in descents])
        change = config.C * signs[:, at] * (after - duals[:, at])
        weights.addmm_(torch.from_numpy(change).to(weights), features)
        values += config.bias * change.sum(axis=1, keepdims=True)
        duals[:, at] = after
    for k, p in enumerate(problems):
        p.duals = duals[k, places[k]]


# -- one round -------------------------------------------------------------------------------------


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
        losses = limits_of(p, config) * np.maximum(0.0, 1.0 - margins)
        objective = 0.5 * (norms[k] + value**2) + config.C * float(losses.sum())
        gap = config.C * float((losses - p.duals * (1.0 - margins)).sum())
        states.append(_State(weights[k], config.bias * value, own, objective, gap))
    return states


def _overlap(rows: Mapping[int, Rows], group: Sequence[int]) -> bool:
    """Check whether the products of all rows are fewer than those of every group's rows."""
    own: dict[int, list[Rows]] = {}
    for i, part in rows.items():
        own.setdefault(group[i], []).append(part)
    counts = [len(np.unique(np.concatenate(parts))) for parts in own.values()]
    together = len(np.unique(np.concatenate([*rows.values()]))) if rows else 0
    return together**2 < sum(count**2 for count in counts)


def _union(parts: Sequence[Rows]) -> tuple[Rows, list[Rows]]:
    """Find the distinct rows, in order of first occurrence, and the places of each part in them."""
    joined = np.concatenate(parts)
    _, first, which = np.unique(joined, return_index=True, return_inverse=True)
    places = np.argsort(np.argsort(first))[which]
    return joined[np.sort(first)], np.split(places, np.cumsum([len(p) for p in parts[:-1]]))


def _joining(problem: Problem, working: Rows, scores: Vector, config: SvmConfig) -> Rows:
    """Choose examples to join the working set; returns their positions, ascending.

    The worst ones at the wrong bound and, in the first round, all between their bounds.
    """
    slopes = 1.0 - problem.signs * scores  # a dual should grow if > 0
    below, above = problem.duals < limits_of(problem, config), problem.duals > 0
    between = np.flatnonzero(below & above) if len(working) == 0 else working[:0]
    wrong = np.maximum(np.where(below, slopes, 0.0), np.where(above, -slopes, 0.0))
    wrong[working] = 0.0
    wrong[between] = 0.0
    worst = np.argsort(-wrong, kind="stable")
    limit = max(MIN_GROWTH, int(GROWTH * (len(working) + len(between))))
    chosen = worst[: min(int((wrong > 0).sum()), limit)]
    return np.sort(np.concatenate([between, chosen]))  # an order independent of rounding

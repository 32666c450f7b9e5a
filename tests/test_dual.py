"""The dual solver against a slow loop and liblinear; its pool of examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sppdet.training import dual, pool
from sppdet.training.descent import Gram, Problem
from sppdet.training.dual import Fit, solve
from sppdet.training.liblinear import fit_by_liblinear, svm_objective
from sppdet.training.pool import Matrix, Pool, Rows
from sppdet.training.svm import fit_svm
from sppdet.training_config import SvmConfig

pytestmark = pytest.mark.usefixtures("two_threads")

CPU = torch.device("cpu")
TIGHT = SvmConfig(C=0.05, tolerance=1e-6, max_iterations=100_000)
Vector = NDArray[np.float64]


def cloud(seed: int, positives: int, negatives: int, width: int, apart: float) -> list[Matrix]:
    rng = np.random.default_rng(seed)
    sides = [(positives, apart), (negatives, -apart / 3)]
    return [rng.normal(mean, 1, (n, width)).astype(np.float32) for n, mean in sides]


def with_duplicates() -> list[Matrix]:
    p, n = cloud(4, 12, 30, 5, 0.5)
    return [np.concatenate([p, p[:5], n[:3]]), np.concatenate([n, n, p[:4]])]


def with_zeros() -> list[Matrix]:
    p, n = cloud(5, 10, 40, 6, 0.5)
    return [np.concatenate([p, np.zeros((3, 6), np.float32)]), np.maximum(n - 1, 0)]


def sparse() -> list[Matrix]:
    p, n = cloud(6, 150, 900, 40, 0.3)
    return [np.maximum(p - 0.5, 0) * 2, np.maximum(n - 0.5, 0) * 2]


SETS: dict[str, Callable[[], list[Matrix]]] = {
    "two examples": lambda: cloud(0, 1, 1, 3, 0.5),
    "one positive": lambda: cloud(1, 1, 50, 4, 0.5),
    "separable, wide": lambda: cloud(2, 20, 60, 300, 0.4),
    "overlapping, narrow": lambda: cloud(3, 60, 300, 2, 0.3),
    "duplicates": with_duplicates,
    "zeros": with_zeros,
    "sparse": sparse,
}


def problem_of(p: Matrix, n: Matrix) -> tuple[Pool, Problem]:
    """Both sides in a pool of their own."""
    held = Pool(p.shape[1], device=CPU)
    rows = held.add(
        torch.from_numpy(np.concatenate([p, n])), [(0, i) for i in range(len(p) + len(n))]
    )
    return held, Problem.of(rows[: len(p)], rows[len(p) :])


def solved(p: Matrix, n: Matrix, config: SvmConfig) -> tuple[Pool, Problem, Fit]:
    held, problem = problem_of(p, n)
    return held, problem, solve(held, [problem], config, seed=0)[0]


def slow_dual(p: Matrix, n: Matrix, config: SvmConfig) -> tuple[Vector, float]:
    """w and the objective by coordinate descent on the whole dual, until nothing moves."""
    x = np.concatenate([p, n]).astype(np.float64)
    y = np.repeat([1.0, -1.0], [len(p), len(n)])
    q = y[:, None] * y * (x @ x.T + config.bias**2)
    limit = config.C * np.where(y > 0, config.positive_weight, 1.0)
    a, rng = np.zeros(len(y)), np.random.default_rng(0)
    for _ in range(20_000):
        before = a.copy()
        for i in rng.permutation(len(y)):
            a[i] = min(max(a[i] - (q[i] @ a - 1) / q[i, i], 0), limit[i])
        if np.abs(a - before).max() <= 1e-10 * config.C:
            break
    hinge = np.maximum(0, 1 - q @ a)
    return (a * y) @ x, float(0.5 * a @ q @ a + limit @ hinge)


@pytest.mark.parametrize("name", [n for n in SETS if n != "sparse"])
@pytest.mark.parametrize("C", [1e-3, 0.05, 1.0])
def test_against_a_slow_loop(name: str, C: float) -> None:
    p, n = SETS[name]()
    tolerance = 1e-3 if C == 1 else 1e-5  # float32: the hinges' last bits count C-fold
    config = TIGHT.model_copy(update={"C": C, "tolerance": tolerance})
    weight, objective = slow_dual(p, n, config)
    svm = fit_svm(p, n, config, seed=0)
    assert svm.converged
    assert svm.objective == pytest.approx(objective, rel=2 * tolerance)
    # ½‖w − w*‖² ≤ objective − optimum, because of the norm in it
    assert 0.5 * np.square(svm.weight - weight).sum() <= 3 * tolerance * objective


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("changes", [{}, {"C": 1e-3}, {"positive_weight": 7.0, "bias": 1.0}])
def test_against_liblinear(name: str, changes: dict[str, float]) -> None:
    p, n = SETS[name]()
    config = TIGHT.model_copy(update={"tolerance": 1e-5, **changes})
    reference = fit_by_liblinear(p, n, config, seed=0)
    svm = fit_svm(p, n, config, seed=0)
    assert reference.converged and svm.converged
    assert svm.objective == pytest.approx(reference.objective, rel=1e-3)
    assert svm.objective <= reference.objective * (1 + 2e-5)
    assert svm.objective == pytest.approx(
        svm_objective(svm.weight, svm.bias, p, n, config), rel=1e-5
    )
    # ½‖w − w*‖² ≤ objective − optimum holds for both
    apart = np.square(svm.weight - reference.weight).sum()
    optimum = svm.objective * (1 - 1e-5)
    missing = [svm.objective - optimum, max(reference.objective - optimum, 0)]
    assert apart <= 2 * sum(m**0.5 for m in missing) ** 2 + 1e-9
    # the settings of a run: the duality gap is ≤ 0.1 %
    quick = fit_svm(p, n, SvmConfig().model_copy(update=changes), seed=0)
    best = fit_by_liblinear(p, n, config.model_copy(update={"C": 1e-3, **changes}), seed=0)
    assert quick.objective <= best.objective * (1 + 1e-3)


@pytest.mark.parametrize("name", SETS)
def test_optimality_by_hand(name: str) -> None:
    p, n = SETS[name]()
    held, problem, fit = solved(p, n, TIGHT.model_copy(update={"tolerance": 1e-5}))
    assert fit.svm.converged
    x = held.features(problem.rows).double().numpy()
    a, y = TIGHT.C * problem.duals, problem.signs
    limit = TIGHT.C * np.where(y > 0, 2.0, 1.0)
    assert (a >= 0).all() and (a <= limit).all()
    assert fit.svm.weight == pytest.approx((a * y) @ x, abs=1e-5)
    assert fit.svm.bias == pytest.approx(100 * float(a @ y), abs=1e-5)
    assert fit.scores == pytest.approx(x @ fit.svm.weight + fit.svm.bias, abs=1e-5)
    margins = y * fit.scores
    assert (margins[a == 0] > 1 - 0.01).all()
    assert (margins[a == limit] < 1 + 0.01).all()
    assert margins[(a > 0) & (a < limit)] == pytest.approx(1, abs=0.01)
    norm = np.square((a * y) @ x).sum() + 100 * float(a @ y) ** 2
    primal = 0.5 * norm + limit @ np.maximum(0, 1 - margins)
    assert primal == pytest.approx(fit.svm.objective, rel=1e-6)
    assert primal - (a.sum() - 0.5 * norm) <= 1e-4 * primal


def test_a_warm_start_ends_where_a_cold_one_does() -> None:
    p, n = sparse()
    held, problem = problem_of(p, n)
    warm = Problem.of(problem.rows[:150], problem.rows[150:600])
    solve(held, [warm], TIGHT, seed=0)
    warm.keep(np.arange(600) % 7 > 0)  # supports among them
    assert 0 < np.count_nonzero(warm.duals) < len(warm.rows) == 514
    gone = np.flatnonzero(np.arange(600) % 7 == 0)
    assert (gone >= 150).any()
    warm.rows = np.concatenate([warm.rows, problem.rows[gone[gone < 150]]])
    warm.signs = np.concatenate([warm.signs, np.ones((gone < 150).sum())])
    warm.duals = np.concatenate([warm.duals, np.zeros((gone < 150).sum())])
    warm.add_negatives(problem.rows[gone[gone >= 150]])
    warm.add_negatives(problem.rows[600:])
    (late,) = solve(held, [warm], TIGHT, seed=0)
    (cold,) = solve(held, [problem], TIGHT, seed=1)
    assert late.svm.objective == pytest.approx(cold.svm.objective, rel=3e-6)
    assert late.svm.weight == pytest.approx(cold.svm.weight, abs=3e-3)
    # and what is solved already takes no step
    duals = warm.duals.copy()
    (again,) = solve(held, [warm], TIGHT, seed=5)
    assert np.array_equal(warm.duals, duals)
    assert np.array_equal(again.svm.weight, late.svm.weight)


def test_what_is_at_a_bound_has_no_products(monkeypatch: pytest.MonkeyPatch) -> None:
    p, n = sparse()
    asked: list[int] = []
    products = Pool.products

    def counted(held: Pool, rows: Rows, *, known: int) -> Matrix:
        asked.append(len(rows))
        return products(held, rows, known=known)

    monkeypatch.setattr(Pool, "products", counted)
    held, problem, fit = solved(p, n, SvmConfig())
    assert fit.svm.converged
    blocks, grown = asked[:3], asked[3:]
    assert blocks == [350] * 3  # 1,050 examples
    assert 0 < grown[-1] < np.count_nonzero(problem.duals) < len(problem.rows)
    del asked[:]
    solve(held, [problem], SvmConfig(tolerance=1e-5), seed=0)  # warm: no blocks
    assert asked and max(asked) < np.count_nonzero(problem.duals)


def test_a_gram_matrix_that_grows() -> None:
    p, n = sparse()
    held, problem = problem_of(p, n)
    gram = Gram(held, 100.0)
    order = np.random.default_rng(0).permutation(len(problem.rows))[:400]
    parts = [order[:150], order[150:150], order[149:151], np.repeat(order[140:], 2), order[:9]]
    for part in parts:  # some are there already, or come twice
        gram.extend(problem.rows[part])
    assert np.array_equal(gram.rows, problem.rows[order])
    x = np.concatenate([p, n])[order].astype(np.float64)
    assert gram.matrix == pytest.approx(x @ x.T + 100, rel=1e-5)
    assert np.array_equal(gram.matrix, gram.matrix.T)
    assert gram.places(problem.rows[order[[7, 399, 0]]]).tolist() == [7, 399, 0]


def test_the_sum_of_the_gaps_is_that_of_primal_and_dual() -> None:
    p, n = sparse()
    held, problem = problem_of(p, n)
    limits = np.where(problem.signs > 0, TIGHT.positive_weight, 1.0)
    problem.duals = limits * np.random.default_rng(0).random(len(limits))
    (state,) = dual._evaluate(held, [problem], TIGHT)
    x = np.concatenate([p, n]).astype(np.float64)
    a = TIGHT.C * problem.duals * problem.signs
    norm = np.square(a @ x).sum() + 100 * a.sum() ** 2
    margins = problem.signs * (x @ (a @ x) + 100 * a.sum())
    primal = 0.5 * norm + TIGHT.C * limits @ np.maximum(0, 1 - margins)
    assert state.objective == pytest.approx(primal, rel=1e-5)
    assert state.gap == pytest.approx(primal - (TIGHT.C * problem.duals.sum() - norm / 2), rel=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits_wherever_the_pool_keeps_the_rows(threads: int) -> None:
    rng = np.random.default_rng(8)
    x = (np.maximum(rng.normal(-0.4, 1, (700, 900)), 0) * 1.2).astype(np.float32)
    signs = rng.random((4, 700)) < 0.2

    def solutions(*, moved: bool) -> list[tuple[bytes, float, bytes]]:
        held = Pool(900, device=CPU)
        before = held.add(torch.rand(90, 900), [(1, i) for i in range(90)])
        if moved:
            held.keep(before[::3])
        rows = held.add(torch.from_numpy(x), [(0, i) for i in range(700)])
        problems = [Problem.of(rows[s][:60], rows[~s][:350]) for s in signs]
        solve(held, problems, config, seed=3)
        for q, s in zip(problems, signs, strict=True):
            q.keep(np.arange(410) % 5 > 0)
            q.add_negatives(rows[~s][350:])
        if moved:  # as after an interruption: only features, references and duals were kept
            held = Pool(900, device=CPU)
            order = rng.permutation(700)
            rows_of = np.zeros(2 * len(x), dtype=np.int64)
            rows_of[rows[order]] = held.add(torch.from_numpy(x[order]), [(0, i) for i in order])
            problems = [Problem(rows_of[q.rows], q.signs, q.duals) for q in problems]
        fits = solve(held, problems, config, seed=3)
        return [
            (fit.svm.weight.tobytes(), fit.svm.bias, q.duals.tobytes())
            for fit, q in zip(fits, problems, strict=True)
        ]

    config = SvmConfig(C=1e-2)
    torch.set_num_threads(threads)
    first = solutions(moved=False)
    assert solutions(moved=False) == first
    assert solutions(moved=True) == first


@pytest.mark.parametrize("alike", [None, [7, 7, 7], [1, 0, 1]])
def test_problems_solved_together_are_those_solved_alone(alike: list[int] | None) -> None:
    x = np.concatenate(sparse())
    held = Pool(x.shape[1], device=CPU)
    rows = held.add(torch.from_numpy(x), [(0, i) for i in range(len(x))])
    sides = np.random.default_rng(0).random((3, len(x))) < 0.1
    limits = [slice(None), slice(100, 900), slice(1000, None)]  # of different sizes, one is small

    def problems() -> list[Problem]:
        parts = [(rows[at], side[at]) for side, at in zip(sides, limits, strict=True)]
        return [Problem.of(r[s], r[~s]) for r, s in parts]

    config = SvmConfig(tolerance=1e-5)
    together = solve(held, problems(), config, seed=0, alike=alike)
    for fit, problem in zip(together, problems(), strict=True):
        (alone,) = solve(held, [problem], config, seed=0)
        assert fit.svm.converged and alone.svm.converged
        assert fit.svm.objective == pytest.approx(alone.svm.objective, rel=1e-5)
        apart = np.square(fit.svm.weight - alone.svm.weight).sum()
        assert apart <= 8e-5 * alone.svm.objective  # ½‖w − w*‖² ≤ objective − optimum, twice


def test_a_stop_before_the_end_is_said() -> None:
    p, n = sparse()
    one_pass = TIGHT.model_copy(update={"max_iterations": 1})
    assert not fit_svm(p, n, one_pass, seed=0).converged
    p, n = p[:30], n[:100]
    out_of_reach = TIGHT.model_copy(update={"tolerance": 1e-15, "max_iterations": 5000})
    svm = fit_svm(p, n, out_of_reach, seed=0)
    assert not svm.converged
    assert svm.objective == pytest.approx(fit_svm(p, n, TIGHT, seed=0).objective, rel=1e-4)


# -- the pool --------------------------------------------------------------------------------------


def test_stopped_early_the_best_state_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine, objectives = dual._evaluate, iter([30.0, 10.0, 20.0])

    def evaluate(*given: Any) -> list[Any]:
        return [replace(s, objective=next(objectives), gap=5.0) for s in genuine(*given)]

    monkeypatch.setattr(dual, "_evaluate", evaluate)
    monkeypatch.setattr(dual, "ROUND_PASSES", 1)
    p, n = cloud(5, 20, 40, 9, 1.0)
    _, _, fit = solved(p, n, TIGHT.model_copy(update={"max_iterations": 2}))
    assert fit.svm.objective == 10.0 and not fit.svm.converged
    assert next(objectives, None) is None


def test_an_example_is_held_once() -> None:
    held = Pool(3, device=CPU)
    x = torch.arange(18, dtype=torch.float32).reshape(6, 3)
    first = held.add(x[:4], [(0, i) for i in range(4)])
    second = held.add(x[2:], [(0, i) for i in range(2, 6)])
    assert len(held) == 6 and np.array_equal(first[2:], second[:2])
    assert torch.equal(held.features(np.concatenate([first, second[2:]])), x)
    held.keep(first[:2])
    assert len(held) == 2
    third = held.add(x[4:] + 1, [(1, 0), (0, 4)])
    assert not set(third) & set(first[:2])
    assert torch.equal(held.features(first[:2]), x[:2])
    assert torch.equal(held.features(third), x[4:] + 1)
    assert len(held.add(x[:0], [])) == 0 and len(held) == 4


def test_memory_is_that_of_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "CHUNK", 20)
    held = Pool(2, device=CPU, dtype=torch.float16)
    for image in range(50):
        rows = held.add(torch.rand(40, 2), [(image, i) for i in range(40)])
        held.keep(rows)
    assert len(held) == 40
    assert [(c.shape, c.dtype) for c in held._chunks] == [((10, 2), torch.float16)] * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("chunk", [1, 650, pool.CHUNK])
@pytest.mark.parametrize("block", [1, 700, pool.BLOCK])
def test_sums(block: int, chunk: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "BLOCK", block)
    monkeypatch.setattr(pool, "CHUNK", chunk)
    monkeypatch.setattr(pool, "PANEL", 2)
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(0, 2, (9, 300)), 0).astype(np.float16).astype(np.float32)
    held = Pool(300, device=CPU, dtype=dtype)
    before = held.add(torch.rand(4, 300), [(1, i) for i in range(4)])
    held.keep(before[1:3])  # the rows go where there is room
    rows = held.add(torch.from_numpy(x), [(0, i) for i in range(9)])
    some = np.array([7, 2, 4])
    assert torch.equal(held.features(rows), torch.from_numpy(x))
    assert torch.equal(held.features(rows[some]), torch.from_numpy(x[some]))
    exact = x.astype(np.float64)
    for known in range(3):
        found = held.products(rows[some], known=known)
        assert found == pytest.approx(exact[some[known:]] @ exact[some].T, rel=1e-5)
        assert held.products(rows, known=known) == pytest.approx(exact[known:] @ exact.T, rel=1e-5)
    weights = rng.normal(0, [[0.1], [3.0]], (2, 300)).astype(np.float32)
    scores = held.scores(rows[some], torch.from_numpy(weights))
    assert scores == pytest.approx(exact[some] @ weights.T.astype(np.float64), rel=1e-4)
    factors = rng.uniform(-2, 2, (2, 3)).astype(np.float32)
    sums = held.combine(rows[some], factors).numpy()
    assert sums == pytest.approx(factors.astype(np.float64) @ exact[some], rel=1e-4, abs=1e-6)
    assert held.scores(rows[:0], torch.from_numpy(weights)).shape == (0, 2)
    assert not held.combine(rows[:0], factors[:, :0]).any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_finds_the_same_optimum() -> None:
    p, n = sparse()
    x = torch.from_numpy(np.concatenate([p, n]))
    found = []
    for device in ("cpu", "cuda"):
        held = Pool(x.shape[1], device=torch.device(device))
        rows = held.add(x.to(device), [(0, i) for i in range(len(x))])
        (fit,) = solve(held, [Problem.of(rows[:150], rows[150:])], SvmConfig(), seed=0)
        assert fit.svm.converged
        found.append(fit.svm.objective)
    assert found[1] == pytest.approx(found[0], rel=1e-3)


@pytest.mark.parametrize(("C", "tolerance"), [(1.0, 1e-3), (10.0, 1e-3), (1e-3, 1e-5)])
def test_a_large_C_is_solved_too(C: float, tolerance: float) -> None:
    """More features than examples of norm 20; the descent needs more than float32 there."""
    rng = np.random.default_rng(4)
    x = np.maximum(0, rng.normal(size=(600, 2048)) + 0.3 * rng.normal(size=(600, 1)))
    x *= 20 / np.linalg.norm(x, axis=1).mean()
    features = x.astype(np.float32)
    config = SvmConfig(C=C, tolerance=tolerance)
    pool = Pool(2048, device=torch.device("cpu"))
    rows = pool.add(torch.from_numpy(features), [(i, 0) for i in range(600)])
    (fit,) = solve(pool, [Problem.of(rows[:12], rows[12:])], config, seed=0)
    assert fit.svm.converged and fit.scores.dtype == np.float64
    reference = fit_by_liblinear(
        features[:12], features[12:], SvmConfig(C=C, tolerance=1e-4, max_iterations=50_000), seed=0
    )
    assert fit.svm.objective <= reference.objective * (1 + 2 * tolerance)

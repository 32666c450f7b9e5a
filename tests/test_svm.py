"""SVMs against independent solutions; mining of hard negatives on data that fit the eye."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.svm import SVC

import sppdet.training.svm as svm_module
from sppdet.errors import TrainingError
from sppdet.runs.artifacts import read_tensors, write_tensors
from sppdet.training.dual import LinearSvm
from sppdet.training.liblinear import svm_objective
from sppdet.training.pool import Matrix
from sppdet.training.svm import (
    Candidates,
    Miner,
    cached_images,
    cached_negatives,
    fit_svm,
)
from sppdet.training_config import SvmConfig

pytestmark = pytest.mark.usefixtures("two_threads")

EXACT = SvmConfig(C=0.05, tolerance=1e-6, max_iterations=200_000)


def see(miner: Miner, candidates: Candidates) -> None:
    """What the stage does with an image."""
    miner.add(miner.hard_of(candidates))


def toy(seed: int, positives: int = 25, negatives: int = 90) -> tuple[Matrix, Matrix]:
    rng = np.random.default_rng(seed)
    p = rng.normal(0.6, 1, (positives, 8)).astype(np.float32)
    n = rng.normal(-0.2, 1, (negatives, 8)).astype(np.float32)
    return p, n


def slow_objective(w: NDArray[np.float64], p: Matrix, n: Matrix, config: SvmConfig) -> float:
    """½‖(w, v)‖² + C·Σ weight·max(0, 1 − y(w·x + bias·v)); w has v at its end."""
    total = 0.5 * float((w * w).sum())
    for x, sign, weight in [
        *((row, 1, config.positive_weight) for row in p.astype(np.float64)),
        *((row, -1, 1.0) for row in n.astype(np.float64)),
    ]:
        score = float(w[:-1] @ x) + config.bias * float(w[-1])
        total += config.C * weight * max(0.0, 1 - sign * score)
    return total


def by_smo(p: Matrix, n: Matrix, config: SvmConfig) -> float:
    """libsvm's dual on the data with the constant feature; its own free bias is shifted to zero.

    Each point is given also mirrored through the origin with the other label, which makes the
    problem symmetric, so that the free bias is zero; everything then counts twice.
    """
    x = np.concatenate([p, n]).astype(np.float64)
    x = np.hstack([x, np.full((len(x), 1), config.bias)])
    y = np.repeat([1, -1], [len(p), len(n)])
    weight = np.where(y > 0, config.positive_weight, 1.0)
    machine = SVC(kernel="linear", C=config.C / 2, tol=1e-7)
    machine.fit(np.vstack([x, -x]), np.concatenate([y, -y]), np.concatenate([weight, weight]))
    assert abs(machine.intercept_[0]) < 1e-3
    return slow_objective(machine.coef_[0], p, n, config)


def by_dual_ascent(p: Matrix, n: Matrix, config: SvmConfig) -> float:
    """The box-constrained dual by scipy's L-BFGS-B."""
    x = np.concatenate([p, -n]).astype(np.float64)
    signs = np.repeat([1.0, -1.0], [len(p), len(n)])
    x = np.hstack([x, (config.bias * signs)[:, None]])
    limit = config.C * np.where(signs > 0, config.positive_weight, 1.0)
    gram = x @ x.T

    def dual(a: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        g = gram @ a
        return float(0.5 * a @ g - a.sum()), g - 1

    found = minimize(
        dual,
        np.zeros(len(x)),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, c) for c in limit.tolist()],
        options={"maxiter": 20_000, "ftol": 1e-15, "gtol": 1e-10, "maxfun": 10**6},
    )
    value = slow_objective(found.x @ x, p, n, config)
    assert value == pytest.approx(-found.fun, rel=1e-4)  # no gap to the dual: it is the optimum
    return value


@pytest.mark.parametrize("solver", ["dual", "liblinear"])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("changes", [{}, {"C": 1e-3}, {"positive_weight": 7.0, "bias": 1.0}])
def test_the_objective_is_that_of_independent_solvers(
    solver: str, seed: int, changes: dict[str, float]
) -> None:
    p, n = toy(seed)
    config = EXACT.model_copy(update={"solver": solver, **changes})
    svm = fit_svm(p, n, config, seed=0)
    assert svm.converged
    ours = slow_objective(
        np.append(svm.weight.astype(np.float64), svm.bias / config.bias), p, n, config
    )
    assert svm.objective == pytest.approx(ours, rel=1e-5)
    assert ours <= by_dual_ascent(p, n, config) * (1 + 1e-3)
    assert ours <= by_smo(p, n, config) * (1 + 1e-3)
    # the settings of a run stop earlier
    quick = fit_svm(p, n, SvmConfig().model_copy(update={"solver": solver, **changes}), seed=0)
    best = fit_svm(p, n, EXACT.model_copy(update={"C": 1e-3, **changes}), seed=0)
    assert quick.objective <= best.objective * (1 + 1e-2)


@pytest.mark.parametrize("solver", ["dual", "liblinear"])
def test_svm_by_hand(solver: Literal["dual", "liblinear"]) -> None:
    # one point a side at ±1, C large: w + bias·v = 1 and −w + bias·v = −1, so w = 1, v = 0
    p, n = np.array([[1]], np.float32), np.array([[-1]], np.float32)
    svm = fit_svm(p, n, SvmConfig(solver=solver, C=100, positive_weight=1, tolerance=1e-8), seed=0)
    assert svm.weight == pytest.approx(1, abs=1e-4) and svm.bias == pytest.approx(0, abs=1e-4)
    assert svm.objective == pytest.approx(0.5, abs=1e-3)
    # C small: every point is inside the margin, (w, v) = C · Σ weight · y · x
    config = SvmConfig(solver=solver, C=1e-3, positive_weight=2, bias=10, tolerance=1e-8)
    svm = fit_svm(p, n, config, seed=0)
    assert svm.weight == pytest.approx(1e-3 * 3, rel=1e-4)
    assert svm.bias == pytest.approx(10 * 1e-3 * 10, rel=1e-4)


def test_objective_by_hand() -> None:
    config = SvmConfig(C=0.5, positive_weight=3, bias=2)
    p, n = np.array([[1, 0]], np.float32), np.array([[0, 1], [0, 5]], np.float32)
    w = np.array([0.5, -1], np.float32)
    # hinges: positive 1 − (0.5 + 0.25) = 0.25; negatives 1 + (−1 + 0.25) = 0.25 and 0
    expected = 0.5 * (0.25 + 1 + 0.125**2) + 0.5 * (3 * 0.25 + 0.25)
    assert svm_objective(w, 0.25, p, n, config) == pytest.approx(expected)


@pytest.mark.parametrize("solver", ["dual", "liblinear"])
def test_a_stop_before_convergence_is_said(solver: str) -> None:
    p, n = toy(0)
    config = EXACT.model_copy(update={"max_iterations": 1, "C": 100.0, "solver": solver})
    assert not fit_svm(p, n, config, seed=0).converged


# -- mining --------------------------------------------------------------------------------------

# the weight keeps the optimum away from zero weights, where all scores are −1
MINING = SvmConfig(
    C=0.05, positive_weight=10.0, retrain_after=30, tolerance=1e-6, max_iterations=100_000
)
BY_LIBLINEAR = MINING.model_copy(update={"solver": "liblinear"})
BOUNDED = MINING.model_copy(update={"max_negatives": 12})


class Stream:
    """Images of random windows: negatives of both classes, or of one alone."""

    def __init__(self, images: int = 40, windows: int = 12) -> None:
        rng = np.random.default_rng(11)
        self.positives = [
            rng.normal(0.8, 0.6, (15, 6)).astype(np.float32),
            rng.normal(-0.8, 0.6, (9, 6)).astype(np.float32),
        ]
        self.features = [
            torch.from_numpy(rng.normal(0, 1.0, (windows, 6)).astype(np.float32))
            for _ in range(images)
        ]
        self.negative = [rng.random((windows, 2)) < 0.9 for _ in range(images)]

    def candidates(self, image: int) -> Candidates:
        return Candidates.of(image, self.features[image], self.negative[image])

    def miner(
        self, config: SvmConfig = MINING, seen: list[tuple[int, int, int]] | None = None
    ) -> Miner:
        def report(k: int, svm: LinearSvm, cached: int, evicted: int) -> None:
            assert svm.converged
            if seen is not None:
                seen.append((k, cached, evicted))

        return Miner(
            self.positives, ("a", "b"), config, seed=3, device=torch.device("cpu"), report=report
        )


def refs_of(miner: Miner, k: int) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in miner.state()[f"refs{k}"].tolist()]


@pytest.mark.parametrize("together", [1, 4, 64])
@pytest.mark.parametrize("config", [MINING, BY_LIBLINEAR])
def test_images_are_left_out_after_mining(
    config: SvmConfig, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream()
    miner = stream.miner(config)
    for image in range(40):
        see(miner, stream.candidates(image))
    miner.finish()
    before = {name: tensor.clone() for name, tensor in miner.state().items()}
    rng = np.random.default_rng(1)
    out = rng.random(40) < 0.3
    positives_out = [rng.random(len(p)) < 0.3 for p in stream.positives]
    everything = [np.ones(len(p), dtype=bool) for p in stream.positives]
    nothing = np.zeros(40, dtype=bool)
    monkeypatch.setattr(svm_module, "_TOGETHER", together)
    parts = [
        (out, positives_out),
        (~out, positives_out),
        (nothing, [everything[0], ~everything[1]]),
    ]
    first, second, third = miner.leave_out(parts)
    for (weights, biases), left_out in ((first, out), (second, ~out)):
        for k in range(2):
            kept = [ref for ref in refs_of(miner, k) if not left_out[ref[0]]]
            assert 0 < len(kept) < len(refs_of(miner, k))
            negatives = np.stack([stream.features[image][row].numpy() for image, row in kept])
            svm = fit_svm(stream.positives[k][~positives_out[k]], negatives, BY_LIBLINEAR, seed=3)
            assert weights[k].numpy() == pytest.approx(svm.weight, abs=2e-3)
            assert biases[k].item() == pytest.approx(svm.bias, abs=2e-3)
            assert np.abs(weights[k].numpy() - miner.weights[k].numpy()).max() > 0.01
    after = miner.state()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    weights, biases = third
    assert not weights[0].any() and biases[0] < -1e5  # nothing can be learned
    assert torch.allclose(weights[1], miner.weights[1], atol=2e-3)


@pytest.mark.parametrize(("config", "block"), [(MINING, 256), (MINING, 5), (BY_LIBLINEAR, 5)])
def test_mining_against_a_slow_loop(
    config: SvmConfig, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(svm_module, "_BLOCK", block)
    stream, seen = Stream(), list[tuple[int, int, int]]()
    miner = stream.miner(config, seen=seen)
    caches: list[list[tuple[int, int]]] = [[], []]
    svms: list[LinearSvm | None] = [None, None]
    added = [0, 0]
    reports: list[tuple[int, int, int]] = []

    def row(ref: tuple[int, int]) -> Matrix:
        features: Matrix = stream.features[ref[0]][ref[1]].numpy()
        return features

    def score(k: int, x: Matrix) -> float:
        svm = svms[k]
        return 0.0 if svm is None else float(svm.weight @ x) + svm.bias

    def train(k: int) -> None:
        negatives = np.stack([row(ref) for ref in caches[k]])
        svms[k] = fit_svm(stream.positives[k], negatives, BY_LIBLINEAR, seed=3)
        kept = [ref for ref in caches[k] if score(k, row(ref)) >= -1.2]
        reports.append((k, len(caches[k]), len(caches[k]) - len(kept)))
        caches[k], added[k] = kept, 0

    for image in range(40):
        see(miner, stream.candidates(image))
        for k in range(2):
            for r in range(12):
                ref = (image, r)
                if stream.negative[image][r, k] and score(k, row(ref)) > -1.0001:
                    caches[k].append(ref)
                    added[k] += 1
            if added[k] >= 30:
                train(k)
            assert refs_of(miner, k) == caches[k]
    miner.finish()
    for k in range(2):
        if added[k]:
            train(k)
        svm = svms[k]
        assert svm is not None
        # the loop starts each training anew, the miner from the last
        assert np.abs(svm.weight).max() > 0.1
        assert miner.weights[k].numpy() == pytest.approx(svm.weight, abs=2e-3)
        assert miner.biases[k].item() == pytest.approx(svm.bias, abs=2e-3)
    assert seen == reports
    assert sum(evicted for *_, evicted in reports) > 0
    assert len(reports) > 5


def test_caches_are_bounded() -> None:
    stream = Stream(images=120)
    seen: list[tuple[int, int, int]] = []
    miner = stream.miner(MINING.model_copy(update={"tolerance": 1e-3}), seen=seen)
    most = 0
    for image in range(120):
        see(miner, stream.candidates(image))
        most = max(most, *(len(refs_of(miner, k)) for k in range(2)))
        for k in range(2):
            assert int(miner.state()[f"added{k}"]) < MINING.retrain_after
    assert most < sum(int(n[:, 0].sum()) for n in stream.negative) / 2


@pytest.mark.parametrize("most", [1, 7, 25])
def test_the_highest_scores_are_kept_where_caches_are_bounded(most: int) -> None:
    """Against a run without the bound, which holds the same until its first eviction."""
    stream = Stream(images=60)
    seen: list[tuple[int, int, int]] = []
    config = MINING.model_copy(update={"evict_threshold": -5.0, "max_negatives": most})
    bounded = stream.miner(config, seen=seen)
    trainings = [0, 0]
    for image in range(60):
        before = [refs_of(bounded, k) for k in range(2)]
        see(bounded, stream.candidates(image))
        for k in range(2):
            after = refs_of(bounded, k)
            added = int(bounded.state()[f"added{k}"])
            assert len(after) <= most + added and added < MINING.retrain_after
            if (count := sum(of == k for of, *_ in seen)) > trainings[k]:
                trainings[k] = count
                assert len(after) == most
                weight, bias = bounded.weights[k].double(), float(bounded.biases[k])
                pairs = {*before[k], *((image, r) for r in range(12))}
                score = {
                    p: float(stream.features[p[0]][p[1]].double() @ weight) + bias for p in pairs
                }
                lowest = min(score[ref] for ref in after)
                assert all(score[ref] <= lowest + 1e-4 for ref in {*before[k]} - {*after})
    assert min(trainings) > 3
    assert len(bounded.pool) <= 15 + 9 + 2 * (most + MINING.retrain_after)


def test_a_bound_that_nothing_reaches_changes_no_bit() -> None:
    stream, ends = Stream(), []
    for most in (None, 10_000):
        miner = stream.miner(MINING.model_copy(update={"max_negatives": most}))
        for image in range(40):
            see(miner, stream.candidates(image))
        miner.finish()
        ends.append(miner.state())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_no_bound_leaves_the_fingerprints_of_earlier_models() -> None:
    assert "max_negatives" not in SvmConfig().model_dump(mode="json")
    assert SvmConfig(max_negatives=5).model_dump()["max_negatives"] == 5
    assert SvmConfig.model_validate(SvmConfig().model_dump()) == SvmConfig()


def test_a_negative_is_in_the_cache_once() -> None:
    stream = Stream()
    miner = stream.miner()
    for _ in range(2):  # a second pass meets the same windows
        for image in range(40):
            see(miner, stream.candidates(image))
    for k in range(2):
        refs = refs_of(miner, k)
        assert refs and len(refs) == len(set(refs))
        assert all(stream.negative[p][r, k] for p, r in refs)


def test_the_threshold_is_strict() -> None:
    stream = Stream()
    miner = stream.miner(MINING.model_copy(update={"hard_threshold": -0.5}))
    # scores of −1, −0.5 and 0
    miner.weights[:, 0] = 1.0
    x = torch.zeros(3, 6)
    x[:, 0] = torch.tensor([-1.0, -0.5, 0.0])
    see(miner, Candidates.of(0, x, np.ones((3, 2), np.bool_)))
    assert refs_of(miner, 0) == [(0, 2)]


def test_the_pool_has_each_window_once_and_only_what_a_class_has() -> None:
    stream = Stream()
    miner = stream.miner()
    shared = 0
    for image in range(40):
        see(miner, stream.candidates(image))
        a, b = (set(refs_of(miner, k)) for k in range(2))
        shared += len(a & b)
        assert len(miner.pool) == 15 + 9 + len(a | b)
    assert shared > 50


def restored(stream: Stream, config: SvmConfig, state: dict[str, torch.Tensor]) -> Miner:
    miner = stream.miner(config)
    again = (
        cached_negatives(state, stream.candidates(i), torch.float32) for i in cached_images(state)
    )
    miner.restore(state, again)
    return miner


@pytest.mark.parametrize("config", [MINING, BY_LIBLINEAR, BOUNDED])
@pytest.mark.parametrize("stop", [1, 7, 23, 40])
def test_a_restored_miner_goes_on_to_the_same_bits(
    stop: int, config: SvmConfig, tmp_path: Path
) -> None:
    stream = Stream()
    whole = stream.miner(config)
    for image in range(40):
        see(whole, stream.candidates(image))
    whole.finish()
    first = stream.miner(config)
    for image in range(stop):
        see(first, stream.candidates(image))
    write_tensors(tmp_path / "state", first.state(), made_by="x")
    state, _ = read_tensors(tmp_path / "state")
    assert cached_images(state) == sorted({p for k in range(2) for p, _ in refs_of(first, k)})
    second = restored(stream, config, state)
    assert len(second.pool) == len(first.pool)
    for image in range(stop, 40):
        see(second, stream.candidates(image))
    second.finish()
    assert torch.equal(second.weights, whole.weights) and torch.equal(second.biases, whole.biases)
    assert refs_of(second, 0) == refs_of(whole, 0)
    ends = [miner.state() for miner in (second, whole)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_trained_class_whose_cache_was_emptied_is_restored() -> None:
    positives = [np.full((2, 2), 5, np.float32)]
    config = SvmConfig(C=1, retrain_after=2, evict_threshold=50, bias=1)
    miner = Miner(positives, ("a",), config, seed=0, device=torch.device("cpu"))
    x = torch.full((2, 2), -5.0)
    see(miner, Candidates.of(0, x, np.ones((2, 1), np.bool_)))
    assert refs_of(miner, 0) == [] and miner.weights.any()
    weights = miner.weights.clone()
    miner.finish()
    again = Miner(positives, ("a",), config, seed=0, device=torch.device("cpu"))
    assert cached_images(miner.state()) == []
    again.restore(miner.state(), [])
    again.finish()
    assert torch.equal(again.weights, weights)


def test_a_class_without_a_positive_is_named() -> None:
    positives = [np.ones((1, 3), np.float32), np.zeros((0, 0), np.float32)]
    with pytest.raises(TrainingError, match="class zebra: no positive"):
        Miner(positives, ("cat", "zebra"), SvmConfig(), seed=0, device=torch.device("cpu"))


def test_no_negatives() -> None:
    stream = Stream()
    miner = stream.miner()
    see(miner, Candidates.of(0, torch.zeros(4, 6), np.zeros((4, 2), np.bool_)))
    with pytest.raises(TrainingError, match="no negatives"):
        miner.finish()

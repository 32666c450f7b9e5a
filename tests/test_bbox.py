"""Ridge regression against scikit-learn; whitening and its undoing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn import linear_model

import sppdet.training.bbox as bbox_module
import sppdet.training.pool as pool_module
from sppdet.training.bbox import BoxRegression, Ridge, fit_whitening
from sppdet.training.pool import Matrix, Pool, Rows
from sppdet.training_config import BboxConfig


def random_targets(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Correlated deltas, not centred."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(0, 0.2, (count, 4)) @ rng.normal(0, 1, (4, 4)) + [0.1, -0.2, 0.3, 0.0]
    return mixed.astype(np.float32)


def pool_of(x: Matrix) -> tuple[Pool, Rows]:
    """A pool that has the examples (N, D), and their rows."""
    pool = Pool(x.shape[1], device=torch.device("cpu"))
    return pool, pool.add(torch.from_numpy(x), [(0, i) for i in range(len(x))])


def solved(
    x: Matrix, y: NDArray[np.float64], *, strength: float, scale: float = 1.0
) -> NDArray[np.float64]:
    pool, rows = pool_of(x)
    return Ridge(pool, rows, scale=scale).solve(y, rows, strength=strength)


@pytest.mark.parametrize(("count", "width"), [(20, 50), (50, 20), (30, 30), (31, 30), (1, 5)])
@pytest.mark.parametrize("strength", [0.5, 1000.0])
def test_ridge_is_scikit_learns(count: int, width: int, strength: float) -> None:
    rng = np.random.default_rng(count)
    x = rng.normal(0, 1, (count, width)).astype(np.float32)
    y = rng.normal(0, 1, (count, 3))
    theirs = linear_model.Ridge(alpha=strength, fit_intercept=False, solver="cholesky")
    theirs.fit(np.hstack([x.astype(np.float64), np.ones((count, 1))]), y)
    ours = solved(x, y, strength=strength)
    expected = np.atleast_2d(theirs.coef_).T
    assert ours.shape == (width + 1, 3) and ours.dtype == np.float64
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("count", "width"), [(20, 50), (50, 20)])
def test_the_scale_is_that_of_the_features(
    count: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "BLOCK", 7 * width)
    rng = np.random.default_rng(count)
    x, y = rng.normal(0, 1, (count, width)).astype(np.float32), rng.normal(0, 1, (count, 3))
    scaled = solved(x * np.float32(0.3), y, strength=2.0)
    found = solved(x, y, strength=2.0, scale=0.3)
    np.testing.assert_allclose(found[:-1], 0.3 * scaled[:-1], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found[-1], scaled[-1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("width", [60, 8])
def test_examples_with_the_same_features_are_solved_as_one(width: int) -> None:
    rng = np.random.default_rng(width)
    x = rng.normal(0, 1, (20, width)).astype(np.float32)
    repeated = rng.permutation(np.repeat(np.arange(20), rng.integers(1, 5, 20)))
    targets, config = random_targets(len(repeated)), BboxConfig(ridge=3.0)
    pool, rows = pool_of(x)
    regression = BoxRegression(pool, rows[repeated], targets, config)
    assert len(pool) == 20 and (len(repeated) > 40 or width == 8)
    for left_out in ([], [3, 11], list(range(1, 20))):
        kept = ~np.isin(repeated, left_out)
        one_by_one = BoxRegression(*pool_of(x[repeated[kept]]), targets[kept], config).fit()
        found = regression.fit(kept)
        np.testing.assert_allclose(found.weight, one_by_one.weight, atol=1e-4)
        np.testing.assert_allclose(found.bias, one_by_one.bias, atol=1e-4)


@pytest.mark.parametrize("strength", [30.0, 1e-3])
def test_float32_solves_only_what_it_can(strength: float) -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(0, 1, (200, 3)) @ rng.normal(0, 1, (3, 400)) + rng.normal(0, 1e-3, (200, 400))
    y = rng.normal(0, 1, (200, 2))
    exact = x.astype(np.float32).astype(np.float64)
    system = exact @ exact.T + 1 + strength * np.eye(200)
    gram = torch.from_numpy((exact @ exact.T + 1).astype(np.float32))
    alpha = np.linalg.solve(gram.double().numpy() + strength * np.eye(200), y)
    assert np.linalg.cond(system) > 100
    found = bbox_module._solve(gram, y, strength)
    assert np.abs(found - alpha).max() < 1e-3 * np.abs(alpha).max()


def test_whitened_covariance_is_the_identity() -> None:
    targets = random_targets(500)
    whitening = fit_whitening(targets, epsilon=1e-12)
    white = (targets - whitening.mean) @ whitening.matrix
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(white.T @ white / len(white), np.eye(4), atol=1e-4)
    np.testing.assert_allclose(whitening.matrix, whitening.matrix.T, atol=1e-9)  # ZCA


@pytest.mark.parametrize("epsilon", [1e-9, 1e-3])
def test_whitening_is_undone(epsilon: float) -> None:
    whitening = fit_whitening(random_targets(50), epsilon=epsilon)
    np.testing.assert_allclose(whitening.matrix @ whitening.inverse, np.eye(4), atol=1e-8)


def test_epsilon_is_added_to_the_eigenvalues() -> None:
    # independent deltas of variance 0.25 and 1 over two points each; the rest is constant
    targets = np.array(
        [[0.5, 1, 3, 0], [-0.5, 1, 3, 0], [0.5, -1, 3, 0], [-0.5, -1, 3, 0]], np.float32
    )
    whitening = fit_whitening(targets, epsilon=1e-3)
    expected = 1 / np.sqrt(np.array([0.25, 1, 0, 0]) + 1e-3)
    np.testing.assert_allclose(whitening.matrix, np.diag(expected), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(whitening.mean, [0, 0, 3, 0])


@pytest.mark.parametrize(("count", "width"), [(200, 10), (15, 40)])
def test_a_linear_relation_is_recovered(count: int, width: int) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(0, 1, (count, width)).astype(np.float32)
    truth, bias = rng.normal(0, 0.1, (width, 4)), np.array([0.05, -0.02, 0.1, 0.0])
    targets = (x @ truth + bias).astype(np.float32)
    fitted = BoxRegression(*pool_of(x), targets, BboxConfig(ridge=1e-3)).fit()
    assert fitted.weight.dtype == fitted.bias.dtype == np.float32
    np.testing.assert_allclose(x @ fitted.weight + fitted.bias, targets, atol=2e-3)
    if count > width:
        np.testing.assert_allclose(fitted.weight, truth, atol=2e-3)
        np.testing.assert_allclose(fitted.bias, bias, atol=2e-3)


def test_regressor_against_the_whole_chain_by_scikit_learn() -> None:
    """Whiten, fit with a constant feature that is regularised too, predict, undo (R-CNN)."""
    rng = np.random.default_rng(3)
    x = rng.normal(0, 1, (60, 12)).astype(np.float32)
    targets = random_targets(60, seed=3)
    config = BboxConfig(ridge=5.0)
    t = targets.astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(t.T, bias=True))
    matrix = vectors @ np.diag(1 / np.sqrt(values + config.whiten_epsilon)) @ vectors.T
    longer = np.hstack([x, np.ones((60, 1))])
    machine = linear_model.Ridge(alpha=5.0, fit_intercept=False).fit(
        longer, (t - t.mean(axis=0)) @ matrix
    )
    expected = machine.predict(longer) @ np.linalg.inv(matrix) + t.mean(axis=0)
    fitted = BoxRegression(*pool_of(x), targets, config).fit()
    np.testing.assert_allclose(x @ fitted.weight + fitted.bias, expected, atol=1e-4)


def test_a_strong_ridge_predicts_the_mean() -> None:
    x = np.random.default_rng(0).normal(0, 1, (30, 5)).astype(np.float32)
    targets = random_targets(30)
    fitted = BoxRegression(*pool_of(x), targets, BboxConfig(ridge=1e9)).fit()
    assert np.abs(fitted.weight).max() < 1e-5
    np.testing.assert_allclose(fitted.bias, targets.mean(axis=0), atol=1e-5)


def test_one_example_is_enough() -> None:
    targets = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)
    fitted = BoxRegression(*pool_of(np.ones((1, 5), np.float32)), targets, BboxConfig()).fit()
    np.testing.assert_allclose(
        np.ones((1, 5), np.float32) @ fitted.weight + fitted.bias, targets, rtol=1e-5
    )


@pytest.mark.parametrize(("count", "width"), [(20, 50), (60, 12), (60, 30)])
def test_fits_without_some_examples_are_those_of_the_others(count: int, width: int) -> None:
    rng = np.random.default_rng(count)
    x = rng.normal(0, 1, (count, width)).astype(np.float32)
    targets, config = random_targets(count), BboxConfig(ridge=3.0)
    regression = BoxRegression(*pool_of(x), targets, config)
    for fraction in (0.1, 0.5, 0.9):
        kept = rng.random(count) < fraction
        alone = BoxRegression(*pool_of(x[kept]), targets[kept], config).fit()
        fitted = regression.fit(kept)
        np.testing.assert_allclose(fitted.weight, alone.weight, atol=1e-4)
        np.testing.assert_allclose(fitted.bias, alone.bias, atol=1e-4)
    np.testing.assert_array_equal(
        regression.fit(np.ones(count, bool)).weight, regression.fit().weight
    )

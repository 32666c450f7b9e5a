"""Box regression: per class, ridge regression from region features to box deltas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.training.pool import Pool, Rows
from sppdet.training_config import BboxConfig

VERSION = 4  # raise it when the same settings give other weights
_WELL_CONDITIONED = 1e4
"""Bound of a system's condition up to which it is solved in float32, with errors below 10⁻³."""


@dataclass(frozen=True)
class Whitening:
    """ZCA whitening of box deltas: whitened = (targets − mean) · matrix."""

    mean: NDArray[np.float64]  # (4,)
    matrix: NDArray[np.float64]  # (4, 4)
    inverse: NDArray[np.float64]  # (4, 4)


def fit_whitening(targets: NDArray[np.float32], *, epsilon: float) -> Whitening:
    """Fit ZCA to box deltas (N, 4); `epsilon` is added to the covariance's eigenvalues (R-CNN)."""
    t = targets.astype(np.float64)
    mean = t.mean(axis=0)
    centred = t - mean
    values, vectors = np.linalg.eigh(centred.T @ centred / len(t))
    deviations = np.sqrt(np.maximum(values, 0.0) + epsilon)
    return Whitening(mean, (vectors / deviations) @ vectors.T, (vectors * deviations) @ vectors.T)


@dataclass(frozen=True)
class BoxRegressor:
    """Linear regressor deltas(x) = x · weight + bias, with the whitening undone."""

    weight: NDArray[np.float32]  # (D, 4)
    bias: NDArray[np.float32]  # (4,)

    @classmethod
    def none(cls, width: int) -> BoxRegressor:
        """Return a regressor that leaves boxes where they are."""
        return cls(np.zeros((width, 4), np.float32), np.zeros(4, np.float32))


class BoxRegression:
    """Ridge regression of whitened deltas on all examples, or without some of them.

    The constant feature is regularised, too (R-CNN). What the fits share, the products of the features
    with each other, is computed once.

    Args:
        pool: has the features of the examples, and only these. rows: (N,) of the examples, N >= 1; those on
            one window have the same. targets: (N, 4) box deltas.
        scale: factor that the features are to be taken with.
    """

    def __init__(
        self,
        pool: Pool,
        rows: Rows,
        targets: NDArray[np.float32],
        config: BboxConfig,
        *,
        scale: float = 1.0,
    ) -> None:
        self._rows, self._targets, self._config = rows, targets, config
        self._ridge = Ridge(pool, rows, scale=scale)

    def fit(self, kept: NDArray[np.bool_] | None = None) -> BoxRegressor:
        """Fit a regressor of features without the scale to the examples `kept` (N,), at least one.

        Examples with the same features are kept or left out together.
        """
        chosen = slice(None) if kept is None else kept
        targets = self._targets[chosen]
        whitening = fit_whitening(targets, epsilon=self._config.whiten_epsilon)
        whitened = (targets - whitening.mean) @ whitening.matrix
        beta = self._ridge.solve(whitened, self._rows[chosen], strength=self._config.ridge)
        beta = beta @ whitening.inverse  # [D + 1, 4]
        bias = beta[-1] + whitening.mean
        return BoxRegressor(beta[:-1].astype(np.float32), bias.astype(np.float32))


class Ridge:
    """The systems whose solutions B minimise ‖[sX 1]B − Y‖² + strength·‖B‖², for some rows of X.

    n examples with the same features are one with the weight n and the mean of their Y. With such weights W
    it is the smaller of two equivalent systems: [sX 1]ᵀW[sX 1], or √W[sX 1][sX 1]ᵀ√W if there are fewer
    features than rows.

    Args:
        pool: has X. rows: (N,) of the examples, which may repeat. scale: s.
    """

    def __init__(self, pool: Pool, rows: Rows, *, scale: float = 1.0) -> None:
        self._pool, self._scale = pool, scale
        _, first = np.unique(rows, return_index=True)
        self._all = rows[np.sort(first)]  # distinct, in an order that doesn't depend on the pool
        self._places = np.zeros(int(rows.max()) + 1, dtype=np.int64)
        self._places[self._all] = np.arange(len(self._all))
        self._counts = np.bincount(self._places[rows])
        self._by_rows = len(self._all) < pool.width
        if self._by_rows:
            products = pool.products(self._all, known=0)
            self._products = torch.from_numpy(products).to(pool.device).mul_(scale**2).add_(1.0)
        else:
            self._products = self._of_columns(np.arange(len(self._all)))

    def solve(self, y: NDArray[np.float64], rows: Rows, *, strength: float) -> NDArray[np.float64]:
        """Solve for y (n, M), which belong to the examples with these rows (n,).

        Of examples with the same row there are all or none.

        Returns:
            (D + 1, M) float64, sB, for X without the scale; the last row is that of the constant.
        """
        used, which = np.unique(self._places[rows], return_inverse=True)
        sums = np.zeros((len(used), y.shape[1]))
        np.add.at(sums, which, y)
        if self._by_rows:
            root = np.sqrt(self._counts[used])[:, None]
            products = self._products
            if len(used) < len(self._all):
                products = products[used][:, used]
            weight = torch.from_numpy(root).to(products)
            alpha = root * _solve(products * weight * weight.T, sums / root, strength)
            return np.vstack([self._scale**2 * self._sums(alpha, used), alpha.sum(axis=0)])
        products = self._products
        if len(used) < len(self._all):
            products = products - self._of_columns(np.setdiff1d(np.arange(len(self._all)), used))
        right = np.vstack([self._scale * self._sums(sums, used), sums.sum(axis=0)])
        beta = _solve(products, right, strength)
        beta[:-1] *= self._scale
        return beta

    def _sums(self, factors: NDArray[np.float64], at: Rows) -> NDArray[np.float64]:
        """Compute Xᵀ factors, (D, M), of the distinct rows `at`."""
        sums = self._pool.combine(self._all[at], factors.T.astype(np.float32))
        return sums.T.cpu().numpy().astype(np.float64)

    def _of_columns(self, at: Rows) -> torch.Tensor:
        """Compute [sX 1]ᵀW[sX 1], (D + 1, D + 1), of the distinct rows `at`."""
        width = self._pool.width
        gram = torch.zeros((width + 1, width + 1), device=self._pool.device)
        counts = torch.from_numpy(self._counts[at]).to(gram)
        start = 0
        for x in self._pool.blocks(self._all[at]):
            weighted = counts[start : start + len(x), None] * x
            gram[:-1, :-1].addmm_(weighted.T, x, alpha=self._scale**2)
            gram[-1, :-1].add_(weighted.sum(dim=0), alpha=self._scale)
            start += len(x)
        gram[:-1, -1] = gram[-1, :-1]
        gram[-1, -1] = counts.sum()
        return gram


def _solve(gram: torch.Tensor, right: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    # torch, since scipy's OpenBLAS crashes on symmetric systems of 20,000 unknowns
    least = float(gram.diagonal().sum()) / _WELL_CONDITIONED
    system = gram.clone() if strength >= least else gram.double()
    system.diagonal().add_(strength)
    factor = torch.linalg.cholesky(system)
    solution = torch.cholesky_solve(torch.from_numpy(right).to(factor), factor)
    values: NDArray[np.float64] = solution.cpu().numpy().astype(np.float64)
    return values

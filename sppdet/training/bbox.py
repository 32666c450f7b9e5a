"""Box regression: per class, ridge regression from region features to box deltas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.training.pool import Pool
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
        pool: has the features, and only these. targets: (N, 4) box deltas of its rows 0 … N − 1, N >= 1.
        scale: factor that the features are to be taken with.
    """

    def __init__(
        self,
        pool: Pool,
        targets: NDArray[np.float32],
        config: BboxConfig,
        *,
        scale: float = 1.0,
    ) -> None:
        self._targets, self._config = targets, config
        self._ridge = Ridge(pool, scale=scale)

    def fit(self, kept: NDArray[np.bool_] | None = None) -> BoxRegressor:
        """Fit a regressor of features without the scale to the examples `kept` (N,), at least one."""
        rows = None if kept is None or kept.all() else np.flatnonzero(kept)
        targets = self._targets if rows is None else self._targets[rows]
        whitening = fit_whitening(targets, epsilon=self._config.whiten_epsilon)
        whitened = (targets - whitening.mean) @ whitening.matrix
        beta = self._ridge.solve(whitened, rows, strength=self._config.ridge)  # [D + 1, 4]
        beta = beta @ whitening.inverse
        bias = beta[-1] + whitening.mean
        return BoxRegressor(beta[:-1].astype(np.float32), bias.astype(np.float32))


class Ridge:
    """The systems whose solutions B minimise ‖[sX 1]B − Y‖² + strength·‖B‖², for some rows of X.

    The smaller of two equivalent ones: [sX 1]ᵀ[sX 1], or [sX 1][sX 1]ᵀ = s²XXᵀ + 1 if N < D.

    Args:
        pool: has X (N, D) in its rows 0 … N − 1. scale: s.
    """

    def __init__(self, pool: Pool, *, scale: float = 1.0) -> None:
        self._pool, self._scale = pool, scale
        self._rows = np.arange(len(pool))
        self._by_rows = len(pool) < pool.width
        if self._by_rows:
            products = pool.products(self._rows, known=0)
            self._products = torch.from_numpy(products).to(pool.device).mul_(scale**2).add_(1.0)
        else:
            self._products = self._of_columns(self._rows)

    def solve(
        self, y: NDArray[np.float64], rows: NDArray[np.int64] | None = None, *, strength: float
    ) -> NDArray[np.float64]:
        """Solve for y (n, M), which belong to the n rows, ascending; to all by default.

        Returns:
            (D + 1, M) float64, sB, for X without the scale; the last row is that of the constant.
        """
        used = self._rows if rows is None else rows
        if self._by_rows:
            products = self._products if rows is None else self._products[rows][:, rows]
            alpha = _solve(products, y, strength)
            return np.vstack([self._scale**2 * self._sums(alpha, used), alpha.sum(axis=0)])
        products = self._products
        if rows is not None:
            products = products - self._of_columns(np.setdiff1d(self._rows, rows))
        right = np.vstack([self._scale * self._sums(y, used), y.sum(axis=0)])
        beta = _solve(products, right, strength)
        beta[:-1] *= self._scale
        return beta

    def _sums(self, factors: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Compute Xᵀ factors, (D, M), of rows."""
        sums = self._pool.combine(rows, factors.T.astype(np.float32))
        return sums.T.cpu().numpy().astype(np.float64)

    def _of_columns(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Compute [sX 1]ᵀ[sX 1], (D + 1, D + 1), of rows of X."""
        width = self._pool.width
        gram = torch.zeros((width + 1, width + 1), device=self._pool.device)
        for x in self._pool.blocks(rows):
            gram[:-1, :-1].addmm_(x.T, x, alpha=self._scale**2)
            gram[-1, :-1].add_(x.sum(dim=0), alpha=self._scale)
        gram[:-1, -1] = gram[-1, :-1]
        gram[-1, -1] = len(rows)
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

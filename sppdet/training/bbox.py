"""Box regression: per class, ridge regression from region features to box deltas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.training_config import BboxConfig

VERSION = 3  # raise it when the same settings give other weights


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
    with each other, is computed once. X isn't copied.

    Args:
        features: X (N, D) scaled, N >= 1. targets: (N, 4) box deltas.
    """

    def __init__(
        self, features: torch.Tensor, targets: NDArray[np.float32], config: BboxConfig
    ) -> None:
        self._features, self._targets, self._config = features, targets, config
        self._ridge = Ridge(features)

    def fit(self, kept: NDArray[np.bool_] | None = None) -> BoxRegressor:
        """Fit a regressor to the examples `kept` (N,), all by default; at least one is."""
        rows = None if kept is None or kept.all() else np.flatnonzero(kept)
        targets = self._targets if rows is None else self._targets[rows]
        whitening = fit_whitening(targets, epsilon=self._config.whiten_epsilon)
        whitened = (targets - whitening.mean) @ whitening.matrix
        beta = self._ridge.solve(whitened, rows, strength=self._config.ridge)  # [D + 1, 4]
        beta = beta @ whitening.inverse
        bias = beta[-1] + whitening.mean
        return BoxRegressor(beta[:-1].astype(np.float32), bias.astype(np.float32))


class Ridge:
    """The systems whose solutions B minimise ‖[X 1]B − Y‖² + strength·‖B‖², for some rows of X.

    The smaller of two equivalent ones: [X 1]ᵀ[X 1], or [X 1][X 1]ᵀ = XXᵀ + 1 if N < D.

    Args:
        x: (N, D) float32.
    """

    def __init__(self, x: torch.Tensor) -> None:
        self._x = x
        self._by_rows = len(x) < x.shape[1]
        self._products = (x @ x.T).add_(1.0) if self._by_rows else _products_of_columns(x)

    def solve(
        self, y: NDArray[np.float64], rows: NDArray[np.int64] | None = None, *, strength: float
    ) -> NDArray[np.float64]:
        """Solve for y (n, M), which belong to the n rows, ascending; to all by default.

        Returns:
            (D + 1, M) float64; the last row belongs to the constant.
        """
        products = self._products
        if self._by_rows:
            if rows is not None:
                products = products[rows][:, rows]
            alpha = _solve(products, y, strength)
            return np.vstack([self._sums(alpha, rows), alpha.sum(axis=0)])
        if rows is not None:
            left_out = np.setdiff1d(np.arange(len(self._x)), rows)
            products = products - _products_of_columns(self._x[left_out])
        return _solve(products, np.vstack([self._sums(y, rows), y.sum(axis=0)]), strength)

    def _sums(
        self, factors: NDArray[np.float64], rows: NDArray[np.int64] | None
    ) -> NDArray[np.float64]:
        """Compute Xᵀ factors, (D, M), without a copy of X."""
        of_all = np.zeros((len(self._x), factors.shape[1]), dtype=np.float32)
        of_all[slice(None) if rows is None else rows] = factors
        sums = self._x.T @ torch.from_numpy(of_all).to(self._x.device)
        return sums.cpu().numpy().astype(np.float64)


def _products_of_columns(x: torch.Tensor) -> torch.Tensor:
    """Compute [X 1]ᵀ[X 1], (D + 1, D + 1)."""
    gram = x.new_full((x.shape[1] + 1, x.shape[1] + 1), float(len(x)))
    torch.mm(x.T, x, out=gram[:-1, :-1])
    gram[-1, :-1] = gram[:-1, -1] = x.sum(dim=0)
    return gram


def _solve(gram: torch.Tensor, right: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    # torch, since scipy's OpenBLAS crashes on symmetric systems of 20,000 unknowns
    system = gram.double()
    system.diagonal().add_(strength)
    factor = torch.linalg.cholesky(system)
    solution = torch.cholesky_solve(torch.from_numpy(right).to(factor), factor)
    values: NDArray[np.float64] = solution.cpu().numpy()
    return values

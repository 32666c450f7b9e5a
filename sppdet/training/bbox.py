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


def fit_box_regressor(
    features: torch.Tensor, targets: NDArray[np.float32], config: BboxConfig
) -> BoxRegressor:
    """Fit whitened deltas by ridge regression; the constant feature is regularised, too (R-CNN).

    Args:
        features: (N, D) scaled, N >= 1.
        targets: (N, 4) box deltas.
    """
    whitening = fit_whitening(targets, epsilon=config.whiten_epsilon)
    whitened = (targets - whitening.mean) @ whitening.matrix
    beta = ridge(features, whitened, strength=config.ridge) @ whitening.inverse  # [D + 1, 4]
    bias = beta[-1] + whitening.mean
    return BoxRegressor(beta[:-1].astype(np.float32), bias.astype(np.float32))


def ridge(x: torch.Tensor, y: NDArray[np.float64], *, strength: float) -> NDArray[np.float64]:
    """Minimise ‖[X 1]B − Y‖² + strength·‖B‖² over B.

    Solves the smaller of two equivalent systems: [X 1]ᵀ[X 1], or [X 1][X 1]ᵀ = XXᵀ + 1 if N < D. X is
    not copied.

    Args:
        x: (N, D) float32. y: (N, M).

    Returns:
        (D + 1, M) float64; the last row belongs to the constant.
    """
    if len(x) < x.shape[1]:
        alpha = _solve((x @ x.T).add_(1.0), y, strength)
        combined = (x.T @ torch.from_numpy(alpha.astype(np.float32)).to(x.device)).cpu().numpy()
        return np.vstack([combined.astype(np.float64), alpha.sum(axis=0)])
    gram = x.new_full((x.shape[1] + 1, x.shape[1] + 1), float(len(x)))
    torch.mm(x.T, x, out=gram[:-1, :-1])
    gram[-1, :-1] = gram[:-1, -1] = x.sum(dim=0)
    target = (x.T @ torch.from_numpy(y.astype(np.float32)).to(x.device)).cpu().numpy()
    return _solve(gram, np.vstack([target.astype(np.float64), y.sum(axis=0)]), strength)


def _solve(gram: torch.Tensor, right: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    # torch, since scipy's OpenBLAS crashes on symmetric systems of 20,000 unknowns
    system = gram.double()
    system.diagonal().add_(strength)
    factor = torch.linalg.cholesky(system)
    solution = torch.cholesky_solve(torch.from_numpy(right).to(factor), factor)
    values: NDArray[np.float64] = solution.cpu().numpy()
    return values

"""SVMs by liblinear, to compare with, and the value that every solver minimises."""

from __future__ import annotations

import warnings

import numpy as np

from sppdet.randomness import rng
from sppdet.training.dual import LinearSvm
from sppdet.training.pool import Matrix
from sppdet.training_config import SvmConfig


def fit_by_liblinear(
    positives: Matrix, negatives: Matrix, config: SvmConfig, *, seed: int
) -> LinearSvm:
    """Fit like `sppdet.training.svm.fit_svm`, by liblinear (`-s 3 -c C -w1 w -B bias`)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    x = np.concatenate([positives, negatives])
    y = np.repeat([1, -1], [len(positives), len(negatives)])
    machine = LinearSVC(
        loss="hinge",
        dual=True,
        C=config.C,
        class_weight={1: config.positive_weight, -1: 1.0},
        intercept_scaling=config.bias,
        tol=config.tolerance,
        max_iter=config.max_iterations,
        random_state=int(rng(seed, "liblinear's coordinates").integers(2**31)),
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        machine.fit(x, y)
    converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
    weight = machine.coef_[0].astype(np.float32)
    bias = float(machine.intercept_[0])
    value = svm_objective(weight, bias, positives, negatives, config)
    return LinearSvm(weight, bias, value, converged)


def svm_objective(
    weight: Matrix, bias: float, positives: Matrix, negatives: Matrix, config: SvmConfig
) -> float:
    """Compute the value that `fit_svm` minimises."""
    hinge_positive = np.maximum(0.0, 1.0 - (positives @ weight + bias)).sum(dtype=np.float64)
    hinge_negative = np.maximum(0.0, 1.0 + (negatives @ weight + bias)).sum(dtype=np.float64)
    norm = float(np.dot(weight.astype(np.float64), weight)) + (bias / config.bias) ** 2
    loss = config.positive_weight * float(hinge_positive) + float(hinge_negative)
    return 0.5 * norm + config.C * loss

"""One linear SVM a class on region features, with one pass of hard-negative mining."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.config import SvmConfig
from sppdet.errors import TrainingError

Matrix = NDArray[np.float32]
VERSION = 1  # raised when the same settings give other weights


@dataclass(frozen=True)
class LinearSvm:
    """score(x) = weight · x + bias, for scaled features."""

    weight: Matrix  # (D,)
    bias: float
    objective: float  # what was minimised, at the optimum found
    converged: bool = True


def fit_svm(positives: Matrix, negatives: Matrix, config: SvmConfig, *, seed: int) -> LinearSvm:
    """Fit the L2-regularised hinge loss by liblinear (`-s 3 -c C -w1 w -B bias`).

    Minimises ½‖(w, v)‖² + C·Σ weightᵢ·max(0, 1 − yᵢ(w·xᵢ + bias·v)), the constant feature's v included.

    Args:
        positives: (P, D), negatives: (N, D), scaled features; both not empty.
        seed: of liblinear's coordinate order.
    """
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
        random_state=seed,
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
    """The value that `fit_svm` minimises."""
    hinge_positive = np.maximum(0.0, 1.0 - (positives @ weight + bias)).sum(dtype=np.float64)
    hinge_negative = np.maximum(0.0, 1.0 + (negatives @ weight + bias)).sum(dtype=np.float64)
    norm = float(np.dot(weight.astype(np.float64), weight)) + (bias / config.bias) ** 2
    loss = config.positive_weight * float(hinge_positive) + float(hinge_negative)
    return 0.5 * norm + config.C * loss


@dataclass
class _Cache:
    """The negatives of one class: their features and where they come from."""

    features: list[Matrix] = field(default_factory=list)
    refs: list[NDArray[np.int64]] = field(default_factory=list)  # (n, 2): picture, row
    added: int = 0  # since the last training

    def add(self, features: Matrix, refs: NDArray[np.int64]) -> None:
        self.features.append(features)
        self.refs.append(refs)
        self.added += len(refs)

    def joined(self) -> tuple[Matrix, NDArray[np.int64]]:
        if len(self.features) > 1:
            self.features = [np.concatenate(self.features)]
            self.refs = [np.concatenate(self.refs)]
        return self.features[0], self.refs[0]

    def keep(self, rows: NDArray[np.bool_]) -> None:
        features, refs = self.joined()
        self.features, self.refs = [features[rows]], [refs[rows]]


@dataclass(frozen=True)
class Candidates:
    """One picture's negatives: distinct windows' features and the classes they are negatives of."""

    picture: int  # position in the data set
    features: torch.Tensor  # (U, D) scaled, on any device
    negative: NDArray[np.bool_]  # (U, K)


class Miner:
    """Trains all classes' SVMs while the pictures pass by once.

    Memory holds the positives and each class's cache, whatever the number of pictures.

    Args:
        positives: per class (P, D) scaled features.
        report: called with (class index, SVM, cache size, evicted) at each retraining.

    Raises:
        TrainingError: a class has no positive; it is named.
    """

    def __init__(
        self,
        positives: Sequence[Matrix],
        class_names: Sequence[str],
        config: SvmConfig,
        *,
        seed: int,
        device: torch.device,
        report: Callable[[int, LinearSvm, int, int], None] = lambda *_: None,
    ) -> None:
        for name, examples in zip(class_names, positives, strict=True):
            if len(examples) == 0:
                raise TrainingError(f"class {name}: no positive; expected one object or more")
        self._positives = positives
        self._config = config
        self._seed = seed
        self._report = report
        width = positives[0].shape[1]
        self.weights = torch.zeros((len(positives), width), device=device)
        self.biases = torch.zeros(len(positives), device=device)
        self._caches = [_Cache() for _ in positives]

    def see(self, candidates: Candidates) -> None:
        """Add the picture's hard negatives to the caches; retrain the classes that are due.

        A negative is hard if its score > `hard_threshold`; untrained SVMs score 0, so that at
        first every negative joins. One that is in the cache already isn't added again.
        """
        scores = (candidates.features @ self.weights.T + self.biases).cpu().numpy()
        hard = candidates.negative & (scores > self._config.hard_threshold)
        for k, cache in enumerate(self._caches):
            rows = np.flatnonzero(hard[:, k])
            rows = rows[~np.isin(rows, _rows_of(cache, candidates.picture))]
            if len(rows):
                chosen = torch.from_numpy(rows).to(candidates.features.device)
                refs = np.stack([np.full(len(rows), candidates.picture), rows], axis=1)
                cache.add(candidates.features[chosen].cpu().numpy(), refs)
            if cache.added >= self._config.retrain_after:
                self._retrain(k)

    def finish(self) -> None:
        """Train the classes whose caches have grown since their last training."""
        for k, cache in enumerate(self._caches):
            if cache.added or not cache.features:
                self._retrain(k)

    def _retrain(self, k: int) -> None:
        cache = self._caches[k]
        if not cache.features:
            raise TrainingError("no negatives: expected proposals away from the objects")
        negatives, _ = cache.joined()
        svm = fit_svm(self._positives[k], negatives, self._config, seed=self._seed)
        self.weights[k] = torch.from_numpy(svm.weight).to(self.weights.device)
        self.biases[k] = svm.bias
        keep = negatives @ svm.weight + np.float32(svm.bias) >= self._config.evict_threshold
        cache.keep(keep)
        cache.added = 0
        self._report(k, svm, len(negatives), int((~keep).sum()))

    # -- going on after an interruption ------------------------------------------------------------

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint needs: weights, and the caches as references, not as features."""
        state = {"weights": self.weights, "biases": self.biases}
        for k, cache in enumerate(self._caches):
            refs = np.concatenate(cache.refs) if cache.refs else np.zeros((0, 2), dtype=np.int64)
            state[f"refs{k}"] = torch.from_numpy(refs)
            state[f"added{k}"] = torch.tensor(cache.added)
        return state

    def restore(
        self, state: dict[str, torch.Tensor], features_of: Callable[[int], torch.Tensor]
    ) -> Iterable[int]:
        """Put a checkpoint back, a picture at a time.

        Args:
            features_of: the scaled features (U, D) of a picture's distinct windows.

        Yields:
            the pictures, as their features are put back.
        """
        self.weights.copy_(state["weights"])
        self.biases.copy_(state["biases"])
        all_refs = [state[f"refs{k}"].numpy() for k in range(len(self._caches))]
        width = self.weights.shape[1]
        filled: list[Any] = [np.empty((len(r), width), dtype=np.float32) for r in all_refs]
        for picture in np.unique(np.concatenate([r[:, 0] for r in all_refs])).tolist():
            features = features_of(picture).cpu().numpy()
            for target, refs in zip(filled, all_refs, strict=True):
                here = refs[:, 0] == picture
                target[here] = features[refs[here, 1]]
            yield picture
        for k, (features, refs) in enumerate(zip(filled, all_refs, strict=True)):
            self._caches[k] = _Cache(added=int(state[f"added{k}"]))
            if len(refs) or bool(self.weights[k].any()):  # trained: even an empty cache is one
                self._caches[k].features, self._caches[k].refs = [features], [refs]


def _rows_of(cache: _Cache, picture: int) -> NDArray[np.int64]:
    """The rows of a picture that are in the cache."""
    found = [refs[refs[:, 0] == picture, 1] for refs in cache.refs]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)

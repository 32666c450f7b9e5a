"""Linear SVMs on region features, one per class, with hard-negative mining."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.errors import TrainingError
from sppdet.training.descent import Problem
from sppdet.training.dual import Fit, LinearSvm, solve
from sppdet.training.liblinear import fit_by_liblinear
from sppdet.training.pool import Matrix, Pool, Rows
from sppdet.training.processes import OneProcess, Processes, Tensors
from sppdet.training_config import SvmConfig

_NEVER = -1e6  # a score below every threshold
_BLOCK = 256  # windows whose features are there at once
_TOGETHER = 128  # SVMs without some images that are solved together
VERSION = 7  # raise it when the same settings give other weights


def fit_svm(positives: Matrix, negatives: Matrix, config: SvmConfig, *, seed: int) -> LinearSvm:
    """Fit the L2-regularised hinge loss by the configured solver.

    Minimises ½‖(w, v)‖² + C·Σ weightᵢ·max(0, 1 − yᵢ(w·xᵢ + bias·v)); v is the weight of the constant.

    Args:
        positives: (P, D), negatives: (N, D), scaled features; neither is empty.
        seed: seed of the order in which coordinates are visited.
    """
    pool = Pool(positives.shape[1], device=torch.device("cpu"))
    problem = Problem.of(
        pool.add(torch.from_numpy(positives), [(0, i) for i in range(len(positives))]),
        pool.add(torch.from_numpy(negatives), [(1, i) for i in range(len(negatives))]),
    )
    return fit_all(pool, [problem], config, seed=seed)[0].svm


def fit_all(
    pool: Pool,
    problems: Sequence[Problem],
    config: SvmConfig,
    *,
    seed: int,
    alike: Sequence[int] | None = None,
) -> list[Fit]:
    """Fit several SVMs; the dual solver starts from the problems' duals, see `solve`."""
    if config.solver == "dual":
        return solve(pool, problems, config, seed=seed, alike=alike)
    return [_fit_by_liblinear(pool, problem, config, seed=seed) for problem in problems]


def _fit_by_liblinear(pool: Pool, problem: Problem, config: SvmConfig, *, seed: int) -> Fit:
    x = pool.features(problem.rows).cpu().numpy()
    svm = fit_by_liblinear(x[problem.signs > 0], x[problem.signs < 0], config, seed=seed)
    return Fit(svm, (x @ svm.weight + np.float32(svm.bias)).astype(np.float64))


@dataclass
class _Cache:
    """Positives and hard negatives of one class, and the origin of the latter."""

    problem: Problem
    refs: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    """(n, 2) image and row of the problem's negatives, which follow its positives."""
    added: int = 0  # since the last training
    trained: bool = False

    def add(self, rows: Rows, refs: NDArray[np.int64]) -> None:
        if len(rows) == 0:  # as of most images, once the cache is large
            return
        self.problem.add_negatives(rows)
        self.refs = np.concatenate([self.refs, refs])
        self.added += len(refs)

    def keep(self, negatives: NDArray[np.bool_]) -> None:
        """Evict all negatives outside the mask."""
        positives = np.ones(len(self.problem.rows) - len(negatives), dtype=np.bool_)
        self.problem.keep(np.concatenate([positives, negatives]))
        self.refs = self.refs[negatives]
        self.added, self.trained = 0, True


LeftOut = tuple[NDArray[np.bool_], Sequence[NDArray[np.bool_]]]
"""Masks of images (I,) and, per class, of its positives (P,), that are left out."""


@dataclass(frozen=True)
class Candidates:
    """Negatives of one image: distinct windows and the classes they are negatives of."""

    image: int  # position in the data set
    products: Callable[[torch.Tensor], torch.Tensor]  # of all windows with weights (K, D): (U, K)
    features: Callable[[Rows], torch.Tensor]  # of some of the U windows: (u, D), on any device
    negative: NDArray[np.bool_]  # (U, K)

    @classmethod
    def of(cls, image: int, features: torch.Tensor, negative: NDArray[np.bool_]) -> Candidates:
        """Make candidates whose features (U, D) are all there."""
        return cls(
            image,
            lambda weights: features @ weights.T,
            lambda rows: features[torch.from_numpy(rows).to(features.device)],
            negative,
        )


class Miner:
    """Trainer of all classes' SVMs, fed image by image.

    Memory holds the positives and the classes' caches, which grow with the images unless `max_negatives`
    bounds them; classes share the features of a window. Between two trainings the dual solver keeps the
    duals only, so that a checkpoint holds all that the next one needs.

    Args:
        positives: per class (P, D) features.
        dtype: of the features that are held.
        ranks: processes that get the same negatives and divide the classes among them.
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
        dtype: torch.dtype = torch.float32,
        ranks: Processes | None = None,
        report: Callable[[int, LinearSvm, int, int], None] = lambda *_: None,
    ) -> None:
        for name, examples in zip(class_names, positives, strict=True):
            if len(examples) == 0:
                raise TrainingError(f"class {name}: no positives; expected at least one object")
        self._names = class_names
        self._config = config
        self._seed = seed
        self._ranks = ranks or OneProcess()
        self._report = report
        width = positives[0].shape[1]
        self.weights = torch.zeros((len(positives), width), device=device)
        self.biases = torch.zeros(len(positives), device=device)
        self.pool = Pool(width, device=device, dtype=dtype)
        self._caches = []
        for k, examples in enumerate(positives):
            keys = [(-1 - k, i) for i in range(len(examples))]  # images count from 0
            rows = self.pool.add(torch.from_numpy(examples), keys)
            self._caches.append(_Cache(Problem.of(rows, rows[:0])))

    def hard_of(self, candidates: Candidates) -> Tensors:
        """Select the image's hard negatives that the caches lack, for `add`.

        A negative is hard if its score > `hard_threshold`; untrained SVMs score 0, so that at
        first every negative is hard.
        """
        unknown = candidates.negative.copy()
        for k, cache in enumerate(self._caches):
            unknown[cache.refs[cache.refs[:, 0] == candidates.image, 1], k] = False

        scores = (candidates.products(self.weights) + self.biases).cpu().numpy()
        hard = unknown & (scores > self._config.hard_threshold)
        return _select(candidates, hard, self.pool.dtype)

    def add(self, hard: Tensors) -> None:
        """Add an image's hard negatives to the caches; retrain the classes that are due."""
        image = int(hard["image"])
        for cache, (rows, chosen) in zip(self._caches, self._store(hard), strict=True):
            cache.add(rows, np.stack([np.full(len(chosen), image), chosen], axis=1))
        self._retrain(
            [k for k, c in enumerate(self._caches) if c.added >= self._config.retrain_after]
        )

    def finish(self) -> None:
        """Train the classes whose caches have grown since their last training."""
        self._retrain([k for k, c in enumerate(self._caches) if c.added or not c.trained])

    def cached(self) -> list[int]:
        """Count the negatives in the classes' caches."""
        return [len(cache.refs) for cache in self._caches]

    def leave_out(self, parts: Sequence[LeftOut]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Solve all classes again without the examples of some images, once mining is finished.

        The negatives are those of the other images that are hard for the SVMs of all images, so that
        no image is mined again; starting from these SVMs' duals, few steps are left. Several parts are
        solved together, since a pass over the features serves all, and share products.

        Yields:
            for each part weights (K, D) and biases (K,); a class without positives or negatives left is
            never found.
        """
        size = max(1, _TOGETHER // len(self._caches))
        for start in range(0, len(parts), size):
            together = parts[start : start + size]
            which, problems = [], []
            for part, (images, positives) in enumerate(together):
                for k, (cache, out) in enumerate(zip(self._caches, positives, strict=True)):
                    problem = replace(cache.problem)
                    problem.keep(~np.concatenate([out, images[cache.refs[:, 0]]]))
                    if (problem.signs > 0).any() and (problem.signs < 0).any():
                        which.append((part, k))
                        problems.append(problem)
            weights = self.weights.new_zeros((len(together), *self.weights.shape))
            biases = torch.full_like(weights[:, :, 0], _NEVER)
            fits = self._fits([k for _, k in which], problems)
            for (part, k), fit in zip(which, fits, strict=True):
                weights[part, k] = torch.from_numpy(fit.svm.weight).to(weights.device)
                biases[part, k] = fit.svm.bias
            yield from zip(weights, biases, strict=True)

    def _store(self, hard: Tensors) -> list[tuple[Rows, NDArray[np.int64]]]:
        """Add negatives to the pool; returns per class their rows in the pool and in the image."""
        image, distinct = int(hard["image"]), hard["rows"].numpy(force=True)
        rows = self.pool.add(hard["features"], [(image, row) for row in distinct.tolist()])
        of_class = hard["of"].numpy(force=True).T
        return [(rows[chosen], distinct[chosen]) for chosen in of_class]

    def _retrain(self, classes: Sequence[int]) -> None:
        if not classes:
            return
        caches = [self._caches[k] for k in classes]
        for k, cache in zip(classes, caches, strict=True):
            if len(cache.refs) == 0:
                raise TrainingError(
                    f"class {self._names[k]}: no negatives: expected proposals away from the objects"
                )
        fits = self._fits(classes, [cache.problem for cache in caches])
        for k, cache, fit in zip(classes, caches, fits, strict=True):
            svm, cached = fit.svm, len(cache.refs)
            self.weights[k] = torch.from_numpy(svm.weight).to(self.weights.device)
            self.biases[k] = svm.bias
            keep = _kept(fit.scores[len(fit.scores) - cached :], self._config)
            cache.keep(keep)
            self._report(k, svm, cached, int((~keep).sum()))
        self.pool.keep(np.concatenate([c.problem.rows for c in self._caches]))

    def _fits(self, classes: Sequence[int], problems: Sequence[Problem]) -> list[Fit]:
        """Solve problems of classes; a process always solves the same classes; all get the solutions."""
        ranks = self._ranks
        own = [i for i, k in enumerate(classes) if k % ranks.count == ranks.rank]
        given = [problems[i] for i in own]
        alike = [classes[i] for i in own]
        fitted = fit_all(self.pool, given, self._config, seed=self._seed, alike=alike)
        solved = dict(zip(own, fitted, strict=True))
        fits = []
        for i, (k, problem) in enumerate(zip(classes, problems, strict=True)):
            mine = _as_tensors(solved[i], problem) if i in solved else None
            tensors = ranks.broadcast(mine, owner=k % ranks.count)
            problem.duals = tensors["duals"].numpy(force=True)
            fits.append(_from_tensors(tensors))
        return fits

    # -- checkpoints -------------------------------------------------------------------------------

    def state(self) -> dict[str, torch.Tensor]:
        """Return weights, duals and caches, as references instead of features, for a checkpoint."""
        state = {
            "weights": self.weights,
            "biases": self.biases,
            "trained": torch.tensor([c.trained for c in self._caches]),
        }
        for k, cache in enumerate(self._caches):
            state[f"refs{k}"] = torch.from_numpy(cache.refs)
            state[f"duals{k}"] = torch.from_numpy(cache.problem.duals)
            state[f"added{k}"] = torch.tensor(cache.added)
        return state

    def restore(self, state: Tensors, negatives: Iterable[Tensors]) -> None:
        """Resume from a checkpoint; later results are bit-identical to an uninterrupted training.

        Args:
            negatives: `cached_negatives` of all `cached_images` of the checkpoint.
        """
        refs = [state[f"refs{k}"].numpy() for k in range(len(self._caches))]
        rows_of = [np.zeros(len(r), dtype=np.int64) for r in refs]
        for hard in negatives:
            for own, r, (rows, chosen) in zip(rows_of, refs, self._store(hard), strict=True):
                at = np.flatnonzero(r[:, 0] == int(hard["image"]))
                own[at] = rows[np.searchsorted(chosen, r[at, 1])]
        self.weights.copy_(state["weights"])
        self.biases.copy_(state["biases"])
        for k, cache in enumerate(self._caches):
            cache.add(rows_of[k], refs[k])
            cache.problem.duals = state[f"duals{k}"].numpy().copy()
            cache.added = int(state[f"added{k}"])
            cache.trained = bool(state["trained"][k])


def _kept(scores: NDArray[np.float64], config: SvmConfig) -> NDArray[np.bool_]:
    """Choose the cached negatives (n,) to keep by their scores; ties keep the earlier one."""
    kept = scores >= config.evict_threshold
    if config.max_negatives is not None:
        lower = np.argsort(-scores, kind="stable")[config.max_negatives :]
        kept[lower] = False
    return kept


def cached_negatives(state: Tensors, candidates: Candidates, dtype: torch.dtype) -> Tensors:
    """Select the image's negatives that a `Miner`'s checkpoint refers to, for `Miner.restore`."""
    of_class = np.zeros_like(candidates.negative)
    for k in range(of_class.shape[1]):
        refs = state[f"refs{k}"].numpy()
        of_class[refs[refs[:, 0] == candidates.image, 1], k] = True
    return _select(candidates, of_class, dtype)


def cached_images(state: Tensors) -> list[int]:
    """List the images whose negatives a `Miner`'s checkpoint refers to, ascending."""
    refs = [rows[:, 0] for name, rows in state.items() if name.startswith("refs")]
    images: list[int] = np.unique(torch.cat(refs).numpy()).tolist()
    return images


def _select(candidates: Candidates, chosen: NDArray[np.bool_], dtype: torch.dtype) -> Tensors:
    """Select the candidates that any class has chosen (U, K), with their features, block by block."""
    rows = np.flatnonzero(chosen.any(axis=1))
    starts = range(0, max(1, len(rows)), _BLOCK)
    blocks = [candidates.features(rows[start : start + _BLOCK]).to(dtype) for start in starts]
    return {
        "image": torch.tensor(candidates.image),
        "rows": torch.from_numpy(rows),  # (n,) ascending
        "features": torch.cat(blocks),
        "of": torch.from_numpy(chosen[rows]),  # (n, K)
    }


def _as_tensors(fit: Fit, problem: Problem) -> Tensors:
    svm = fit.svm
    return {
        "weight": torch.from_numpy(svm.weight),
        "numbers": torch.tensor([svm.bias, svm.objective, svm.converged], dtype=torch.float64),
        "scores": torch.from_numpy(fit.scores),
        "duals": torch.from_numpy(problem.duals),
    }


def _from_tensors(tensors: Tensors) -> Fit:
    bias, objective, converged = tensors["numbers"].tolist()
    svm = LinearSvm(tensors["weight"].numpy(force=True), bias, objective, bool(converged))
    return Fit(svm, tensors["scores"].numpy(force=True))

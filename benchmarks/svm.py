"""Seconds to train the SVMs of all classes: our dual solver against liblinear, side by side.

    python benchmarks/svm.py [--classes 20] [--examples 10000] [--width 4096] [--positives 300]
        [--nonzero 0.36] [--threads 2] [--rounds 1] [--liblinear-threads 1] [--liblinear-classes N]
        [--device cpu] [--json FILE]

The features are made: sparse, not negative, of mean norm 20, their classes overlapping. A share
--nonzero isn't zero; 36 % is what caches of a run on photographs had. Every class has its
positives, and all other examples are its negatives. Each round trains all classes by the dual
solver, from nothing, and then by liblinear through scikit-learn, one class after the other or
--liblinear-threads of them at a time; medians of the rounds are printed. The seconds of the processor
tell more where others use it too. With --liblinear-classes only so many are trained by liblinear and
its seconds are scaled up; that is said.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, median

import before_torch  # noqa: F401
import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.parallel import ordered_map
from sppdet.runs.environment import set_threads
from sppdet.training.descent import Problem
from sppdet.training.dual import LinearSvm, solve
from sppdet.training.liblinear import fit_by_liblinear, svm_objective
from sppdet.training.pool import Matrix, Pool
from sppdet.training_config import SvmConfig

LATENT = 48  # dimensions that the features really have, before noise


def made_features(
    count: int, width: int, classes: int, positives: int, *, nonzero: float, seed: int
) -> tuple[Matrix, NDArray[np.int64]]:
    """Features (count, width) and their classes, −1 for the background."""
    rng = np.random.default_rng(seed)
    labels = np.full(count, -1)
    labels[: classes * positives] = np.repeat(np.arange(classes), positives)
    rng.shuffle(labels)
    latent = rng.standard_normal((count, LATENT))
    centres = 0.35 * rng.standard_normal((classes, LATENT))
    latent[labels >= 0] += centres[labels[labels >= 0]]
    mixing = rng.standard_normal((LATENT, width)).astype(np.float32) / np.sqrt(LATENT)
    threshold = -NormalDist().inv_cdf(nonzero)  # the sums below have about unit variance
    features = np.empty((count, width), dtype=np.float32)
    for start in range(0, count, 1000):
        part = latent[start : start + 1000].astype(np.float32) @ mixing
        noise = 0.15 * rng.standard_normal(part.shape, dtype=np.float32)
        features[start : start + 1000] = np.maximum(part + noise - threshold, 0)
    features *= 20 / np.linalg.norm(features, axis=1).mean()
    return features, labels


def by_dual(
    features: Matrix, labels: NDArray[np.int64], classes: int, config: SvmConfig, device: str
) -> list[LinearSvm]:
    """All classes at once."""
    pool = Pool(features.shape[1], device=torch.device(device))
    rows = pool.add(torch.from_numpy(features), [(i, 0) for i in range(len(features))])
    problems = [Problem.of(rows[labels == k], rows[labels != k]) for k in range(classes)]
    return [fit.svm for fit in solve(pool, problems, config, seed=0)]


def by_liblinear(
    features: Matrix, labels: NDArray[np.int64], classes: int, config: SvmConfig, workers: int
) -> list[LinearSvm]:
    """One class a thread, `workers` of them."""

    def fit(k: int) -> LinearSvm:
        return fit_by_liblinear(features[labels == k], features[labels != k], config, seed=0)

    return list(ordered_map(fit, range(classes), workers=workers))


class Clock:
    """Seconds since it was made, by the wall and of the processor."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def note(self, seconds: dict[str, list[float]], name: str, factor: float = 1.0) -> None:
        """Append both, times `factor`."""
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        seconds.setdefault(name, []).append(factor * wall)
        seconds.setdefault(f"{name}_cpu", []).append(factor * cpu)


@dataclass(frozen=True)
class Compared:
    """Both solvers on the same examples."""

    seconds: dict[str, list[float]]  # of each round, by the wall and of the processor
    result: dict[str, float]  # medians, their ratio, objectives against liblinear's
    unfinished: int  # SVMs that stopped at max_iterations
    nonzero: float


def compare(
    shape: tuple[int, int, int, int],
    ours: SvmConfig,
    theirs: SvmConfig,
    device: str,
    workers: int,
    few: int,
    *,
    rounds: int,
    nonzero: float,
) -> Compared:
    """Train the SVMs of all classes by both solvers in turns.

    Args:
        shape: examples, width, classes, positives of a class.
        workers: classes at a time of liblinear's.
        few: classes that liblinear trains; its seconds are scaled up.
    """
    x, labels = made_features(*shape, nonzero=nonzero, seed=0)
    classes = shape[2]
    small, small_labels = made_features(300, 64, 2, 50, nonzero=nonzero, seed=1)
    by_dual(small, small_labels, 2, ours, device)  # compiles, warms up
    by_liblinear(small, small_labels, 2, theirs, workers)
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        clock = Clock()
        found = by_dual(x, labels, classes, ours, device)
        clock.note(seconds, "dual")
        clock = Clock()
        reference = by_liblinear(x, labels, few, theirs, workers)
        clock.note(seconds, "liblinear", classes / few)
    differences, distances = [], []
    for k, svm in enumerate(reference):
        p, n = x[labels == k], x[labels != k]
        a, b = (svm_objective(s.weight, s.bias, p, n, ours) for s in (found[k], svm))
        differences.append(a / b - 1)
        distances.append(
            float(np.abs(found[k].weight - svm.weight).max() / np.abs(svm.weight).max())
        )
    result = {
        **{name: median(times) for name, times in seconds.items()},
        "ratio": median(b / a for a, b in zip(seconds["dual"], seconds["liblinear"], strict=True)),
        "objective_least": min(differences),
        "objective_most": max(differences),
        "weights": max(distances),
    }
    unfinished = sum(not svm.converged for svm in [*found, *reference])
    return Compared(seconds, result, unfinished, float((x > 0).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--positives", type=int, default=300, help="of each class")
    parser.add_argument("--nonzero", type=float, default=0.36)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tolerance", type=float, default=SvmConfig().tolerance)
    parser.add_argument("--liblinear-tolerance", type=float, default=1e-2)
    parser.add_argument("--liblinear-threads", type=int, default=1)
    parser.add_argument("--liblinear-classes", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    set_threads(args.threads)
    ours = SvmConfig(tolerance=args.tolerance)
    theirs = SvmConfig(tolerance=args.liblinear_tolerance, solver="liblinear")
    workers = args.liblinear_threads
    few = min(args.liblinear_classes or args.classes, args.classes)

    shape = (args.examples, args.width, args.classes, args.positives)
    compared = compare(
        shape, ours, theirs, args.device, workers, few, rounds=args.rounds, nonzero=args.nonzero
    )
    seconds, result = compared.seconds, compared.result
    title = f"{args.classes} classes, {args.examples:,} × {args.width:,}"
    print(
        f"{title}, {args.positives} positives each, {compared.nonzero:.0%} not zero; medians of "
        f"{args.rounds}\ndual: {args.device}, {args.threads} threads, tolerance {args.tolerance:g}\n"
        f"liblinear: {workers} classes at a time, tolerance {args.liblinear_tolerance:g}"
    )
    if few < args.classes:
        print(f"liblinear: {few} classes timed, scaled to {args.classes}")
    if compared.unfinished:
        print(f"{compared.unfinished} SVMs stopped at max_iterations")
    spread = f"{result['objective_least']:+.1e} to {result['objective_most']:+.1e}"
    times = [f"{result[n]:.2f} ({result[f'{n}_cpu']:.2f})" for n in ("dual", "liblinear")]
    print(
        "\n| SVMs | dual s (CPU) | liblinear s (CPU) | ratio | objective / liblinear's − 1 | Δw |"
    )
    print("|---|---|---|---|---|---|")
    print(f"| {title} | {' | '.join(times)} | {result['ratio']:.1f} | {spread} | ", end="")
    print(f"{result['weights']:.1e} of the largest |")
    if args.json:
        facts = {k: v for k, v in vars(args).items() if k != "json"}
        facts |= {"liblinear_classes": few, "seconds": seconds, "result": result}
        args.json.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()

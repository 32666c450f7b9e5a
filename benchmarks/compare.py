"""Whether two runs differ in mAP by more than their test images' chance: a paired bootstrap.

    python benchmarks/compare.py RUN_A RUN_B [--draws 1000] [--seed 0]

Both have been evaluated on the same test set. Images are drawn with replacement, the same for both
runs, and both are scored on each draw (Efron & Tibshirani 1993). Prints both mAPs, their difference, and
the interval that holds the middle 95 % of the draws' differences.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from sppdet import load_config
from sppdet.evaluation.voc import evaluate_voc
from sppdet.io.detection_files import read_detections
from sppdet.io.image_cache import ImageCache
from sppdet.io.splits import read_split
from sppdet.types import Dataset, Detections


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs=2)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    first, second = args.runs
    config = load_config(first / "config.yaml")
    images = ImageCache.load(first / "images.json")
    names = read_split(config.data, "train", None, images, workers=1).class_names
    dataset = read_split(config.data, "test", names, images, workers=1)
    found = [
        read_detections(run / "eval" / "test" / "coco_results.json", dataset) for run in args.runs
    ]
    scores = [mean_ap(dataset, one) for one in found]
    low, high = interval(dataset, found[0], found[1], draws=args.draws, seed=args.seed)
    print(f"{first}: {scores[0]:.1f}\n{second}: {scores[1]:.1f}")
    print(
        f"difference {scores[1] - scores[0]:+.1f}, 95 % of the draws in {low:+.1f} to {high:+.1f}"
    )


def mean_ap(dataset: Dataset, found: dict[str, Detections]) -> float:
    """mAP, 11-point, in per cent."""
    return 100 * evaluate_voc(dataset, found, metric="voc07").mean_ap


def interval(
    dataset: Dataset,
    first: dict[str, Detections],
    second: dict[str, Detections],
    *,
    draws: int,
    seed: int,
) -> tuple[float, float]:
    """What the middle 95 % of the draws' differences lie between, second − first, in points."""
    rng = np.random.default_rng(seed)
    differences = []
    for _ in range(draws):
        rows = rng.integers(len(dataset), size=len(dataset)).tolist()
        a, b = (mean_ap(*drawn(dataset, one, rows)) for one in (first, second))
        differences.append(b - a)
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


def drawn(
    dataset: Dataset, found: dict[str, Detections], rows: list[int]
) -> tuple[Dataset, dict[str, Detections]]:
    """The images of these rows as a set of their own, each with a new id."""
    images = tuple(replace(dataset.images[row], id=str(place)) for place, row in enumerate(rows))
    detections = {str(place): found[dataset.images[row].id] for place, row in enumerate(rows)}
    return replace(dataset, images=images), detections


if __name__ == "__main__":
    main()

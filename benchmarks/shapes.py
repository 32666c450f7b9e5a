"""Whole images of any size and aspect through every network.

    python benchmarks/shapes.py [--nets a,b] [--sides 64,240,1200] [--aspects 1/6,1,6] [--threads N]

Random images whose shorter side and aspect (width / height) are given; random weights, pyramids
{6, 3, 2, 1} and {4, 3, 2, 1} in place of the last pooling, two fully connected layers. Every score must
be finite and add up to 1 over the classes. Prints seconds an image; ends with 1 where one failed.
"""

from __future__ import annotations

import argparse
import sys
import time
from fractions import Fraction
from pathlib import Path

import before_torch  # noqa: F401
import numpy as np

from sppdet.classification.classifier import SppClassifier, build_classifier
from sppdet.classification.config import FolderConfig, PretrainConfig
from sppdet.classification.views import View, score_crops
from sppdet.config import BackboneConfig
from sppdet.runs.environment import available_cores, set_threads
from sppdet.training_config import HeadConfig
from sppdet.types import ImageArray

NETS = (
    *("zf5", "zf5_detector", "convnet5", "overfeat5", "overfeat7", "tiny"),
    *("alexnet", "squeezenet1_1", "resnet18"),
)
PYRAMIDS = ([6, 3, 2, 1], [4, 3, 2, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--sides", default="64,240,1200")
    parser.add_argument("--aspects", default="1/6,1,6")
    parser.add_argument("--threads", type=int, default=available_cores())
    args = parser.parse_args()
    set_threads(args.threads)
    rng = np.random.default_rng(0)
    images = [
        random_image(int(side), Fraction(aspect), rng)
        for side in args.sides.split(",")
        for aspect in args.aspects.split(",")
    ]
    shapes = [f"{p.shape[1]}×{p.shape[0]}" for p in images]
    print(f"| net | {' | '.join(shapes)} |\n" + "|---" * (len(shapes) + 1) + "|")
    failed = 0
    for name in args.nets.split(","):
        cells = []
        for image in images:
            try:
                cells.append(f"{seconds(name, image):.2f}")
            except Exception as error:  # whatever it is, the others are still tried
                cells.append(f"{type(error).__name__}: {error}")
                failed += 1
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    sys.exit(f"{failed} failed" if failed else 0)


def seconds(name: str, image: ImageArray) -> float:
    """Mean seconds of an image over the pyramids; raises where a score is no probability."""
    spent = 0.0
    for levels in PYRAMIDS:
        classifier = random_classifier(name, levels)
        start = time.perf_counter()
        scores = score_crops(
            classifier, image, [View(min(image.shape[:2]), None, False)], crop=224, size=224
        )
        spent += time.perf_counter() - start
        if not (np.isfinite(scores.numpy()).all() and abs(float(scores.sum()) - 1) < 1e-4):
            raise ValueError(f"scores {scores}")
    return spent / len(PYRAMIDS)


def random_classifier(name: str, levels: list[int]) -> SppClassifier:
    """A classifier of two classes with random weights."""
    config = PretrainConfig(
        data=FolderConfig(root=Path()),
        backbone=BackboneConfig(name=name, weights="none"),
        spp_levels=levels,
        head=HeadConfig(widths=[64, 64]),
    )
    return build_classifier(config, ["a", "b"]).eval().requires_grad_(False)


def random_image(side: int, aspect: Fraction, rng: np.random.Generator) -> ImageArray:
    """Noise whose shorter side and width / height are given."""
    width = round(side * max(Fraction(1), aspect))
    height = round(side * max(Fraction(1), 1 / aspect))
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


if __name__ == "__main__":
    main()

"""Selective search by both engines: seconds an image, and how well the boxes cover the objects.

    python benchmarks/proposals.py [--data DIR] [--set NAME] [--count N] [--mode MODE] [--json FILE]

DIR has the VOC layout. Without --data it is data/frk5 below $SPPDET_DATA, and without that the demo's
images are painted. The engines take turns, image by image, with the same settings and one
thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Literal

import before_torch  # noqa: F401

from sppdet.config import ProposalsConfig
from sppdet.demo.set import make_demo_set
from sppdet.io.dataset import load_dataset
from sppdet.io.images import read_image
from sppdet.proposals.modes import MODES
from sppdet.proposals.recall import coverage
from sppdet.proposals.selective_search import selective_search
from sppdet.runs.environment import set_threads
from sppdet.types import AnnotatedImage, Boxes, Dataset, Proposals

ENGINES: tuple[Literal["opencv", "sppdet"], ...] = ("opencv", "sppdet")
LIMITS = (500, 1000, 2000)


def load_set(folder: Path, split: str) -> Dataset:
    """A set in the VOC layout, without what is damaged."""
    return load_dataset(
        format="voc",
        roots=[folder],
        sets=[split],
        images=None,
        class_names=None,
        on_error="skip",
        read_images=True,
        known=None,
    )


def find_images(folder: Path, split: str, count: int) -> tuple[AnnotatedImage, ...]:
    """At most `count` images with objects, spread evenly over a set."""
    images = tuple(image for image in load_set(folder, split).images if len(image.gt_boxes))
    return images[:: max(1, len(images) // count)][:count]


def search_all(
    images: tuple[AnnotatedImage, ...], configs: dict[str, ProposalsConfig]
) -> tuple[dict[str, list[Boxes]], dict[str, list[float]]]:
    """Boxes and seconds of every engine for every image."""
    boxes: dict[str, list[Boxes]] = {engine: [] for engine in configs}
    seconds: dict[str, list[float]] = {engine: [] for engine in configs}
    for image in images:
        pixels = read_image(image.path)
        for engine, config in configs.items():
            start = time.perf_counter()
            proposals = selective_search(pixels, config)
            seconds[engine].append(time.perf_counter() - start)
            boxes[engine].append(proposals.boxes)
    return boxes, seconds


def summarise(
    images: tuple[AnnotatedImage, ...], boxes: list[Boxes]
) -> dict[str, dict[str, float]]:
    """Coverage by the first boxes of every image, for each of `LIMITS`, in per cent."""
    result = {}
    for limit in LIMITS:
        found = coverage(
            (image, Proposals(b[:limit])) for image, b in zip(images, boxes, strict=True)
        )
        result[str(limit)] = {
            "boxes": found.mean_count,
            "recall_50": 100 * found.recall_50,
            "recall_70": 100 * found.recall_70,
            "best_overlap": 100 * found.best_overlap,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--set", default="test")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--mode", default="fast", choices=list(MODES))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    set_threads(1)
    folder = args.data
    if folder is None and "SPPDET_DATA" in os.environ:
        folder = Path(os.environ["SPPDET_DATA"]) / "data" / "frk5"
    configs: dict[str, ProposalsConfig] = {
        e: ProposalsConfig(engine=e, mode=args.mode, max_boxes=max(LIMITS)) for e in ENGINES
    }
    with tempfile.TemporaryDirectory() as temporary:
        if folder is None:
            print("SPPDET_DATA isn't set: painting the demo's images", file=sys.stderr)
            folder = make_demo_set(
                Path(temporary) / "set", seed=0, train_images=1, test_images=args.count
            )
        images = find_images(folder, args.set, args.count)
        search_all(images[:1], configs)  # compiles, warms up
        boxes, seconds = search_all(images, configs)
    ratio = median(o / s for o, s in zip(seconds["opencv"], seconds["sppdet"], strict=True))
    print(f"{len(images)} images, {args.mode}, one thread")
    print(f"{'engine':8s} {'ms':>8s} {'at most':>8s} {'boxes':>6s} {'R 0.5':>6s} {'R 0.7':>6s} ABO")
    results = {}
    for engine in ENGINES:
        time_ms = 1000 * median(seconds[engine])
        table = summarise(images, boxes[engine])
        results[engine] = {"milliseconds": time_ms, "coverage": table}
        for limit, row in table.items():
            print(
                f"{engine:8s} {time_ms:8.1f} {limit:>8s} {row['boxes']:6.0f} "
                f"{row['recall_50']:6.2f} {row['recall_70']:6.2f} {row['best_overlap']:.2f}"
            )
    print(f"opencv / sppdet, median over the images: {ratio:.1f}")
    if args.json:
        summary = {"images": len(images), "mode": args.mode, "ratio": ratio, "engines": results}
        args.json.write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()

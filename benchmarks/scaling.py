"""How the cost of detection grows: with image size, windows, classes and images.

    python benchmarks/scaling.py [--threads 1] [--repeats 5] [--image FILE] [--json FILE]

Made images (noise over shapes) and, for selective search, a photograph; without --image one below
$SPPDET_DATA is taken. Random weights. Every quantity is doubled a few times; the exponent
is the slope of log(seconds) over log(quantity), 1 for linear growth (less where a fixed cost remains).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import before_torch  # noqa: F401
import cv2
import numpy as np
import torch

from sppdet.boxes import nms
from sppdet.config import FeaturesConfig, ProposalsConfig
from sppdet.demo.set import make_demo_set
from sppdet.features.regions import FeatureExtractor
from sppdet.io.backbone_weights import load_backbone
from sppdet.io.finding import find_images
from sppdet.io.images import read_image
from sppdet.proposals.selective_search import selective_search
from sppdet.runs.environment import set_threads
from sppdet.types import Boxes, ImageArray

LEVELS = (6, 3, 2, 1)
ENGINES: tuple[Literal["sppdet", "opencv"], ...] = ("sppdet", "opencv")
PHOTOGRAPH = "data/frk5/JPEGImages/kangaroo_00054.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    below = Path(os.environ["SPPDET_DATA"]) if "SPPDET_DATA" in os.environ else None
    parser.add_argument("--image", type=Path, default=below and below / PHOTOGRAPH)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    set_threads(args.threads)
    works = {
        **searches(made_image(), "made image"),
        **(searches(read_image(args.image), "photograph") if args.image else {}),
        **image_size(made_image()),
        **windows_and_classes(made_image()),
        **images(),
    }
    print("| what | quantity | seconds | exponent |\n|---|---|---|---|")
    report = {}
    for name, (quantities, work) in works.items():
        seconds = [least_seconds(partial(work, q), args.repeats) for q in quantities]
        slope = float(np.polyfit(np.log(quantities), np.log(seconds), 1)[0])
        shown = " / ".join(f"{s:.3f}" for s in seconds)
        print(
            f"| {name} | {' / '.join(map(str, quantities))} | {shown} | {slope:.2f} |", flush=True
        )
        report[name] = {"quantity": quantities, "seconds": seconds, "exponent": slope}
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1))


Work = tuple[list[int], Callable[[int], object]]


def searches(image: ImageArray, what: str) -> dict[str, Work]:
    """Selective search, ours and OpenCV's, in images of 1, 2, 4 times the pixels."""

    def search(n: int, *, engine: Literal["sppdet", "opencv"]) -> object:
        width = round(500 * n**0.5)
        return selective_search(image, ProposalsConfig(image_width=width, engine=engine))

    return {
        f"selective search ({engine}), {what}, pixels ×": (
            [1, 2, 4],
            partial(search, engine=engine),
        )
        for engine in ENGINES
    }


def image_size(image: ImageArray) -> dict[str, Work]:
    """The layers on images of 1, 2, 4 times the pixels."""
    backbone = load_backbone("alexnet", "none")
    config = FeaturesConfig(max_side=10_000)
    sides = {n: round(250 * n**0.5) for n in (1, 2, 4)}

    def layers(n: int) -> object:
        return backbone.feature_maps(backbone.scaled(image, [sides[n]], config))

    return {"layers, pixels ×": ([1, 2, 4], layers)}


def windows_and_classes(image: ImageArray) -> dict[str, Work]:
    """SPP by windows, scores and NMS by classes."""
    backbone = load_backbone("alexnet", "none")
    maps = backbone.feature_maps(backbone.scaled(image, [688], FeaturesConfig()))
    maps = replace(maps, maps=tuple(m.half() for m in maps.maps))  # as they are kept
    extractor = FeatureExtractor(LEVELS, 224, None)
    rng = np.random.default_rng(0)
    boxes = made_boxes(image, 4000, rng)
    features = torch.rand(2000, 4096)
    scores = rng.normal(size=(2000, 80)).astype(np.float32)

    def pool(count: int) -> object:
        return extractor(maps, boxes[:count], "pool5")

    def score(classes: int) -> object:
        return features @ torch.ones(classes, 4096).T

    def suppress(classes: int) -> object:
        kept = [np.flatnonzero(scores[:, k] > 0) for k in range(classes)]
        return [nms(boxes[rows], scores[rows, k], max_iou=0.3) for k, rows in enumerate(kept)]

    return {
        "SPP, windows": ([500, 1000, 2000, 4000], pool),
        "SVM scores, classes": ([20, 40, 80], score),
        "NMS, classes": ([20, 40, 80], suppress),
    }


def images() -> dict[str, Work]:
    """Decoding, proposals and layers of several images."""
    backbone = load_backbone("alexnet", "none")
    image = made_image()

    def several(count: int) -> object:
        done = []
        for _ in range(count):
            selective_search(image, ProposalsConfig(image_width=250))
            done.append(backbone.feature_maps(backbone.scaled(image, [240], FeaturesConfig())))
        return done

    return {"images": ([2, 4, 8], several)}


def made_boxes(image: ImageArray, count: int, rng: np.random.Generator) -> Boxes:
    """(count, 4) boxes anywhere, sides spread evenly on a logarithmic scale."""
    size = np.array([image.shape[1], image.shape[0]])
    sides = np.exp(rng.uniform(np.log(20), np.log(size), (count, 2)))
    corner = rng.random((count, 2)) * (size - sides)
    return np.hstack([corner, corner + sides]).astype(np.float32)


def made_image() -> ImageArray:
    """An image of the demo set, enlarged to 500 pixels, with noise so that detail stays."""
    with tempfile.TemporaryDirectory() as folder:
        root = make_demo_set(Path(folder) / "set", seed=0, train_images=1, test_images=1)
        image = read_image(find_images([root])[0])
    factor = 1000 / image.shape[1]
    larger = cv2.resize(image, None, fx=factor, fy=factor).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 12, larger.shape)
    return np.asarray(np.clip(larger + noise, 0, 255), dtype=np.uint8)


def least_seconds(work: Callable[[], object], repeats: int) -> float:
    """Least seconds of several passes, after one to warm up: others may use the cores."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])


if __name__ == "__main__":
    main()

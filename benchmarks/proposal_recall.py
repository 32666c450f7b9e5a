"""Recall of the engines of proposals and of two joined: per number of boxes, with seconds an image.

    python benchmarks/proposal_recall.py --data DIR [--set NAME] [--count N] [--seed S] [--edge-model FILE]
        [--rows ROW,ROW] [--json FILE]

DIR has the VOC layout. `--count` images with objects are drawn from the set by `--seed`; 0: all. Seconds
are of the CPU on one thread, decoding left out; those of joined
engines are summed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import before_torch  # noqa: F401
import numpy as np
from proposals import load_set

from sppdet.config import ProposalsConfig
from sppdet.io.edge_model import read_edge_model
from sppdet.io.images import read_image
from sppdet.proposals.joined import interleaved, propose
from sppdet.proposals.recall import Coverage, coverage
from sppdet.runs.environment import set_threads
from sppdet.types import AnnotatedImage, Boxes, Proposals

LIMITS = (500, 1000, 2000)
SINGLE: dict[str, Any] = {"mode": "single"}
FAST: dict[str, Any] = {"mode": "fast"}
EDGES: dict[str, Any] = {"engine": "edgeboxes"}
ROWS: dict[str, list[dict[str, Any]]] = {
    "sppdet single": [SINGLE],
    "sppdet fast": [FAST],
    "sppdet diverse": [{"mode": "diverse"}],
    "sppdet quality": [{"mode": "quality"}],
    "edgeboxes": [EDGES],
    "sppdet fast + edgeboxes": [FAST, EDGES],
    "sppdet single + edgeboxes": [SINGLE, EDGES],
}


def draw_images(folder: Path, split: str, count: int, seed: int) -> list[AnnotatedImage]:
    """Draw images that have objects, in the order of the set."""
    images = [image for image in load_set(folder, split).images if (~image.difficult).any()]
    if count == 0 or count >= len(images):
        return images
    drawn = np.random.default_rng(seed).choice(len(images), count, replace=False)
    return [images[i] for i in sorted(drawn)]


def search_all(images: list[AnnotatedImage], config: ProposalsConfig) -> tuple[list[Boxes], float]:
    """Boxes of every image, and the mean seconds of the CPU for one."""
    detect_edges = read_edge_model(config.edge_model) if config.edge_model else None
    propose(read_image(images[0].path), config, detect_edges)  # compiles, warms up
    boxes, seconds = [], 0.0
    for image in images:
        pixels = read_image(image.path)
        start = time.process_time()
        boxes.append(propose(pixels, config, detect_edges).boxes)
        seconds += time.process_time() - start
    return boxes, seconds / len(images)


def cut(images: list[AnnotatedImage], boxes: list[Boxes], limit: int) -> Coverage:
    pairs = zip(images, boxes, strict=True)
    return coverage((image, Proposals(found[:limit])) for image, found in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", default="trainval")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--edge-model", type=Path)
    parser.add_argument("--rows", default=",".join(ROWS), help="names of rows, comma-separated")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    set_threads(1)
    images = draw_images(args.data, args.set, args.count, args.seed)
    objects = sum(int((~image.difficult).sum()) for image in images)
    print(f"{args.set}: {len(images)} images drawn by seed {args.seed}, {objects} objects")
    print("recall in per cent at IoU 0.5 / 0.7 by at most so many boxes; CPU seconds an image\n")
    limits = " | ".join(f"{limit:,}" for limit in LIMITS)
    print(f"| engine | boxes | {limits} | s |\n|{'---|' * (len(LIMITS) + 3)}")
    results = {}
    searched: dict[str, tuple[list[Boxes], float]] = {}
    for name in args.rows.split(","):
        for settings in ROWS[name]:
            if str(settings) not in searched:
                model = args.edge_model if settings is EDGES else None
                config = ProposalsConfig(**settings, max_boxes=max(LIMITS), edge_model=model)
                searched[str(settings)] = search_all(images, config)
        parts = [searched[str(settings)] for settings in ROWS[name]]
        # as `propose` does with a list of engines
        boxes = [
            interleaved(lists)[: max(LIMITS)] for lists in zip(*(p[0] for p in parts), strict=True)
        ]
        seconds = sum(p[1] for p in parts)
        found = {limit: cut(images, boxes, limit) for limit in LIMITS}
        shown = " | ".join(
            f"{100 * c.recall_50:.1f} / {100 * c.recall_70:.1f}" for c in found.values()
        )
        mean_count = found[max(LIMITS)].mean_count
        print(f"| {name} | {mean_count:,.0f} | {shown} | {seconds:.3f} |", flush=True)
        results[name] = {
            "seconds": seconds,
            "coverage": {str(limit): vars(c) for limit, c in found.items()},
        }
    if args.json:
        args.json.write_text(json.dumps({"images": len(images), "rows": results}, indent=1))


if __name__ == "__main__":
    main()

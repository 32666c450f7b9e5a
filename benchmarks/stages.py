"""Seconds a picture of every stage of detection, with a run's detector.

    python benchmarks/stages.py RUN [--pictures FOLDER] [--count N] [--threads T] [--json FILE]

Without --pictures the folder is data/frk5/JPEGImages below $SPPDET_DATA, and without that the
demo's pictures are painted. Every stage is repeated for every picture; medians are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import ParamSpec, TypeVar

from sppdet.data.demo_set import make_demo_set
from sppdet.data.images import find_images, read_image
from sppdet.detection.detector import Detector
from sppdet.parallel import set_threads

P = ParamSpec("P")
T = TypeVar("T")


def timed(
    times: dict[str, list[float]],
    name: str,
    function: Callable[P, T],
    *args: P.args,
    **kw: P.kwargs,
) -> T:
    """Run a function and note its seconds."""
    start = time.perf_counter()
    result = function(*args, **kw)
    times.setdefault(name, []).append(time.perf_counter() - start)
    return result


def measure(detector: Detector, pictures: list[Path]) -> dict[str, list[float]]:
    """Seconds of every stage for every picture."""
    times: dict[str, list[float]] = {}
    extractor, classifiers = detector.extractor, detector.classifiers
    for path in pictures:
        picture = timed(times, "decode", read_image, path)
        proposals = timed(times, "proposals", detector.proposer.of, picture)
        halves = timed(times, "conv", detector.maps.compute, picture)
        maps = halves.to(detector.maps.device)
        windows = extractor.windows(maps, proposals.boxes)
        pooled = timed(times, "SPP", extractor.pool, maps, windows.cells)
        features = timed(times, "fc", extractor.layer, pooled, classifiers.layer)
        timed(times, "SVM scores", classifiers.scores, features)
        timed(times, "SPP to detections", detector.detect, halves, proposals, picture)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    set_threads(args.threads)
    folder = args.pictures
    if folder is None and "SPPDET_DATA" in os.environ:
        folder = Path(os.environ["SPPDET_DATA"]) / "data" / "frk5" / "JPEGImages"
    with tempfile.TemporaryDirectory() as temporary:
        if folder is None:
            print("SPPDET_DATA isn't set: painting the demo's pictures", file=sys.stderr)
            folder = make_demo_set(Path(temporary) / "set", seed=0, train_images=40, test_images=2)
            folder = folder / "JPEGImages"
        everything = find_images([folder])
        pictures = everything[:: max(1, len(everything) // args.count)][: args.count]
        detector = Detector.load(args.run, device="cpu")
        measure(detector, pictures[:1])  # compiles, warms up
        times = measure(detector, pictures)
    print(f"{len(pictures)} pictures, {args.threads} threads, median (and 90 %) seconds a picture")
    for name, seconds in times.items():
        worst = sorted(seconds)[int(0.9 * (len(seconds) - 1))]
        print(f"{name:20s} {median(seconds):8.3f} {worst:8.3f}")
    if args.json:
        medians = {name: median(seconds) for name, seconds in times.items()}
        args.json.write_text(json.dumps({"threads": args.threads, "seconds": medians}, indent=1))


if __name__ == "__main__":
    main()

"""What `detect.svd` costs in mAP and what it saves: a trained run, with its fc layers whole and thinned.

    python benchmarks/svd.py RUN [--ranks whole,256,128,64] [--threads 2] [--count 8] [--json FILE]

RUN is a trained detector whose SVMs are on fc6 or fc7; two ranks are written as 1024+256. Every row is the
evaluation on the run's test set, in a copy of the run, and the median seconds of the fc layers over
--count of its images.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import before_torch  # noqa: F401
import torch

from sppdet import load_config
from sppdet.io import plain_yaml
from sppdet.io.image_cache import ImageCache
from sppdet.io.images import read_image
from sppdet.io.splits import read_split
from sppdet.runs.environment import available_cores, set_threads
from sppdet.stages.detector import Detector
from sppdet.stages.evaluate import evaluate_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--ranks", default="whole,256,128,64")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    set_threads(args.threads)
    report = []
    print(f"{args.run.name}, {args.threads} threads\n")
    print("| ranks | mAP | fc, s an image |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for text in args.ranks.split(","):
            copy = with_ranks(args.run, text, Path(temporary))
            result = evaluate_run(copy, "test", device="cpu")
            seconds = fc_seconds(copy, args.count)
            print(f"| {text} | {100 * result.mean_ap:.1f} | {seconds:.3f} |", flush=True)
            report.append({"ranks": text, "mAP": result.mean_ap, "fc": seconds})
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1))


def with_ranks(run: Path, ranks: str, folder: Path) -> Path:
    """A copy of the run, all but its stores, that detects with fc layers of these ranks."""
    copy = folder / ranks
    shutil.copytree(run / "model", copy / "model")
    shutil.copy(run / "images.json", copy)
    svd = "null" if ranks == "whole" else f"[{ranks.replace('+', ', ')}]"
    config = load_config(run / "config.yaml", [f"detect.svd={svd}", f"store={folder / 'store'}"])
    (copy / "config.yaml").write_text(plain_yaml.dump(config.to_plain()))
    return copy


def fc_seconds(run: Path, count: int) -> float:
    """Median seconds of the fc layers, all windows of an image."""
    detector = Detector.load(run, device="cpu")
    extractor = detector.extractor
    config = load_config(run / "config.yaml")
    images = ImageCache.load(run / "images.json")
    dataset = read_split(config.data, "test", detector.class_names, images, workers=1)
    times = []
    for image in dataset.images[:: max(1, len(dataset) // count)][:count]:
        pixels = read_image(image.path)
        maps = detector.maps.compute(detector.maps.scaled(pixels))
        windows = extractor.windows(maps, detector.proposer.of(pixels).boxes)
        pooled = extractor.pool(maps, windows.cells)
        with torch.inference_mode():
            start = time.perf_counter()
            extractor.layer(pooled, detector.classifiers.layer)
            times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()

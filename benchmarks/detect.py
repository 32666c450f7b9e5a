"""Detection end to end, in images a second, and the seconds of every stage.

    python benchmarks/detect.py [RUN] [--net alexnet] [--classes 20] [--images FOLDER] [--count N]
                                [--threads T] [--workers W] [--device cpu] [--json FILE]

RUN is a trained detector; without one there are detectors of random weights, at 1 scale and at 5, with
the paper's head. Without --images the folder is data/frk5/JPEGImages below $SPPDET_DATA, and without
that the demo's images are painted. Prints, for every detector, medians (and 90 %) of every stage
of one image after another, and images a second with decoding and proposals in W threads.
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

import before_torch  # noqa: F401
import torch

from sppdet.config import Config, FeaturesConfig, ProposalsConfig
from sppdet.data_config import DataConfig
from sppdet.demo.set import make_demo_set
from sppdet.detection.detect import Classifiers, Regressors
from sppdet.features.head import build_head
from sppdet.features.pyramid import SpatialPyramid
from sppdet.features.regions import FeatureExtractor
from sppdet.folders.folder import detect_folder
from sppdet.io.backbone_weights import load_backbone
from sppdet.io.finding import find_images
from sppdet.io.image_cache import ImageCache
from sppdet.io.images import read_image
from sppdet.runs.environment import available_cores, set_threads
from sppdet.stages.detector import Detector
from sppdet.stages.map_cache import MapCache
from sppdet.stages.proposer import Proposer
from sppdet.training_config import HeadConfig

P = ParamSpec("P")
T = TypeVar("T")
SCALES = {"1 scale": [688], "5 scales": [480, 576, 688, 864, 1200]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--net", default="alexnet")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    set_threads(args.threads)
    folder = args.images
    if folder is None and "SPPDET_DATA" in os.environ:
        folder = Path(os.environ["SPPDET_DATA"]) / "data" / "frk5" / "JPEGImages"
    report: dict[str, object] = {"threads": args.threads, "workers": args.workers}
    with tempfile.TemporaryDirectory() as temporary:
        if folder is None:
            print("SPPDET_DATA isn't set: painting the demo's images", file=sys.stderr)
            folder = make_demo_set(Path(temporary) / "set", seed=0, train_images=40, test_images=2)
            folder = folder / "JPEGImages"
        everything = find_images([folder])
        images = everything[:: max(1, len(everything) // args.count)][: args.count]
        print(f"{len(images)} images, {args.threads} threads, {args.workers} workers")
        for name, detector in detectors(args).items():
            measure(detector, images[:1])  # compiles, warms up
            # first, as in use: a GPU's libraries plan anew for every new size of image
            rate = end_to_end(detector, images, args.workers, Path(temporary) / "results")
            times = measure(detector, images)
            print(f"\n{name}, {args.device}\n\n| stage | seconds an image |\n|---|---|")
            for stage, seconds in times.items():
                worst = sorted(seconds)[int(0.9 * (len(seconds) - 1))]
                print(f"| {stage} | {median(seconds):.3f} ({worst:.3f}) |")
            print(f"\nend to end: {rate:.2f} images a second")
            medians = {stage: median(seconds) for stage, seconds in times.items()}
            report[name] = {"seconds": medians, "images_per_second": rate}
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


def detectors(args: argparse.Namespace) -> dict[str, Detector]:
    """The run's detector, or two of random weights."""
    if args.run is not None:
        return {str(args.run): Detector.load(args.run, device=args.device)}
    return {
        name: random_detector(args.net, scales, args.classes, torch.device(args.device))
        for name, scales in SCALES.items()
    }


def random_detector(
    net: str,
    scales: list[int],
    classes: int,
    device: torch.device,
    settings: HeadConfig | None = None,
) -> Detector:
    """A detector with fc6 and fc7, the paper's by default, whose weights are random."""
    head_config = settings or HeadConfig()
    data = DataConfig(root=[Path()], train=["none"])
    config = Config(data=data, scales=scales, head=head_config)
    backbone = load_backbone(net, "none")
    backbone.layers.to(device)
    levels = tuple(config.spp_levels)
    width = SpatialPyramid(levels).width(backbone.channels)
    head = build_head(backbone, levels, head_config, outputs=classes + 1, seed=0)
    head = head.to(device).eval().requires_grad_(False)
    torch.manual_seed(0)
    return Detector(
        class_names=tuple(f"class {k}" for k in range(classes)),
        proposer=Proposer(ProposalsConfig()),
        maps=MapCache(backbone, scales, FeaturesConfig(), ImageCache()),
        extractor=FeatureExtractor.by(levels, config.features, head, device),
        classifiers=Classifiers(
            "fc7",
            0.01 * torch.randn(classes, head_config.widths[-1], device=device),
            -torch.ones(classes, device=device),
        ),
        regressors=Regressors(
            "pool5",
            torch.zeros(classes, width, 4, device=device),
            torch.zeros(classes, 4, device=device),
        ),
        config=config.detect,
    )


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
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    times.setdefault(name, []).append(time.perf_counter() - start)
    return result


def measure(detector: Detector, images: list[Path]) -> dict[str, list[float]]:
    """Seconds of every stage for every image."""
    times: dict[str, list[float]] = {}
    extractor, classifiers = detector.extractor, detector.classifiers
    for path in images:
        image = timed(times, "decode", read_image, path)
        proposals = timed(times, "proposals", detector.proposer.of, image)
        scaled = timed(times, "resize", detector.maps.scaled, image)
        maps = timed(times, "conv", detector.maps.compute, scaled)
        windows = extractor.windows(maps, proposals.boxes)
        arguments = (maps, windows.cells, classifiers.layer, classifiers.weights)
        timed(times, "SPP to scores", extractor.products, *arguments)
        timed(times, "SPP to detections", detector.detect, maps, proposals, image)
    return times


def end_to_end(detector: Detector, images: list[Path], workers: int, out: Path) -> float:
    """Images a second of `sppdet detect`, with the files that it writes by default."""
    start = time.perf_counter()
    detect_folder(
        detector,
        images,
        out,
        min_score=0.0,
        formats=("images", "json"),
        workers=workers,
    )
    return len(images) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()

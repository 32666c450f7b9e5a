"""What box voting, soft-NMS, flips, fewer windows and a second model do to a detector, and what they cost.

    python benchmarks/testtime.py RUN --held HELD [--with RUN ...] [--windows 200,500]
                                  [--draws 1000] [--json FILE]

RUN is trained on trainval and tested on test, HELD by the same settings on a part of trainval and tested
on the rest of it: there the IoU of voting and the sigma of soft-NMS are chosen, each by itself, by mAP.
The windows of --windows are those that the ranking of a RUN trained with `detect.max_windows` puts
first, and for comparison as many proposals in their own order. Runs of --with are combined with RUN as
`sppdet eval RUN RUN --out DIR` does; all have the same proposals. Prints mAP on RUN's test set, the gain
with the interval of a paired bootstrap over its images (as `sppdet compare`), and CPU seconds an image on
one thread, from the decoded image and its proposals to detections.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import before_torch  # noqa: F401

from sppdet import Detector
from sppdet.config import DetectConfig
from sppdet.detection.detect import suppress
from sppdet.evaluation.bootstrap import paired_differences
from sppdet.evaluation.voc import evaluate_voc
from sppdet.io.image_cache import ImageCache
from sppdet.io.splits import read_split
from sppdet.runs.environment import set_threads
from sppdet.stages.combined import CombinedDetector
from sppdet.stages.model_files import read_run_config
from sppdet.stages.proposer import Proposer
from sppdet.types import AnnotatedImage, Dataset, Detections, ImageArray, Proposals

IOUS = (0.4, 0.5, 0.6, 0.7)
SIGMAS = (0.2, 0.3, 0.5, 0.7, 1.0)
Found = dict[str, Detections]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--held", type=Path, required=True)
    parser.add_argument("--with", dest="others", type=Path, action="append", default=[])
    parser.add_argument(
        "--windows", type=lambda text: [int(n) for n in text.split(",")], default=[]
    )
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    set_threads(1)
    min_iou, sigma = choose(args.held)
    ranked = Detector.load(args.run, device="cpu")
    detector = changed(ranked, max_windows=None)
    rows: dict[str, Detector | CombinedDetector] = {
        "plain": detector,
        "voting (0.5)": changed(detector, box_voting=0.5),
        f"voting ({min_iou})": changed(detector, box_voting=min_iou),
        f"soft-NMS ({sigma})": changed(detector, soft_nms=sigma),
        "flip": changed(detector, flip=True),
        "all": changed(detector, box_voting=min_iou, soft_nms=sigma, flip=True),
    }
    for count in args.windows:
        rows[f"first {count} proposals"] = detector
        rows[f"first {count} windows of the ranking"] = changed(ranked, max_windows=count)
    for path in args.others:
        other = Detector.load(path, device="cpu")
        rows[f"{path.parent.name}/{path.name} alone"] = other
        rows[f"plain + {path.parent.name}/{path.name}"] = CombinedDetector.of([detector, other])
    dataset, images, proposer = opened(args.run)
    found: dict[str, Found] = {name: {} for name in rows}
    seconds = dict.fromkeys(rows, 0.0)
    for image in dataset.images:
        pixels, proposals = images.read(image.path), proposer.of_image(image, images)
        for name, one in rows.items():
            start = time.process_time()
            given = first_proposals(name, proposals)
            found[name][image.id] = detect(one, image, pixels, given)
            seconds[name] += time.process_time() - start
    report = []
    print(
        f"\n{dataset.name}, {len(dataset)} images\n\n| | mAP | gain | 95 % | CPU s |\n|---|---|---|---|---|"
    )
    plain = mean_ap(dataset, found["plain"])
    for name, own in found.items():
        score, spent = mean_ap(dataset, own), seconds[name] / len(dataset)
        low, high = (0.0, 0.0)
        if name != "plain":
            low, high = interval(dataset, found["plain"], own, draws=args.draws)
        print(
            f"| {name} | {score:.1f} | {score - plain:+.1f} | {low:+.1f} to {high:+.1f} "
            f"| {spent:.2f} |",
            flush=True,
        )
        report.append({"row": name, "mAP": score, "low": low, "high": high, "seconds": spent})
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1))


def mean_ap(dataset: Dataset, found: Found) -> float:
    """mAP, 11-point, in per cent."""
    return 100 * evaluate_voc(dataset, found, metric="voc07").mean_ap


def interval(dataset: Dataset, first: Found, second: Found, *, draws: int) -> tuple[float, float]:
    """The interval of the difference in mAP, second − first, in points."""
    a, b = (evaluate_voc(dataset, own, metric="voc07") for own in (first, second))
    low, high = paired_differences(a, b, draws=draws).mean.interval
    return 100 * low, 100 * high


def first_proposals(row: str, proposals: Proposals) -> Proposals:
    """The proposals of a row: as many as its name says, or all."""
    words = row.split()
    if words[0] != "first" or words[-1] != "proposals":
        return proposals
    return Proposals(proposals.boxes[: int(words[1])])


def opened(run: Path) -> tuple[Dataset, ImageCache, Proposer]:
    """The run's test set, its images and its stored proposals."""
    config = read_run_config(run)
    images = ImageCache.load(run / "images.json")
    names = read_split(config.data, "train", None, images, workers=1).class_names
    dataset = read_split(config.data, "test", names, images, workers=1)
    return dataset, images, Proposer(config.proposals, config.store or run / "store")


def changed(detector: Detector, **settings: Any) -> Detector:
    """The detector with other settings of `detect`."""
    return replace(detector, config=detector.config.model_copy(update=settings))


def detect(
    detector: Detector | CombinedDetector,
    image: AnnotatedImage,
    pixels: ImageArray,
    proposals: Proposals,
) -> Detections:
    """Detect in an image; combined models have the same proposals."""
    width, height = image.width, image.height
    if isinstance(detector, Detector):
        views = detector.prepare(pixels)
        return detector.detect_prepared(views, proposals, width=width, height=height)
    each = [proposals] * len(detector.detectors)
    return detector.detect_prepared(detector.prepare(pixels), each, width=width, height=height)


def choose(held: Path) -> tuple[float, float]:
    """Choose voting's IoU and soft-NMS's sigma on the images that a run hasn't seen."""
    detector = Detector.load(held, device="cpu")
    dataset, images, proposer = opened(held)
    base = detector.config
    variants: dict[tuple[str, float], DetectConfig] = {("plain", 0.0): base}
    variants |= {("voting", t): base.model_copy(update={"box_voting": t}) for t in IOUS}
    variants |= {("soft-NMS", s): base.model_copy(update={"soft_nms": s}) for s in SIGMAS}
    found: dict[tuple[str, float], Found] = {key: {} for key in variants}
    for image in dataset.images:
        maps = detector.maps.compute(detector.maps.scaled(images.read(image.path)))
        scored = detector.score_in(maps, proposer.of_image(image, images), width=image.width)
        for key, config in variants.items():
            found[key][image.id] = suppress(
                [scored], config, width=image.width, height=image.height
            )
    scores = {key: mean_ap(dataset, own) for key, own in found.items()}
    print(f"held out, {dataset.name}, {len(dataset)} images:")
    for (kind, value), score in scores.items():
        print(f"{kind} {value}: {score:.1f}", flush=True)
    best = [
        max((s, v) for (kind, v), s in scores.items() if kind == k)[1]
        for k in ("voting", "soft-NMS")
    ]
    return best[0], best[1]


if __name__ == "__main__":
    main()

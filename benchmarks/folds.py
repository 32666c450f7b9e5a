"""What a change of settings does to mAP, tested on every image of a set: cross-validation.

    python benchmarks/folds.py --data SET --weights FILE --out DIR --set KEY=VALUE ...
                               [--both KEY=VALUE ...] [--folds 3] [--draws 200]

SET is a folder in the VOC layout with trainval and test, all of whose images are dealt out into folds;
FILE are SqueezeNet 1.1's ImageNet weights; without them data/frk5 and
weights/squeezenet1_1_imagenet.safetensors below $SPPDET_DATA are taken. For each fold a detector is
trained on the other folds with the settings of configs/squeezenet_small.yaml and --both, and one with
those of --set, too. Prints both mAPs of every fold and of all images together, with box regression
and without, and the interval of a paired bootstrap (see compare.py). A finished training costs nothing
again.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import before_torch  # noqa: F401
import numpy as np
from accuracy import CONFIG, parser_of_paths
from compare import interval, mean_ap

from sppdet import Detector, load_config, train
from sppdet.config import Config
from sppdet.io.image_cache import ImageCache
from sppdet.io.images import read_image
from sppdet.io.splits import read_split
from sppdet.runs.environment import set_threads
from sppdet.stages.proposer import Proposer
from sppdet.types import Dataset, Detections

SIDES = ("plain", "changed")
KINDS = ("no bb", "bb")
Found = dict[tuple[str, str], dict[str, Detections]]  # of a side and kind, by image


def main() -> None:
    parser = parser_of_paths(__doc__)
    parser.add_argument("--set", dest="changes", action="append", required=True)
    parser.add_argument("--both", action="append", default=[])
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=200)
    args = parser.parse_args()
    if args.data is None or args.weights is None:
        print("skipped: name --data and --weights, or set SPPDET_DATA", file=sys.stderr)
        return
    set_threads(args.threads)
    lists = [args.data / "ImageSets" / "Main" / f"{split}.txt" for split in ("trainval", "test")]
    for path in lists:
        if not path.is_file():
            parser.error(f"{path}: there is no such list")
    words = [line.split() for path in lists for line in path.read_text().splitlines()]
    names = sorted({own[0] for own in words if own})
    if not 2 <= args.folds <= len(names):
        parser.error(f"--folds {args.folds}: expected 2 to {len(names)}, one an image at most")
    dealt = args.out / f"{args.data.name}{args.folds}"
    deal(args.data, dealt, names, args.folds)
    # of all images: a fold need not have every class
    everything = load_config(CONFIG, [f"data.root={dealt}", "data.train=all"])
    classes = read_split(everything.data, "train", None, None, workers=1).class_names
    common = [
        f"data.root={dealt}",
        f"data.classes={json.dumps(classes)}",
        f"backbone.weights={args.weights}",
        f"store={args.out / 'store'}",
        *args.both,
    ]
    datasets: list[Dataset] = []
    every: Found = {(side, kind): {} for kind in KINDS for side in SIDES}
    for fold in range(args.folds):
        trained: list[tuple[Path, Config]] = []
        for side, changes in zip(SIDES, ([], args.changes), strict=True):
            run = args.out / f"{side}{fold}"
            splits = [f"data.train=rest{fold}", f"data.test=fold{fold}"]
            config = load_config(CONFIG, [*common, *splits, *changes])
            train(config, run, device="cpu", until="bbox")
            trained.append((run, config))
        dataset, found = detect(trained)
        print_scores(f"fold {fold}", dataset, found)
        datasets.append(dataset)
        for key, own in found.items():
            every[key].update(own)
    images = tuple(image for dataset in datasets for image in dataset.images)
    whole = replace(datasets[0], images=images)
    scores = print_scores("all", whole, every)
    results: dict[str, dict[str, object]] = {}
    for kind in KINDS:
        first, second = (every[side, kind] for side in SIDES)
        low, high = interval(whole, first, second, draws=args.draws, seed=0)
        a, b = (scores[side, kind] for side in SIDES)
        results[kind] = {"plain": a, "changed": b, "low": low, "high": high}
        print(
            f"{kind}: changed − plain {b - a:+.1f}, 95 % of the draws in {low:+.1f} to {high:+.1f}"
        )
    (args.out / "folds.json").write_text(json.dumps(results, indent=1))


def deal(source: Path, target: Path, names: Sequence[str], folds: int) -> None:
    """A copy of the set with lists fold0, rest0, fold1, ...

    Images whose names differ in their numbers alone, as those of one source do, are dealt out evenly.
    """
    if target.exists():
        return
    copied = target.with_name(f"{target.name}.partial")
    shutil.rmtree(copied, ignore_errors=True)
    for folder in ("Annotations", "JPEGImages"):
        shutil.copytree(source / folder, copied / folder)
    rng = np.random.default_rng(0)
    fold_of: dict[str, int] = {}
    for source_name in sorted({source_of(name) for name in names}):
        own = [name for name in names if source_of(name) == source_name]
        rng.shuffle(own)
        fold_of.update((name, place % folds) for place, name in enumerate(own))
    listed = copied / "ImageSets" / "Main"
    listed.mkdir(parents=True)
    (listed / "all.txt").write_text("".join(f"{name}\n" for name in names))
    for fold in range(folds):
        for title, inside in (("fold", True), ("rest", False)):
            chosen = [name for name in names if (fold_of[name] == fold) is inside]
            (listed / f"{title}{fold}.txt").write_text("".join(f"{name}\n" for name in chosen))
    copied.rename(target)


def source_of(name: str) -> str:
    """What an image's name has before its number."""
    return re.sub(r"[-_]?\d+$", "", name)


def detect(trained: Sequence[tuple[Path, Config]]) -> tuple[Dataset, Found]:
    """Detections of both runs in their test images; maps that both use are computed once."""
    run, config = trained[0]
    images = ImageCache.load(run / "images.json")
    detectors = [Detector.load(run, device="cpu") for run, _ in trained]
    dataset = read_split(config.data, "test", detectors[0].class_names, images, workers=1)
    proposers = [Proposer(config.proposals, config.store) for _, config in trained]
    found: Found = {(side, kind): {} for kind in KINDS for side in SIDES}
    for image in dataset.images:
        pixels = read_image(image.path)
        maps = {}
        for side, detector, proposer in zip(SIDES, detectors, proposers, strict=True):
            source = detector.maps
            if source.fingerprint not in maps:
                maps[source.fingerprint] = source.compute(source.scaled(pixels))
            proposals = proposer.of_image(image, images)
            for kind in KINDS:
                used = detector if kind == "bb" else replace(detector, regressors=None)
                found[side, kind][image.id] = used.detect_in(
                    maps[source.fingerprint], proposals, width=image.width, height=image.height
                )
    return dataset, found


def print_scores(title: str, dataset: Dataset, found: Found) -> dict[tuple[str, str], float]:
    """Print every side's and kind's mAP; returns them."""
    scores = {key: mean_ap(dataset, own) for key, own in found.items()}
    cells = [
        f"{kind}: plain {scores['plain', kind]:.1f}, changed {scores['changed', kind]:.1f}"
        for kind in KINDS
    ]
    print(f"{title}, {len(dataset)} images: " + "; ".join(cells), flush=True)
    return scores


if __name__ == "__main__":
    main()

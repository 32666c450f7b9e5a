"""What a round of `sppdet suggest` is worth, against images that are drawn at random.

    python benchmarks/suggest.py --out DIR [--data SET] [--seeds 0,1,2] [--start 20] [--add 20]
                                 [--ways suggest,random] [--held-out N] [--threads 1] [--set KEY=VALUE ...]

SET is a folder in the VOC layout with trainval and test; data/frk5 and the weights of SqueezeNet 1.1 below
$SPPDET_DATA are taken without it. For each seed a run of squeezenet_small at 480 px is trained on `--start`
images, every class in turn; `--add` images of the other training images are chosen in each way, their
annotations are added, and a run is trained on all of them. Prints a Markdown table of mAP (11-point) on
the test set. With `--held-out N` the test set isn't touched: N training images are set aside and scored
instead, to choose between ways; `--ways all` takes all of them. Proposals and maps are stored in DIR and
serve all trainings; a training that is there costs nothing again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import before_torch  # noqa: F401
import numpy as np
from backbones import subset
from numpy.typing import NDArray

from sppdet import load_config, train
from sppdet.config import Config
from sppdet.evaluation.selection import (
    Values,
    class_uncertainties,
    entropy,
    order_images,
    rarity,
)
from sppdet.evaluation.voc import evaluate_voc
from sppdet.io.image_cache import ImageCache
from sppdet.io.splits import read_split
from sppdet.randomness import rng
from sppdet.runs.artifacts import read_json, write_json, write_text
from sppdet.runs.environment import set_threads
from sppdet.stages.detector import Detector
from sppdet.stages.look import Look, Looker
from sppdet.stages.model_files import read_run_config
from sppdet.stages.proposer import Proposer
from sppdet.stages.suggest_images import Candidate
from sppdet.stages.suggest_order import ordered

CONFIG = Path(__file__).parent.parent / "configs" / "squeezenet_small.yaml"


def main() -> None:
    below = Path(os.environ["SPPDET_DATA"]) if "SPPDET_DATA" in os.environ else None
    weights = below and below / "weights" / "squeezenet1_1_imagenet.safetensors"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=below and below / "data" / "frk5")
    parser.add_argument("--weights", type=Path, default=weights)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--start", type=int, default=20)
    parser.add_argument("--add", type=int, default=20)
    parser.add_argument("--ways", default="suggest,random")
    parser.add_argument("--held-out", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    args = parser.parse_args()
    if args.data is None or args.weights is None:
        print("skipped: name --data and --weights, or set SPPDET_DATA", file=sys.stderr)
        return
    set_threads(args.threads)
    there = ["suggest", *WAYS]
    ways = there if args.ways == "all" else args.ways.split(",")
    if unknown := set(ways) - set(there):
        raise SystemExit(f"--ways: {min(unknown)}, expected some of {', '.join(there)}")
    print(f"| seed | {args.start} images | " + " | ".join(ways) + " |")
    print("|---" * (2 + len(ways)) + "|", flush=True)
    rows = []
    for seed in (int(text) for text in args.seeds.split(",")):
        rows.append(Round(args, seed).scores(ways))
        print(line(str(seed), rows[-1]), flush=True)
    print(line("mean", np.mean(rows, axis=0).tolist()))
    if len(rows) > 1:
        gains = np.array(rows)[:, 1:] - np.array(rows)[:, :1]
        print(line("standard deviation of the gain", [0.0, *gains.std(axis=0, ddof=1)]))


def line(title: str, scores: list[float]) -> str:
    """Format a row of the table."""
    return f"| {title} | " + " | ".join(f"{100 * score:.1f}" for score in scores) + " |"


class Round:
    """One round of labelling: what is there at the start, what is chosen, what it scores."""

    def __init__(self, args: argparse.Namespace, seed: int) -> None:
        """Draw the images to begin with and those that are scored."""
        lists = args.data / "ImageSets" / "Main"
        names = (lists / "trainval.txt").read_text().split()
        test = (lists / "test.txt").read_text().split()
        if args.held_out:
            shuffled = rng(seed, "held out of suggest").permutation(names).tolist()
            test, names = shuffled[: args.held_out], sorted(shuffled[args.held_out :])
        self.args, self.seed, self.test = args, seed, sorted(test)
        self.start = subset(args.data / "Annotations", names, args.start, seed)
        self.pool = [name for name in names if name not in set(self.start)]
        held = f"_{args.held_out}held" if args.held_out else ""
        self.folder = args.out / f"{args.data.name}{held}_seed{seed}"
        self.store = args.out / "store"

    def scores(self, ways: list[str]) -> list[float]:
        """Train and score the start and every way."""
        first = self.trained("start", self.start, calibrate=True)
        found = [self.scored("start", first)]
        for way in ways:
            chosen = self.folder / f"{way}.json"
            if not chosen.is_file():
                write_json(chosen, self.choose(way, first))
            names = sorted([*self.start, *read_json(chosen)])
            found.append(self.scored(way, self.trained(way, names, calibrate=False)))
            print(f"seed {self.seed}, {way}: {100 * found[-1]:.1f}", file=sys.stderr, flush=True)
        return found

    def config(self, name: str, calibrate: bool) -> Config:
        """Compose the settings of a training."""
        overrides = [
            f"data.root={self.folder / name}",
            f"data.images={self.args.data / 'JPEGImages'}",
            "data.train=trainval",
            "data.test=test",
            f"backbone.weights={self.args.weights}",
            "scales=[480]",
            f"store={self.store}",
            f"seed={self.seed}",
            "workers=1",
            *([] if calibrate else ["calibrate=none"]),
            *self.args.overrides,
        ]
        return load_config(CONFIG, overrides)

    def trained(self, name: str, images: list[str], *, calibrate: bool) -> Path:
        """Train on some images, unless it is done."""
        root: Path = self.folder / name
        run = root.with_name(f"{name}-run")
        for split, own in (("trainval", images), ("test", self.test), ("pool", self.pool)):
            write_text(root / "ImageSets" / "Main" / f"{split}.txt", "\n".join(own) + "\n")
        if not (root / "Annotations").exists():
            (root / "Annotations").symlink_to((self.args.data / "Annotations").resolve())
        train(self.config(name, calibrate), run, device="cpu", until="calibrate")
        return run

    def scored(self, name: str, run: Path) -> float:
        """Detect in the images to score and compute mAP, unless it is done."""
        done = self.folder / f"{name}-score.json"
        if done.is_file():
            return float(read_json(done))
        config, detector = read_run_config(run), Detector.load(run, device="cpu")
        images = ImageCache.load(self.folder / "images.json")
        dataset = read_split(config.data, "test", detector.class_names, images, workers=1)
        images.save(self.folder / "images.json")
        proposer = Proposer(config.proposals, self.store)
        maps = detector.maps.over(images, self.store)
        found = {}
        for image in dataset.images:
            proposals = proposer.of_image(image, images)
            found[image.id] = detector.detect_in(
                maps.of_image(image), proposals, width=image.width, height=image.height
            )
        score = evaluate_voc(dataset, found, metric="voc07").mean_ap
        write_json(done, score)
        return score

    def choose(self, way: str, run: Path) -> list[str]:
        """Choose images of the pool."""
        images = ImageCache.load(self.folder / "images.json")
        config, detector = read_run_config(run), Detector.load(run, device="cpu")
        names = detector.class_names
        pool = read_split(config.data, "pool", names, images, workers=1)
        labelled = read_split(config.data, "train", names, images, workers=1)
        images.save(self.folder / "images.json")
        looker = Looker(run, config, detector, images, maps=self.store)
        seen = [
            looker.known(image) or looker.look(image, looker.proposals(image))
            for image in pool.images
        ]
        counts = np.bincount(
            np.concatenate([image.gt_labels for image in labelled.images]),
            minlength=len(names) + 1,
        )[1:]
        known = [looker.vector(image) for image in labelled.images]
        if way == "suggest":
            candidates = [
                Candidate(image, image.id, look)
                for image, look in zip(pool.images, seen, strict=True)
            ]
            rows = ordered(
                candidates,
                detector.calibration,
                labelled=known,
                counts=counts,
                count=self.args.add,
            )
            return [one.candidate.name for one in rows[: self.args.add]]
        value_of, uses_vectors = WAYS[way]
        random = np.random.default_rng(np.random.SeedSequence([self.seed, len(way)]))
        values = np.array([value_of(one, detector, counts, random) for one in seen])
        vectors = np.stack([one.vector for one in seen]).astype(np.float64)
        others = np.stack(known).astype(np.float64)
        if not uses_vectors:
            vectors, others = np.eye(len(seen)), np.zeros((0, len(seen)))
        order = order_images(values, vectors, others, count=self.args.add)
        return [pool.images[row].id for row in order.rows[: self.args.add].tolist()]


Counts = NDArray[np.int64]
Value = Callable[[Look, Detector, Counts, np.random.Generator], float]


def probabilities(one: Look, detector: Detector, shift: float = 0.0) -> Values:
    """Probabilities of detections whose scores are moved by so many standard errors."""
    assert detector.calibration is not None
    scores = (one.detections.scores + np.float32(shift) * one.errors).astype(np.float32)
    return detector.calibration.probabilities(scores, one.detections.labels).astype(np.float64)


def _random(one: Look, detector: Detector, counts: Counts, random: np.random.Generator) -> float:
    return float(random.uniform())


def _constant(one: Look, detector: Detector, counts: Counts, random: np.random.Generator) -> float:
    return 1.0


def _by_class(one: Look, detector: Detector, values: Values) -> Values:
    return class_uncertainties(values, one.detections.labels, classes=len(detector.class_names))


def _most(one: Look, detector: Detector, counts: Counts, random: np.random.Generator) -> float:
    return float(entropy(probabilities(one, detector)).max(initial=0.0))


def _classes(one: Look, detector: Detector, counts: Counts, random: np.random.Generator) -> float:
    return float(_by_class(one, detector, entropy(probabilities(one, detector))).sum())


def _rare(one: Look, detector: Detector, counts: Counts, random: np.random.Generator) -> float:
    return float(rarity(counts) @ _by_class(one, detector, entropy(probabilities(one, detector))))


def _sum(one: Look, detector: Detector, counts: Counts, random: np.random.Generator) -> float:
    p = probabilities(one, detector)
    return float(entropy(p[p >= 0.1]).sum())


def _committee(one: Look, detector: Detector, counts: Counts, random: np.random.Generator) -> float:
    span = probabilities(one, detector, 1.0) - probabilities(one, detector, -1.0)
    return float(_by_class(one, detector, span).sum())


# name: what an image is worth alone, and whether it also counts for the images that are like it
WAYS: dict[str, tuple[Value, bool]] = {
    "random": (_random, False),
    "random b": (_random, False),
    "most": (_most, False),
    "classes": (_classes, False),
    "sum": (_sum, False),
    "committee": (_committee, False),
    "cover": (_constant, True),
    "most x cover": (_most, True),
    "classes x cover": (_classes, True),
    "rare x cover": (_rare, True),
    "committee x cover": (_committee, True),
}


if __name__ == "__main__":
    main()

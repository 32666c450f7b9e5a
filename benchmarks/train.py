"""All stages of training at the size of VOC 2007: seconds of each, and peak memory.

    python benchmarks/train.py --out DIR [--images 5011] [--test 0] [--batches 300000]
                               [--config FILE] [--set KEY=VALUE ...] [--device auto] [--threads T]

Images are painted into DIR/set (the demo's, brought to 500 px), weights are random unless --set says
otherwise; --config is configs/voc07_alexnet_5scale.yaml by default. With fewer images or batches the
seconds are also given as they would be at the full size: those of an image times 5,011, of a batch times
300,000. A run that was stopped goes on; the seconds are then those of what was left. Writes DIR/train.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import before_torch  # noqa: F401
import cv2
import numpy as np
import torch

from sppdet import load_config, train
from sppdet.demo.set import make_demo_set
from sppdet.io.images import read_image
from sppdet.io.voc import read_voc_annotation
from sppdet.io.voc_writing import voc_annotation
from sppdet.parallel import ordered_map
from sppdet.runs.artifacts import read_json, write_text
from sppdet.runs.environment import available_cores, set_threads

CONFIG = Path(__file__).parent.parent / "configs" / "voc07_alexnet_5scale.yaml"
IMAGES, BATCHES = 5011, 300_000  # of VOC 2007's trainval, of the paper's schedule
LONGER_SIDE = 500


@dataclass(frozen=True)
class Counts:
    """What is trained on, of `IMAGES` and `BATCHES`."""

    images: int
    batches: int
    test: int = 0


@dataclass(frozen=True)
class Report:
    """Seconds of the stages, and the factors that bring them to the full size."""

    seconds: dict[str, float]
    factors: dict[str, float]

    @property
    def projected(self) -> float:
        """Seconds of all stages at the full size."""
        return sum(factor * self.seconds[stage] for stage, factor in self.factors.items())


def measure(
    out: Path, counts: Counts, overrides: Sequence[str], *, config: Path = CONFIG, device: str
) -> Report:
    """Paint the images into `out`, where they aren't there, and train on them in `out/run`."""
    root = enlarged_set(out, counts.images, counts.test)
    common = [
        *(f"data.root={root}", "data.train=trainval", "backbone.weights=none"),
        f"data.test={'test' if counts.test else 'null'}",
        f"finetune.batches={counts.batches}",
    ]
    train(load_config(config, [*common, *overrides]), out / "run", device=device)
    spent: dict[str, float] = read_json(out / "run" / "timings.json")
    factors = {
        stage: BATCHES / counts.batches if stage == "finetune" else IMAGES / counts.images
        for stage in spent
        if stage != "evaluate"
    }
    return Report(spent, factors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--test", type=int, default=0)
    parser.add_argument("--batches", type=int, default=BATCHES)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=available_cores())
    args = parser.parse_args()
    set_threads(args.threads)
    counts = Counts(args.images, args.batches, args.test)
    report = measure(args.out, counts, args.overrides, config=args.config, device=args.device)
    spent, factors = report.seconds, report.factors
    print(f"\n{args.images} images, {args.batches} batches, {args.threads} threads\n")
    print("| stage | seconds | at the full size |\n|---|---|---|")
    for stage, factor in factors.items():
        print(f"| {stage} | {spent[stage]:.1f} | {factor * spent[stage]:.0f} |")
    print(f"| all | {sum(spent[s] for s in factors):.1f} | {report.projected:.0f} |\n")
    memory = {"host": peak_bytes()}
    if torch.cuda.is_available():
        memory["GPU"] = torch.cuda.max_memory_allocated()
    for place, size in memory.items():
        print(f"peak memory, {place}: {size / 2**30:.1f} GiB")
    facts = {"images": args.images, "batches": args.batches, "threads": args.threads}
    found = {**facts, "seconds": spent, "projected": report.projected, "peak_bytes": memory}
    (args.out / "train.json").write_text(json.dumps(found, indent=1))


def enlarged_set(out: Path, images: int, test: int) -> Path:
    """The demo set with images of VOC's size, painted once."""
    root = out / f"set-{images}-{test}"
    if (root / "done").exists():
        return root
    small = make_demo_set(out / "small", seed=0, train_images=images, test_images=test)

    def enlarge(path: Path) -> None:
        image = read_image(path)
        factor = LONGER_SIDE / max(image.shape[:2])
        larger = np.asarray(cv2.resize(image, None, fx=factor, fy=factor), dtype=np.uint8)
        target = root / "JPEGImages" / path.name
        cv2.imwrite(str(target), cv2.cvtColor(larger, cv2.COLOR_RGB2BGR))
        objects = read_voc_annotation(small / "Annotations" / f"{path.stem}.xml").objects
        height, width = larger.shape[:2]
        write_text(
            root / "Annotations" / f"{path.stem}.xml",
            voc_annotation(
                filename=path.name,
                width=width,
                height=height,
                boxes=np.array([one.box for one in objects], dtype=np.float32) * np.float32(factor),
                names=[one.name for one in objects],
            ),
        )

    for folder in ("JPEGImages", "Annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    everything = sorted((small / "JPEGImages").iterdir())
    for _ in ordered_map(enlarge, everything, workers=available_cores()):
        pass
    for split in ("trainval", "test"):
        lists = "ImageSets/Main"
        write_text(root / lists / f"{split}.txt", (small / lists / f"{split}.txt").read_text())
    (root / "done").touch()
    return root


def peak_bytes() -> int:
    """The most memory that this process has had."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


if __name__ == "__main__":
    main()

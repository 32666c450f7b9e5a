"""Train by the presets on parts of a labelled set; compare the announced seconds with the real ones.

    python benchmarks/presets.py --out DIR [--images 20,100,530] [--presets fast,balanced] [--csv FILE]

The set is `data/frk5` of `SPPDET_DATA`, or `--data`. Each row is `sppdet --threads 1 train FOLDER
--preset P` in a process of its own, scored on the whole test set; a part has a seeded subset of the
training images, every class in turn. Wall and CPU seconds are those of the whole command, the announced and
real ones those of the stages after the announcement.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from pathlib import Path

from backbones import call, events, stage_seconds, training_root

from sppdet.runs.artifacts import read_json


def main() -> None:
    below = Path(os.environ["SPPDET_DATA"]) if "SPPDET_DATA" in os.environ else None
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=below and below / "data" / "frk5")
    parser.add_argument(
        "--weights", type=Path, help="file; default: the network's published weights"
    )
    parser.add_argument("--images", default="20,100,530")
    parser.add_argument("--presets", default="fast,balanced")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--csv", type=Path, help="file that gets a line of each row, for a plot")
    args = parser.parse_args()
    if args.data is None:
        print("skipped: name --data, or set SPPDET_DATA", file=sys.stderr)
        return
    print(
        "| images | preset | mAP | wall s | CPU s | memory, GB | announced, real s | each stage |"
    )
    print("|---" * 8 + "|")
    for images in args.images.split(","):
        args.images = int(images)
        for preset in args.presets.split(","):
            print(row(args, preset), flush=True)


def row(args: argparse.Namespace, preset: str) -> str:
    """Train by a preset in a new folder, and format what it took."""
    root, count = training_root(args, 0)
    run = args.out / f"{root.name}_{preset}"
    own = ["--preset", preset, "--run", str(run), "--set", "workers=1", "--quiet"]
    own += ["--minutes", str(args.minutes)] if args.minutes else []
    if args.weights:
        own += ["--set", f"backbone.weights={args.weights}"]
    start = time.perf_counter()
    used = call("train", str(root), *own)
    wall = time.perf_counter() - start
    announced: dict[str, float] = events(run, "forecast")[0]["seconds"]
    real = stage_seconds(events(run), idle=True, of="seconds")
    pairs = ", ".join(f"{s} {announced[s]:.0f}/{real[s]:.0f}" for s in announced if real[s] >= 1)
    total = sum(announced.values()), sum(real[stage] for stage in announced)
    score = read_json(run / "eval" / "test" / "voc07" / "metrics.json")["mAP"]
    cpu, memory = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9
    if args.csv:
        with args.csv.open("a", newline="") as file:
            csv.writer(file).writerow([count, preset, f"{100 * score:.1f}", round(cpu)])
    return (
        f"| {count} | {preset} | {100 * score:.1f} | {wall:.0f} | {cpu:.0f} | {memory:.1f} "
        f"| {total[0]:.0f}, {total[1]:.0f} | {pairs} |"
    )


if __name__ == "__main__":
    main()

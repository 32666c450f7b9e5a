"""What sppdet costs on a laptop: train by the presets on parts of a labelled set, then detect.

    python benchmarks/laptop.py --out DIR [--images 20,100,530] [--presets fast,balanced] [--threads 1,2]
                                [--json FILE] [--csv FILE]

The set is `data/frk5` of `SPPDET_DATA`, or `--data`. Each row is `sppdet train FOLDER --preset P` in a
process of its own, scored on the whole test set, and `sppdet detect` on the images of that set; a part has
a seeded subset of the training images, every class in turn. Wall and CPU seconds are those of the whole
command, those of detection per image beyond a call with two images, the announced and real ones those of
the stages after the announcement. `--json` takes all numbers; `--csv` what docs/plot_cost.py draws.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from backbones import call, events, stage_seconds, training_root

from sppdet.runs.artifacts import read_json


def main() -> None:
    below = Path(os.environ["SPPDET_DATA"]) if "SPPDET_DATA" in os.environ else None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=below and below / "data" / "frk5")
    parser.add_argument(
        "--weights", type=Path, help="file; default: the network's published weights"
    )
    parser.add_argument("--images", default="20,100,530")
    parser.add_argument("--presets", default="fast,balanced")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--json", type=Path, help="file for the rows in full")
    parser.add_argument("--csv", type=Path, help="file that gets a line of each row, for a plot")
    args = parser.parse_args()
    if args.data is None:
        print("skipped: name --data, or set SPPDET_DATA", file=sys.stderr)
        return
    print(
        "| images | preset | threads | mAP | wall s | CPU s | memory, GB | detection: CPU s, wall s, GB "
        "| announced, real s | stages: announced/real s |"
    )
    print("|---" * 10 + "|")
    rows = []
    for images in args.images.split(","):
        args.images = int(images)
        for preset in args.presets.split(","):
            for threads in map(int, args.threads.split(",")):
                rows.append(measure(args, preset, threads))
                print(line(rows[-1]), flush=True)
                if args.json:
                    args.json.write_text(json.dumps(rows, indent=1))
                if args.csv:
                    add_line(args.csv, rows[-1])


def measure(args: argparse.Namespace, preset: str, threads: int) -> dict[str, Any]:
    """Train by a preset in a new folder and detect in the test images; returns what both took."""
    root, count = training_root(args, 0)
    run = args.out / f"{root.name}_{preset}_{threads}"
    own = ["--preset", preset, "--run", str(run), "--set", f"workers={threads}", "--quiet"]
    own += ["--minutes", str(args.minutes)] if args.minutes else []
    if args.weights:
        own += ["--set", f"backbone.weights={args.weights}"]
    start = time.perf_counter()
    used = call("train", str(root), *own, threads=threads)
    wall = time.perf_counter() - start
    return {
        "images": count,
        "preset": preset,
        "threads": threads,
        "mAP": read_json(run / "eval" / "test" / "voc07" / "metrics.json")["mAP"],
        "wall": wall,
        "cpu": used.ru_utime + used.ru_stime,
        "memory": used.ru_maxrss * 1024,
        "announced": events(run, "forecast")[0]["seconds"],
        "real": stage_seconds(events(run), idle=True, of="seconds"),
        "detection": detection(root, run, threads),
    }


def detection(root: Path, run: Path, threads: int) -> dict[str, float]:
    """Measure `sppdet detect` on the test images: seconds an image beyond those for two images."""
    names = (root / "ImageSets" / "Main" / "test.txt").read_text().split()
    files = [next((root / "JPEGImages").glob(f"{name}.*")) for name in names]
    out = run / "found"
    taken = []
    for images in (files[:2], files):
        start = time.perf_counter()
        options = ["--out", str(out), "--workers", str(threads), "--quiet"]
        used = call("detect", str(run), *map(str, images), *options, threads=threads)
        taken.append((used.ru_utime + used.ru_stime, time.perf_counter() - start))
        shutil.rmtree(out)
    cpu, wall = ((taken[1][i] - taken[0][i]) / (len(files) - 2) for i in (0, 1))
    return {"cpu": cpu, "wall": wall, "memory": used.ru_maxrss * 1024, "start": taken[0][0]}


def line(row: dict[str, Any]) -> str:
    """Format a row of the table."""
    announced, real, found = row["announced"], row["real"], row["detection"]
    pairs = ", ".join(f"{s} {announced[s]:.0f}/{real[s]:.0f}" for s in announced if real[s] >= 1)
    return (
        f"| {row['images']} | {row['preset']} | {row['threads']} | {100 * row['mAP']:.1f} "
        f"| {row['wall']:.0f} | {row['cpu']:.0f} | {row['memory'] / 1e9:.1f} "
        f"| {found['cpu']:.3f}, {found['wall']:.3f}, {found['memory'] / 1e9:.1f} "
        f"| {sum(announced.values()):.0f}, {sum(real[s] for s in announced):.0f} | {pairs} |"
    )


def add_line(file: Path, row: dict[str, Any]) -> None:
    """Add a row of one thread to the file that the plot is drawn from."""
    if row["threads"] == 1:
        with file.open("a", newline="") as lines:
            own = [row["images"], row["preset"], f"{100 * row['mAP']:.1f}", round(row["cpu"])]
            csv.writer(lines).writerow(own)


if __name__ == "__main__":
    main()

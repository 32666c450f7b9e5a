"""What backbones, joined stages, projections and tuned layers bring and cost.

    python benchmarks/backbones.py --out DIR [--data SET] [--rows a,b] [--seeds 0,1,2] [--images N]
                                   [--epochs E] [--conv-rate R] [--search MODE]

SET is a folder in the VOC layout with trainval and test; data/frk5 and the weights below $SPPDET_DATA
are taken without it. A row is NET (pool5), NET_fc or NET_conv (E passes over the training images), and
each with _best behind it for three scales, where NET is one of squeeze, squeeze_128, lite0, lite0_2,
lite0_2_256 and lite0_2_128. Every row is trained in a process of its own with one thread and evaluated in
several ways, which share what they can, without calibration; the proposals are computed before, once for
all rows. `--images N` trains on a seeded subset, every class of objects in turn. Prints a Markdown table
of mAP (11-point) with its 95 % interval (a bootstrap over the test images), of the CPU seconds of training
without the proposals, of those of the evaluation by the image, without start-up, and of the peak memory.
A row that is in DIR costs nothing again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml

from sppdet.proposals.modes import MODES
from sppdet.runs.artifacts import read_json

Settings = dict[str, Any]
LITE0 = "timm/tf_efficientnet_lite0"
# name: title, network, strides, channels of the projection
NETS: dict[str, tuple[str, str, list[int] | None, int | None]] = {
    "squeeze": ("SqueezeNet 1.1", "squeezenet1_1", None, None),
    "squeeze_128": ("SqueezeNet 1.1 → 128", "squeezenet1_1", None, 128),
    "lite0": ("Lite0", LITE0, None, None),
    "lite0_2": ("Lite0 [16, 32]", LITE0, [16, 32], None),
    "lite0_2_256": ("Lite0 [16, 32] → 256", LITE0, [16, 32], 256),
    "lite0_2_128": ("Lite0 [16, 32] → 128", LITE0, [16, 32], 128),
}
SVM: Settings = {"positive_weight": 10}
POOL5: Settings = {"head": "none", "finetune": "none", "scales": [480], "svm": SVM}
BEST_SCALES = [400, 560, 800]
TUNED: Settings = {
    "layers": "conv3+",
    "sampling": "images",
    "optimizer": "adamw",
    "schedule": "cosine",
    "lr": 1e-3,
    "weight_decay": 1e-2,
    "image_scales": [256, 384],
    "negative_iou": [0.0, 0.5],
    "box_loss": 1.0,
    "snapshots": 1,
    "val_fraction": 0.05,
}
HEAD: Settings = {
    "scales": [320],
    "head": {"widths": [512], "dropout": 0.0},
    "finetune": TUNED,
    "svm": SVM,
}
HEAD_ALONE: Settings = {**HEAD, "finetune": {**TUNED, "layers": "fc"}}
EPOCHS, CONV_RATE = 4, 0.05  # of tuned rows, if nothing else is asked for
SEARCH = "fast"  # of all rows
BEST_OF_HEAD = [320, 448, 640]
KINDS: dict[str, tuple[str, Settings]] = {
    "": ("pool5", POOL5),
    "best": ("pool5, best of 3 scales", {**POOL5, "scales": BEST_SCALES}),
    "fc": ("ft-fc", HEAD_ALONE),
    "fc_best": ("ft-fc, best of 3 scales", {**HEAD_ALONE, "scales": BEST_OF_HEAD}),
    "conv": ("ft-conv", HEAD),
    "conv_best": ("ft-conv, best of 3 scales", {**HEAD, "scales": BEST_OF_HEAD}),
}
# the ways to train what comes after the features, each from what is there of the one before
WITHOUT_HEAD: dict[str, Settings] = {"SVMs": {"bbox": "none"}, "SVMs, bb": {}}
WITH_HEAD: dict[str, Settings] = {
    "softmax, learned boxes": {"classifier": "softmax", "bbox": {"source": "finetune"}},
    "SVMs on fc6": {"bbox": "none"},
    "SVMs on fc6, bb": {},
}
ROWS = {f"{net}_{kind}".rstrip("_"): (net, kind) for net in NETS for kind in KINDS}


def main() -> None:
    below = Path(os.environ["SPPDET_DATA"]) if "SPPDET_DATA" in os.environ else None
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=below and below / "data" / "frk5")
    parser.add_argument("--weights", type=Path, default=below and below / "weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", default="squeeze,lite0,lite0_2,lite0_2_128,lite0_2_128_conv")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--images", type=int, help="train on a subset of so many images")
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="passes of fine-tuning")
    parser.add_argument(
        "--conv-rate",
        type=float,
        default=CONV_RATE,
        help="rate of the layers, as part of the head's",
    )
    parser.add_argument("--search", default=SEARCH, choices=list(MODES), help="proposals.mode")
    args = parser.parse_args()
    if args.data is None or args.weights is None:
        print("skipped: name --data and --weights, or set SPPDET_DATA", file=sys.stderr)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    print("| recipe | seed | mAP | 95 % | training, CPU s | an image, CPU s | peak memory, GB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in args.rows.split(","):
        for seed in (int(text) for text in args.seeds.split(",")):
            for line in rows_of(name, seed, args):
                print(line, flush=True)


def rows_of(name: str, seed: int, args: argparse.Namespace) -> list[str]:
    """Train and evaluate a row in all of its ways, unless it is there, and format them."""
    net, kind = split_name(name)
    folder = args.out / folder_name(name, seed, args)
    result = folder / "row.json"
    if not result.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        result.write_text(json.dumps(measure(net, kind, seed, folder, args), indent=1))
    title = f"{NETS[net][0]}, {KINDS[kind][0]}"
    return [
        f"| {title}, {way['name']} | {seed} | {100 * way['mAP']:.1f} | {interval(way)} "
        f"| {way['training']:.0f} | {way['image']:.2f} | {way['peak'] / 1e9:.1f} |"
        for way in read_json(result)
    ]


def interval(way: dict[str, Any]) -> str:
    """Format the interval of a row; earlier ones have none."""
    found = way.get("interval")
    return f"{100 * found[0]:.1f} to {100 * found[1]:.1f}" if found else "–"


def split_name(name: str) -> tuple[str, str]:
    """Split the name of a row into net and kind."""
    if name not in ROWS:
        raise SystemExit(f"--rows: {name}, expected some of {', '.join(ROWS)}")
    return ROWS[name]


def is_tuned(kind: str) -> bool:
    """Tell whether rows of a kind have a head that is fine-tuned."""
    return bool(KINDS[kind][1]["head"] != "none")


def folder_name(name: str, seed: int, args: argparse.Namespace) -> str:
    """Name the folder of a row's results."""
    tuned = is_tuned(split_name(name)[1])
    epochs = f"_{args.epochs:g}epochs" if tuned and args.epochs != EPOCHS else ""
    rate = f"_rate{args.conv_rate:g}" if tuned and args.conv_rate != CONV_RATE else ""
    search = f"_{args.search}" if args.search != SEARCH else ""
    return f"{args.data.name}_{args.images or 'all'}_{name}{epochs}{rate}{search}_seed{seed}"


def measure(
    net: str, kind: str, seed: int, folder: Path, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Train and evaluate a row in all of its ways; keeps the detections of each in `folder`."""
    root, count = training_root(args, seed)
    store, run = folder / "store", folder / "run"
    store.mkdir(exist_ok=True)
    ways: list[dict[str, Any]] = []
    for way, settings in (WITH_HEAD if is_tuned(kind) else WITHOUT_HEAD).items():
        config = build(net, kind, root, count, seed, args)
        path = folder / "settings.yaml"
        path.write_text(yaml.safe_dump({**config, **settings}))
        if not ways:
            shared = args.out / "store"
            call("propose", str(path), "--set", f"store={shared}", "--run", str(folder / "propose"))
            for made in shared.glob("proposals-*"):
                link = store / made.name
                link.unlink(missing_ok=True)  # of an interrupted call
                link.symlink_to(made.resolve())
        before = events(run)
        used = call("train", str(path), "--set", f"store={store}", "--run", str(run))
        stages = stage_seconds(events(run))
        own = stage_seconds(events(run)[len(before) :], idle=True)
        outside = used.ru_utime + used.ru_stime - sum(own.values())
        metrics = read_json(run / "eval" / "test" / "voc07" / "metrics.json")
        ways.append(
            {
                "name": way,
                "mAP": metrics["mAP"],
                "interval": metrics["mAP_interval"],
                "training": outside + sum(stages.values()) - stages["evaluate"],
                "image": stages["evaluate"] / metrics["images"],
                "peak": used.ru_maxrss * 1024,
                "stages": stages,
            }
        )
        kept = folder / f"{len(ways)}_coco_results.json"
        shutil.copy(run / "eval" / "test" / "coco_results.json", kept)
    shutil.rmtree(store)  # maps, and links to the proposals
    return ways


def events(run: Path, name: str = "stage ended") -> list[dict[str, Any]]:
    """Read the events of a name from the log of a run; by default the ends of its stages."""
    log = run / "log.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    return [line for line in map(json.loads, lines) if line["event"] == name]


def stage_seconds(
    ended: list[dict[str, Any]], *, idle: bool = False, of: str = "cpu_seconds"
) -> dict[str, float]:
    """Return the CPU seconds of each stage when it last worked; with `idle`, when it last ended."""
    return {e["stage"]: e[of] for e in ended if idle or not e["idle"]}


def build(
    net: str, kind: str, root: Path, count: int, seed: int, args: argparse.Namespace
) -> Settings:
    """Compose the settings of a row for a data set of `count` training images."""
    _, name, strides, channels = NETS[net]
    file = "tf_efficientnet_lite0" if name == LITE0 else f"{name}_imagenet"
    config: Settings = {
        "data": {"root": str(root.resolve()), "train": "trainval", "test": "test"},
        "backbone": {
            "name": name,
            "weights": str(args.weights / f"{file}.safetensors"),
            "stages": strides or "auto",
        },
        "features": {"project": channels or "none"},
        "proposals": {"mode": args.search},
        **KINDS[kind][1],
        "calibrate": "none",
        "seed": seed,
        "workers": 1,
    }
    if is_tuned(kind):
        batches = max(2, round(args.epochs * count / 2))
        own = {"batches": batches, "conv_rate": args.conv_rate}
        config["finetune"] = {**config["finetune"], **own}
    return config


def training_root(args: argparse.Namespace, seed: int) -> tuple[Path, int]:
    """Return the folder of the data set, of a subset where one is asked for, and its training images."""
    lists = args.data / "ImageSets" / "Main"
    names = (lists / "trainval.txt").read_text().split()
    if args.images is None:
        return args.data, len(names)
    root: Path = args.out / f"{args.data.name}_{args.images}_seed{seed}"
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    for part in ("Annotations", "JPEGImages"):
        if not (root / part).exists():
            (root / part).symlink_to((args.data / part).resolve())
    chosen = subset(args.data / "Annotations", names, args.images, seed)
    for split, own in (("trainval", chosen), ("test", (lists / "test.txt").read_text().split())):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(own) + "\n")
    return root, len(chosen)


def subset(annotations: Path, names: list[str], count: int, seed: int) -> list[str]:
    """Draw images so that every class of objects has its turn, one image after another."""
    shuffled = np.random.default_rng(seed).permutation(names).tolist()
    by_class: dict[str, list[str]] = {}
    for name in shuffled:
        found = ElementTree.parse(annotations / f"{name}.xml").iterfind("object/name")
        for label in {element.text or "" for element in found}:
            by_class.setdefault(label, []).append(name)
    queues = [by_class[label] for label in sorted(by_class)]
    chosen: list[str] = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            fresh = next((name for name in queue if name not in chosen), None)
            if fresh is not None and len(chosen) < count:
                chosen.append(fresh)
                queue.remove(fresh)
    return sorted(chosen)


def call(command: str, *arguments: str, threads: int = 1) -> resource.struct_rusage:
    """Run a command of sppdet; returns what it used, or ends where it fails."""
    parts = [sys.executable, "-m", "sppdet", "--threads", str(threads), command, *arguments]
    process = subprocess.Popen(parts, stdout=sys.stderr)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"sppdet {command} failed")
    return used


if __name__ == "__main__":
    main()

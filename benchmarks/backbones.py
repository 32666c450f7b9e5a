"""What backbones, joined stages, projections and tuned layers bring and cost.

    python benchmarks/backbones.py --out DIR [--data SET] [--rows a,b] [--seeds 0,1,2] [--images N]

SET is a folder in the VOC layout with trainval and test; data/frk5 and the weights below $SPPDET_DATA are
taken without it. Every row is a training and an evaluation in a process of its own with one thread;
the proposals are computed before, once for all rows. `--images N` trains on a seeded subset, every class of
objects in turn. Prints a Markdown table of mAP (11-point) with the CPU seconds of everything but the
proposals, training and evaluation together, and the peak memory. A row that is in DIR costs nothing again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import yaml

from sppdet.runs.artifacts import read_json

LITE0 = "timm/tf_efficientnet_lite0"
NO_HEAD: dict[str, object] = {"head": "none", "finetune": "none", "scales": [480]}
CONV: dict[str, object] = {
    "layers": "conv3+",
    "optimizer": "adamw",
    "schedule": "cosine",
    "lr": 1e-3,
    "weight_decay": 1e-2,
    "image_scales": [256, 384],
    "negative_iou": [0.0, 0.5],
    "box_loss": 1.0,
    "snapshots": 2,
    "val_fraction": 0.05,
}
LEARNED: dict[str, object] = {"classifier": "softmax", "bbox": {"source": "finetune"}}


def to(channels: int) -> dict[str, object]:
    """The settings of a projection."""
    return {"features": {"project": channels}}


TUNED: dict[str, object] = {
    **to(128),
    "scales": [320],
    "head": {"widths": [512], "dropout": 0.0},
    "finetune": CONV,
}

# title, network, stages, settings, epochs of fine-tuning on whole images
Row = tuple[str, str, list[int] | None, dict[str, object], float]
ROWS: dict[str, Row] = {
    "squeeze": ("SqueezeNet 1.1, pool5", "squeezenet1_1", None, NO_HEAD, 0),
    "lite0": ("Lite0, pool5", LITE0, None, NO_HEAD, 0),
    "lite0_2": ("Lite0 [16, 32], pool5", LITE0, [16, 32], NO_HEAD, 0),
    "lite0_2_256": ("Lite0 [16, 32] → 256, pool5", LITE0, [16, 32], {**NO_HEAD, **to(256)}, 0),
    "lite0_2_128": ("Lite0 [16, 32] → 128, pool5", LITE0, [16, 32], {**NO_HEAD, **to(128)}, 0),
    "lite0_fc": (
        "Lite0 [16, 32] → 128, ft-fc, softmax",
        LITE0,
        [16, 32],
        {**TUNED, "finetune": {**CONV, "layers": "fc", "sampling": "images"}, **LEARNED},
        4,
    ),
    "lite0_conv": (
        "Lite0 [16, 32] → 128, ft-conv, softmax",
        LITE0,
        [16, 32],
        {**TUNED, **LEARNED},
        4,
    ),
    "lite0_conv_svm": ("Lite0 [16, 32] → 128, ft-conv, SVMs on fc6", LITE0, [16, 32], TUNED, 4),
}


def main() -> None:
    below = Path(os.environ["SPPDET_DATA"]) if "SPPDET_DATA" in os.environ else None
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=below and below / "data" / "frk5")
    parser.add_argument("--weights", type=Path, default=below and below / "weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--images", type=int, help="train on a subset of so many images")
    args = parser.parse_args()
    if args.data is None or args.weights is None:
        print("skipped: name --data and --weights, or set SPPDET_DATA", file=sys.stderr)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    print("| recipe | seed | mAP | CPU s | peak memory, GB |\n|---|---|---|---|---|", flush=True)
    for name in args.rows.split(","):
        for seed in (int(text) for text in args.seeds.split(",")):
            print(row(name, seed, args), flush=True)


def row(name: str, seed: int, args: argparse.Namespace) -> str:
    """Train and evaluate one row, unless it is there, and format it."""
    title = ROWS[name][0]
    folder = args.out / f"{args.data.name}_{args.images or 'all'}_{name}_seed{seed}"
    result = folder / "row.json"
    if not result.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        root, count = training_root(args, seed)
        config = build(ROWS[name], root, count, args.weights, seed)
        path = folder / "settings.yaml"
        path.write_text(yaml.safe_dump(config))
        common = [str(path), "--set", f"store={args.out / 'store'}", "--run", str(folder / "run")]
        call("propose", *common)
        used = call("train", *common)
        mean = read_json(folder / "run" / "eval" / "test" / "voc07" / "metrics.json")["mAP"]
        spent = used.ru_utime + used.ru_stime
        made = {"mAP": mean, "seconds": spent, "peak": used.ru_maxrss * 1024}
        result.write_text(json.dumps(made))
    made = read_json(result)
    return (
        f"| {title} | {seed} | {100 * made['mAP']:.1f} | {made['seconds']:.0f} "
        f"| {made['peak'] / 1e9:.1f} |"
    )


def build(row: Row, root: Path, count: int, weights: Path, seed: int) -> dict[str, object]:
    """Compose the settings of a row for a data set of `count` training images."""
    _, net, stages, settings, epochs = row
    file = "tf_efficientnet_lite0" if net == LITE0 else f"{net}_imagenet"
    composed: dict[str, object] = {
        "data": {"root": str(root.resolve()), "train": "trainval", "test": "test"},
        "backbone": {
            "name": net,
            "weights": str(weights / f"{file}.safetensors"),
            "stages": stages or "auto",
        },
        **settings,
        "seed": seed,
        "workers": 1,
    }
    if epochs:
        finetune = composed["finetune"]
        assert isinstance(finetune, dict)
        composed["finetune"] = {**finetune, "batches": round(epochs * count / 2)}
    return composed


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


def call(command: str, *arguments: str) -> resource.struct_rusage:
    """Run a command of sppdet with one thread; returns what it used, or ends where it fails."""
    parts = [sys.executable, "-m", "sppdet", "--threads", "1", command, *arguments]
    process = subprocess.Popen(parts, stdout=sys.stderr)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"sppdet {command} failed")
    return used


if __name__ == "__main__":
    main()

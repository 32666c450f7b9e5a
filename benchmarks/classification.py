"""Classification on a folder of images: linear SVMs on SPP features, and one size against two.

    python benchmarks/classification.py probe --data FOLDER --weights FILE --out DIR
    python benchmarks/classification.py sizes --data FOLDER --out DIR [--seeds 0,1,2]
    python benchmarks/classification.py views --data FOLDER --weights FILE

FOLDER has a folder of images a class, FILE are SqueezeNet 1.1's ImageNet weights; without them
data/caltech101-small and weights/squeezenet1_1_imagenet.safetensors below $SPPDET_DATA are taken.
`probe`: 30 training and 20 test images a class, three random splits. `sizes`: the small net of
configs/pretrain_small.yaml, the same epochs at 224 alone and at 224 and 180 in turn, tested at several
sizes. `views`: seconds of the paper's 96 views on maps and as cropped images, alternating. Each prints
a Markdown table and writes JSON into DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import before_torch  # noqa: F401
import numpy as np

from sppdet.classification.classifier import SppClassifier
from sppdet.classification.config import PretrainConfig, ProbeConfig
from sppdet.classification.data import read_folder
from sppdet.classification.probe import probe
from sppdet.classification.stage import pretrain
from sppdet.classification.testing import evaluate_classifier
from sppdet.classification.views import score_crops, score_maps, views_of
from sppdet.features.head import build_head
from sppdet.io.backbone_weights import load_backbone
from sppdet.io.images import read_image
from sppdet.io.settings import load_settings
from sppdet.runs.environment import available_cores, set_threads
from sppdet.training_config import HeadConfig

SMALL = Path(__file__).parent.parent / "configs" / "pretrain_small.yaml"
TESTS: dict[str, dict[str, object]] = {
    "180": {"views": ["centre"], "side": 256, "crop": 224, "size": 180},
    "224": {"views": ["centre"], "side": 256, "crop": 224, "size": 224},
    "256": {"views": ["centre"], "side": 256, "crop": 224, "size": 256},
    "full 180": {"views": ["full"], "side": 180},
    "full 224": {"views": ["full"], "side": 224},
    "full 256": {"views": ["full"], "side": 256},
}


def main() -> None:
    below = Path(os.environ["SPPDET_DATA"]) if "SPPDET_DATA" in os.environ else None
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["probe", "sizes", "views"])
    parser.add_argument("--data", type=Path, default=below and below / "data/caltech101-small")
    parser.add_argument(
        "--weights",
        type=Path,
        default=below and below / "weights/squeezenet1_1_imagenet.safetensors",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/classification"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--per-class", type=int, default=15, help="training images, of sizes")
    parser.add_argument("--threads", type=int, default=available_cores())
    args = parser.parse_args()
    if args.data is None:
        print("skipped: name --data, or set SPPDET_DATA", file=sys.stderr)
        return
    set_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    seeds = [int(text) for text in args.seeds.split(",")]
    if args.what == "probe":
        run_probes(args.data, args.weights, args.out, seeds)
    elif args.what == "sizes":
        compare_sizes(args.data, args.out, seeds, args.epochs, args.per_class)
    else:
        time_views(args.data, args.weights)


def run_probes(data: Path, weights: Path, out: Path, seeds: list[int]) -> None:
    """Accuracy of whole images, centre crops and squeezed images."""
    print("| image | " + " | ".join(f"split {s}" for s in seeds) + " | mean |")
    print("|---" * (len(seeds) + 2) + "|")
    for image in ("full", "crop", "warp"):
        config = ProbeConfig.model_validate(
            {
                "data": {"root": data, "train_per_class": 30, "test_per_class": 20},
                "backbone": {"name": "squeezenet1_1", "weights": str(weights)},
                "image": image,
                "splits": seeds,
            }
        )
        result = probe(config, out / f"probe_{image}", device="cpu")
        cells = [f"{100 * value:.1f}" for value in (*result.values, result.mean)]
        print(f"| {image} | " + " | ".join(cells) + " |", flush=True)


def compare_sizes(data: Path, out: Path, seeds: list[int], epochs: int, per_class: int) -> None:
    """Top-1 of nets trained at one size and at two, at several test sizes."""
    print("| trained at | seed | " + " | ".join(TESTS) + " |")
    print("|---" * (len(TESTS) + 2) + "|")
    found: dict[str, list[list[float]]] = {}
    for seed in seeds:
        for sizes in ("[224]", "[224, 180]"):
            run = out / f"sizes_{sizes.strip('[]').replace(', ', '_')}_seed{seed}"
            overrides = [
                *(f"data.root={data}", f"seed={seed}", f"data.split_seed={seed}"),
                *(f"train.sizes={sizes}", f"train.epochs={epochs}"),
                *(f"data.train_per_class={per_class}", "data.val_per_class=10"),
                *("augment.resize=256", "augment.crop=224", "test.side=256", "test.crop=224"),
            ]
            pretrain(load_settings(SMALL, PretrainConfig, overrides), run, device="cpu")
            scores = [
                evaluate_classifier(run, overrides=test, device="cpu")[0].top1
                for test in TESTS.values()
            ]
            found.setdefault(sizes, []).append(scores)
            cells = " | ".join(f"{100 * value:.1f}" for value in scores)
            print(f"| {sizes} | {seed} | {cells} |", flush=True)
            (out / "sizes.json").write_text(json.dumps(found, indent=1))
    for sizes, rows in found.items():
        means, spreads = np.mean(rows, axis=0), np.std(rows, axis=0)
        cells = " | ".join(
            f"{100 * m:.1f} ± {100 * s:.1f}" for m, s in zip(means, spreads, strict=True)
        )
        print(f"| {sizes} | mean | {cells} |")


def time_views(data: Path, weights: Path | None) -> None:
    """Seconds of 96 views on maps and on crops, image by image in turn."""
    images = [read_image(path) for path in read_folder(data).paths[:: 1500 // 6][:6]]
    backbone = load_backbone("squeezenet1_1", str(weights) if weights else "none", whole=True)
    levels = [6, 3, 2, 1]
    head = build_head(backbone, levels, HeadConfig(widths=[1024, 1024]), outputs=1000, seed=0)
    names = [str(k) for k in range(1000)]
    net = SppClassifier(backbone, levels, head, names).eval().requires_grad_(False)
    views = views_of("maps96", 256)
    times: dict[str, list[float]] = {"maps": [], "crops": []}
    for image in images[:1] + images:
        start = time.perf_counter()
        score_maps(net, image, views, crop=224)
        middle = time.perf_counter()
        score_crops(net, image, views, crop=224, size=224)
        times["maps"].append(middle - start)
        times["crops"].append(time.perf_counter() - middle)
    maps, crops = (statistics.median(seconds[1:]) for seconds in times.values())
    print("| 96 views of an image | seconds |\n|---|---|")
    print(f"| pooled from maps | {maps:.2f} |\n| as cropped images | {crops:.2f} |")
    print(f"\nratio {crops / maps:.1f}")


if __name__ == "__main__":
    main()

"""What each part of the method adds: trains and evaluates a row of settings after another.

    python benchmarks/accuracy.py --data SET --weights FILE --out DIR [--rows a,b] [--seeds 0,1,2]
                                  [--set KEY=VALUE ...]

SET is a folder in the VOC layout with trainval and test, FILE are SqueezeNet 1.1's ImageNet
weights; without them data/frk5 and weights/squeezenet1_1_imagenet.safetensors below $SPPDET_DATA
are taken. Rows share proposals and feature maps, and a finished row costs nothing again. Prints a
Markdown table and writes accuracy.json into DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import before_torch  # noqa: F401

from sppdet import load_config, train
from sppdet.runs.artifacts import read_json
from sppdet.runs.environment import available_cores, set_threads

CONFIG = Path(__file__).parent.parent / "configs" / "squeezenet_small.yaml"
ONE_SCALE, NO_BOXES = "scales=[688]", "bbox=none"
PAPER = "svm.positive_weight=2"  # the rows are the paper's recipes
HEAD = ["head={widths: [1024]}", "finetune={batches: 1000, lr: 3e-3, snapshots: 10}"]
ROWS: dict[str, tuple[str, list[str]]] = {
    "pool5_1s": ("pool5, 1 scale", [ONE_SCALE, NO_BOXES]),
    "pool5_1s_bb": ("pool5, 1 scale, bb", [ONE_SCALE]),
    "pool5_5s": ("pool5, 5 scales", [NO_BOXES]),
    "pool5_5s_bb": ("pool5, 5 scales, bb", []),
    "ftfc6_1s": ("fine-tuned fc6, 1 scale", [*HEAD, ONE_SCALE, NO_BOXES]),
    "ftfc6_1s_bb": ("fine-tuned fc6, 1 scale, bb", [*HEAD, ONE_SCALE]),
    "ftfc6_5s_bb": ("fine-tuned fc6, 5 scales, bb (all)", HEAD),
}


def main() -> None:
    parser = parser_of_paths(__doc__)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    args = parser.parse_args()
    if args.data is None or args.weights is None:
        print("skipped: name --data and --weights, or set SPPDET_DATA", file=sys.stderr)
        return
    set_threads(args.threads)
    results = []
    for name in args.rows.split(","):
        for seed in (int(text) for text in args.seeds.split(",")):
            own = [f"data.root={args.data}", f"backbone.weights={args.weights}", PAPER]
            results.append(run_row(name, seed, [*own, *args.overrides], args.out))
            (args.out / "accuracy.json").write_text(json.dumps(results, indent=1))
    print_table(results)


def parser_of_paths(description: str | None) -> argparse.ArgumentParser:
    """A parser that knows where the set, the weights and the results are."""
    parser = argparse.ArgumentParser(description=description)
    below = Path(os.environ["SPPDET_DATA"]) if "SPPDET_DATA" in os.environ else None
    parser.add_argument("--data", type=Path, default=below and below / "data" / "frk5")
    parser.add_argument(
        "--weights",
        type=Path,
        default=below and below / "weights" / "squeezenet1_1_imagenet.safetensors",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=available_cores())
    return parser


def run_row(
    name: str, seed: int, common: list[str], out: Path, *, device: str = "cpu"
) -> dict[str, object]:
    """Train and evaluate one row; what it scored and the seconds of its stages."""
    title, settings = ROWS[name]
    run = out / f"{name}_seed{seed}"
    overrides = [f"store={out / 'store'}", *settings, f"seed={seed}", *common]
    train(load_config(CONFIG, overrides), run, device=device)
    metrics = read_json(run / "eval" / "test" / "voc07" / "metrics.json")
    return {"row": title, "seed": seed, "seconds": read_json(run / "timings.json"), **metrics}


def print_table(results: list[dict[str, object]]) -> None:
    """Markdown: AP by class and the mAP, 11-point, in per cent, and hours of training."""
    first = results[0]["AP"]
    assert isinstance(first, dict)
    print("| recipe | seed | " + " | ".join(first) + " | mAP | svm s | finetune s | bbox s |")
    print("|---|" + "---|" * (len(first) + 5))
    for result in results:
        aps, seconds, mean = result["AP"], result["seconds"], result["mAP"]
        assert isinstance(aps, dict) and isinstance(seconds, dict) and isinstance(mean, float)
        cells = [f"{100 * value:.1f}" for value in aps.values()]
        spent = [f"{seconds.get(stage, 0):.0f}" for stage in ("svm", "finetune", "bbox")]
        print(
            f"| {result['row']} | {result['seed']} | {' | '.join(cells)} | {100 * mean:.1f} | "
            + " | ".join(spent)
            + " |"
        )


if __name__ == "__main__":
    main()

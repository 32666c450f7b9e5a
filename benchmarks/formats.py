"""The layers on a whole image in several memory formats, types and ways to run them.

    python benchmarks/formats.py [--nets a,b] [--side 688] [--threads N] [--repeats N] [--device cpu]
                                 [--compile] [--json FILE]

Random weights, one made image of aspect 4:3; the ways take turns, medians are printed with the
speed over "channels last", which is what sppdet does in float32. "autocast" is
`features.precision`; "four at once" is a batch of images of equal size, as time an image. --compile adds
torch.compile (inductor), which needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import before_torch  # noqa: F401
import torch
from torch import nn

from sppdet.io.backbone_weights import load_backbone
from sppdet.runs.environment import available_cores, set_threads

NETS = ("squeezenet1_1", "alexnet", "zf5_detector", "resnet18")
FOUR = "four at once"
Run = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--side", type=int, default=688)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    set_threads(args.threads)
    report: dict[str, dict[str, float]] = {}
    print(f"{args.side} px, {args.threads} threads, {args.device}")
    for name in args.nets.split(","):
        layers = load_backbone(name, "none").layers.to(args.device)
        runs = ways(layers, args.side, torch.device(args.device), compiled=args.compile)
        medians = measure(runs, args.repeats, args.device)
        if not report:
            print(f"| net | {' | '.join(medians)} |\n" + "|---" * (len(medians) + 1) + "|")
        medians[FOUR] /= 4
        base = medians["channels last"]
        cells = (f"{1000 * s:.0f} ms ({base / s:.2f}×)" for s in medians.values())
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        report[name] = medians
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1))


def ways(layers: nn.Module, side: int, device: torch.device, *, compiled: bool) -> dict[str, Run]:
    """The layers on one image, in each way, or on four."""
    x = torch.randn(1, 3, side, side * 4 // 3, device=device)
    last = x.contiguous(memory_format=torch.channels_last)
    four = last.repeat(4, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    plain = copy.deepcopy(layers).to(memory_format=torch.contiguous_format)

    def autocast(kind: torch.dtype) -> object:
        with torch.autocast(device.type, kind):
            return layers(last)

    runs: dict[str, Run] = {
        "channels last": lambda: layers(last),
        "channels first": lambda: plain(x),
        FOUR: lambda: layers(four),
        "bfloat16, autocast": lambda: autocast(torch.bfloat16),
        "float16, autocast": lambda: autocast(torch.float16),
    }
    if compiled:
        made = torch.compile(copy.deepcopy(layers))
        runs["compiled"] = lambda: made(last)
    return runs


@torch.inference_mode()
def measure(runs: dict[str, Run], repeats: int, device: str) -> dict[str, float]:
    """Median seconds of every way; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


if __name__ == "__main__":
    main()

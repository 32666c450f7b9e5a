"""Training steps with compiled gradients of depthwise convolutions and with torch's, in turns.

    python benchmarks/depthwise.py [--nets timm/tf_efficientnet_lite0,efficientnet_b0,mnasnet1_0]
                                   [--side 320] [--threads 1] [--repeats 9] [--json FILE]

Random weights, one image of side × 4/3 side. A step computes a map and the gradients of all weights.
Prints the medians of CPU milliseconds of the process, their ratio, and the largest difference between
the gradients of a weight, as part of its largest one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import before_torch  # noqa: F401
import torch
from torch import nn

from sppdet.features.backbones import conv_backbone
from sppdet.features.depthwise import FastDepthwise
from sppdet.features.folding import folded
from sppdet.runs.environment import set_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", default="timm/tf_efficientnet_lite0,efficientnet_b0,mnasnet1_0")
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error(f"--repeats: {args.repeats}, expected 1 or more")
    set_threads(args.threads)
    print("| network | torch, ms | compiled, ms | ratio | largest difference |")
    print("|---|---|---|---|---|")
    found = {}
    for name in args.nets.split(","):
        times, difference = compare(name, args.side, args.repeats)
        torchs, ours = (1000 * statistics.median(seconds) for seconds in times)
        print(f"| {name} | {torchs:.0f} | {ours:.0f} | {torchs / ours:.2f} | {difference:.0e} |")
        found[name] = {"torch": times[0], "compiled": times[1], "difference": difference}
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1))


def compare(name: str, side: int, repeats: int) -> tuple[tuple[list[float], list[float]], float]:
    """CPU seconds of steps by torch and by the loops, in turns, and how far their gradients differ."""
    torch.manual_seed(0)
    layers = folded(conv_backbone(name)).layers.requires_grad_(True)
    for module in layers.modules():
        if isinstance(module, nn.Hardtanh):
            module.inplace = False  # as in fine-tuning
    image = torch.randn(1, 3, side, side * 4 // 3).contiguous(memory_format=torch.channels_last)
    weights = list(layers.parameters())

    def step(mode: AbstractContextManager[object]) -> tuple[float, list[torch.Tensor]]:
        start = time.process_time()
        with mode:
            result = layers(image)
        gradients = torch.autograd.grad(result.square().mean(), weights)
        return time.process_time() - start, list(gradients)

    times: tuple[list[float], list[float]] = [], []
    for turn in range(repeats + 1):
        (theirs, expected), (ours, got) = step(nullcontext()), step(FastDepthwise())
        if turn:  # the first compiles
            times[0].append(theirs)
            times[1].append(ours)
    largest = max(
        float((a - b).abs().max() / a.abs().max().clamp(min=1e-30))
        for a, b in zip(expected, got, strict=True)
    )
    return times, largest


if __name__ == "__main__":
    main()

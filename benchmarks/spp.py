"""SPP of windows against four `torchvision.ops.roi_pool`, alternating in one run.

    python benchmarks/spp.py [--windows 2000] [--channels 256] [--threads 2] [--device cpu]
                             [--repeats 7] [--json FILE]

One map of 43×65 cells (a 688×1032 image at stride 16) and windows as selective search gives them:
many small, few large. roi_pool gets the same windows in whole cells, a level at a time, and the map's
float16 values in float32, in which it is faster. Prints a Markdown table of medians and the ratio, and
checks that both give the same values.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import before_torch  # noqa: F401
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import roi_pool

from sppdet.features.levels import level_columns
from sppdet.features.spp import spp_windows
from sppdet.runs.environment import set_threads

LEVELS = (6, 3, 2, 1)
MAP_HEIGHT, MAP_WIDTH = 43, 65


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=2000)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    set_threads(args.threads)
    device = torch.device(args.device)
    times = compare(args.windows, args.channels, device, args.repeats)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    ratio = medians["four roi_pool"] / medians["sppdet"]
    print(
        f"{args.windows} windows, {args.channels} channels, levels {LEVELS}, "
        f"{args.threads} threads, {device}; equal to the bit\n"
    )
    print("| | milliseconds |\n|---|---|")
    for name, seconds in medians.items():
        print(f"| {name} | {1000 * seconds:.1f} |")
    print(f"\nratio {ratio:.1f}")
    if args.json is not None:
        args.json.write_text(json.dumps({"seconds": times, "ratio": ratio}, indent=1))


def compare(
    count: int, channels: int, device: torch.device, repeats: int
) -> dict[str, list[float]]:
    """Seconds of both sides, in turns.

    Raises:
        ValueError: their values differ.
    """
    feature_map = torch.rand(channels, MAP_HEIGHT, MAP_WIDTH, device=device)
    # as the convolutions leave it
    feature_map = feature_map[None].contiguous(memory_format=torch.channels_last)[0].half()
    floats = feature_map.float()
    windows = made_windows(count, np.random.default_rng(0))
    rois = torch.zeros(len(windows), 5, device=device)
    rois[:, 1:] = torch.from_numpy(windows).to(rois)

    def ours() -> torch.Tensor:
        return spp_windows(feature_map, windows, LEVELS)

    def theirs() -> list[torch.Tensor]:
        return [roi_pool(floats[None], rois, n) for n in LEVELS]

    pooled, reference = ours(), theirs()
    for n, level in zip(LEVELS, reference, strict=True):
        columns = level_columns(channels, LEVELS, n)
        if not torch.equal(pooled[:, columns], level.permute(0, 2, 3, 1).flatten(1)):
            raise ValueError(f"level {n} differs from roi_pool's")
    return alternate({"sppdet": ours, "four roi_pool": theirs}, repeats, device)


def made_windows(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(count, 4) windows whose sides are spread evenly on a logarithmic scale."""
    limit = np.array([MAP_WIDTH, MAP_HEIGHT])
    sides = np.exp(rng.uniform(np.log(2), np.log(limit), (count, 2))).astype(np.int64)
    corner = (rng.random((count, 2)) * (limit - sides + 1)).astype(np.int64)
    return np.hstack([corner, corner + sides - 1])


def alternate(
    works: dict[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every work, in turns, after one pass to warm up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main()

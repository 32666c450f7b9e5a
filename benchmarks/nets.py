"""Images a second of every network: forward pass, training step, and what the norms cost.

    python benchmarks/nets.py [--nets a,b] [--batch N] [--repeats N] [--threads N] [--device cpu]
                              [--json FILE]

Made images of 224 px, the paper's head (4096-4096-1000 on {6, 3, 2, 1}) but for `tiny`, median of
several passes. "norms" is the part of the forward pass that local response normalisation takes;
"torch's" the same with `nn.LocalResponseNorm`, in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import before_torch  # noqa: F401
import torch
import torch.nn.functional as F
from torch import nn

from sppdet.classification.classifier import build_classifier
from sppdet.classification.config import FolderConfig, PretrainConfig
from sppdet.config import BackboneConfig
from sppdet.features.nets import OWN_NETS
from sppdet.features.norms import CrossChannelNorm, WithinChannelNorm
from sppdet.runs.environment import available_cores, set_threads
from sppdet.training_config import HeadConfig

NETS = ("zf5", "convnet5", "overfeat5", "overfeat7", "tiny", "alexnet", "squeezenet1_1", "resnet18")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    set_threads(args.threads)
    device = torch.device(args.device)
    print(f"batches of {args.batch}, {args.threads} threads, {device}")
    print("| net | forward, images/s | training, images/s | norms | torch's |")
    print("|---|---|---|---|---|")
    rows = []
    for name in args.nets.split(","):
        row = measure(name, args.batch, args.repeats, device)
        rows.append({"net": name, **row})
        cells = (f"{row[key]:.1f}" for key in ("forward", "training"))
        parts = (f"{100 * row[key]:.0f} %" if key in row else "–" for key in ("norms", "torch"))
        print(f"| {name} | {' | '.join(cells)} | {' | '.join(parts)} |", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1))


def measure(name: str, batch: int, repeats: int, device: torch.device) -> dict[str, float]:
    """Images a second, and the norms' part of the forward pass."""
    config = PretrainConfig(
        data=FolderConfig(root=Path()),
        backbone=BackboneConfig(name=name, weights="none"),
        head=None if name == "tiny" else HeadConfig(),
    )
    net = build_classifier(config, [str(k) for k in range(1000)]).to(device)
    net = net.to(memory_format=torch.channels_last)
    x = torch.randn(batch, 3, 224, 224, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(net.train()(x), labels).backward()
        optimizer.step()

    @torch.inference_mode()
    def forward() -> None:
        net.eval()(x)

    result = {
        "forward": batch / seconds(forward, repeats, device),
        "training": batch / seconds(step, repeats, device),
    }
    if name in OWN_NETS and name != "tiny":
        result |= norm_parts(net, x, batch / result["forward"], repeats, device)
    return result


def norm_parts(
    net: nn.Module, x: torch.Tensor, whole: float, repeats: int, device: torch.device
) -> dict[str, float]:
    """Seconds of the norm layers on what they are given, as parts of the forward pass."""
    seen: list[tuple[nn.Module, torch.Tensor]] = []
    norms = [m for m in net.modules() if isinstance(m, CrossChannelNorm | WithinChannelNorm)]
    hooks = [
        m.register_forward_hook(lambda m, given, _: seen.append((m, given[0].clone())))
        for m in norms
    ]
    with torch.inference_mode():
        net.eval()(x)
    for hook in hooks:
        hook.remove()
    theirs = nn.LocalResponseNorm(5)

    @torch.inference_mode()
    def ours() -> None:
        for layer, given in seen:
            layer(given)

    @torch.inference_mode()
    def torchs() -> None:
        for _, given in seen:
            theirs(given)

    return {
        "norms": seconds(ours, repeats, device) / whole,
        "torch": seconds(torchs, repeats, device) / whole,
    }


def seconds(work: Callable[[], None], repeats: int, device: torch.device) -> float:
    """Median seconds of `work` after one pass to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()

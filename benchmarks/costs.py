"""CPU seconds and peak memory of every stage of a training, each in a process of its own with one thread.

    python benchmarks/costs.py --out DIR [--data SET] [--weights FILE] [--images 20,100,530]
                                [--settings squeezenet_small] [--set KEY=VALUE ...]

The set is `data/frk5` of `SPPDET_DATA`, or `--data`, in the VOC layout; a part has a seeded subset of its
training images, every class in turn, and the whole test set. By default the recipe is pool5 at one scale
with box regression (`pool5_1s_bb` of benchmarks/accuracy.py). "start" is what the process does outside the
stages: imports above all. "announced" is what the training said before its first stage. A stage's memory
is the most that the process has had in it; it includes what the stages before have left behind. Linux
alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import before_torch  # noqa: F401
from backbones import training_root

CONFIG = Path(__file__).parent.parent / "configs" / "squeezenet_small.yaml"


def main() -> None:
    below = Path(os.environ["SPPDET_DATA"]) if "SPPDET_DATA" in os.environ else None
    weights = below and below / "weights" / "squeezenet1_1_imagenet.safetensors"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=below and below / "data" / "frk5")
    parser.add_argument("--weights", type=Path, default=weights)
    parser.add_argument("--images", default="20,100,530")
    parser.add_argument("--settings", type=Path, default=CONFIG)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)  # of the process of one row
    args = parser.parse_args()
    if args.data is None or args.weights is None:
        print("skipped: name --data and --weights, or set SPPDET_DATA", file=sys.stderr)
        return
    if args.run:
        print(json.dumps(train(args)))
        return
    for images in args.images.split(","):
        args.images = int(images)
        print(table(args), flush=True)


def table(args: argparse.Namespace) -> str:
    """Train on a subset in a new folder, and format what its stages took."""
    root, count = training_root(args, 0)
    run = args.out / f"{root.name}_run"
    own = ["--run", str(run), "--data", str(root), "--out", str(args.out)]
    own += ["--weights", str(args.weights), "--settings", str(args.settings)]
    own += [part for text in args.overrides for part in ("--set", text)]
    process = subprocess.Popen(
        [sys.executable, __file__, *own], stdout=subprocess.PIPE, stderr=sys.stderr, text=True
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"training on {count} images failed")
    found = json.loads(output.splitlines()[-1])
    cpu = used.ru_utime + used.ru_stime
    stages = found["stages"]
    start = cpu - sum(seconds for _, seconds, _ in stages.values())
    announced = found["announced"]
    lines = [f"{count} images, mAP {100 * found['mAP']:.1f}", ""]
    lines += ["| stage | announced, s | s | CPU s | memory, GB |", "|---|---|---|---|---|"]
    lines.append(f"| start | | | {start:.1f} | |")
    for name, (wall, seconds, peak) in stages.items():
        expected = f"{announced[name]:.1f}" if announced.get(name) else ""
        lines.append(f"| {name} | {expected} | {wall:.1f} | {seconds:.1f} | {peak / 1e9:.2f} |")
    most = max(peak for _, _, peak in stages.values())
    wall = sum(wall for name, (wall, _, _) in stages.items() if announced.get(name))
    both = f"{sum(announced.values()):.1f} | {wall:.1f}"
    lines.append(f"| all, by the clock those announced | {both} | {cpu:.1f} | {most / 1e9:.2f} |")
    return "\n".join([*lines, ""])


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train in this process; returns the mAP, the announced seconds, and what each stage took."""
    from sppdet import load_config, train
    from sppdet.runs.environment import set_threads

    set_threads(1)
    stages: dict[str, tuple[float, float, int]] = {}
    announced: dict[str, float] = {}

    def note(name: str, facts: Mapping[str, Any]) -> None:
        if name == "stage ended":
            stages[facts["stage"]] = (facts["seconds"], facts["cpu_seconds"], peak_bytes())
        if name == "forecast":
            announced.update(facts["seconds"])
        if name == "stage started":
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins again

    paths = [f"data.root={args.data}", f"backbone.weights={args.weights}", "workers=1"]
    config = load_config(args.settings, ["scales=[688]", *paths, *args.overrides])
    result = train(config, args.run, device="cpu", on_event=note)
    score = result.mean_ap if result else float("nan")
    return {"mAP": score, "announced": announced, "stages": stages}


def peak_bytes() -> int:
    """The most memory that this process has had since the peak was begun again."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status has no VmHWM")


if __name__ == "__main__":
    main()

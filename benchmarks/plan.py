"""What a training of COCO's size needs: hours, disk and memory by stage, and what breaks first.

    python benchmarks/plan.py [--costs FILE] [--sizes 10,40,160] [--config FILE] [--set KEY=VALUE ...]
                              [--json FILE] [--device cpu] [--images 118287] [--classes 80]
                              [--max-negatives N] [--width D] [--gpu] [--host-gb 128] [--gpu-gb 80]
                              [--disk-gb 2000]

FILE of --costs is the --json of an earlier call, or that of `benchmarks/gpu.py`. Without it made images
are trained on at each of the sizes, on this machine: the first and the last give what is fixed and what
grows; what the first two predict for the last is printed beside what was measured. Hours are those of the
device that was measured, and of one core if it was a CPU. Memory is the sum of what the code holds at once.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import before_torch  # noqa: F401
import plan_model as model
from plan_costs import as_json, image_bytes, measure, read_costs, reading_bytes
from plan_model import COCO, Costs, Held, Size
from train import peak_bytes

from sppdet.errors import SppdetError
from sppdet.runs.artifacts import write_text
from sppdet.runs.environment import available_cores, set_threads

CONFIG = Path(__file__).parent.parent / "configs" / "squeezenet_small.yaml"
GB = 10**9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--costs", type=Path)
    parser.add_argument("--sizes", default="10,40,160")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--images", type=int, default=COCO.images)
    parser.add_argument("--classes", type=int, default=COCO.classes)
    parser.add_argument("--max-negatives", type=int)
    parser.add_argument("--width", type=int, help="of the SVMs' vectors, other than measured")
    parser.add_argument(
        "--gpu", action="store_true", help="a GPU holds the pool, whatever was measured"
    )
    parser.add_argument("--host-gb", type=float, default=128)
    parser.add_argument("--gpu-gb", type=float, default=80)
    parser.add_argument("--disk-gb", type=float, default=2000)
    args = parser.parse_args()
    set_threads(args.threads)
    objects = COCO.objects / COCO.images
    with tempfile.TemporaryDirectory() as folder:
        if args.costs is not None:
            try:
                costs = read_costs(args.costs)
            except (SppdetError, ValueError, TypeError, KeyError) as error:
                sys.exit(str(error))
        else:
            sizes = [int(text) for text in args.sizes.split(",")]
            costs = measure(Path(folder), sizes, args.config, args.overrides, device=args.device)
            if args.json is not None:
                write_text(args.json, json.dumps(as_json(costs), indent=1) + "\n")
        reading = reading_bytes(Path(folder), round(objects)) * args.images
    per_image = image_bytes(round(objects))
    size = replace(
        COCO,
        images=args.images,
        objects=objects * args.images,
        classes=args.classes,
        max_negatives=args.max_negatives,
    )
    if len(costs.runs) > 2:
        print_check(costs)
    if args.width is not None:  # a solution's products are as long
        solve = costs.solve * args.width / costs.width
        costs = replace(costs, width=args.width, solve=solve)
    things = model.held(
        costs, size, on_gpu=costs.device == "cuda" or args.gpu, image_bytes=per_image
    )
    things.insert(0, Held("data", "reading COCO's json", "host", reading, "none"))
    print_plan(costs, size, things, base=peak_bytes())
    limits: dict[model.Place, float] = {
        "host": GB * args.host_gb,
        "GPU": GB * args.gpu_gb,
        "disk": GB * args.disk_gb,
    }
    print_breaking(things, limits)


def print_check(costs: Costs) -> None:
    """Print what the two smallest runs predict for the largest, beside what was measured."""
    *_, last = costs.runs
    fewer = replace(costs, runs=costs.runs[:2])
    print(
        f"Predicted from {costs.runs[0].size.images} and {costs.runs[1].size.images} images", end=""
    )
    print(f" for {last.size.images}, {costs.settings}, on {costs.device}:\n")
    print("| | predicted | measured |\n|---|---|---|")
    for stage, expected in model.seconds(fewer, last.size).items():
        print(f"| {stage}, s | {expected:.1f} | {last.seconds[stage]:.1f} |")
    expected = model.negatives(fewer, last.size)
    print(f"| hard negatives a class | {expected:.0f} | {last.negatives / last.size.classes:.0f} |")
    before = costs.runs[1]
    for name, a, b in (
        ("bytes of an image's maps", before.map_bytes, last.map_bytes),
        ("bytes of its proposals", before.proposal_bytes, last.proposal_bytes),
        ("its detections of a class", before.detections, last.detections),
    ):
        print(f"| {name} | {a:,.1f} | {b:,.1f} |")
    print()


def print_plan(costs: Costs, size: Size, things: list[Held], *, base: float) -> None:
    """Print the stages of a training, on one device and on eight."""
    one, eight = (model.seconds(costs, size, processes=n) for n in (1, 8))
    one["svm"] += model.solving(costs, size)
    eight["svm"] += model.solving(costs, size, processes=8)
    disk, peaks = model.disk(costs, size), model.peaks(things, base=base)
    print(
        f"{size.images:,} images, {size.objects:,.0f} objects of {size.classes} classes, ", end=""
    )
    print(f"{size.batches:,} batches, {size.test:,} test images; {costs.settings};")
    on = "one core (CPU seconds)" if costs.device == "cpu" else costs.device
    print(f"costs of {on}, {len(costs.runs)} runs, the largest of ", end="")
    print(f"{costs.runs[-1].size.images} images\n")
    print(
        "| stage | hours, 1 | hours, 8 | disk, GB | host, GB | GPU, GB |\n|---|---|---|---|---|---|"
    )
    for stage, seconds in one.items():
        numbers = [f"{s / 3600:.1f}" for s in (seconds, eight[stage])]
        sizes = [disk.get(stage, 0.0), *peaks[stage].values()]
        print(f"| {stage} | {' | '.join(numbers + [f'{n / GB:.1f}' for n in sizes])} |")
    totals = [f"{sum(times.values()) / 3600:.1f}" for times in (one, eight)]
    print(f"| all | {' | '.join(totals)} | {sum(disk.values()) / GB:.1f} | | |\n")
    print("Host and GPU are of one process; eight on one machine hold eight times the host's.\n")


def print_breaking(things: list[Held], limits: dict[model.Place, float]) -> None:
    """Print what is largest, and what is beyond its limit alone, in the order of the stages."""
    beyond = model.breaking(things, limits)
    print("| held at once | where | GB | limit | bounded by |\n|---|---|---|---|---|")
    for thing in things:
        mark = " **beyond**" if thing in beyond else ""
        cells = [f"{thing.stage}: {thing.what}", thing.place, f"{thing.size / GB:.1f}{mark}"]
        cells += [f"{limits[thing.place] / GB:.0f}", thing.bound]
        print(f"| {' | '.join(cells)} |")
    first = f"{beyond[0].stage}: {beyond[0].what}" if beyond else "nothing"
    print(f"\nWhat breaks first: {first}")


if __name__ == "__main__":
    main()

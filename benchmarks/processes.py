"""A training shared by several processes: seconds of each stage, and efficiency over one process.

    python benchmarks/processes.py --out DIR [--processes 1,2,4] [--latency 0,20] [--images 60]
                                   [--set KEY=VALUE ...] [--json FILE]

Made images are painted once; each row is `torchrun --nproc-per-node N -m sppdet -- train` on them with one
thread a process, in a folder of its own. The efficiency of a stage is its time with one process over N
times that with N, where there are as many cores; with fewer, over the time times the cores. `--latency`
stands for a shared folder that is slow: every call of Python that opens, looks for, lists, renames or
removes a file below DIR waits for so many milliseconds first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import before_torch  # noqa: F401
from backbones import events, stage_seconds

from sppdet.demo.set import make_demo_set
from sppdet.runs.environment import available_cores

CONFIG = Path(__file__).parent.parent / "configs" / "squeezenet_small.yaml"
# imported by every Python that finds it on its path
SLOW = """
import builtins, io, os, time
folder, seconds = os.environ["SLOW_FOLDER"], float(os.environ["SLOW_SECONDS"])

def slowly(function):
    def call(path, *args, **kw):
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(folder):
            time.sleep(seconds)
        return function(path, *args, **kw)
    return call

for name in ("open", "stat", "scandir", "listdir", "mkdir", "rename", "replace", "remove", "unlink"):
    setattr(os, name, slowly(getattr(os, name)))
builtins.open = io.open = slowly(builtins.open)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processes", default="1,2,4")
    parser.add_argument("--latency", default="0", help="milliseconds of a call to the folder")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    out = args.out.resolve()
    root = make_demo_set(out / "set", seed=0, train_images=args.images, test_images=12)
    rows: list[dict[str, Any]] = []
    for latency in map(float, args.latency.split(",")):
        for count in map(int, args.processes.split(",")):
            rows.append(measure(out, root, count, latency, args.overrides))
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1))
    for line in table(rows):
        print(line)


def measure(
    out: Path, root: Path, count: int, latency: float, overrides: list[str]
) -> dict[str, Any]:
    """Train with `count` processes in a new folder; returns the seconds of each stage and of all."""
    run = out / f"{count}_processes_{latency:g}_ms"
    settings = [
        f"data.root={root}",
        "backbone.weights=none",
        "workers=1",
        f"store={run / 'store'}",
        *overrides,
    ]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}"]
    command += ["--standalone", "-m", "sppdet", "--", "--threads", "1", "train", str(CONFIG)]
    command += ["--run", str(run), "--device", "cpu", "--quiet"]
    for setting in settings:
        command += ["--set", setting]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if latency:
            (Path(folder) / "sitecustomize.py").write_text(SLOW)
            paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
            environment["PYTHONPATH"] = os.pathsep.join(paths)
            environment.update(SLOW_FOLDER=str(out), SLOW_SECONDS=str(latency / 1000))
        start = time.perf_counter()
        ended = subprocess.run(command, env=environment, stdout=sys.stderr)
        seconds = time.perf_counter() - start
    if ended.returncode:
        raise SystemExit(f"{count} processes: the training failed")
    stages = stage_seconds(events(run), of="seconds")
    return {"processes": count, "latency": latency, "seconds": seconds, "stages": stages}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Format seconds by stage and, beside those of several processes, the efficiency."""
    stages = [s for s, seconds in rows[0]["stages"].items() if seconds >= 0.5]
    lines = [
        f"| processes | ms a call | {' | '.join(stages)} | whole command |",
        "|---" * (len(stages) + 3) + "|",
    ]
    for row in rows:
        alone = next(
            (r for r in rows if r["processes"] == 1 and r["latency"] == row["latency"]), None
        )
        cells = []
        for stage in [*stages, None]:
            cell = f"{_seconds(row, stage):.1f} s"
            if alone is not None and alone is not row:
                cores = min(row["processes"], available_cores())
                part = _seconds(alone, stage) / (cores * _seconds(row, stage))
                cell += f", {100 * part:.0f} %"
            cells.append(cell)
        lines.append(f"| {row['processes']} | {row['latency']:g} | {' | '.join(cells)} |")
    return lines


def _seconds(row: dict[str, Any], stage: str | None) -> float:
    return float(row["seconds"] if stage is None else row["stages"][stage])


if __name__ == "__main__":
    main()

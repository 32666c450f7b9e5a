"""All figures that want a GPU, in one call of minutes: first whether it computes what the CPU does.

    python benchmarks/gpu.py [--minutes 8] [--json gpu.json] [--go-on] [--images FOLDER]
                             [--data SET --weights FILE] [--threads N] [--only TEXT] [--dry]

Prints a Markdown table row by row and writes the JSON file after every row. A row that fails doesn't end
the table, but the exit status is 1; one that may take longer than what is left of the minutes is skipped.
--go-on keeps the rows of the file and what they have left in gpu.work. Without --images and --data (a set
in the VOC layout, with trainval and test) images are painted; without --weights (of SqueezeNet 1.1) they
are random. --dry runs every line at small sizes on a CPU, and says nothing about speed. Nothing is
fetched; typer, pycocotools and OpenCV's contrib modules aren't needed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

# what these rows import, and the wheels that bring it where it is missing
WHEELS = {
    "PIL": "pillow",
    "annotated_types": "annotated-types",
    "cv2": "opencv-python-headless",
    "defusedxml": "defusedxml",
    "filelock": "filelock",
    "fontTools": "fonttools",
    "jinja2": "jinja2",
    "markupsafe": "markupsafe",
    "matplotlib": "matplotlib",
    "numba": "numba llvmlite",
    "numpy": "numpy",
    "pydantic": "pydantic",
    "pydantic_core": "pydantic-core",
    "rich": "rich markdown-it-py mdurl pygments",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "sklearn": "scikit-learn joblib threadpoolctl",
    "torch": "torch",
    "torchvision": "torchvision",
    "typing_extensions": "typing-extensions",
    "typing_inspection": "typing-inspection",
    "yaml": "pyyaml",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    parser.add_argument("--go-on", action="store_true")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", default="", help="rows whose names have this text")
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    if missing := [w for name, w in WHEELS.items() if importlib.util.find_spec(name) is None]:
        sys.exit(f"missing here, bring their wheels: {' '.join(missing)}")
    sys.path.insert(0, str(Path(__file__).parent.parent))  # sppdet, where it isn't installed
    if args.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported
    sys.exit(measure_all(args))


def measure_all(args: argparse.Namespace) -> int:
    """Measure the rows; returns the exit status."""
    import before_torch  # noqa: F401
    import torch
    from gpu_rows import Setup, rows_of
    from interpreter import mend_interpreter
    from rows import measure

    from sppdet.runs.environment import available_cores, set_threads

    if not args.dry and not torch.cuda.is_available():
        print("there is no GPU here; --dry tries all rows on the CPU", file=sys.stderr)
        return 2
    threads = args.threads or available_cores()
    set_threads(threads)
    if args.dry and importlib.util.find_spec("triton"):
        mend_interpreter()
    device = torch.device("cpu" if args.dry else "cuda")
    machine = facts(device, threads)
    if not args.go_on:
        print(", ".join(f"{name} {value}" for name, value in machine.items()) + "\n", flush=True)
    work = args.json.with_suffix(".work")
    if work.exists() and not args.go_on:
        print(
            f"{work}: left by an earlier call; expected --go-on, or no such folder", file=sys.stderr
        )
        return 2
    work.mkdir(parents=True, exist_ok=True)
    setup = Setup(device, args.dry, threads, work, args.images, args.data, args.weights)
    rows = [row for row in rows_of(setup) if args.only in row.name]
    found = measure(rows, args.json, minutes=args.minutes, machine=machine, go_on=args.go_on)
    shutil.rmtree(work)
    count = {s: sum(r["state"] == s for r in found) for s in ("done", "failed", "skipped")}
    print("\n" + ", ".join(f"{n} rows {state}" for state, n in count.items() if n))
    return 1 if count["failed"] else 0


def facts(device: object, threads: int) -> dict[str, str]:
    """Name the card and the versions."""
    import torch
    import torchvision

    on_gpu = str(device) == "cuda"
    there = importlib.util.find_spec("triton") is not None
    return {
        "on": torch.cuda.get_device_name() if on_gpu else "the CPU (dry: no figure counts)",
        "threads": str(threads),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "Triton": importlib.import_module("triton").__version__ if there else "none",
        "cuDNN": str(torch.backends.cudnn.version()) if on_gpu else "none",
    }


if __name__ == "__main__":
    main()

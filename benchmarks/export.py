"""A run and its model file: size, time to load, equality; and its networks by torch and by onnxruntime.

    python benchmarks/export.py RUN [--images FOLDER] [--count 20] [--loads 9] [--threads 1]

Without --images the folder is data/frk5/JPEGImages below $SPPDET_DATA. The two sides of a table take
turns, and the median of each is printed: seconds that pass, and CPU seconds of all threads.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import before_torch  # noqa: F401
import numpy as np
import torch

from sppdet.detection.onnx_head import PooledScores
from sppdet.features.backbones import Backbone
from sppdet.features.onnx_export import session
from sppdet.io.finding import find_images
from sppdet.runs.environment import set_threads
from sppdet.stages.detector import Detector
from sppdet.stages.export_onnx import MapsOfPixels, export_onnx
from sppdet.stages.model import read_backbone
from sppdet.stages.trained_model import TrainedModel, write_model
from sppdet.types import ImageArray

_LOAD = "import sys, sppdet; sppdet.Detector.load(sys.argv[1], device='cpu')"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--loads", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    set_threads(args.threads)
    folder = args.images or Path(os.environ["SPPDET_DATA"]) / "data" / "frk5" / "JPEGImages"
    everything = find_images([folder])
    images = everything[:: max(1, len(everything) // args.count)][: args.count]
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "model.sppdet"
        size = write_model(TrainedModel.open(args.run), file)
        compare_loading(args.run, file, size, loads=args.loads)
        compare_detections(args.run, file, images)
        for line in export_onnx(TrainedModel.open(file), Path(temporary) / "onnx"):
            print(f"- {line}")
        compare_networks(file, Path(temporary) / "onnx", images)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds that pass, and CPU seconds of this process and of its children."""
    start, cpu = time.perf_counter(), cpu_seconds()
    work()
    return time.perf_counter() - start, cpu_seconds() - cpu


def cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def in_turn(
    sides: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, list[tuple[float, float]]]:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(repeats + 1):
        for name, work in sides.items():
            taken = timed(work)
            if number:  # the first warms up
                times[name].append(taken)
    return times


def row(name: str, times: Sequence[tuple[float, float]]) -> str:
    wall, cpu = (median(column) for column in zip(*times, strict=True))
    return f"| {name} | {wall:.4g} | {cpu:.4g} |"


def compare_loading(run: Path, file: Path, size: int, *, loads: int) -> None:
    parts = [p for p in (run / "model").iterdir() if p.suffix in (".safetensors", ".json")]
    print(f"file: {size / 1e6:.2f} MB; files of the run's model: {len(parts)}, ", end="")
    print(f"{sum(p.stat().st_size for p in parts) / 1e6:.2f} MB")
    places = {"run": run, "file": file}
    load = {
        f"load the {name}": partial(Detector.load, path, device="cpu")
        for name, path in places.items()
    }
    start = {
        f"a process that imports sppdet and loads the {name}": partial(
            subprocess.run, [sys.executable, "-c", _LOAD, path], check=True
        )
        for name, path in places.items()
    }
    times = in_turn(load, loads) | in_turn(start, max(1, loads // 3))
    print("\n| loading | seconds | CPU seconds |\n|---|---|---|")
    for name, taken in times.items():
        print(row(name, taken), flush=True)


def compare_detections(run: Path, file: Path, images: Sequence[Path]) -> None:
    one, other = (Detector.load(path, device="cpu") for path in (run, file))
    differing, count = 0, 0
    for image in images:
        a, b = one(image), other(image)
        count += len(a)
        keys = ("boxes", "scores", "labels", "probabilities")
        differing += any(
            np.asarray(getattr(a, key)).tobytes() != np.asarray(getattr(b, key)).tobytes()
            for key in keys
        )
    print(f"\n{count:,} detections in {len(images)} images: {differing} images differ in any bit")


def compare_networks(file: Path, folder: Path, images: Sequence[Path]) -> None:
    model = TrainedModel.open(file)
    detector = Detector.of(model, device="cpu")
    backbone = read_backbone(model.read("backbone"), model.config)
    layers, head = (session((folder / f"{name}.onnx").read_bytes()) for name in ("layers", "head"))
    maps_of = MapsOfPixels(backbone.layers, backbone.preprocessing).eval()
    scores_of = PooledScores(detector.parts).eval()
    found: dict[str, list[tuple[float, float]]] = {}
    for image in images:
        pixels = [
            padded(p.numpy(), backbone) for p in detector.prepare(detector.read(image))[0].pixels
        ]
        vectors = pooled(detector, image)
        sides: dict[str, Callable[[], object]] = {
            "layers, torch": lambda: [maps_of(one) for one in pixels],  # noqa: B023
            "layers, onnxruntime": lambda: [layers(one) for one in pixels],  # noqa: B023
            "head, torch": lambda: scores_of(vectors),  # noqa: B023
            "head, onnxruntime": lambda: head(vectors),  # noqa: B023
        }
        with torch.inference_mode():
            for name, taken in in_turn(sides, 1).items():
                found.setdefault(name, []).extend(taken)
    print(
        f"\n| of an image, {torch.get_num_threads()} thread(s) | seconds | CPU seconds |\n|---|---|---|"
    )
    for name, taken in found.items():
        print(row(name, taken), flush=True)


def padded(pixels: ImageArray, backbone: Backbone) -> torch.Tensor:
    """The image with sides that the network takes, float32."""
    multiple = backbone.preprocessing.multiple
    more = [-side % multiple for side in pixels.shape[:2]]
    grown = np.pad(pixels, [(0, more[0]), (0, more[1]), (0, 0)])
    return torch.from_numpy(grown.astype(np.float32))


def pooled(detector: Detector, image: Path) -> torch.Tensor:
    """The vectors of all windows of an image."""
    pixels = detector.read(image)
    maps = detector.maps.compute(detector.prepare(pixels)[0])
    windows = detector.extractor.windows(maps, detector.proposer.of(pixels).boxes)
    return detector.extractor.pool(maps, windows.cells)


if __name__ == "__main__":
    main()

"""The costs that `benchmarks/plan.py` plans with: measured on small trainings, or read from a file."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import before_torch  # noqa: F401
import numpy as np
import torch
import train
from plan_model import Costs, Run, Size
from svm import by_dual, made_features

from sppdet.config import Config
from sppdet.features.levels import spp_width
from sppdet.io.coco import read_coco_annotations
from sppdet.io.finding import find_images
from sppdet.io.image_cache import ImageInfo
from sppdet.io.images import read_image
from sppdet.io.records import Skips
from sppdet.runs.artifacts import read_header, read_json, read_tensors
from sppdet.stages.crossfit import read_detections
from sppdet.stages.detector import Detector
from sppdet.stages.map_files import to_tensors
from sppdet.stages.model_files import ModelFiles, read_run_config
from sppdet.training_config import SvmConfig
from sppdet.types import AnnotatedImage

TRAINING = "training at VOC 2007's size"  # the row of benchmarks/gpu.py that has costs


def read_costs(path: Path) -> Costs:
    """Read the costs that `plan.py --json` has written, or those in the file of `benchmarks/gpu.py`.

    Raises:
        ValueError: the file has none.
    """
    found = read_json(path)
    for row in found.get("rows", ()) if isinstance(found, dict) else ():
        if row["row"] == TRAINING and "costs" in row.get("facts", {}):
            found = row["facts"]["costs"]
    if not isinstance(found, dict) or "runs" not in found:
        raise ValueError(f"{path}: expected costs, or the row “{TRAINING}” of benchmarks/gpu.py")
    runs = [Run(**{**run, "size": Size(**run["size"])}) for run in found.pop("runs")]
    return Costs(runs=runs, **found)


def measure(
    out: Path, sizes: Sequence[int], config: Path, overrides: Sequence[str], *, device: str
) -> Costs:
    """Train on made images of each size, ascending, with a quarter as many test images."""
    runs = []
    for images in sizes:
        counts = train.Counts(images, 20 + images // 4, max(2, images // 4))
        folder = out / str(images)
        train.measure(folder, counts, ["data.test=test", *overrides], config=config, device=device)
        runs.append(record(folder / "run", counts, device=device))
    return costs_of(out / str(sizes[-1]) / "run", runs, device=device, name=config.stem)


def costs_of(run: Path, runs: Sequence[Run], *, device: str, name: str) -> Costs:
    """Complete measured trainings by what the settings of the last one say."""
    config, detector = read_run_config(run), Detector.load(run, device=device)
    width = detector.classifiers.weights.shape[1]
    tuning = config.tuning()
    return Costs(
        runs=list(runs),
        device=device,
        settings=f"{name}, scales {config.scales}",
        width=width,
        pooled=spp_width(detector.maps.channels, config.spp_levels),
        mirrored=tuning is not None and tuning.flip and not tuning.on_images,
        max_examples=config.bbox.max_examples if config.bbox else 0,
        solve=_solve_seconds(width, device, config),
    )


def record(run: Path, counts: train.Counts, *, device: str) -> Run:
    """Read what a training has left: seconds, bytes, and how much there was of each thing.

    On a CPU the seconds are those of the processor, which other programs don't lengthen.
    """
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    cached: dict[str, int] = {}
    spent: dict[str, float] = {}
    for line in log:
        if line.get("event") == "stage ended" and not line["idle"]:
            spent[line["stage"]] = line["cpu_seconds" if device == "cpu" else "seconds"]
        if line.get("event") == "svm trained":
            cached[line["class_name"]] = line["negatives"] - line["evicted"]
    config, files = read_run_config(run), ModelFiles(run)
    crossed = read_detections(files.cross_fitted)
    header = read_header(files.svm)
    assert header is not None
    stored = [*(config.store or run / "store").glob("proposals-*/*")]
    boxes = [len(read_tensors(path)[0]["boxes"]) for path in stored[:50]]
    objects = _objects(Path(config.data.root[0]))
    classes = len(cached)
    return Run(
        size=Size(counts.images, objects, classes, counts.batches, counts.test),
        seconds=spent,
        negatives=float(sum(cached.values())),
        proposals=float(np.mean(boxes)),
        map_bytes=_map_bytes(run, config),
        proposal_bytes=float(np.mean([path.stat().st_size for path in stored])),
        detections=sum(map(len, crossed.values())) / max(1, len(crossed)) / classes,
    )


def _objects(root: Path) -> float:
    from sppdet.io.voc import read_voc_annotation

    names = (root / "ImageSets" / "Main" / "trainval.txt").read_text().split()
    files = [root / "Annotations" / f"{name}.xml" for name in names]
    return float(sum(len(read_voc_annotation(file).objects) for file in files))


def _map_bytes(run: Path, config: Config) -> float:
    """Measure the maps of an image, as they are stored: without zeros."""
    maps = Detector.load(run, device="cpu").maps
    paths = find_images([Path(config.data.root[0]) / "JPEGImages"])[:8]
    made = [maps.compute(maps.scaled(read_image(path))) for path in paths]
    stored = [to_tensors(one.maps, one.scale_factors).values() for one in made]
    return float(np.mean([sum(tensor.nbytes for tensor in tensors) for tensors in stored]))


def _solve_seconds(width: int, device: str, config: Config) -> float:
    """Measure the seconds to train an SVM from nothing, by class and example."""
    classes, examples = 4, 1200
    shape = (examples, width, classes, 100)
    x, labels = made_features(*shape, nonzero=0.36, seed=0)
    settings = SvmConfig(tolerance=config.svm.tolerance)
    by_dual(x[:200], labels[:200], classes, settings, device)  # compiles
    start = time.perf_counter()
    by_dual(x, labels, classes, settings, device)
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / (classes * examples)


def as_json(costs: Costs) -> dict[str, Any]:
    """Return what `read_costs` reads."""
    return asdict(costs)


# -- memory of what every run holds ----------------------------------------------------------------


def bytes_of(make: Callable[[], object]) -> tuple[int, int]:
    """Measure the bytes that Python holds after a call, and the most within it."""
    tracemalloc.start()
    try:
        made = make()
        held, most = tracemalloc.get_traced_memory()
        del made
        return held, most
    finally:
        tracemalloc.stop()


def image_bytes(objects: int, *, count: int = 500) -> float:
    """Measure the host memory of an image's annotations and of its entry in `images.json`."""

    def make() -> object:
        known, images = {}, []
        for i in range(count):
            name = f"data/coco/train2017/{i:012}.jpg"
            known[name] = ImageInfo(160_000 + i, i, i, f"{i:040}", 640, 480, 1, "8 bit")
            boxes = np.tile(np.array([[0, 0, 9, 9]], np.float32), (objects, 1))
            flags = np.zeros((2, objects), bool)
            labels = np.ones(objects, np.int64)
            images.append(
                AnnotatedImage(f"{i:012}", Path(name), 640, 480, boxes, labels, *flags.copy())
            )
        return known, images

    return bytes_of(make)[0] / count


def reading_bytes(folder: Path, objects: int, *, count: int = 300) -> float:
    """Measure the most host memory while COCO's annotations are read, by image.

    A segmentation has 46 numbers, which makes the file as large for an object as COCO's.
    """
    annotations = [
        {
            "segmentation": [[float(n) + 0.25 for n in range(100, 146)]],
            "area": 100.5,
            "iscrowd": 0,
            "image_id": i // objects,
            "bbox": [10.25, 20.5, 30.75, 40.0],
            "category_id": 1 + i % 80,
            "id": i,
        }
        for i in range(count * objects)
    ]
    images = [
        {"id": i, "file_name": f"{i:012}.jpg", "width": 640, "height": 480} for i in range(count)
    ]
    categories = [{"id": k, "name": f"class {k}"} for k in range(1, 81)]
    whole = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "instances_made.json"
    path.write_text(json.dumps(whole))
    del annotations, whole

    def read() -> object:
        return read_coco_annotations(path, folders=(folder,), skips=Skips(stop=True))

    return bytes_of(read)[1] / count

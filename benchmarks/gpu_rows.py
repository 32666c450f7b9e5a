"""The performance rows of `benchmarks/gpu.py`, by the functions of the benchmarks beside it."""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar, cast

import before_torch  # noqa: F401
import accuracy
import detect
import rcnn
import spp
import svm
import torch
import train
from gpu_checks import CHECKS, made_pool, made_training_images
from plan_costs import as_json, costs_of, record
from rows import Outcome, Row

from sppdet.config import Config
from sppdet.features.head import build_head
from sppdet.features.levels import spp_width
from sppdet.io.backbone_weights import load_backbone
from sppdet.io.finding import find_images
from sppdet.io.settings import load_config
from sppdet.stages.backbone import load_unfitted
from sppdet.stages.detector import Detector
from sppdet.training.finetune import FineTuner
from sppdet.training.finetune_images import ImageTuner
from sppdet.training_config import FinetuneConfig, HeadConfig, SvmConfig

T = TypeVar("T")
# of a dry run, for trainings on a CPU in seconds
TINY = [
    *("backbone.name=tiny", "backbone.weights=none", "scales=[120]", "proposals.max_boxes=100"),
    *("proposals.image_width=200", "features.canonical_size=80", "workers=1"),
]
SMALL_HEAD = ["head={widths: [16]}", "finetune={batches: 20, lr: 5e-3, snapshots: 1}"]


@dataclass(frozen=True)
class Setup:
    """Where and on what the rows are measured."""

    device: torch.device
    dry: bool
    threads: int
    folder: Path  # for what the rows write
    images: Path | None  # photographs, or None for made images
    data: Path | None  # a set in the VOC layout, likewise
    weights: Path | None  # of SqueezeNet 1.1; None: random ones

    def pick(self, full: T, dry: T) -> T:
        """Choose between the size of a measurement and that of a dry run."""
        return dry if self.dry else full

    @property
    def counts(self) -> train.Counts:
        """The images to paint and to train on."""
        return self.pick(train.Counts(400, 1000, 100), train.Counts(8, 20, 4))

    def made_set(self) -> Path:
        """Paint the set of made images, once."""
        return train.enlarged_set(self.folder, self.counts.images, self.counts.test)


def rows_of(setup: Setup) -> list[Row]:
    """List all rows: the checks first."""
    of_svms = {
        "20 classes, 10,000 × 4,096": (20, 10_000, 4096),
        "5 classes, 4,000 × 25,600": (5, 4000, 25_600),
    }
    rows = [Row(name, 40, partial(check, setup.device)) for name, check in CHECKS.items()]
    rows.append(Row("pooling, 2,000 windows × 256 channels", 20, partial(pooling, setup)))
    for name, shape in of_svms.items():
        rows.append(Row(f"SVMs, {name}", 60, partial(svms, setup, *shape)))
    for name, scales in detect.SCALES.items():
        work = partial(against_rcnn, setup, scales)
        rows.append(Row(f"features and scores of 2,000 windows, ZF-5, {name}", 30, work))
    rows.append(Row("painting the images", 60, partial(painting, setup)))
    for name, scales in detect.SCALES.items():
        work = partial(detection, setup, scales)
        rows.append(Row(f"detection end to end, AlexNet, fc7, {name}", 45, work))
    rows += [
        Row("fine-tuning of fc, batches of 128", 20, partial(fine_tuning, setup)),
        *(
            Row(f"fine-tuning through the pyramid, {name}", 30, partial(on_images, setup, name))
            for name in ("squeezenet_tuned", "lite0_tuned")
        ),
        Row("training at VOC 2007's size", 90, partial(training, setup)),
        Row("recipe: pool5, 1 scale, bb", 70, partial(recipe, setup, "pool5_1s_bb")),
        Row("detection by this recipe's run", 30, partial(by_recipe, setup, "pool5_1s_bb")),
        Row("recipe: fine-tuned fc6, 5 scales, bb", 90, partial(recipe, setup, "ftfc6_5s_bb")),
    ]
    return rows


def pooling(setup: Setup) -> Outcome:
    """The row of `benchmarks/spp.py`."""
    shape = setup.pick((2000, 256), (20, 8))
    times = spp.compare(*shape, setup.device, setup.pick(21, 1))
    return _sides(times, "four roi_pool")


def svms(setup: Setup, classes: int, examples: int, width: int) -> Outcome:
    """A row of `benchmarks/svm.py`."""
    shape = setup.pick((examples, width, classes, 300), (200, 40, 2, 30))
    ours, theirs = SvmConfig(), SvmConfig(tolerance=1e-2, solver="liblinear")
    compared = svm.compare(
        *(shape, ours, theirs, str(setup.device), setup.threads, shape[2]), rounds=1, nonzero=0.36
    )
    found = compared.result
    names = f"liblinear, {setup.threads} at a time: {found['liblinear']:.2f} s"
    facts = {"seconds": compared.seconds, **found, "unfinished": compared.unfinished}
    return Outcome(f"{found['dual']:.2f} s", names, found["ratio"], facts)


def against_rcnn(setup: Setup, scales: list[int]) -> Outcome:
    """A row of `benchmarks/rcnn.py`."""
    times = rcnn.compare(
        rcnn.made_image(),
        setup.pick(2000, 20),
        setup.pick(scales, [100]),
        net=setup.pick("zf5", "tiny"),
        widths=setup.pick([4096, 4096], [8, 8]),
        classes=20,
        device=setup.device,
        batch=64,
        repeats=setup.pick(3, 1),
    )
    return _sides(times, "R-CNN")


def _sides(times: dict[str, list[float]], other: str) -> Outcome:
    a, b = median(times["sppdet"]), median(times[other])
    return Outcome(f"{1000 * a:.1f} ms", f"{other}: {1000 * b:.1f} ms", b / a, {"seconds": times})


def painting(setup: Setup) -> Outcome:
    """Paint what the rows below take; only its time is of interest."""
    root = setup.made_set()
    return Outcome(f"{len(find_images([root / 'JPEGImages']))} made images")


def photographs(setup: Setup, count: int) -> list[Path]:
    """The images to detect in, evenly over those there are."""
    folder = setup.images or setup.made_set() / "JPEGImages"
    everything = find_images([folder])
    return everything[:: max(1, len(everything) // count)][:count]


def detection(setup: Setup, scales: list[int]) -> Outcome:
    """Images a second of random weights, and each stage's share, as `benchmarks/detect.py`."""
    net = setup.pick("alexnet", "tiny")
    head = setup.pick(HeadConfig(), HeadConfig(widths=[16, 16]))
    detector = detect.random_detector(net, setup.pick(scales, [120]), 20, setup.device, head)
    return _detected(setup, detector, photographs(setup, setup.pick(100, 2)))


def by_recipe(setup: Setup, name: str) -> Outcome:
    """The same by the detector that a recipe's row has trained."""
    run = setup.folder / "recipes" / f"{name}_seed0"
    detector = Detector.load(run, device=setup.device)
    return _detected(setup, detector, photographs(setup, setup.pick(200, 2)))


def _detected(setup: Setup, detector: Detector, images: list[Path]) -> Outcome:
    detect.measure(detector, images[:1])  # compiles, warms up
    numbers = itertools.count()
    free = (setup.folder / f"results{n}" for n in numbers)
    out = next(path for path in free if not path.exists())
    rate = detect.end_to_end(detector, images, setup.threads, out)
    times = detect.measure(detector, images)
    medians = {stage: median(seconds) for stage, seconds in times.items()}
    # of which the stage before it is a part
    after = medians.pop("SPP to detections") - medians["SPP to scores"]
    medians["NMS, boxes"] = max(0.0, after)
    together = sum(medians.values())
    shares = ", ".join(f"{stage} {100 * s / together:.0f} %" for stage, s in medians.items())
    kind = "photographs" if setup.images else "made images"
    other = f"{len(images)} {kind}, {setup.threads} workers; one after another: {shares}"
    return Outcome(f"{rate:.1f} images/s", other, facts={"rate": rate, "seconds": times})


def _timed(setup: Setup, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if setup.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def fine_tuning(setup: Setup) -> Outcome:
    """Batches a second of fc6 and fc7 of 4,096 on AlexNet's pooled windows: the steps alone."""
    backbone = load_backbone(setup.pick("alexnet", "tiny"), "none")
    levels = (6, 3, 2, 1)
    widths = setup.pick([4096, 4096], [16, 16])
    head = build_head(backbone, levels, HeadConfig(widths=widths), outputs=21, seed=0)
    pool = made_pool(setup.pick(2048, 256), spp_width(backbone.channels, levels), 20)
    pool = replace(pool, features=pool.features.to(setup.device))
    tuner = FineTuner(head.to(setup.device), FinetuneConfig(), None, seed=0)
    tuner.train_on(pool)  # warms up
    before = tuner.progress.batch

    def train_on(pools: int) -> None:
        for _ in range(pools):
            tuner.train_on(pool)

    seconds = _timed(setup, partial(train_on, setup.pick(20, 1)))
    done = tuner.progress.batch - before
    facts = {"batches": done, "seconds": seconds}
    return Outcome(f"{done / seconds:.0f} batches/s", "steps alone", facts=facts)


def on_images(setup: Setup, name: str) -> Outcome:
    """Iterations a second through the layers and the pyramid by a packaged config: the steps alone."""
    config = packaged(setup, name)
    tuning = config.tuning()
    assert tuning is not None and config.head is not None
    levels, classes = config.spp_levels, 20
    backbone = load_unfitted(config)
    backbone.layers.to(setup.device)
    head = build_head(
        backbone, levels, config.head, outputs=classes + 1, seed=0, boxes=config.learns_boxes()
    )
    tuner = ImageTuner(backbone, head.to(setup.device), levels, tuning, seed=0)
    side = setup.pick(sum(tuning.image_scales or config.scales[:1] * 2) // 2, 100)
    windows = tuning.windows_per_image
    images = made_training_images(tuning.batch_images, side, windows, classes)

    def steps(count: int) -> None:
        for _ in range(count):
            tuner.step(images, windows * len(images))

    steps(setup.pick(5, 1))  # warms up
    count = setup.pick(100, 1)
    seconds = _timed(setup, partial(steps, count))
    said = f"{len(images)} images of {side} px, {windows} windows each; steps alone"
    facts = {"batches": count, "seconds": seconds, "net": backbone.name}
    return Outcome(f"{count / seconds:.1f} iterations/s", said, facts=facts)


def packaged(setup: Setup, name: str) -> Config:
    """A packaged config with random weights, small for a dry run."""
    if name.startswith("lite0") and importlib.util.find_spec("timm") is None:
        raise ModuleNotFoundError("timm isn't installed")
    small = ["backbone.name=tiny", "head={widths: [16]}"]
    if name.startswith("lite0"):
        small += ["backbone.stages=[4, 8]", "features.project=5"]
    overrides = ["data.root=.", "backbone.weights=none"]
    return load_config(train.CONFIG.parent / f"{name}.yaml", [*overrides, *setup.pick([], small)])


def training(setup: Setup) -> Outcome:
    """All stages of `benchmarks/train.py` on some images, and what that means for all."""
    small = [*TINY, "head={widths: [16]}", "finetune.lr=5e-3", "finetune.snapshots=1"]
    report = train.measure(
        setup.folder,
        setup.counts,
        ["data.test=null", *setup.pick([], small)],
        device=str(setup.device),
    )
    spent = {stage: report.seconds[stage] for stage in report.factors}
    stages = ", ".join(f"{stage} {s:.1f}" for stage, s in spent.items() if s >= 0.05)
    counts = setup.counts
    said = f"measured: {counts.images} images, {counts.batches:,} batches ({stages} s)"
    facts = {"images": counts.images, "batches": counts.batches, "seconds": spent}
    run = setup.folder / "run"
    device = str(setup.device)
    costs = costs_of(
        run, [record(run, counts, device=device)], device=device, name=train.CONFIG.stem
    )
    facts |= {"projected": report.projected, "costs": as_json(costs)}
    return Outcome(f"{report.projected:,.0f} s, extrapolated", said, facts=facts)


def recipe(setup: Setup, name: str) -> Outcome:
    """A row of `benchmarks/accuracy.py`, trained and evaluated."""
    root = setup.data or setup.made_set()
    paths = [f"data.root={root}", f"backbone.weights={setup.weights or 'none'}"]
    small = [*TINY, *(SMALL_HEAD if name.startswith("ft") else [])]
    out = setup.folder / "recipes"
    found = accuracy.run_row(
        name, 0, [*paths, *setup.pick([], small)], out, device=str(setup.device)
    )
    spent, mean = cast(dict[str, float], found["seconds"]), cast(float, found["mAP"])
    stages = ", ".join(f"{stage} {s:.1f}" for stage, s in spent.items() if s >= 0.05)
    of = "" if setup.data else "made images, "
    of += "" if setup.weights else "random weights, "
    facts: dict[str, Any] = {"seconds": spent, "mAP": mean, "data": str(setup.data or "made")}
    return Outcome(
        f"{sum(spent.values()):.1f} s", f"{of}mAP {100 * mean:.1f}; {stages} s", facts=facts
    )

"""What a large training needs, from costs that were measured on small ones: seconds, disk, memory.

Seconds and disk grow with a stage's driver (images, objects, batches or test images): a fixed part and one
for each, by the smallest and the largest run. Memory is the bytes of what the code holds at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Place = Literal["host", "GPU", "disk"]
STAGES = ("data", "proposals", "features", "finetune", "svm", "bbox", "calibrate", "evaluate")
# in several processes: shared, each has its part; first, one works and the others wait
SHARED = {"proposals", "features", "svm", "bbox", "calibrate", "evaluate"}
FOLDS, RETRAIN = 5, 2000  # of calibration beyond 200 images; svm.retrain_after
LABELS = 8 * 3  # bytes of a dual's bounds, sign and value in the first sweep


@dataclass(frozen=True)
class Size:
    """What is trained on, and how many hard negatives of a class are kept."""

    images: int
    objects: float
    classes: int
    batches: int
    test: int
    max_negatives: int | None = None  # the setting of the SVMs

    def driver(self, stage: str) -> float:
        """Count what the seconds of a stage grow with."""
        return {
            "data": self.images + self.test,
            "proposals": self.images + self.test,
            "finetune": self.batches,
            "bbox": self.objects,
            "evaluate": self.test,
        }.get(stage, self.images)


COCO = Size(images=118_287, objects=7.3 * 118_287, classes=80, batches=300_000, test=5000)


@dataclass(frozen=True)
class Run:
    """A measured training.

    seconds: by stage. negatives: hard ones that the caches of all classes held in the end. The bytes are of
    an image: its maps, its proposals, and the detections of it that calibration keeps, of a class.
    """

    size: Size
    seconds: Mapping[str, float]
    negatives: float
    proposals: float
    map_bytes: float
    proposal_bytes: float
    detections: float


@dataclass(frozen=True)
class Costs:
    """Measured trainings, ascending in size, and what their settings say.

    width: of the SVMs' vectors; pooled: of pool5. solve: seconds to train an SVM, by class and example.
    """

    runs: Sequence[Run]
    device: str
    settings: str
    width: int
    pooled: int
    mirrored: bool
    max_examples: int
    solve: float


@dataclass(frozen=True)
class Held:
    """Something that is held at once, in one process."""

    stage: str
    what: str
    place: Place
    size: float  # bytes
    bound: str  # the setting that bounds it


def growth(value: Sequence[float], driver: Sequence[float]) -> tuple[float, float]:
    """Fit a fixed part and one for each to the smallest and the largest run; from one run, through zero."""
    if len(value) == 1 or driver[0] == driver[-1]:
        return 0.0, value[0] / driver[0] if driver[0] else 0.0
    each = max(0.0, (value[-1] - value[0]) / (driver[-1] - driver[0]))
    return max(0.0, value[0] - each * driver[0]), each


def seconds(costs: Costs, size: Size, *, processes: int = 1) -> dict[str, float]:
    """Predict the seconds of each stage that the runs have.

    With several processes, those that share the work have an equal part of it; the steps of fine-tuning are
    taken as not faster, and data is read once more by those that wait.
    """
    found = {}
    for stage in STAGES:
        measured = [run.seconds.get(stage, 0.0) for run in costs.runs]
        if not any(measured):
            continue
        fixed, each = growth(measured, [r.size.driver(stage) for r in costs.runs])
        part = processes if stage in SHARED else 1
        again = 2 if stage == "data" and processes > 1 else 1
        found[stage] = fixed + again * each * size.driver(stage) / part
    return found


def negatives(costs: Costs, size: Size) -> float:
    """Predict the hard negatives of a class: a power of the images, by the first and the last run.

    The setting that bounds them counts at a retraining, until which `RETRAIN` more may come.
    """
    counts = [run.negatives / run.size.classes for run in costs.runs]
    first, last = costs.runs[0].size.images, costs.runs[-1].size.images
    power = 1.0
    if last > first and counts[0] > 0 and counts[-1] > 0:
        power = min(1.0, max(0.0, math.log(counts[-1] / counts[0]) / math.log(last / first)))
    unbounded = counts[-1] * math.pow(size.images / last, power)
    bound = math.inf if size.max_negatives is None else size.max_negatives + RETRAIN
    return min(unbounded, bound)


def solving(costs: Costs, size: Size, *, processes: int = 1) -> float:
    """Predict the seconds of the SVMs' solutions, were each to begin from nothing: an upper bound."""
    cached = negatives(costs, size)
    trainings = 1 + cached / RETRAIN
    examples = trainings * (size.objects + size.classes * cached / 2)
    examples += FOLDS * (size.objects + size.classes * cached)
    return costs.solve * examples / processes


def disk(costs: Costs, size: Size) -> dict[str, float]:
    """Predict the bytes of the store and of the run."""
    last = costs.runs[-1]
    maps = last.map_bytes * size.images * (2 if costs.mirrored else 1)
    every = size.images + size.test
    detected = 28 * last.detections * size.classes
    return {
        "proposals": last.proposal_bytes * every,
        "features": maps,
        "calibrate": detected * size.images,
        "evaluate": detected * size.test,
    }


def held(costs: Costs, size: Size, *, on_gpu: bool, image_bytes: float) -> list[Held]:
    """List what a process holds at once, stage by stage.

    Args:
        on_gpu: whether features and their pool are in a GPU's memory.
        image_bytes: host memory of an image's annotations and of its entry among the known images.
    """
    last = costs.runs[-1]
    device: Place = "GPU" if on_gpu else "host"
    row, cached = 4 * costs.width, negatives(costs, size)
    rows = size.objects + size.classes * cached
    detected = last.detections * size.classes
    files = disk(costs, size)
    return [
        Held("data", "annotations and images.json", "host", image_bytes * size.images, "none"),
        Held("features", "feature maps", "disk", files["features"], "features.store: false"),
        Held("finetune", "candidate windows", "host", 24 * last.proposals * size.images, "none"),
        Held(
            "finetune", "held-out windows", device, _held_out(costs, size), "finetune.val_fraction"
        ),
        Held("svm", "features of objects", "host", row * size.objects, "none"),
        Held("svm", "pool of examples", device, row * rows, "svm.max_negatives"),
        Held("svm", "first sweep's duals", "host", LABELS * size.classes * size.objects, "none"),
        Held("bbox", "features and products", device, _regression(costs), "bbox.max_examples"),
        Held("calibrate", "detections", "host", 2 * 28 * detected * size.images, "calibrate: none"),
        Held("evaluate", "detections", "host", 4 * 28 * detected * size.test, "detect.min_score"),
        Held("evaluate", "eval.metric: coco", "host", 700 * detected * size.test, "eval.metric"),
    ]


def _held_out(costs: Costs, size: Size) -> float:
    images = 0.1 * size.images
    return images * max(4, 8192 // max(1, int(images))) * 4 * costs.pooled


def _regression(costs: Costs) -> float:
    n, d = costs.max_examples, costs.pooled
    return 4 * n * d + 12 * min(n, d) ** 2  # the system is solved in float64


def peaks(things: Sequence[Held], *, base: float) -> dict[str, dict[str, float]]:
    """Sum what each stage holds, by place; `base` are bytes of the host that every stage has."""
    whole = base + sum(t.size for t in things if t.stage == "data")
    found: dict[str, dict[str, float]] = {}
    for stage in STAGES:
        places = {"host": whole, "GPU": 0.0}
        for thing in things:
            if thing.stage == stage != "data" and thing.place != "disk":
                places[thing.place] += thing.size
        found[stage] = places
    return found


def breaking(things: Sequence[Held], limits: Mapping[Place, float]) -> list[Held]:
    """List what is beyond its place's bytes alone, in the order of the stages."""
    return [thing for thing in things if thing.size > limits[thing.place]]

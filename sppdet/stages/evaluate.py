"""The evaluate stage: detect image by image, then compute the metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch

from sppdet.config import Config
from sppdet.data_config import DataConfig
from sppdet.detection.detect import VERSION as DETECTION_VERSION
from sppdet.errors import printable
from sppdet.evaluation.bootstrap import with_intervals
from sppdet.evaluation.coco import evaluate_coco
from sppdet.evaluation.operating_point import operating_points
from sppdet.evaluation.voc import class_results, evaluate_voc
from sppdet.features.backbones import ScaledImage
from sppdet.io.coco_results import write_coco_results
from sppdet.io.comp4 import write_comp4
from sppdet.io.dataset_digest import dataset_digest
from sppdet.io.image_cache import ImageCache
from sppdet.io.image_ids import ids_to_write, tables_of_split
from sppdet.io.names import safe_id
from sppdet.io.splits import read_split
from sppdet.parallel import detection_threads, ordered_map
from sppdet.runs.artifacts import fingerprint
from sppdet.runs.distributed import Ranks, joined_ranks
from sppdet.runs.environment import worker_count
from sppdet.runs.items import ItemStore
from sppdet.runs.log import LOGGER, RESULT, consoles, event, log_file, timed
from sppdet.runs.progress import track
from sppdet.stages.context import Context
from sppdet.stages.data import log_skipped
from sppdet.stages.detector import Detector
from sppdet.stages.model import choose_device
from sppdet.stages.model_files import ModelFiles, read_run_config, signature
from sppdet.stages.proposer import Proposer
from sppdet.stages.report import (
    Points,
    headline,
    interval_or_none,
    print_points,
    print_table,
    write_curves,
    write_metrics,
)
from sppdet.stages.thresholds import Threshold, least_scores
from sppdet.tensor_types import TensorType, Types
from sppdet.types import AnnotatedImage, Dataset, Detections, EvalResult, Proposals

T = TypeVar("T")
Metric = Literal["voc07", "voc10", "coco"]


@dataclass(frozen=True)
class Scored:
    """The detections that a run has kept of a set, and the set as it is now."""

    run: Path
    dataset: Dataset
    images: ImageCache
    detections: dict[str, Detections]
    metric: Metric  # of the run's settings


def evaluate_run(
    run: Path,
    split: str,
    *,
    metric: Metric | None = None,
    device: str = "auto",
) -> EvalResult:
    """Detect in every image of a split and score the detections into `run/eval/<split>/<metric>`.

    Detections are kept, so that another metric needs no second detection. Under `torchrun` all
    processes detect, each in its share of the images; the first one writes the scores.
    """
    with joined_ranks(choose_device(device)) as ranks:
        read_run_config(run)  # before anything is logged into a folder that is no run
        with log_file(run, ranks), timed(run, "evaluate", write=ranks.is_first) as timing:
            result, _, timing.cached = evaluate_split(run, split, metric=metric, ranks=ranks)
        return result


def evaluate_split(
    run: Path, split: str, *, metric: Metric | None = None, ranks: Ranks
) -> tuple[EvalResult, Scored, bool]:
    """Evaluate as `evaluate_run` does, among processes that have joined.

    Returns:
        The result, what was scored, and whether all detections were there already.
    """
    config = read_run_config(run)
    folder = run / "eval" / safe_id(split)
    detector = Detector.load(run, device=ranks.device)
    with ranks.first_goes_first():
        images = ImageCache.load(run / "images.json", max_pixels=config.data.max_pixels)
        names, workers = detector.class_names, worker_count(config.workers)
        dataset = read_split(config.data, split, names, images, workers=workers)
        if ranks.is_first:
            images.save(run / "images.json")
    detections, new = _detect_all(run, config, detector, dataset, images, ranks)
    result = score(dataset, detections, metric=metric or config.eval.metric)
    if ranks.is_first:
        points: Points | None = None
        if detector.calibration is not None:
            least, text = least_scores(detector, Threshold())
            classes = result.classes  # COCO's are matched at several IoUs
            if result.metric == "coco":
                classes = class_results(dataset, detections, metric="voc07")
            points = Points(text, operating_points(classes, least, images=len(dataset)))
        train, test = ModelFiles(run).training_data(), dataset_digest(dataset, images)
        write_scores(
            result,
            config.data,
            dataset,
            detections,
            folder,
            signature=signature(config, train=train, test=test),
            split=split,
            points=points,
        )
    LOGGER.info("reports are in %s", folder)
    return result, Scored(run, dataset, images, detections, config.eval.metric), new == 0


def evaluate(context: Context) -> bool:
    """Evaluate the test set; returns False if all detections were there already."""
    context.result, context.scored, cached = evaluate_split(
        context.run, "test", ranks=context.ranks
    )
    log_skipped((context.training_set, context.test_set))
    return not cached


def score(dataset: Dataset, detections: dict[str, Detections], *, metric: Metric) -> EvalResult:
    """Score the detections of a data set, with intervals."""
    return with_intervals(compute_metric(dataset, detections, metric=metric), watch=watch_draws)


def watch_draws(steps: Iterator[T], total: int) -> Iterator[T]:
    """Show the progress of intervals."""
    return track(steps, total=total, label="intervals")


def compute_metric(
    dataset: Dataset, detections: dict[str, Detections], *, metric: Metric
) -> EvalResult:
    """Compute a metric of the detections of a data set."""
    if metric == "coco":
        return evaluate_coco(dataset, detections)
    return evaluate_voc(dataset, detections, metric=metric)


def write_scores(
    result: EvalResult,
    data: DataConfig,
    dataset: Dataset,
    detections: dict[str, Detections],
    folder: Path,
    *,
    signature: str,
    split: str,
    points: Points | None = None,
) -> None:
    """Print the table and write all reports of a split's scores.

    The table comes first, then `metrics.json`: whatever can't be written, the number is there. The
    detections go into `folder`, the reports of a metric into its subfolder.
    """
    for console in consoles():
        if points is not None:
            print_points(points, console)
        print_table(result, console)
    interval = interval_or_none(result.intervals.mean) if result.intervals else None
    numbers = {"mean_ap": result.mean_ap, "interval": interval, "signature": signature}
    facts = event("evaluated", metric=result.metric, split=split, **numbers)
    LOGGER.log(RESULT, "%s", headline(result), extra=facts)
    for console in consoles():
        console.print(printable(signature), markup=False, soft_wrap=True)
    own = folder / result.metric
    write_metrics(result, own, signature=signature, points=points)
    image_ids, category_ids = ids_to_write(tables_of_split(data, split), dataset)
    write_coco_results(
        folder / "coco_results.json",
        dataset,
        detections,
        image_ids=image_ids,
        category_ids=category_ids,
    )
    # the devkit's files are named by the set alone
    set_name = "+".join(dict.fromkeys(Path(name).stem for name in data.sets_of(split) if name))
    write_comp4(folder, replace(dataset, name=set_name), detections)
    write_curves(result, own)


def _detect_all(
    run: Path,
    config: Config,
    detector: Detector,
    dataset: Dataset,
    images: ImageCache,
    ranks: Ranks,
) -> tuple[dict[str, Detections], float]:
    """Detect in every image that isn't in the run's store; returns as `detect_missing` does."""
    proposer = Proposer(config.proposals, config.store or run / "store")
    made_by = fingerprint(
        "detections",
        DETECTION_VERSION,
        ModelFiles(run).fingerprint(),
        proposer.fingerprint,
        detector.maps.fingerprint,
        config.spp_levels,
        config.features.canonical_size,
        config.detect.model_dump(),
    )

    def prepare(image: AnnotatedImage) -> tuple[Proposals, tuple[ScaledImage, ...]]:
        pixels = images.read(image.path)
        return proposer.of_image(image, images), detector.prepare(pixels)

    def detect(
        image: AnnotatedImage, prepared: tuple[Proposals, tuple[ScaledImage, ...]]
    ) -> Detections:
        proposals, views = prepared
        return detector.detect_prepared(views, proposals, width=image.width, height=image.height)

    return detect_missing(
        ItemStore(run / "store", "detections", made_by, expected_types),
        dataset,
        images,
        ranks,
        names=detector.class_names,
        prepare=prepare,
        detect=detect,
        workers=worker_count(config.workers),
    )


def detect_missing(
    store: ItemStore,
    dataset: Dataset,
    images: ImageCache,
    ranks: Ranks,
    *,
    names: tuple[str, ...],
    prepare: Callable[[AnnotatedImage], T],
    detect: Callable[[AnnotatedImage, T], Detections],
    workers: int,
) -> tuple[dict[str, Detections], float]:
    """Detect in every image that isn't in a store.

    Args:
        names: class names.
        prepare: what `detect` needs of an image; called in `workers` threads.

    Returns:
        All detections by the image's id, and the number of images that all processes detected in.
    """

    def prepare_if_due(image: AnnotatedImage) -> tuple[T] | None:
        stored = _stored(store, image, images.digest(image.path), names)
        return (prepare(image),) if stored is None else None

    def found_in(image: AnnotatedImage, prepared: T) -> Detections:
        found = detect(image, prepared)
        _store(store, image, images.digest(image.path), found)
        return found

    def detect_if_due(due: tuple[AnnotatedImage, tuple[T] | None]) -> bool:
        image, prepared = due
        if prepared is None:
            return False
        found_in(image, *prepared)
        return True

    own = ranks.share(dataset.images)
    prepared = ordered_map(prepare_if_due, own, workers=workers)
    due = zip(own, prepared, strict=True)
    done = ordered_map(detect_if_due, due, workers=detection_threads(ranks.device))
    new = sum(track(done, total=len(own), label=f"detecting, {dataset.name}", made=bool))
    detections = {}
    for image in dataset.images:
        found = _stored(store, image, images.digest(image.path), names)
        if found is None:  # damaged since it was written
            found = found_in(image, prepare(image))
        detections[image.id] = found
    return detections, ranks.sums([new])[0]


def expected_types(found: Types) -> Types:
    """Return the expected types of stored detections: as many scores and labels as boxes."""
    boxes = found.get("boxes", TensorType(None, ())).shape
    count = boxes[0] if boxes else None
    return {
        "boxes": TensorType(torch.float32, (count, 4)),
        "scores": TensorType(torch.float32, (count,)),
        "labels": TensorType(torch.int64, (count,)),
    }


def _store(store: ItemStore, image: AnnotatedImage, digest: str, found: Detections) -> None:
    arrays = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels}
    tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()}
    store.write(image.id, digest, tensors)


def _stored(
    store: ItemStore, image: AnnotatedImage, digest: str, names: tuple[str, ...]
) -> Detections | None:
    def build(tensors: dict[str, torch.Tensor]) -> Detections:
        boxes, scores, labels = (tensors[k].numpy() for k in ("boxes", "scores", "labels"))
        return Detections(boxes, scores, labels, names, str(image.path))

    return store.get(image.id, digest, build)

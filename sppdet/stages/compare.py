"""The comparison of two runs by the detections that their evaluations have kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sppdet.errors import ArtifactError, DataError, printable, shorten
from sppdet.evaluation.bootstrap import Difference, PairedDifferences, paired_differences
from sppdet.evaluation.intervals import LEVEL
from sppdet.io.dataset_digest import dataset_digest
from sppdet.io.detection_files import read_detections
from sppdet.io.image_cache import ImageCache
from sppdet.io.image_ids import meaning_of
from sppdet.io.names import safe_id
from sppdet.io.splits import read_split
from sppdet.runs.artifacts import read_header, read_json, write_json
from sppdet.runs.environment import worker_count
from sppdet.runs.log import LOGGER, RESULT, consoles, event
from sppdet.runs.weights import class_names_in
from sppdet.stages.crossval_files import CrossvalFiles
from sppdet.stages.evaluate import Metric, Scored, compute_metric, watch_draws
from sppdet.stages.model_files import ModelFiles, read_run_config
from sppdet.stages.report import (
    LEVEL_TITLE,
    few_mark,
    interval_or_none,
    metric_title,
    number_or_none,
    percent,
    print_note_on_few,
    range_percent,
)
from sppdet.types import AnnotatedImage, Dataset, EvalResult

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Comparison:
    """Two results of the same images, and their differences."""

    runs: tuple[Path, Path]
    first: EvalResult
    second: EvalResult
    differences: PairedDifferences


def compare_runs(
    first: Path, second: Path, *, split: str = "test", metric: Metric | None = None
) -> Comparison:
    """Compare two runs on a split that both were evaluated on; nothing is detected again.

    Args:
        first, second: runs, or folders of `sppdet crossval`, whose images are those of all folds.
        metric: None takes that of the first run's settings.

    Raises:
        ArtifactError: a folder is no run, or isn't evaluated, or not on the set as it is now.
        DataError: the two sets differ in a class, an image or an object.
    """
    a, b = (read_scored(run, split) for run in (first, second))
    if problem := difference_of_sets(a, b):
        raise DataError(f"{first} and {second}: not scored on the same set: {problem}")
    place = {image.id: image for image in b.dataset.images}
    same_order = tuple(place[image.id] for image in a.dataset.images)
    b = replace(b, dataset=replace(b.dataset, images=same_order))
    results = [
        compute_metric(one.dataset, one.detections, metric=metric or a.metric) for one in (a, b)
    ]
    by_name = {one.name: one for one in results[1].classes}
    classes = tuple(by_name[name] for name in a.dataset.class_names)
    results[1] = replace(results[1], classes=classes)
    found = paired_differences(results[0], results[1], watch=watch_draws)
    return Comparison((first, second), results[0], results[1], found)


def read_scored(run: Path, split: str) -> Scored:
    """Read the detections that the evaluation of a run has kept, and its set.

    Raises:
        ArtifactError: see `compare_runs`.
    """
    folds = CrossvalFiles(run)
    if folds.is_one() and not folds.results.is_file():
        raise ArtifactError(f"{run}: isn't finished yet; expected `sppdet crossval` to its end")
    config = read_run_config(run)
    if folds.is_one():
        folder, split, command = folds.scores, "train", "crossval"
    else:
        folder, command = run / "eval" / safe_id(split), "eval"
    path = folder / "coco_results.json"
    again = f"`sppdet {command}`" + ("" if split in ("test", "train") else f" with --split {split}")
    if not path.is_file():
        raise ArtifactError(f"{run}: isn't evaluated on {split} yet; expected {again} before")
    images = ImageCache.load(run / "images.json", max_pixels=config.data.max_pixels)
    workers = worker_count(config.workers)
    dataset = read_split(config.data, split, _class_names(run), images, workers=workers)
    if dataset_digest(dataset, images)[:8] not in set(_digests(folder)):
        raise ArtifactError(
            f"{run}: {dataset.name} has changed since it was scored; expected {again} again"
        )
    found = read_detections(path, dataset, meaning_of(None, config.data, split))
    return Scored(run, dataset, images, found, config.eval.metric)


def difference_of_sets(a: Scored, b: Scored) -> str | None:
    """Name the first thing that two sets differ in; None where they have the same content."""
    for kind, one, other in (
        ("classes", a.dataset.class_names, b.dataset.class_names),
        ("images", _ids(a.dataset), _ids(b.dataset)),
    ):
        alone = sorted(set(one) ^ set(other))
        if alone:
            return f"{kind} in one alone: {shorten(alone, limit=3)}"
    place = {image.id: image for image in b.dataset.images}
    for image in a.dataset.images:
        other_image = place[image.id]
        if a.images.digest(image.path) != b.images.digest(other_image.path):
            return f"image {image.id} has another content"
        names = a.dataset.class_names, b.dataset.class_names
        if _objects(image, names[0]) != _objects(other_image, names[1]):
            return f"image {image.id} has other objects"
    return None


def print_comparison(found: Comparison, console: Console) -> None:
    """Print AP in per cent of both runs, the difference with its interval and in words."""
    from rich.table import Table
    from rich.text import Text

    for letter, run in zip("AB", found.runs, strict=True):
        console.print(Text(printable(f"{letter}: {run}")), soft_wrap=True)
    table = Table("class", header_style="bold")
    for heading in ("objects", "A %", "B %", "B − A", LEVEL_TITLE):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("better")
    counts = [one.ground_truths for one in found.first.classes]
    rows = zip(found.first.classes, found.differences.classes, strict=True)
    for one, difference in rows:
        table.add_row(
            Text(printable(one.name)),
            f"{one.ground_truths}{few_mark(one.ground_truths)}",
            *_cells(difference),
        )
    table.add_section()
    table.add_row("mean", str(sum(counts)), *_cells(found.differences.mean))
    console.print(table)
    print_note_on_few(counts, console)


def show_comparison(found: Comparison, path: Path | None) -> None:
    """Print a comparison as the log's messages are, and write it as JSON to `path`."""
    for console in consoles():
        print_comparison(found, console)
    mean, content = found.differences.mean, comparison_json(found)
    text = (
        f"{metric_title(found.first)}: B − A {percent(mean.value, signed=True)}"
        f" ({LEVEL_TITLE}: {range_percent(mean.interval, signed=True)}): {in_words(mean)}"
    )
    LOGGER.log(RESULT, "%s", text, extra=event("compared", **content))
    if path is not None:
        write_json(path, content)


def in_words(difference: Difference) -> str:
    """Say which of two is better, where the interval tells."""
    if np.isnan(difference.interval[0]):
        return "n/a"
    if not difference.shows:
        return "no difference that shows"
    return "B is better" if difference.interval[0] > 0 else "A is better"


def comparison_json(found: Comparison) -> dict[str, Any]:
    """Collect a comparison for JSON: fractions; null for NaN. `A` and `B` name the runs."""
    names = [one.name for one in found.first.classes]
    return {
        "A": str(found.runs[0]),
        "B": str(found.runs[1]),
        "metric": found.first.metric,
        "split": found.first.split,
        "images": found.first.images,
        "interval": {"level": LEVEL, "draws": found.differences.draws},
        "mAP": _plain(found.differences.mean),
        "AP": dict(zip(names, map(_plain, found.differences.classes), strict=True)),
    }


def _plain(difference: Difference) -> dict[str, Any]:
    return {
        "A": number_or_none(difference.first),
        "B": number_or_none(difference.second),
        "difference": number_or_none(difference.value),
        "interval": interval_or_none(difference.interval),
        "words": in_words(difference),
    }


def _cells(difference: Difference) -> tuple[str, ...]:
    return (
        percent(difference.first),
        percent(difference.second),
        percent(difference.value, signed=True),
        range_percent(difference.interval, signed=True),
        {"A is better": "A", "B is better": "B", "n/a": "n/a"}.get(in_words(difference), "open"),
    )


def _class_names(run: Path) -> tuple[str, ...]:
    folds = CrossvalFiles(run)
    if folds.is_one():
        return folds.class_names()
    path = ModelFiles(run).svm
    header = read_header(path)
    if header is None:
        raise ArtifactError(f"{path}: missing or damaged; expected a trained run")
    return class_names_in(header.about, path)


def _digests(folder: Path) -> Iterator[str]:
    """Yield the digests of the sets that the scores in a folder are of."""
    for path in sorted(folder.glob("*/metrics.json")):
        scores = read_json(path)
        signature = scores.get("signature") if isinstance(scores, dict) else None
        for part in signature.split("|") if isinstance(signature, str) else ():
            if part.startswith("test:"):
                yield part.removeprefix("test:")


def _ids(dataset: Dataset) -> list[str]:
    return [image.id for image in dataset.images]


def _objects(image: AnnotatedImage, names: tuple[str, ...]) -> list[Any]:
    rows = zip(image.gt_boxes.tolist(), image.gt_labels, image.difficult.tolist(), strict=True)
    return sorted([*box, names[label - 1], difficult] for box, label, difficult in rows)

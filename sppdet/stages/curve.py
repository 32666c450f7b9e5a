"""A learning curve: mAP by the number of training images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sppdet.config import Config
from sppdet.data_config import DataConfig
from sppdet.errors import ConfigError
from sppdet.evaluation.bootstrap import DRAWS, Difference, difference, drawn_mean, objects_by_image
from sppdet.evaluation.curves import mean_of_known
from sppdet.evaluation.folds import classes_of_images, deal, stratified_order
from sppdet.evaluation.intervals import LEVEL, fraction_interval
from sppdet.io.id_lists import write_id_list
from sppdet.io.image_cache import ImageCache
from sppdet.randomness import rng
from sppdet.runs.artifacts import write_text
from sppdet.runs.log import LOGGER, RESULT, consoles, event
from sppdet.stages.evaluate import compute_metric, watch_draws
from sppdet.stages.figures import new_figure, save_figure
from sppdet.stages.report import (
    LEVEL_TITLE,
    interval_or_none,
    metric_title,
    number_or_none,
    percent,
    range_percent,
)
from sppdet.stages.settle import settle
from sppdet.stages.trainings import (
    check_classes,
    chosen,
    folder_of_trainings,
    read_list,
    read_whole_sets,
    train_part,
    with_data,
)
from sppdet.types import Dataset, EvalResult, Interval

if TYPE_CHECKING:
    from rich.console import Console

HELD_OUT = 5
"""Without a test set, one image of so many is held out."""


@dataclass(frozen=True)
class CurvePoint:
    """The results of training on subsets of one size, one for each seed."""

    images: int
    objects: tuple[int, ...]  # that count, of each seed's subset
    results: tuple[EvalResult, ...]
    drawn: tuple[float, ...]  # mAP, averaged over the seeds, on each draw of the test images

    @property
    def mean_ap(self) -> float:
        """The mAP, averaged over the seeds."""
        return mean_of_known([one.mean_ap for one in self.results])

    @property
    def interval(self) -> Interval:
        """The interval of `mean_ap` by the draws of test images."""
        objects = objects_by_image(self.results[0].classes)
        return fraction_interval(self.mean_ap, np.array(self.drawn), objects)


@dataclass(frozen=True)
class LearningCurve:
    """A learning curve, from the smallest subset to the largest."""

    points: tuple[CurvePoint, ...]
    test_images: int

    def last_step(self) -> Difference:
        """The difference that the largest subset makes to the one before."""
        before, last = self.points[-2:]
        drawn = np.array(last.drawn) - np.array(before.drawn)
        objects = objects_by_image(last.results[0].classes)
        return difference(before.mean_ap, last.mean_ap, drawn, objects)


def curve(
    config: Config,
    folder: Path,
    *,
    fractions: Sequence[float] = (0.25, 0.5, 1.0),
    seeds: int = 1,
    device: str = "auto",
) -> LearningCurve:
    """Train on nested subsets of the training images, going on where an earlier call stopped.

    The subsets of a seed are the beginnings of one stratified order, so that other fractions don't
    change them. Without a test set a stratified fifth of the training images is held out.

    Args:
        fractions: of the training images, ascending, in (0, 1]; two or more.
        seeds: number of trainings of each size, by the settings' `seed` and those after it; each has
            other subsets and other random numbers.

    Raises:
        ConfigError: no training set is named, or the fractions make no curve.
        ArtifactError: the folder is not that of a learning curve.
        TrainingError: a subset lacks a class.
    """
    if len(fractions) < 2 or not all(0 < f <= 1 for f in fractions):
        raise ConfigError("fractions: expected two or more above 0 and up to 1")
    with folder_of_trainings(folder, command="curve"):
        config = settle(config, folder)
        pool, test_set, data, images = _sets(config, folder)
        counts = [max(1, round(fraction * len(pool))) for fraction in fractions]
        if counts != sorted(set(counts)):
            raise ConfigError(
                f"fractions: those of {len(pool)} images are {counts} images; expected ascending numbers"
            )
        orders = {
            seed: stratified_order(
                classes_of_images(pool), rng(seed, "subsets of the training images")
            )
            for seed in range(config.seed, config.seed + seeds)
        }
        subsets = {
            (count, seed): _subset(folder, pool, order[:count].tolist(), f"{count}-seed{seed}")
            for count in counts
            for seed, order in orders.items()
        }
        points = []
        for count in counts:
            results = []
            for seed in orders:
                name = f"{count}-seed{seed}"
                listed = data.model_copy(update={"train_ids": _list_path(folder, name)})
                own = config.model_copy(update={"seed": seed})
                found = train_part(
                    with_data(own, listed, store=folder / "store"),
                    folder / name,
                    train_set=subsets[count, seed],
                    test_set=test_set,
                    images=images,
                    device=device,
                )
                results.append(compute_metric(test_set, found, metric=config.eval.metric))
            objects = tuple(_objects(subsets[count, seed]) for seed in orders)
            drawn = tuple(drawn_mean(results, watch=watch_draws).tolist())
            points.append(CurvePoint(count, objects, tuple(results), drawn))
        result = LearningCurve(tuple(points), len(test_set))
        for console in consoles():
            print_curve(result, console)
        content = curve_json(result, seeds=list(orders))
        LOGGER.log(RESULT, "%s", reading(result), extra=event("curve", **content))
        text = json.dumps(content, indent=1, sort_keys=True)
        write_text(folder / "curve.json", text + "\n")
        draw_curve(result, folder / "curve.png")
        LOGGER.log(RESULT, "the curve is in %s", folder)
        return result


def reading(found: LearningCurve) -> str:
    """Say in one line what the last step of a curve tells."""
    before, last = found.points[-2:]
    step = found.last_step()
    line = (
        f"from {before.images} to {last.images} training images: {percent(step.value, signed=True)} points"
        f" ({LEVEL_TITLE}: {range_percent(step.interval, signed=True)}): "
    )
    if not step.shows:
        few = f"{found.test_images} test images can't tell whether more labels help"
        return line + f"no difference that shows; {few}"
    if step.value > 0:
        return line + "more labels have helped, and more may help further"
    return line + "more labels have made it worse; look at the labels"


def print_curve(found: LearningCurve, console: Console) -> None:
    """Print a row for each size, and the metric."""
    from rich.table import Table
    from rich.text import Text

    several = len(found.points[0].results) > 1
    table = Table(header_style="bold")
    headings = ("images", "objects", "mAP %", LEVEL_TITLE, *(["seeds"] if several else []))
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for point in found.points:
        each = [one.mean_ap for one in point.results]
        spread = [range_percent((min(each), max(each)))] if several else []
        table.add_row(
            str(point.images),
            f"{np.mean(point.objects):.0f}",
            percent(point.mean_ap),
            range_percent(point.interval),
            *spread,
        )
    console.print(table)
    console.print(Text(metric_title(found.points[0].results[0])), soft_wrap=True)


def curve_json(found: LearningCurve, *, seeds: Sequence[int]) -> dict[str, Any]:
    """Collect a curve for JSON: fractions; null for NaN."""
    first, step = found.points[0].results[0], found.last_step()
    return {
        "metric": first.metric,
        "split": first.split,
        "test_images": found.test_images,
        "seeds": list(seeds),
        "interval": {"level": LEVEL, "draws": DRAWS},
        "points": [
            {
                "images": point.images,
                "objects": list(point.objects),
                "mAP": number_or_none(point.mean_ap),
                "mAP_interval": interval_or_none(point.interval),
                "mAP_of_seeds": [number_or_none(one.mean_ap) for one in point.results],
            }
            for point in found.points
        ],
        "last_step": {
            "difference": number_or_none(step.value),
            "interval": interval_or_none(step.interval),
        },
        "reading": reading(found),
    }


def draw_curve(found: LearningCurve, path: Path) -> None:
    """Write mAP by the number of training images as a PNG, with intervals and each seed's points."""
    figure = new_figure(width=5.0, height=4.0)
    axes = figure.add_subplot()
    images = [point.images for point in found.points]
    means = 100 * np.array([point.mean_ap for point in found.points])
    bounds = 100 * np.array([point.interval for point in found.points])
    reach = np.maximum(np.abs(bounds.T - means), 0.0)
    axes.errorbar(images, means, yerr=reach, marker="o", capsize=3, linewidth=1.2)
    if len(found.points[0].results) > 1:
        for point in found.points:
            each = [100 * one.mean_ap for one in point.results]
            axes.plot([point.images] * len(each), each, "x", color="gray", markersize=4)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.set_xlabel("training images")
    axes.set_ylabel("mAP %")
    title = metric_title(found.points[0].results[0])
    axes.set_title(f"{title}, {LEVEL_TITLE} intervals", parse_math=False, fontsize=9)
    save_figure(figure, path)


def _sets(config: Config, folder: Path) -> tuple[Dataset, Dataset, DataConfig, ImageCache]:
    """Read the images to choose subsets of, the test set, and the settings that name the test set."""
    whole, test_set, images = read_whole_sets(config, folder / "images.json")
    classes = {"classes": list(whole.class_names)}
    if test_set is not None:
        return whole, test_set, config.data.model_copy(update=classes), images
    count = len(whole)
    held = count // HELD_OUT
    if held < 2:
        raise ConfigError(f"{count} images without a test set; expected {2 * HELD_OUT} or more")
    stream = rng(config.seed, "held-out images of a learning curve")
    part = deal(classes_of_images(whole), [count - held, held], stream)
    names = np.array([image.id for image in whole.images], dtype=object)
    path = _list_path(folder, "test")
    test_set = chosen(whole, names[part == 1], "test")
    _write_list(path, [image.id for image in test_set.images])
    data = config.data.model_copy(
        update={**classes, "test": config.data.train, "test_ids": Path.absolute(path)}
    )
    return chosen(whole, names[part == 0], "rest"), test_set, data, images


def _subset(folder: Path, pool: Dataset, rows: Sequence[int], name: str) -> Dataset:
    """Choose the images of a subset and write their list."""
    subset = chosen(pool, [pool.images[row].id for row in rows], name)
    check_classes(subset, "expected a larger fraction, or data.classes without it")
    _write_list(_list_path(folder, name), [image.id for image in subset.images])
    return subset


def _list_path(folder: Path, name: str) -> Path:
    return Path.absolute(folder / "lists" / f"{name}.txt")


def _write_list(path: Path, ids: list[str]) -> None:
    if read_list(path) != ids:
        write_id_list(path, ids)


def _objects(dataset: Dataset) -> int:
    return int(sum((~image.difficult).sum() for image in dataset.images))

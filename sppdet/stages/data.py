"""The data stage: read the annotations, check the classes, load the backbone."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sppdet.config import Config
from sppdet.errors import TrainingError
from sppdet.io.image_cache import ImageCache
from sppdet.io.splits import read_split
from sppdet.runs.artifacts import write_text
from sppdet.runs.environment import worker_count
from sppdet.runs.log import LOGGER, event
from sppdet.stages.backbone import load
from sppdet.stages.check_findings import say_short_form
from sppdet.stages.context import Context
from sppdet.stages.presets import choose
from sppdet.types import Dataset


def read_data(context: Context) -> bool:
    """Read both sets; refuse what would end a later stage.

    Raises:
        TrainingError: a class without a positive.
        WeightsError: the backbone's weights are missing or don't fit.
    """
    config, run, ranks = context.config, context.run, context.ranks
    with ranks.first_goes_first():
        images = ImageCache.load(run / "images.json", max_pixels=config.data.max_pixels)
        context.images = images
        context.training_set, context.test_set = read_datasets(config, images)
        _check_positives(context.training_set)
        if context.choice is not None:
            config = context.config = choose(context, context.choice)
        if ranks.is_first:
            images.save(run / "images.json")
            say_short_form(context.training_set, context.test_set, images)
            # a trained model keeps the settings that it was trained by
            if not context.files.sealed.is_file():
                write_text(context.files.config, context.files.settings_text(config))
        if context.reaches("features"):
            context.backbone = load(context)
    return True


def read_datasets(config: Config, images: ImageCache) -> tuple[Dataset, Dataset | None]:
    """Read the training set and, where one is named, the test set with the same classes."""
    workers = worker_count(config.workers)
    training_set = read_split(config.data, "train", None, images, workers=workers)
    test_set = None
    if config.data.test is not None:
        names = training_set.class_names
        test_set = read_split(config.data, "test", names, images, workers=workers)
    for split, dataset in (("train", training_set), ("test", test_set)):
        if dataset is None:
            continue
        objects = sum(len(image.gt_boxes) for image in dataset.images)
        counts = f"{len(dataset)} images, {objects} objects of {len(dataset.class_names)} classes"
        skips = {"skipped": dataset.skipped, "clipped_boxes": dataset.clipped_boxes}
        facts = event("data", split=split, **skips)
        LOGGER.info("%s: %s, %s", split, dataset.name, counts, extra=facts)
    if test_set is None:
        LOGGER.info("no test set (data.test is null): there will be no metric")
    log_skipped((training_set, test_set))
    return training_set, test_set


def log_skipped(datasets: Iterable[Dataset | None]) -> None:
    """Log a line for everything that `data.on_error: skip` left out."""
    for dataset in datasets:
        for line in dataset.skipped if dataset is not None else ():
            LOGGER.info("skipped: %s", line, extra=event("skipped"))


def _check_positives(dataset: Dataset) -> None:
    """Refuse a class that no SVM could be trained for."""
    labels = [image.gt_labels[~image.difficult] for image in dataset.images]
    counts = np.bincount(np.concatenate(labels), minlength=len(dataset.class_names) + 1)
    for name, count in zip(dataset.class_names, counts[1:], strict=True):
        if count == 0:
            raise TrainingError(
                f"class {name}: no positive in {dataset.name}; expected one object or more that "
                "isn't difficult"
            )

"""The evaluation of detections made elsewhere: annotations are needed, images are not."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from sppdet.config import Config
from sppdet.errors import ConfigError, DataError, shorten
from sppdet.io.dataset_digest import dataset_digest
from sppdet.io.detection_files import open_detections
from sppdet.io.files import read_bytes
from sppdet.io.image_ids import meaning_of
from sppdet.io.settings import load_config
from sppdet.io.splits import read_split
from sppdet.runs.environment import worker_count
from sppdet.runs.log import LOGGER
from sppdet.runs.places import claim_folder
from sppdet.stages.evaluate import Metric, score, write_scores
from sppdet.stages.settle import settle
from sppdet.types import Dataset, EvalResult
from sppdet.version import __version__


def evaluate_files(
    config_path: Path,
    detections: Path,
    out: Path,
    *,
    split: str,
    metric: Metric | None,
    ids: str | None = None,
) -> EvalResult:
    """Score detections made elsewhere into `out`.

    The classes are `data.classes`; where that is auto, those of the training set; where none is named
    or there, those of the split's annotations and those that only the detections name, which have no
    part in the mean.

    Args:
        config_path: settings with a data section; the set of `split` suffices.
        detections: see `open_detections`.
        ids: what numbers of images mean, see `meaning_of`; None for what is certain alone.
    """
    config = settle(load_config(config_path), None)
    source = detections if detections.is_dir() else detections.parent
    if source.exists() and out.exists() and source.samefile(out):
        raise ConfigError(f"--out {out}: is the folder of --detections; expected another")
    claim_folder(out, command="eval")
    opened = open_detections(detections)
    meaning = meaning_of(ids, config.data, split)
    dataset, classes = _read_set(config, split, opened.class_names(meaning))
    for line in dataset.skipped:
        LOGGER.info("skipped: %s", line)
    LOGGER.info("%d classes: %s", len(dataset.class_names), classes)
    found = opened.detections(dataset, meaning)
    result = score(dataset, found, metric=metric or config.eval.metric)
    parts = [
        f"detections:{detections.name}.{_digest(detections)}",
        f"test:{dataset_digest(dataset, None)[:8]}",
        f"sppdet:{__version__}",
    ]
    write_scores(
        result,
        config.data,
        dataset,
        found,
        out,
        signature="|".join(parts),
        split=split,
    )
    return result


def _read_set(config: Config, split: str, detected: list[str]) -> tuple[Dataset, str]:
    """Read the split with its classes; returns where those are from, too."""
    workers = worker_count(config.workers)
    if config.data.classes != "auto":
        return read_split(config.data, split, None, None, workers=workers), "data.classes"
    reason = "no training set is named"
    if config.data.train is not None and split != "train":
        names_only = config.data.model_copy(update={"on_error": "skip", "repair_sizes": False})
        try:
            names = read_split(names_only, "train", None, None, workers=workers).class_names
        except DataError as error:
            reason = f"the training set can't be read: {error}"
        else:
            dataset = read_split(config.data, split, names, None, workers=workers)
            return dataset, "those of the training set"
    dataset = read_split(config.data, split, None, None, workers=workers)
    others = sorted(set(detected) - set(dataset.class_names))
    more = f", and without an object {shorten(others)} of the detections" if others else ""
    return with_classes(dataset, others), f"those of {dataset.name}{more} ({reason})"


def with_classes(dataset: Dataset, names: list[str]) -> Dataset:
    """Add the classes `names` to a data set; all are sorted and labelled in that order."""
    merged = tuple(sorted({*dataset.class_names, *names}))
    label_of = {name: label for label, name in enumerate(merged, start=1)}
    table = np.array([0, *(label_of[name] for name in dataset.class_names)], dtype=np.int64)
    images = tuple(replace(image, gt_labels=table[image.gt_labels]) for image in dataset.images)
    return replace(dataset, class_names=merged, images=images)


def _digest(path: Path) -> str:
    """Hash the content of a file, or of a folder's `comp4` files, to 8 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=4)
    for file in sorted(path.glob("comp4_det_*.txt")) if path.is_dir() else [path]:
        digest.update(file.name.encode(errors="surrogateescape"))
        digest.update(read_bytes(file, DataError))
    return digest.hexdigest()

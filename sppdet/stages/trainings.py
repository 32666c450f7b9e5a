"""Several trainings of one command on parts of a set; one that has finished costs nothing again."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from sppdet.config import Config
from sppdet.data_config import DataConfig
from sppdet.errors import ArtifactError, ConfigError, TrainingError, shorten
from sppdet.evaluation.folds import classes_of_images
from sppdet.io.dataset_digest import dataset_digest
from sppdet.io.detection_files import read_detections
from sppdet.io.id_lists import read_id_list
from sppdet.io.image_cache import ImageCache
from sppdet.io.image_ids import meaning_of
from sppdet.io.splits import read_split
from sppdet.runs.artifacts import fingerprint, read_json, remove_leftovers, write_json
from sppdet.runs.distributed import process_count
from sppdet.runs.environment import worker_count
from sppdet.runs.lock import folder_lock
from sppdet.runs.log import LOGGER, event
from sppdet.runs.places import claim_folder
from sppdet.stages.pipeline import train
from sppdet.types import Dataset, Detections
from sppdet.version import __version__

DETECTIONS = Path("eval", "test", "coco_results.json")
"""The detections of a run in its test set."""
_FINISHED = "finished.json"
_ASIDE = {"store", "workers", "checkpoint_minutes"}  # settings without influence on the result


@contextlib.contextmanager
def folder_of_trainings(folder: Path, *, command: str) -> Iterator[None]:
    """Claim and lock the folder of a command's trainings.

    Raises:
        ArtifactError: it has other files, or another process works in it.
        ConfigError: several processes call.
    """
    if process_count() > 1:
        raise ConfigError(f"{command}: runs in one process")
    claim_folder(folder, command=command, shared=False)
    with folder_lock(folder):
        remove_leftovers(folder)
        yield


def read_whole_sets(
    config: Config, images_file: Path
) -> tuple[Dataset, Dataset | None, ImageCache]:
    """Read the training set and, where one is named, the test set, with their images."""
    config.data.sets_of("train")  # checks that one is named
    images = ImageCache.load(images_file, max_pixels=config.data.max_pixels)
    workers = worker_count(config.workers)
    whole = read_split(config.data, "train", None, images, workers=workers)
    test_set = None
    if config.data.test is not None:
        test_set = read_split(config.data, "test", whole.class_names, images, workers=workers)
    images.save(images_file)
    return whole, test_set, images


def chosen(dataset: Dataset, ids: Iterable[str], name: str) -> Dataset:
    """Choose images of a data set, in its order."""
    wanted = set(ids)
    images = tuple(image for image in dataset.images if image.id in wanted)
    return replace(dataset, images=images, name=f"{dataset.name}-{name}", skipped=())


def check_classes(dataset: Dataset, advice: str) -> None:
    """Refuse a training set in which a class has no object that counts.

    Raises:
        TrainingError: the classes are named; the message ends with `advice`.
    """
    there = classes_of_images(dataset).any(axis=0)
    if not there.all():
        names = [dataset.class_names[k] for k in np.flatnonzero(~there)]
        raise TrainingError(
            f"{dataset.name}, {len(dataset)} images: no positive of {shorten(names, limit=3)}; {advice}"
        )


def train_part(
    config: Config,
    run: Path,
    *,
    train_set: Dataset,
    test_set: Dataset,
    images: ImageCache,
    device: str,
) -> dict[str, Detections]:
    """Train and test in the folder `run`, unless that has finished with the same settings and images.

    Args:
        config: its `data` names the images of the two sets.
        images: knows the images of both sets.

    Returns:
        the detections in the test set, as they are read from their file.
    """
    made_by = _fingerprint(
        config, dataset_digest(train_set, images), dataset_digest(test_set, images)
    )
    if _is_finished(run, made_by):
        LOGGER.info("%s: finished already", run, extra=event("training skipped"))
    else:
        LOGGER.info("%s: %d images to train on, %d to test", run, len(train_set), len(test_set))
        train(config, run, device=device)
        write_json(run / _FINISHED, {"made_by": made_by, "detections": _digest(run / DETECTIONS)})
    meaning = meaning_of(None, config.data, "test")
    return read_detections(run / DETECTIONS, test_set, meaning)


def has_finished(run: Path) -> bool:
    """Check whether a training has ended in a folder, be it with other settings."""
    return (run / _FINISHED).is_file()


def with_data(config: Config, data: DataConfig, *, store: Path) -> Config:
    """Return settings with other data; without a store of their own they share `store`."""
    return config.model_copy(update={"data": data, "store": Path.absolute(config.store or store)})


def read_list(path: Path) -> list[str] | None:
    """Read a list of ids; None if there is none."""
    return read_id_list(path) if path.is_file() else None


def _fingerprint(config: Config, train: str, test: str) -> str:
    raw = config.model_dump(mode="json", exclude=_ASIDE)
    raw["features"] = config.features.that_matter()
    # which images there are, wherever they lie, is in the digests
    places = ("root", "images", "train", "test", "train_ids", "test_ids")
    raw["data"] = {key: value for key, value in raw["data"].items() if key not in places}
    return fingerprint("training", raw, train, test, __version__)


def _is_finished(run: Path, made_by: str) -> bool:
    path = run / _FINISHED
    try:
        found = read_json(path) if path.is_file() else None
    except ArtifactError:
        return False
    return found == {"made_by": made_by, "detections": _digest(run / DETECTIONS)}


def _digest(path: Path) -> str:
    """Hash a file; "" if it is missing."""
    if not path.is_file():
        return ""
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()

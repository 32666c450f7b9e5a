"""The images of a call of `suggest`: found, told from those that the run has used, and looked at."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sppdet.config import Config
from sppdet.errors import ConfigError, ImageError, describe_failure
from sppdet.io.finding import find_images
from sppdet.io.image_cache import ImageCache
from sppdet.io.names import class_file_names, escape_name, name_below, unique_ids
from sppdet.io.records import Skips
from sppdet.io.splits import read_split, read_split_records
from sppdet.parallel import ordered_map
from sppdet.runs.environment import worker_count
from sppdet.runs.log import LOGGER, event
from sppdet.runs.places import real_path
from sppdet.runs.progress import track
from sppdet.stages.look import Look, Looker
from sppdet.types import AnnotatedImage, Dataset, Proposals


@dataclass(frozen=True)
class Candidate:
    """An image without labels; `name` is its path below the folder that was searched."""

    image: AnnotatedImage  # without objects
    name: str
    look: Look


@dataclass(frozen=True)
class Candidates:
    """Images that could be looked at, the number of those that have labels, a line for each failure."""

    images: tuple[Candidate, ...]
    labelled: int
    failed: tuple[str, ...]


@dataclass(frozen=True)
class Used:
    """The images that a run has used: those to train on, and the bytes of these and of the test images."""

    training_set: Dataset
    digests: frozenset[str]

    def counts(self) -> NDArray[np.int64]:
        """Count the objects (K,) of each class to train on."""
        labels = [np.zeros(0, np.int64), *(one.gt_labels for one in self.training_set.images)]
        classes = len(self.training_set.class_names)
        return np.bincount(np.concatenate(labels), minlength=classes + 1)[1:]


def used_images(run: Path, config: Config, names: tuple[str, ...], images: ImageCache) -> Used:
    """Read the set that a run was trained on and, where one is named, the images of its test set."""
    workers = worker_count(config.workers)
    dataset = read_split(config.data, "train", names, images, workers=workers)
    digests = {images.digest(one.path) for one in dataset.images}
    if config.data.test:
        _, records = read_split_records(config.data, "test", Skips(stop=False))
        for one in records:
            with contextlib.suppress(ImageError):  # of `data.on_error: skip`
                digests.add(images.digest(one.path))
    images.save(run / "images.json")
    return Used(dataset, frozenset(digests))


def find_candidates(paths: Sequence[Path], *, run: Path, out: Path) -> list[tuple[Path, str, str]]:
    """Find the images in `paths`; returns the path, the name and the file name's stem of each.

    Files of the run itself are left out.

    Raises:
        ImageError: a path doesn't exist, or there is no image.
        ConfigError: `out` is in a folder that is searched.
    """
    place = real_path(out)
    for path in paths:
        if path.is_dir() and place.is_relative_to(real_path(path)):
            raise ConfigError(
                f"--out {out}: is in {path}, which is searched for images; expected another folder"
            )
    inside = real_path(run)
    found = [path for path in find_images(paths) if not real_path(path).is_relative_to(inside)]
    if not found:
        raise ImageError(f"{', '.join(map(str, paths))}: no images besides those of the run")
    folders = [Path(os.path.abspath(path)) for path in paths if path.is_dir()]
    names = [name_below(Path(os.path.abspath(path)), folders) for path in found]
    stems = class_file_names(unique_ids(names))
    return list(zip(found, map(escape_name, names), stems, strict=True))


def look_at(
    found: Sequence[tuple[Path, str, str]],
    looker: Looker,
    images: ImageCache,
    used: Used,
    *,
    workers: int,
) -> Candidates:
    """Look at images, but for those that have labels; one that can't be read ends nothing.

    What is seen of an image is kept: a repeated call reads its file alone.

    Args:
        found: as from `find_candidates`.
        workers: threads that decode images and search for proposals.
    """

    def prepare(each: tuple[Path, str, str]) -> _Prepared | str | None:
        path, _, stem = each
        try:
            info = images.look(path)
            if info.digest in used.digests:
                return None
            nothing = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
            flags = (np.zeros(0, np.bool_), np.zeros(0, np.bool_))
            image = AnnotatedImage(stem, path, info.width, info.height, *nothing, *flags)
            known = looker.known(image)
            return _Prepared(image, known, None if known else looker.proposals(image))
        except Exception as error:  # one image's failure must not end the others
            return describe_failure(str(path), error)

    labelled, failed, seen = 0, list[str](), list[Candidate]()
    prepared = ordered_map(prepare, found, workers=workers)
    due = zip(found, prepared, strict=True)
    for (path, name, _), made in track(
        due,
        total=len(found),
        label="looking at images",
        made=lambda one: isinstance(one[1], _Prepared) and one[1].known is None,
    ):
        if made is None:
            labelled += 1
            continue
        problem = made if isinstance(made, str) else ""
        if isinstance(made, _Prepared):
            try:
                seen.append(Candidate(made.image, name, made.seen_by(looker)))
            except Exception as error:  # as above
                problem = describe_failure(str(path), error)
        if problem:
            failed.append(problem)
            LOGGER.info("failed: %s", problem, extra=event("failed"))
    return Candidates(tuple(seen), labelled, tuple(failed))


@dataclass(frozen=True)
class _Prepared:
    image: AnnotatedImage
    known: Look | None
    proposals: Proposals | None

    def seen_by(self, looker: Looker) -> Look:
        """Look, unless it is known."""
        if self.known is not None:
            return self.known
        assert self.proposals is not None
        return looker.look(self.image, self.proposals)

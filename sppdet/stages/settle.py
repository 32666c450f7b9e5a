"""Settle what the data settings leave open: the format, its sets, and the split of a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from sppdet.config import Config
from sppdet.data_config import DataConfig
from sppdet.errors import ArtifactError, ConfigError, DataError, shorten
from sppdet.evaluation.folds import classes_of_images, deal
from sppdet.io.formats.common import Found
from sppdet.io.formats.find import choose_sets, find_format
from sppdet.io.id_lists import read_id_list, write_id_list
from sppdet.io.splits import read_split
from sppdet.randomness import rng
from sppdet.runs.artifacts import read_json, write_json
from sppdet.runs.environment import worker_count
from sppdet.runs.log import LOGGER, event
from sppdet.stages.similar import similar_groups
from sppdet.types import Dataset

TEST_FRACTION = 0.2
"""Fraction of the images to test with where a format is found without a split and none is given."""


def settle(config: Config, folder: Path | None) -> Config:
    """Fill in what the data settings leave open; settings that leave nothing open come back as they are.

    A split of the training set is made once and kept as lists in `folder`/split, so that images which are
    added later change neither side.

    Args:
        folder: of a run or of several trainings; None makes no split.

    Raises:
        AnnotationError: no format is found, or several are.
        DataError: the sets to use aren't certain, or there are too few images for a split.
    """
    data = config.data
    if not data.is_open():
        return config
    if data.format == "auto" or data.train is None:
        data = _with_sets(data)
    if isinstance(data.test, float) and folder is not None:
        data = _with_lists(config, data, folder)
    return config.model_copy(update={"data": data})


def _with_sets(data: DataConfig) -> DataConfig:
    """Find the format and sets of every root."""
    only = None if data.format == "auto" else data.format
    found = [find_format(root, only=only, images=data.images) for root in data.root]
    if len({one.format for one in found}) > 1:
        two = " and ".join(f"{one.root} is {one.format}" for one in found)
        raise DataError(f"{two}; expected one format for all of data.root")
    for one in found:
        facts = event("data found", format=one.format, sets=one.sets, evidence=one.evidence)
        sets = f"sets: {shorten(one.sets, limit=6)}" if len(one.sets) > 1 else "no split"
        LOGGER.info("%s: %s (%s); %s", one.root, one.format, one.evidence, sets, extra=facts)
    update: dict[str, Any] = {"format": found[0].format, "root": [one.root for one in found]}
    named = data.train is not None and _are_there(data, found)
    if data.train is not None and not named:
        LOGGER.warning(
            "data.train: %s: no set that was found; those that were found are used",
            shorten([str(name) for name in data.train], limit=3),
        )
    chosen = [choose_sets(one, named=named) for one in found]
    if not named:
        update["train"] = [train for train, _ in chosen]
    # the name of a test set beside that of a training set which isn't there means nothing, either
    lost = data.train is not None and not named and isinstance(data.test, list)
    if "test" not in data.model_fields_set or lost:
        tests = [test for _, test in chosen]
        update["test"] = tests if any(tests) else TEST_FRACTION
    settled = data.model_copy(update=update)
    for k, one in enumerate(found):
        _say_sets(one, settled, k)
    return settled


def _are_there(data: DataConfig, found: list[Found]) -> bool:
    """Check that the sets named in the settings are in what was found."""
    names = data.sets_of("train")
    return all(name is None or name in one.sets for name, one in zip(names, found, strict=True))


def _say_sets(found: Found, data: DataConfig, k: int) -> None:
    train, test = data.sets_of("train")[k], data.test
    if isinstance(test, float):
        said, used = f"tested on {100 * test:.3g} % of its images, kept out of training", {train}
    elif test is not None:
        name = data.sets_of("test")[k]
        said, used = f"tested on {name}", {train, name}
    else:
        said, used = "no test set", {train}
    rest = [name for name in found.sets if name not in used]
    more = f"; not used: {shorten(rest, limit=4)}" if rest else ""
    LOGGER.info("%s: trained on %s, %s%s", found.root, train, said, more)


def _with_lists(config: Config, data: DataConfig, folder: Path) -> DataConfig:
    """Divide the training set, or take the lists of an earlier call."""
    assert isinstance(data.test, float)
    fraction, workers = data.test, worker_count(config.workers)
    undivided = data.model_copy(update={"test": None, "test_ids": None})
    whole = read_split(undivided, "train", None, None, workers=workers)
    paths = {key: Path.absolute(folder / "split" / f"{key}.txt") for key in ("train", "test")}
    about = {"fraction": fraction, "seed": config.seed, "train": data.train}
    marker = folder / "split" / "split.json"
    if _stored(marker) == about and all(path.is_file() for path in paths.values()):
        _keep(whole, paths)
    else:
        part = _divide(config, whole, fraction)
        names = [image.id for image in whole.images]
        marker.unlink(missing_ok=True)
        for key, wanted in (("train", 0), ("test", 1)):
            write_id_list(paths[key], [names[row] for row in np.flatnonzero(part == wanted)])
            paths[key].with_name(f"{key}-gone.txt").unlink(missing_ok=True)
        write_json(marker, about)
    return data.model_copy(
        update={"test": data.train, "train_ids": paths["train"], "test_ids": paths["test"]}
    )


def _stored(path: Path) -> Any:
    try:
        return read_json(path)
    except ArtifactError:
        return None


def _keep(whole: Dataset, paths: dict[str, Path]) -> None:
    """Take the lists as they are; images that are gone wait in a list beside, images that are new are said.

    Raises:
        DataError: all images of a list are gone.
    """
    there = {image.id: None for image in whole.images}
    listed: set[str] = set()
    for path in paths.values():
        beside = path.with_name(f"{path.stem}-gone.txt")
        before = read_id_list(path)
        ids = {*before, *(read_id_list(beside) if beside.is_file() else ())}
        listed |= ids
        kept, gone = [name for name in there if name in ids], sorted(ids - there.keys())
        if not kept:
            raise DataError(
                f"{path}: none of its {len(ids)} images is in {whole.name} any more; expected another "
                "--run for other images"
            )
        if gone:
            LOGGER.warning("%s: gone since: %s", path, shorten(gone, limit=3))
            write_id_list(beside, gone)
        if set(before) != set(kept):
            write_id_list(path, kept)
        if not gone:
            beside.unlink(missing_ok=True)
    if new := sorted(there.keys() - listed):
        LOGGER.warning(
            "%s: %d images were added after its split and aren't used (%s); another --run uses them",
            *(whole.name, len(new), shorten(new, limit=3)),
        )


def _divide(config: Config, whole: Dataset, fraction: float) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Deal out the images: 0 to train on, 1 to test on."""
    count = len(whole)
    tested = round(fraction * count)
    if not 0 < tested < count:
        raise ConfigError(
            f"data.test: {fraction:g} of {count} images leaves none to train on or to test on; expected "
            "another fraction, or data.test: null to train without a test"
        )

    workers = worker_count(config.workers)
    groups = similar_groups(whole, max_pixels=config.data.max_pixels, workers=workers)
    sizes = np.bincount(groups)
    kept = int(sizes[sizes > 1].sum())
    if sizes.max() > count - tested:
        LOGGER.warning(
            "%s: %d of %d images show nearly the same; they are cut in two by their names, so that "
            "training and test resemble each other",
            *(whole.name, sizes.max(), count),
        )
        rows = np.flatnonzero(groups == sizes.argmax())
        names = [str(whole.images[row].path.with_suffix("")) for row in rows]
        last = rows[sorted(range(len(rows)), key=lambda k: _natural(names[k]))]
        groups[last[len(last) - round(fraction * len(last)) :]] = groups.max() + 1
    stream = rng(config.seed, "images to test with")
    part = deal(classes_of_images(whole), [count - tested, tested], stream, groups=groups)
    trained, tested = (int((part == k).sum()) for k in (0, 1))
    text = f"{whole.name}: {trained} images to train on, {tested} to test on"
    if kept:
        groups_of_several = int((sizes > 1).sum())
        text += f"; {kept} images in {groups_of_several} groups of similar ones stay together"
    LOGGER.info("%s", text)
    return part


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key with numbers by their value."""
    return [
        (0, int(word)) if word.isdigit() else (1, word)
        for word in re.split(r"([0-9]+)", name)
        if word
    ]

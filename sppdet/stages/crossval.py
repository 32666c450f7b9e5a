"""Cross-validation: every training image is tested by a detector that was trained without it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sppdet.config import Config
from sppdet.errors import ArtifactError, ConfigError, shorten
from sppdet.evaluation.folds import classes_of_images, deal, equal_sizes
from sppdet.io import plain_yaml
from sppdet.io.dataset_digest import dataset_digest
from sppdet.io.id_lists import write_id_list
from sppdet.randomness import rng
from sppdet.runs.artifacts import write_text
from sppdet.runs.log import LOGGER, consoles
from sppdet.runs.progress import track
from sppdet.stages.crossval_files import CrossvalFiles
from sppdet.stages.evaluate import score, write_scores
from sppdet.stages.model_files import signature
from sppdet.stages.report import LEVEL_TITLE, metrics, percent, range_percent
from sppdet.stages.settle import settle
from sppdet.stages.trainings import (
    check_classes,
    chosen,
    folder_of_trainings,
    has_finished,
    read_list,
    read_whole_sets,
    train_part,
    with_data,
)
from sppdet.types import Dataset, Detections, EvalResult

if TYPE_CHECKING:
    from rich.console import Console

FOLDS = 5
"""Number of folds where none is given."""


def crossval(
    config: Config, folder: Path, *, folds: int | None = None, device: str = "auto"
) -> EvalResult:
    """Train and test once for each fold of the training set, going on where an earlier call stopped.

    The folds are dealt once, stratified by class and seeded by `seed`, and kept as lists in `folder`.
    The test set of the settings has no part in it.

    Args:
        folds: None takes those of an earlier call, or `FOLDS`.

    Returns:
        The result over the images of all folds together, with intervals.

    Raises:
        ConfigError: no training set is named, or the number of folds doesn't fit.
        ArtifactError: the folder is not that of a cross-validation of these images.
        TrainingError: a class has too few images to be trained in every fold.
    """
    files = CrossvalFiles(folder)
    with folder_of_trainings(folder, command="crossval"):
        without_test = config.data.model_copy(update={"test": None, "test_ids": None})
        base = settle(config.model_copy(update={"data": without_test}), folder)
        whole, _, images = read_whole_sets(base, files.images)
        tested = _folds(files, whole, folds, seed=config.seed)
        rests = [_rest(whole, ids) for ids in tested]
        sets = [
            (chosen(whole, rest, f"rest{k}"), chosen(whole, ids, f"fold{k}"))
            for k, (rest, ids) in enumerate(zip(rests, tested, strict=True))
        ]
        for train_set, _ in sets:
            check_classes(train_set, "expected objects in two images or more that aren't difficult")
        everything: dict[str, Detections] = {}
        results = []
        due = [k for k in range(len(sets)) if not has_finished(files.run(k))]
        folds_left = track(
            enumerate(sets), total=len(sets), label="folds", made=lambda fold: fold[0] in due
        )
        for k, (train_set, test_set) in folds_left:
            data = base.data.model_copy(
                update={
                    "test": base.data.train,
                    "train_ids": Path.absolute(files.trained(k)),
                    "test_ids": Path.absolute(files.tested(k)),
                    "classes": list(whole.class_names),
                }
            )
            found = train_part(
                with_data(base, data, store=files.store),
                files.run(k),
                train_set=train_set,
                test_set=test_set,
                images=images,
                device=device,
            )
            results.append(score(test_set, found, metric=config.eval.metric))
            everything |= found
        joined = replace(whole, name=f"{whole.name}, {len(tested)} folds")
        result = score(joined, everything, metric=config.eval.metric)
        digest = dataset_digest(whole, images)
        write_text(files.config, plain_yaml.dump(base.to_plain()))
        about = signature(base, train=digest, test=digest)
        write_scores(
            result, base.data, joined, everything, files.scores, signature=about, split="train"
        )
        for console in consoles():
            print_folds(results, result, console)
        text = json.dumps(_summary(results, result, about), indent=1, sort_keys=True)
        write_text(files.results, text + "\n")
        LOGGER.info("reports are in %s", files.scores)
        return result


def print_folds(results: Sequence[EvalResult], joined: EvalResult, console: Console) -> None:
    """Print the mAP of each fold and of all images together, with intervals."""
    from rich.table import Table

    table = Table("fold", header_style="bold")
    for heading in ("images", "objects", "mAP %", LEVEL_TITLE):
        table.add_column(heading, justify="right", no_wrap=True)
    for k, one in enumerate(results):
        table.add_row(str(k), *_cells(one))
    table.add_section()
    table.add_row("all", *_cells(joined))
    console.print(table)


def _cells(result: EvalResult) -> tuple[str, ...]:
    objects = sum(one.ground_truths for one in result.classes)
    interval = range_percent(result.intervals.mean) if result.intervals else "n/a"
    return str(result.images), str(objects), percent(result.mean_ap), interval


def _folds(
    files: CrossvalFiles, whole: Dataset, folds: int | None, *, seed: int
) -> list[list[str]]:
    """Read the lists of the folds, or deal and write them; the lists of the rest are made to fit."""
    names = [image.id for image in whole.images]
    if files.is_one():
        found = _stored_folds(files)
        if folds not in (None, len(found)):
            raise ConfigError(
                f"{files.folder}: has {len(found)} folds, not {folds}; expected another --run"
            )
        listed = sorted(name for ids in found for name in ids)
        if listed != sorted(names):
            differing = sorted(set(listed) ^ set(names)) or ["an image is in two folds"]
            raise ArtifactError(
                f"{files.tested(0).parent}: the folds aren't of the images of {whole.name}:"
                f" {shorten(differing, limit=3)}; expected another --run"
            )
    else:
        count = FOLDS if folds is None else folds
        if not 2 <= count <= len(names):
            raise ConfigError(f"{count} folds of {len(names)} images; expected 2 to {len(names)}")
        sizes = equal_sizes(len(names), count)
        part = deal(classes_of_images(whole), sizes, rng(seed, "folds of the training images"))
        found = [[names[row] for row in np.flatnonzero(part == k)] for k in range(count)]
    # the first fold's list comes last: with it the folds are complete
    for k in reversed(range(len(found))):
        for path, ids in ((files.trained(k), _rest(whole, found[k])), (files.tested(k), found[k])):
            if read_list(path) != ids:
                write_id_list(path, ids)
    return found


def _stored_folds(files: CrossvalFiles) -> list[list[str]]:
    found: list[list[str]] = []
    while (ids := read_list(files.tested(len(found)))) is not None:
        found.append(ids)
    return found


def _rest(whole: Dataset, ids: Sequence[str]) -> list[str]:
    left_out = set(ids)
    return [image.id for image in whole.images if image.id not in left_out]


def _summary(results: Sequence[EvalResult], joined: EvalResult, about: str) -> dict[str, Any]:
    """Collect the numbers for JSON: those of `metrics` for all images and, shorter, for each fold."""
    aside = ("metric", "min_iou", "signature", "extra", "interval")
    folds = [metrics(one, signature="") for one in results]
    return {
        **metrics(joined, signature=about),
        "classes": [one.name for one in joined.classes],
        "folds": [{k: v for k, v in one.items() if k not in aside} for one in folds],
    }

"""The meaning of the ids in a detection file: only what is certain is taken, the rest is refused."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sppdet.data_config import DataConfig
from sppdet.errors import ConfigError, DataError
from sppdet.io.coco import CocoId, read_coco_file_ids, read_coco_ids
from sppdet.io.image_names import ImageNames
from sppdet.types import Dataset

_WAY_OUT = (
    "give every entry a file_name, or say --ids stem, --ids position or --ids FILE.json (the COCO "
    "annotations that the ids are of)"
)


@dataclass(frozen=True)
class IdTables:
    """The ids of COCO annotation files.

    Attributes:
        images: id -> path or file name of the image; empty where several files use the id.
        categories: id -> class name; empty where several files use the id for different classes.
    """

    images: Mapping[CocoId, str] = field(default_factory=dict)
    categories: Mapping[CocoId, str] = field(default_factory=dict)

    def image_rows(self, dataset: Dataset) -> dict[CocoId, int | None]:
        """Map each id to its row of `dataset.images`, None for images that aren't in the data set."""
        rows = ImageNames(dataset).match([(name,) for name in self.images.values()])
        return dict(zip(self.images, rows, strict=True))


@dataclass(frozen=True)
class IdMeaning:
    """How to read the numbers of a detection file.

    Attributes:
        numbers: "stem" takes an image's number for the stem of its file name, "position" for its
            position in the set from 1, "certain" for what is certain alone.
        tables: the ids of annotation files; used for images where `numbers` is "certain".
        forced: whether numbers of images go before names: the user has said what they mean.
        labels_given: whether the order of the classes is the user's, so that a category's number is
            its label.
    """

    numbers: Literal["certain", "stem", "position"] = "certain"
    tables: IdTables = IdTables()
    forced: bool = False
    labels_given: bool = False


def meaning_of(ids: str | None, data: DataConfig, split: str) -> IdMeaning:
    """Derive the meaning of numbers from the option `--ids` and the annotations of a split.

    Raises:
        ConfigError: `ids` is neither "stem", "position" nor the name of a `.json` file.
        DataError: the file is no COCO annotations.
    """
    given = data.classes != "auto"
    if ids is None:
        return IdMeaning(tables=tables_of_split(data, split), labels_given=given)
    if ids in ("stem", "position"):
        numbers: Literal["stem", "position"] = "stem" if ids == "stem" else "position"
        return IdMeaning(numbers, tables_of_split(data, split), forced=True, labels_given=given)
    if not ids.lower().endswith(".json"):
        raise ConfigError(f"--ids {ids}: expected stem, position or a COCO annotation file (.json)")
    of_file = read_coco_file_ids(Path(ids))
    tables = IdTables(of_file.file_names, of_file.category_names)
    return IdMeaning(tables=tables, forced=True, labels_given=given)


def tables_of_split(data: DataConfig, split: str) -> IdTables:
    """Read the ids of the annotation files of a split; none for the VOC layout."""
    images: dict[CocoId, str] = {}
    categories: dict[CocoId, str] = {}
    if data.format == "coco":
        for root, set_name in zip(data.root, data.sets_of(split), strict=True):
            if set_name is None:
                continue
            ids = read_coco_ids(root, set_name, images=data.images)
            for key, path in ids.image_paths.items():
                images[key] = "" if key in images else os.path.abspath(path)
            for key, name in ids.category_names.items():
                categories[key] = name if categories.get(key, name) == name else ""
    return IdTables(images, categories)


def ids_to_write(
    tables: IdTables, dataset: Dataset
) -> tuple[dict[str, CocoId] | None, dict[str, CocoId] | None]:
    """Look up image ids by image and category ids by class name in the annotation files.

    A class that the files don't know gets a number that they don't use.

    Returns:
        (None, None) where there are no such files, or an image has no id that is its own.
    """
    images: dict[str, CocoId] = {}
    try:
        rows = tables.image_rows(dataset)
    except DataError:  # one file is two images of the set
        return None, None
    for key, row in rows.items():
        if row is not None and tables.images[key]:
            images.setdefault(dataset.images[row].id, key)
    if len(images) < len(dataset):
        return None, None
    categories: dict[str, CocoId] = {}
    for key, name in tables.categories.items():
        if name:
            categories.setdefault(name, key)
    unused = 1 + max((key for key in tables.categories if isinstance(key, int)), default=0)
    unknown = [name for name in dataset.class_names if name not in categories]
    return images, categories | {name: number for number, name in enumerate(unknown, unused)}


def rows_of_ids(
    ids: Collection[CocoId], dataset: Dataset, meaning: IdMeaning
) -> dict[CocoId, int | None]:
    """Map each image id to its row of `dataset.images`, None for ids of no image.

    Without annotation files a number may be the stem of a file name or a position in the set, counted
    from 0 or 1 in the set's order or in that of the paths. It is taken for the stem where all ids are
    stems and no other reading that fits all ids differs; otherwise it is refused.

    Raises:
        DataError: a number could mean two things, or means nothing that is known.
    """
    if meaning.numbers == "position":
        rows: dict[CocoId, int] = {row + 1: row for row in range(len(dataset))}
        return {key: rows.get(key) for key in ids}
    if meaning.numbers == "stem":
        stems = _stems(dataset)
        if stems is None:
            raise DataError(f"--ids stem: the stems of {dataset.name} aren't different numbers")
        return {key: stems.get(key) for key in ids}
    if meaning.tables.images:
        of_tables = meaning.tables.image_rows(dataset)
        problem = "is an id in several annotation files; expected a file_name in every entry"
        _refuse_ambiguous("image_id", ids, meaning.tables.images, problem)
        return {key: of_tables.get(key) for key in ids}
    stems = _stems(dataset) or {}
    unknown = next((key for key in ids if key not in stems), None)
    if unknown is not None:
        problem = "is not the file name of any image" if stems else "is not a name"
        raise DataError(
            f"image_id {unknown!r:.40} {problem}, and what else it counts isn't known; {_WAY_OUT}"
        )
    _refuse_positions(ids, stems, dataset)
    return {key: stems[key] for key in ids}


def labels_of_ids(
    ids: Collection[CocoId], dataset: Dataset, meaning: IdMeaning
) -> dict[CocoId, int | None]:
    """Map each category id to its label, None for those of other classes.

    Raises:
        DataError: a number could mean any class.
    """
    labels = {name: label for label, name in enumerate(dataset.class_names, start=1)}
    table = meaning.tables.categories
    if table:
        problem = (
            "is of different classes in several annotation files; expected a category_name in every "
            "entry"
        )
        _refuse_ambiguous("category_id", ids, table, problem)
        return {key: labels.get(table[key]) if key in table else None for key in ids}
    if not meaning.labels_given and len(labels) != 1:
        raise DataError(
            f"category_id {next(iter(ids))!r:.40} could be any class; give every entry a "
            "category_name, or the classes in the order of their numbers as data.classes, or --ids "
            "FILE.json (the COCO annotations that the ids are of)"
        )
    for key in ids:
        if not isinstance(key, int) or not 1 <= key <= len(labels):
            raise DataError(f"category_id {key!r:.40} is not a label in 1..{len(labels)}")
    return {key: int(key) for key in ids}


def _refuse_ambiguous(
    what: str, ids: Collection[CocoId], table: Mapping[CocoId, str], problem: str
) -> None:
    for key in ids:
        if table.get(key) == "":
            raise DataError(f"{what} {key!r:.40} {problem}")


def _refuse_positions(
    ids: Collection[CocoId], stems: Mapping[CocoId, int], dataset: Dataset
) -> None:
    """Refuse ids that could all be positions and of which one would be another image than its stem."""
    in_order = list(range(len(dataset)))
    by_path = sorted(in_order, key=lambda row: dataset.images[row].path.as_posix())
    for start in (1, 0):
        for rows in (in_order, by_path):
            counted: dict[CocoId, int] = dict(enumerate(rows, start))
            differs = [key for key in ids if counted.get(key) != stems[key]]
            if differs and all(key in counted for key in ids):
                key = differs[0]
                by_stem, by_count = (
                    dataset.images[table[key]].path.name for table in (stems, counted)
                )
                raise DataError(
                    f"image_id {key!r:.40} could be {by_stem} by its name or {by_count} by its "
                    f"position; {_WAY_OUT}"
                )


def _stems(dataset: Dataset) -> dict[CocoId, int] | None:
    """Map the numbers that are the stems of file names to rows; None unless all are, and differ."""
    stems = [image.path.stem for image in dataset.images]
    if not all(stem.isascii() and stem.isdigit() and len(stem) <= 18 for stem in stems):
        return None
    numbers: dict[CocoId, int] = {int(stem): row for row, stem in enumerate(stems)}
    return numbers if len(numbers) == len(stems) else None

"""COCO's results JSON and the ids in it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from sppdet.artifacts import write_text
from sppdet.data.files import read_text
from sppdet.data.records import unique_ids
from sppdet.data.results import results_entry
from sppdet.errors import DataError
from sppdet.evaluation.image_names import distinct_names
from sppdet.evaluation.inputs import check_detections
from sppdet.evaluation.rows import Rows, pictures_by_name
from sppdet.types import Dataset, Detections


def write_coco_results(
    path: Path,
    dataset: Dataset,
    detections: Mapping[str, Detections],
    *,
    image_ids: Mapping[str, int | str] | None = None,
    category_ids: Mapping[str, int] | None = None,
) -> None:
    """Write COCO results: a list of {image_id, category_id, bbox [x, y, w, h], score}, 0-based.

    Nine digits, so that scores come back as they were and boxes to 1e-5 px.

    Args:
        image_ids: picture id -> id in the file; by default `default_image_ids`. For a server or a
            script that has the annotations, take `ids_from_annotations`.
        category_ids: class name -> id in the file; by default the labels 1..K.

    Raises:
        DataError: detections that do not fit the data set, or a picture or class without an id.
    """
    check_detections(dataset, detections)
    image_ids = default_image_ids(dataset) if image_ids is None else image_ids
    category_ids = default_category_ids(dataset) if category_ids is None else category_ids
    categories = [_id_of(name, category_ids, "class") for name in dataset.class_names]
    entries = []
    for image, file_name in zip(dataset.images, distinct_names(dataset), strict=True):
        found = detections.get(image.id)
        if found is None or not len(found):
            continue
        image_id = _id_of(image.id, image_ids, "image")
        for label, box, score in zip(
            found.labels.tolist(), found.boxes.tolist(), found.scores.tolist(), strict=True
        ):
            entry = results_entry(
                image_id=image_id,
                file_name=file_name,
                category_id=categories[label - 1],
                category_name=dataset.class_names[label - 1],
                box=box,
                score=score,
            )
            entries.append(json.dumps(entry))
    write_text(path, "[" + ",\n".join(entries) + "]\n")


def read_coco_results(
    path: Path,
    dataset: Dataset,
    *,
    image_ids: Mapping[str, int | str] | None = None,
    category_ids: Mapping[str, int] | None = None,
) -> dict[str, Detections]:
    """Read COCO results; further keys of an entry, such as a segmentation, are not looked at.

    A picture is named by `image_id`, a class by `category_id`. Each may be an id of the mapping or
    a string: the picture's id, its file name or stem, the class's name. `file_name` serves where
    there is no `image_id`.

    Args:
        image_ids, category_ids: as for `write_coco_results`.

    Returns:
        The detections of every picture of the split by its id, in descending score.

    Raises:
        DataError: no JSON list, or an entry is wrong: a key is missing, no number, a box without
            area, a picture or a class that is not of the data set.
    """
    image_ids = default_image_ids(dataset) if image_ids is None else image_ids
    category_ids = default_category_ids(dataset) if category_ids is None else category_ids
    row_of = {image.id: row for row, image in enumerate(dataset.images)}
    pictures: dict[int | str, int] = {}
    pictures.update(pictures_by_name(dataset).items())
    pictures |= {key: row_of[name] for name, key in image_ids.items() if name in row_of}
    labels: dict[int | str, int] = {n: k for k, n in enumerate(dataset.class_names, start=1)}
    labels |= {category_ids[n]: labels[n] for n in dataset.class_names if n in category_ids}
    rows = Rows()
    rows.begin(f"{path}, entry ")
    for number, entry in _entries(path):
        where = f"{path}, entry {number}"
        key = entry.get("image_id", entry.get("file_name"))
        row = _look_up(key, pictures, f"{where}: image_id", f"not of {dataset.name}")
        category = entry.get("category_id")
        label = _look_up(category, labels, f"{where}: category_id", "not of a class")
        x, y, w, h = _numbers(entry.get("bbox"), 4, f"{where}: bbox")
        (score,) = _numbers([entry.get("score")], 1, f"{where}: score")
        rows.add(number, picture=row, label=label, score=score, box=(x, y, x + w, y + h))
    return rows.group(dataset)


def default_image_ids(dataset: Dataset) -> dict[str, int | str]:
    """The ids as integers where all are different ones (COCO's, VOC 2007's), else 1..N in order."""
    names = [image.id for image in dataset.images]
    if all(name.isascii() and name.isdigit() for name in names):
        numbers = [int(name) for name in names]
        if len(set(numbers)) == len(numbers):
            return dict(zip(names, numbers, strict=True))
    return {name: number for number, name in enumerate(names, start=1)}


def default_category_ids(dataset: Dataset) -> dict[str, int]:
    """The labels: 1..K."""
    return {name: label for label, name in enumerate(dataset.class_names, start=1)}


def ids_from_annotations(
    path: Path, dataset: Dataset
) -> tuple[dict[str, int | str], dict[str, int]]:
    """The image and category ids of the COCO annotation file that `dataset` was read from.

    Raises:
        DataError: no COCO annotations, or a picture or class of the data set is not in them.
    """
    try:
        data = json.loads(read_text(path))
        files = {image["file_name"]: image["id"] for image in data["images"]}
        categories = {entry["name"]: entry["id"] for entry in data["categories"]}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise DataError(f"{path}: not COCO annotations with images and categories") from None
    images = dict(zip(unique_ids(list(files)), files.values(), strict=True))
    return (
        {image.id: _id_of(image.id, images, f"{path}: image") for image in dataset.images},
        {name: _id_of(name, categories, f"{path}: class") for name in dataset.class_names},
    )


def _entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        entries = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if not isinstance(entries, list):
        raise DataError(f"{path}: a {type(entries).__name__}, expected a list of detections")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise DataError(f"{path}, entry {number}: {entry!r:.60}, expected an object")
        yield number, entry


def _look_up(key: object, known: Mapping[int | str, int], what: str, problem: str) -> int:
    if isinstance(key, (int, str)) and not isinstance(key, bool) and key in known:
        return known[key]
    _refuse(what, key, problem)


def _numbers(values: object, count: int, what: str) -> list[float]:
    if (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    ):
        with contextlib.suppress(OverflowError):  # an integer beyond all floats
            return [float(v) for v in values]
    _refuse(what, values, "expected " + ("a number" if count == 1 else f"{count} numbers"))


def _refuse(what: str, value: object, problem: str) -> NoReturn:
    shown = "missing" if value in (None, [None]) else f"{value!r:.60}"
    raise DataError(f"{what}: {shown}, {problem}")


def _id_of(name: str, ids: Mapping[str, Any], what: str) -> Any:
    try:
        return ids[name]
    except KeyError:
        raise DataError(f"{what} {name!r} has no id") from None

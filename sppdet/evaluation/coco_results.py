"""COCO results JSON, and the `detections.json` of `sppdet detect`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from sppdet.artifacts import write_text
from sppdet.data.coco import CocoId, coco_id
from sppdet.data.files import name_problem, read_json
from sppdet.data.results import results_entry
from sppdet.errors import DataError
from sppdet.evaluation.ids import IdMeaning, labels_of_ids, rows_of_ids
from sppdet.evaluation.image_names import ImageNames, distinct_names, path_parts
from sppdet.evaluation.inputs import check_detections
from sppdet.evaluation.rows import Rows
from sppdet.types import Dataset, Detections

_log = logging.getLogger("sppdet")
_Entry = dict[str, Any]


def write_coco_results(
    path: Path,
    dataset: Dataset,
    detections: Mapping[str, Detections],
    *,
    image_ids: Mapping[str, CocoId] | None = None,
    category_ids: Mapping[str, CocoId] | None = None,
) -> None:
    """Write COCO results: a list of `results_entry`, boxes [x, y, width, height], 0-based.

    Args:
        image_ids: image id -> id in the file; by default `default_image_ids`. For a server or a
            script that has the annotations, take `ids.ids_to_write`.
        category_ids: class name -> id in the file; by default the labels 1..K.

    Raises:
        DataError: detections that do not fit the data set, or an image or class without an id.
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


def default_image_ids(dataset: Dataset) -> dict[str, CocoId]:
    """The ids as integers where all are different ones (COCO's, VOC 2007's), else 1..N in order."""
    names = [image.id for image in dataset.images]
    if all(name.isascii() and name.isdigit() for name in names):
        numbers = [int(name) for name in names]
        if len(set(numbers)) == len(numbers):
            return dict(zip(names, numbers, strict=True))
    return {name: number for number, name in enumerate(names, start=1)}


def default_category_ids(dataset: Dataset) -> dict[str, CocoId]:
    """The labels: 1..K."""
    return {name: label for label, name in enumerate(dataset.class_names, start=1)}


@dataclass(frozen=True, repr=False)
class _Name:
    """An image or a class named by text; `others` are names to try where the first fits nothing."""

    name: str
    others: tuple[str, ...] = ()
    is_path: bool = False  # of a file; else it may be an id of the data set

    def __repr__(self) -> str:
        return repr(self.others[-1] if self.others else self.name)


@dataclass(frozen=True, repr=False)
class _Id:
    """An image or a class named by an id."""

    id: CocoId

    def __repr__(self) -> str:
        return repr(self.id)


_Key = _Name | _Id


@dataclass(frozen=True)
class CocoResults:
    """A file of detections: a list of COCO results, or an object that names its images and categories.

    `images` and `categories` are None for a list, whose entries name theirs by `file_name` and
    `category_name` (or `class`), or else by `image_id` and `category_id`.
    """

    path: Path
    entries: list[Any]
    images: dict[CocoId, _Name] | None
    categories: dict[CocoId, _Name] | None
    where: str  # begins the place of an entry

    @classmethod
    def read(cls, path: Path) -> CocoResults:
        """Read a file; its entries are looked at by the methods.

        Raises:
            DataError: no JSON, neither a list nor an object with the lists images, categories and
                annotations, or an image or category in them without an id or a name.
        """
        data = read_json(path)
        if isinstance(data, list):
            return cls(path, data, None, None, f"{path}, entry ")
        if not isinstance(data, dict):
            problem = f"a {type(data).__name__}, expected a list of detections"
            raise DataError(f"{path}: {problem} or a detections.json")
        for key in ("images", "categories", "annotations"):
            if not isinstance(data.get(key), list):
                raise DataError(
                    f"{path}: no list {key!r}; expected a list of detections or an object with images,"
                    " categories and annotations"
                )
        images = _table(data["images"], _image_name, f"{path}, images")
        categories = _table(data["categories"], _category_name, f"{path}, categories")
        where = f"{path}, annotations, entry "
        return cls(path, data["annotations"], images, categories, where)

    def class_names(self, meaning: IdMeaning) -> list[str]:
        """The names of the classes that the entries are of, where they have names; sorted.

        Raises:
            DataError: an entry names no class.
        """
        names = set()
        for where, entry in self._entries():
            key = self._category(entry, where, meaning)
            name = key.name if isinstance(key, _Name) else meaning.tables.categories.get(key.id)
            if name:
                names.add(name)
        return sorted(names)

    def detections(self, dataset: Dataset, meaning: IdMeaning) -> dict[str, Detections]:
        """The detections of every image of a split by its id, in descending score.

        What is in no image or of no class of the split, and boxes that can't be scored, are left out
        with a warning (see `Rows.group`). Further keys of an entry, such as a segmentation, are not
        looked at.

        Raises:
            DataError: an entry is wrong: a key is missing or no number; a number that could mean two
                images or classes; entries, none of which is in the split.
        """
        rows = Rows(self.path)
        rows.begin(self.where)
        for number, (where, entry) in enumerate(self._entries(), start=1):
            image = self._image(entry, where, meaning)
            category = self._category(entry, where, meaning)
            x, y, w, h = _numbers(entry.get("bbox"), 4, f"{where}: bbox")
            (score,) = _numbers([entry.get("score")], 1, f"{where}: score")
            box = (x, y, x + w, y + h)
            rows.add(number, image=image, category=category, score=score, box=box)
        try:
            images = _image_rows(self.path, rows.image_keys, self.images, dataset, meaning)
            labels = _labels(rows.class_keys, dataset, meaning)
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from None
        return rows.group(dataset, images=images, labels=labels)

    def _entries(self) -> Iterator[tuple[str, _Entry]]:
        for number, entry in enumerate(self.entries, start=1):
            where = f"{self.where}{number}"
            if not isinstance(entry, dict):
                raise DataError(f"{where}: {entry!r:.60}, expected an object")
            yield where, entry

    def _image(self, entry: _Entry, where: str, meaning: IdMeaning) -> _Key:
        if self.images is not None:
            return _look_up(entry.get("image_id"), self.images, f"{where}: image_id", "images")
        table = meaning.tables.images
        image_id = _number_of(entry.get("image_id"), table)
        is_id = not isinstance(image_id, str) or image_id in table
        if meaning.forced and is_id and image_id is not None:
            return _Id(coco_id(image_id, "image_id", where))
        if (name := _text(entry, "file_name", where)) is not None:
            return _Name(name, is_path=True)
        if image_id is None:
            _refuse(f"{where}: image_id", None, "expected it or file_name")
        key = coco_id(image_id, "image_id", where)
        return _Name(key) if isinstance(key, str) and not is_id else _Id(key)

    def _category(self, entry: _Entry, where: str, meaning: IdMeaning) -> _Key:
        if self.categories is not None:
            category_id, what = entry.get("category_id"), f"{where}: category_id"
            return _look_up(category_id, self.categories, what, "categories")
        table = meaning.tables.categories
        category = _number_of(entry.get("category_id"), table)
        for key in ("category_name", "class"):
            if (name := _text(entry, key, where)) is not None:
                return _Name(name.strip())
        if category is None:
            _refuse(f"{where}: category_id", None, "expected it or category_name")
        if isinstance(category, str) and category not in table:
            return _Name(category.strip())
        return _Id(coco_id(category, "category_id", where))


def _number_of(value: Any, table: Mapping[CocoId, str]) -> Any:
    """The number that a text of digits is, which other programs make of ids; else the value.

    "000012" can only be a name, and a text that the annotations know is their id.
    """
    if not isinstance(value, str) or value in table:
        return value
    is_number = value.isascii() and value.isdigit() and len(value) <= 18
    return int(value) if is_number and str(int(value)) == value else value


def _image_rows(
    path: Path,
    keys: list[Hashable],
    table: Mapping[CocoId, _Name] | None,
    dataset: Dataset,
    meaning: IdMeaning,
) -> dict[Hashable, int | None]:
    # images without a detection are matched, too, so that their names aren't taken for others'
    named = dict.fromkeys(key for key in keys if isinstance(key, _Name))
    named |= dict.fromkeys(table.values() if table is not None else ())
    matcher = ImageNames(dataset)
    rows: dict[Hashable, int | None] = {}
    for is_path in (True, False):
        chosen = [key for key in named if key.is_path == is_path]
        found = matcher.match([(key.name, *key.others) for key in chosen], paths=is_path)
        rows |= zip(chosen, found, strict=True)
    _warn_of_other_places(rows, dataset, path)
    numbers = [key.id for key in keys if isinstance(key, _Id)]
    if numbers:
        rows |= {_Id(k): row for k, row in rows_of_ids(numbers, dataset, meaning).items()}
    return rows


def _warn_of_other_places(
    rows: Mapping[Hashable, int | None], dataset: Dataset, source: Path
) -> None:
    """Count and say images that are known by the end of their path alone."""
    others = []
    for key, row in rows.items():
        if row is None or not isinstance(key, _Name) or not key.is_path:
            continue
        path = os.path.abspath(dataset.images[row].path)
        stated = key.name if key.others else Path(key.name).name
        known = path if key.others else Path(path).name
        if path_parts(stated) != path_parts(known):
            others.append((stated, known))
    if others:
        _log.warning(
            "%s: %d images of %s have other paths than in this file and are matched by their names; the"
            " first: %s for %s",
            *(source, len(others), dataset.name, *others[0]),
        )


def _labels(
    keys: list[Hashable], dataset: Dataset, meaning: IdMeaning
) -> dict[Hashable, int | None]:
    by_name = {name: label for label, name in enumerate(dataset.class_names, start=1)}
    labels: dict[Hashable, int | None] = {
        key: by_name.get(key.name) for key in keys if isinstance(key, _Name)
    }
    numbers = [key.id for key in keys if isinstance(key, _Id)]
    if numbers:
        labels |= {_Id(k): label for k, label in labels_of_ids(numbers, dataset, meaning).items()}
    return labels


def _table(
    entries: list[Any], name_of: Callable[[_Entry, str], _Name], where: str
) -> dict[CocoId, _Name]:
    table: dict[CocoId, _Name] = {}
    for number, entry in enumerate(entries, start=1):
        place = f"{where}, entry {number}"
        if not isinstance(entry, dict):
            raise DataError(f"{place}: {entry!r:.60}, expected an object")
        key = coco_id(entry.get("id"), "id", place)
        if key in table:
            raise DataError(f"{place}: id {key!r:.60} is there twice")
        table[key] = name_of(entry, place)
    return table


def _image_name(entry: _Entry, where: str) -> _Name:
    """The whole path as it is on this machine, the path, the file name: the best first."""
    path, name = _text(entry, "path", where), _text(entry, "file_name", where)
    names = [os.path.abspath(path), path] if path is not None else []
    names += [name] if name is not None else []
    if not names:
        _refuse(f"{where}: file_name", None, "expected text")
    return _Name(names[0], tuple(names[1:]), is_path=True)


def _category_name(entry: _Entry, where: str) -> _Name:
    name = _text(entry, "name", where)
    if name is None:
        _refuse(f"{where}: name", None, "expected text")
    return _Name(name.strip())


def _text(entry: _Entry, key: str, where: str) -> str | None:
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        _refuse(f"{where}: {key}", value, "expected text")
    if problem := name_problem(value):
        raise DataError(f"{where}: {key} {value} {problem}")
    return value


def _look_up(key: object, table: Mapping[CocoId, _Name], what: str, list_name: str) -> _Name:
    try:
        return table[coco_id(key, "", "")]
    except (DataError, KeyError):
        _refuse(what, key, f"not an id in {list_name}")


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


def _id_of(name: str, ids: Mapping[str, CocoId], what: str) -> CocoId:
    try:
        return ids[name]
    except KeyError:
        raise DataError(f"{what} {name!r} has no id") from None

"""COCO results JSON, and the `detections.json` of `sppdet detect`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from sppdet.conversions import results_entry
from sppdet.errors import DataError, name_problem
from sppdet.evaluation.inputs import check_detections
from sppdet.io.coco import CocoId, coco_id
from sppdet.io.detection_rows import Key, Names, Rows
from sppdet.io.files import read_json
from sppdet.io.image_ids import IdMeaning, labels_of_ids, rows_of_ids
from sppdet.io.image_names import ImageNames, distinct_names, path_parts
from sppdet.io.names import frame_file
from sppdet.io.records import stated_size
from sppdet.io.web import is_url
from sppdet.runs.artifacts import write_text
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
    """Write COCO results: a list of `results_entry`.

    Args:
        image_ids: image id -> id in the file; by default `default_image_ids`. For a server or a
            script that has the annotations, take `image_ids.ids_to_write`.
        category_ids: class name -> id in the file; by default the labels 1..K.

    Raises:
        DataError: detections that do not fit the data set.
    """
    check_detections(dataset, detections)
    image_ids = image_ids or default_image_ids(dataset)
    names = dataset.class_names
    category_ids = category_ids or {name: label for label, name in enumerate(names, start=1)}
    categories = [(category_ids[name], name) for name in names]
    entries = [
        json.dumps(
            results_entry(
                box, score, image=(image_ids[image.id], file_name), category=categories[label - 1]
            )
        )
        for image, file_name in zip(dataset.images, distinct_names(dataset), strict=True)
        if (found := detections.get(image.id)) is not None
        for box, score, label in zip(
            found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        )
    ]
    write_text(path, "[" + ",\n".join(entries) + "]\n")


def default_image_ids(dataset: Dataset) -> dict[str, CocoId]:
    """Take the ids as integers where all are different ones (COCO, VOC 2007), else 1..N in order."""
    names = [image.id for image in dataset.images]
    if all(name.isascii() and name.isdigit() for name in names):
        numbers = [int(name) for name in names]
        if len(set(numbers)) == len(numbers):
            return dict(zip(names, numbers, strict=True))
    return {name: number for number, name in enumerate(names, start=1)}


@dataclass(frozen=True)
class CocoResults:
    """A file of detections: a list of COCO results, or an object that names its images and categories.

    `images` and `categories` are None for a list, whose entries name theirs by `file_name` and
    `category_name` (or `class`), or else by `image_id` and `category_id`. `sizes` are the (width, height)
    of the images in pixels, None where the file doesn't say. `timed`: some are frames with a time.
    """

    path: Path
    entries: list[Any]
    images: dict[CocoId, Names] | None
    categories: dict[CocoId, Names] | None
    where: str  # prefix of an entry's number in messages
    sizes: Mapping[CocoId, tuple[int, int] | None] = field(default_factory=dict)
    timed: bool = False

    @classmethod
    def read(cls, path: Path) -> CocoResults:
        """Read a file; the methods check its entries.

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
        images = _table(data["images"], _names_of_image, f"{path}, images, entry ")
        categories = _table(data["categories"], _name_of_category, f"{path}, categories, entry ")
        sizes = {
            key: stated_size(entry.get("width"), entry.get("height"))
            for key, entry in zip(images, data["images"], strict=True)
        }
        where = f"{path}, annotations, entry "
        timed = any("seconds" in entry for entry in data["images"])
        return cls(path, data["annotations"], images, categories, where, sizes, timed)

    def class_names(self, meaning: IdMeaning) -> list[str]:
        """List the names of the classes that the entries are of, where they have names; sorted.

        Raises:
            DataError: an entry names no class.
        """
        keys = {self._category(entry, where, meaning) for where, entry in self._entries()}
        known = meaning.tables.categories
        names = {key[0] if isinstance(key, tuple) else known.get(key) for key in keys}
        return sorted(name for name in names if name)

    def detections(self, dataset: Dataset, meaning: IdMeaning) -> dict[str, Detections]:
        """Group the detections of a split by image id, in descending score.

        What is in no image or of no class of the split, and boxes that can't be scored, are left out
        with a warning (see `Rows.group`). Further keys of an entry, such as a segmentation, are
        ignored.

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
        # images without a detection are matched, too, so that their names aren't taken for others'
        keys = [*rows.images, *(self.images or {}).values()]
        try:
            images = _image_rows(self.path, keys, dataset, meaning)
            labels = _labels(rows.classes, dataset, meaning)
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from None
        return rows.group(dataset, images=images, labels=labels)

    def _entries(self) -> Iterator[tuple[str, _Entry]]:
        return _objects(self.entries, self.where)

    def _image(self, entry: _Entry, where: str, meaning: IdMeaning) -> Key:
        if self.images is not None:
            return _look_up(entry.get("image_id"), self.images, f"{where}: image_id", "images")
        table = meaning.tables.images
        image_id = _number_of(entry.get("image_id"), table)
        is_id = not isinstance(image_id, str) or image_id in table
        if meaning.forced and is_id and image_id is not None:
            return coco_id(image_id, "image_id", where)
        if (name := _text(entry, "file_name", where)) is not None:
            return (name,)
        if image_id is None:
            _refuse(f"{where}: image_id", None, "expected it or file_name")
        return coco_id(image_id, "image_id", where)  # a text may be a name, too

    def _category(self, entry: _Entry, where: str, meaning: IdMeaning) -> Key:
        if self.categories is not None:
            category_id, what = entry.get("category_id"), f"{where}: category_id"
            return _look_up(category_id, self.categories, what, "categories")
        table = meaning.tables.categories
        category = _number_of(entry.get("category_id"), table)
        for key in ("category_name", "class"):
            if (name := _text(entry, key, where)) is not None:
                return (name.strip(),)
        if category is None:
            _refuse(f"{where}: category_id", None, "expected it or category_name")
        if isinstance(category, str) and category not in table:
            return (category.strip(),)
        return coco_id(category, "category_id", where)


def _number_of(value: Any, table: Mapping[CocoId, str]) -> Any:
    """Read a text of digits, which other programs make of ids, as a number; else return the value.

    "000012" can only be a name, and a text that the annotations know is their id.
    """
    if not isinstance(value, str) or value in table:
        return value
    is_number = value.isascii() and value.isdigit() and len(value) <= 18
    return int(value) if is_number and str(int(value)) == value else value


def _image_rows(
    source: Path, keys: Iterable[Key], dataset: Dataset, meaning: IdMeaning
) -> dict[Key, int | None]:
    """Map each key of an image to its row: names of files, texts that are a name or an id, ids."""
    distinct = list(dict.fromkeys(keys))
    files = [key for key in distinct if isinstance(key, tuple)]
    texts = [k for k in distinct if isinstance(k, str) and k not in meaning.tables.images]
    matcher = ImageNames(dataset)
    rows: dict[Key, int | None] = {}
    rows |= zip(files, matcher.match(files, paths=True), strict=True)
    rows |= zip(texts, matcher.match([(text,) for text in texts]), strict=True)
    _warn_of_other_places(source, files, rows, dataset)
    ids = [key for key in distinct if key not in rows and not isinstance(key, tuple)]
    return rows | (rows_of_ids(ids, dataset, meaning) if ids else {})


def _warn_of_other_places(
    source: Path, files: list[Names], rows: Mapping[Key, int | None], dataset: Dataset
) -> None:
    """Count the images that only the end of their path matches, and warn of them."""
    others = []
    for names in files:
        if (row := rows[names]) is None:
            continue
        path = os.path.abspath(dataset.images[row].path)
        stated = names[0] if len(names) > 1 else Path(names[0]).name
        known = path if len(names) > 1 else Path(path).name
        if path_parts(stated) != path_parts(known):
            others.append((stated, known))
    if others:
        _log.warning(
            "%s: %d images of %s have other paths than in this file and are matched by their names; the"
            " first: %s for %s",
            *(source, len(others), dataset.name, *others[0]),
        )


def _labels(keys: Iterable[Key], dataset: Dataset, meaning: IdMeaning) -> dict[Key, int | None]:
    """Map each key of a class to its label."""
    by_name = {name: label for label, name in enumerate(dataset.class_names, start=1)}
    labels: dict[Key, int | None] = {
        key: by_name.get(key[0]) for key in keys if isinstance(key, tuple)
    }
    ids = [key for key in keys if not isinstance(key, tuple)]
    return labels | (labels_of_ids(ids, dataset, meaning) if ids else {})


def _objects(entries: list[Any], prefix: str) -> Iterator[tuple[str, _Entry]]:
    for number, entry in enumerate(entries, start=1):
        where = f"{prefix}{number}"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: {entry!r:.60}, expected an object")
        yield where, entry


def _table(
    entries: list[Any], names_of: Callable[[_Entry, str], Names], prefix: str
) -> dict[CocoId, Names]:
    table: dict[CocoId, Names] = {}
    for where, entry in _objects(entries, prefix):
        key = coco_id(entry.get("id"), "id", where)
        if key in table:
            raise DataError(f"{where}: id {key!r:.60} is there twice")
        table[key] = names_of(entry, where)
    return table


def _names_of_image(entry: _Entry, where: str) -> Names:
    """List the absolute path on this machine, the path, the file name: the best first.

    Frames of a video share its path, and a URL is none; these have a file name alone.
    """
    path, name = _text(entry, "path", where), _text(entry, "file_name", where)
    if name is not None and "seconds" in entry:
        return (frame_file(name),)
    if name is not None and path is not None and is_url(path):
        return (name,)
    names = () if path is None else (os.path.abspath(path), path)
    if name is None and path is None:
        _refuse(f"{where}: file_name", None, "expected text")
    return names if name is None else (*names, name)


def _name_of_category(entry: _Entry, where: str) -> Names:
    name = _text(entry, "name", where)
    if name is None:
        _refuse(f"{where}: name", None, "expected text")
    return (name.strip(),)


def _text(entry: _Entry, key: str, where: str) -> str | None:
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        _refuse(f"{where}: {key}", value, "expected text")
    if problem := name_problem(value):
        raise DataError(f"{where}: {key} {value} {problem}")
    return value


def _look_up(key: object, table: Mapping[CocoId, Names], what: str, list_name: str) -> Names:
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

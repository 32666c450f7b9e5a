"""COCO annotations: reading instance files, and ground truth as a COCO dict for pycocotools."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sppdet.data.files import name_problem, read_text
from sppdet.data.records import (
    FAR_PX,
    ImageRecord,
    ObjectRecord,
    shorten,
    stated_size,
    unique_ids,
)
from sppdet.errors import AnnotationError
from sppdet.types import Dataset

_Entry = dict[str, Any]


def read_coco_set(root: Path, set_name: str, *, images: Path | None) -> list[ImageRecord]:
    """Read the annotations of one set, in the order of its `images`.

    The file is the first that exists of `coco_file`. Pictures lie in `images`, or if None in the
    first that has them of root/<set>, root/images/<set>, root/images, `root` and the file's folder.

    Raises:
        AnnotationError: there is no such file, or `read_coco_annotations` refuses it.
    """
    path = coco_file(root, set_name)
    stem = path.stem.removeprefix("instances_") if set_name.endswith(".json") else set_name
    near = (root / stem, root / "images" / stem, root / "images", root, path.parent)
    return read_coco_annotations(path, folders=(images,) if images else near)


def coco_file(root: Path, set_name: str) -> Path:
    """The annotation file of a set.

    It is root/annotations/instances_<set>.json, root/annotations/<set>.json, root/<set>.json or
    root/<set>/_annotations.coco.json, whichever comes first; a set name that ends in `.json` is
    itself a path below `root`.

    Raises:
        AnnotationError: none of them exists; the JSON files that do are listed.
    """
    candidates = [
        root / "annotations" / f"instances_{set_name}.json",
        root / "annotations" / f"{set_name}.json",
        root / f"{set_name}.json",
        root / set_name / "_annotations.coco.json",
    ]
    if set_name.endswith(".json"):
        candidates = [root / set_name]
    for path in candidates:
        if path.is_file():
            return path
    there = [p.relative_to(root).as_posix() for p in sorted(root.glob("*.json"))]
    there += [p.relative_to(root).as_posix() for p in sorted(root.glob("annotations/*.json"))]
    listed = f"there are: {shorten(there)}" if there else "there are no JSON files"
    raise AnnotationError(f"{candidates[0]}: no such file, nor elsewhere in {root}; {listed}")


def read_coco_annotations(path: Path, *, folders: tuple[Path, ...]) -> list[ImageRecord]:
    """Read a COCO instance file.

    Boxes [x, y, w, h], 0-based, become xyxy. `iscrowd`, `ignore` and `difficult` all make an
    object difficult. Category ids may have gaps; only their names are used. Segmentations are not
    read.

    Args:
        path: the JSON file.
        folders: where the pictures may lie; if a picture is in none, its path is in the first.

    Returns:
        A record for each entry of `images`; an object with an impossible box says so in its
        `problem`.

    Raises:
        AnnotationError: no JSON, a key is missing, or an id is unknown or occurs twice.
    """
    data = _read_json(path)
    images = _by_id(data, "images", "file_name", path)
    names = _by_id(data, "categories", "name", path)
    objects: dict[int | str, list[ObjectRecord]] = defaultdict(list)
    for where, entry in _entries(data, "annotations", path):
        image_id = _known(entry, "image_id", images, where)
        name = names[_known(entry, "category_id", names, where)]
        number = entry.get("id", where.rpartition(" ")[2])
        objects[image_id].append(_object(entry, name, number, where))
    file_names = list(images.values())
    if len(set(file_names)) < len(file_names):
        again = next(name for name in file_names if file_names.count(name) > 1)
        raise AnnotationError(f"{path}, images: {again!r} is there twice")
    sizes = {
        entry["id"]: stated_size(entry.get("width"), entry.get("height"))
        for _, entry in _entries(data, "images", path)
    }
    where = f"{path.name}, annotation"
    return [
        ImageRecord(key, _find(name, folders), tuple(objects[image_id]), where, sizes[image_id])
        for key, (image_id, name) in zip(unique_ids(file_names), images.items(), strict=True)
    ]


def to_coco(dataset: Dataset) -> dict[str, Any]:
    """The ground truth as a COCO dict, as pycocotools takes it.

    Image ids are 1..N in the order of the data set, category ids are the labels. Each image also
    has `sppdet_id`, the id in the data set. Difficult objects become crowds, the only ones that
    pycocotools counts neither way; `area` is the box's.
    """
    images: list[_Entry] = []
    annotations: list[_Entry] = []
    for image_id, image in enumerate(dataset.images, start=1):
        images.append(
            {
                "id": image_id,
                "file_name": image.path.name,
                "width": image.width,
                "height": image.height,
                "sppdet_id": image.id,
            }
        )
        objects = zip(
            image.gt_boxes.tolist(),
            image.gt_labels.tolist(),
            image.difficult.tolist(),
            strict=True,
        )
        for (x1, y1, x2, y2), label, difficult in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes id 0 for "no match"
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(difficult),
                }
            )
    categories = [{"id": k, "name": name} for k, name in enumerate(dataset.class_names, start=1)]
    return {
        "info": {"description": dataset.name},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _read_json(path: Path) -> _Entry:
    try:
        data = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise AnnotationError(f"{path}: a {type(data).__name__}, expected an object")
    return data


def _entries(data: _Entry, key: str, path: Path) -> Iterator[tuple[str, _Entry]]:
    """Each entry of the list `key` and where it stands: "coco.json, annotations, entry 3"."""
    entries = data.get(key)
    if not isinstance(entries, list):
        raise AnnotationError(f"{path}: no list {key!r}")
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, {key}, entry {number}"
        if not isinstance(entry, dict):
            raise AnnotationError(f"{where}: expected an object")
        yield where, entry


def _by_id(data: _Entry, key: str, value_key: str, path: Path) -> dict[int | str, str]:
    values: dict[int | str, str] = {}
    for where, entry in _entries(data, key, path):
        entry_id, value = _get(entry, "id", where), _get(entry, value_key, where)
        if not isinstance(value, str) or not value.strip():
            raise AnnotationError(f"{where}: {value_key} {value!r}, expected text")
        if problem := name_problem(value):
            raise AnnotationError(f"{where}: {value_key} {value} {problem}")
        if entry_id in values:
            raise AnnotationError(f"{where}: id {entry_id!r} is there twice")
        values[entry_id] = value.strip()
    return values


def _known(entry: _Entry, key: str, known: dict[int | str, str], where: str) -> int | str:
    value: int | str = _get(entry, key, where)
    if value not in known:
        raise AnnotationError(f"{where}: {key} {value!r} is not the id of any entry")
    return value


def _get(entry: _Entry, key: str, where: str) -> Any:
    if key not in entry:
        raise AnnotationError(f"{where}: no {key!r}")
    if key.endswith("id") and not isinstance(entry[key], int | str):
        raise AnnotationError(f"{where}: {key} {entry[key]!r}, expected a number")
    return entry[key]


def _object(entry: _Entry, name: str, number: int | str, where: str) -> ObjectRecord:
    bbox = _get(entry, "bbox", where)
    difficult = any(entry.get(key) for key in ("iscrowd", "ignore", "difficult"))
    truncated = bool(entry.get("truncated"))
    box, problem = (0.0, 0.0, 0.0, 0.0), ""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        problem = f"bbox {bbox!r}, expected 4 numbers"
    elif bbox[2] <= 0 or bbox[3] <= 0:
        side = "width" if bbox[2] <= 0 else "height"
        problem = f"{side} {bbox[2] if side == 'width' else bbox[3]:g} <= 0"
    else:
        x, y, w, h = map(float, bbox)
        box = (x, y, x + w, y + h)
    return ObjectRecord(name, box, difficult, truncated, number, problem)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < FAR_PX


def _find(file_name: str, folders: tuple[Path, ...]) -> Path:
    candidates = [folder / file_name for folder in folders]
    return next((path for path in candidates if path.is_file()), candidates[0])

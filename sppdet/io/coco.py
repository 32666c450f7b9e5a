"""Reading of COCO annotations."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from sppdet.errors import AnnotationError, name_problem, shorten
from sppdet.io.files import is_file, read_json
from sppdet.io.folder_files import FolderFiles
from sppdet.io.names import unique_ids
from sppdet.io.records import (
    ImageRecord,
    ObjectRecord,
    Skips,
    is_coordinate,
    read_flag,
    stated_size,
)

_Entry = dict[str, Any]
CocoId = int | str


class _Image(NamedTuple):
    file_name: str
    stated: tuple[int, int] | None


@dataclass(frozen=True)
class CocoIds:
    """The ids of a COCO annotation file, in its order, and what they stand for.

    `image_paths` is where the images lie, `file_names` what the file calls them.
    """

    image_paths: dict[CocoId, Path]
    file_names: dict[CocoId, str]
    category_names: dict[CocoId, str]


def read_coco_set(
    root: Path, set_name: str, *, images: Path | None, skips: Skips
) -> list[ImageRecord]:
    """Read the annotations of one set, in the order of its `images`.

    The file is the first that exists of `coco_file`. Images lie in the folder `images`, or if None in
    the first that has them of root/<set>, root/images/<set>, root/images, `root` and the file's folder.

    Raises:
        AnnotationError: there is no such file, or `read_coco_annotations` refuses it.
    """
    path = coco_file(root, set_name)
    folders = _image_folders(path, root, set_name, images)
    return read_coco_annotations(path, folders=folders, skips=skips, below=images or root)


def read_coco_ids(root: Path, set_name: str, *, images: Path | None) -> CocoIds:
    """Read the ids of one set's annotation file as `read_coco_set` reads it.

    Raises:
        AnnotationError: there is no such file, or its images or categories are refused.
    """
    path = coco_file(root, set_name)
    folders = _image_folders(path, root, set_name, images)
    return read_coco_file_ids(path, folders=folders, below=images or root)


def read_coco_file_ids(
    path: Path, *, folders: tuple[Path, ...] = (), below: Path | None = None
) -> CocoIds:
    """Read the ids of an annotation file; without `folders` the images lie beside it.

    Entries of `images` that can't be used are left out: they are in no data set either.
    """
    data = _read_object(path)
    images = _read_images(data, path, Skips(stop=False))
    files = {key: image.file_name for key, image in images.items()}
    find = _Images(folders or (path.parent,), path, below).find
    skips = Skips(stop=False)
    paths = {key: find(name, skips) for key, name in files.items()}
    return CocoIds(paths, files, _category_names(data, path))


def _image_folders(path: Path, root: Path, set_name: str, images: Path | None) -> tuple[Path, ...]:
    stem = path.stem.removeprefix("instances_") if set_name.endswith(".json") else set_name
    near = (root / stem, root / "images" / stem, root / "images", root, path.parent)
    return (images,) if images else near


def coco_file(root: Path, set_name: str) -> Path:
    """Find the annotation file of a set.

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
        if is_file(path):
            return path
    there = [p.relative_to(root).as_posix() for p in sorted(root.glob("*.json"))]
    there += [p.relative_to(root).as_posix() for p in sorted(root.glob("annotations/*.json"))]
    listed = f"there are: {shorten(there)}" if there else "there are no JSON files"
    raise AnnotationError(f"{candidates[0]}: no such file, nor elsewhere in {root}; {listed}")


def read_coco_annotations(
    path: Path, *, folders: tuple[Path, ...], skips: Skips, below: Path | None = None
) -> list[ImageRecord]:
    """Read a COCO instance file.

    Boxes [x, y, w, h], 0-based, become xyxy. `iscrowd`, `ignore` and `difficult` all make an
    object difficult; flags are read by `read_flag`. Category ids may have gaps; only their names are
    used. Segmentations are not read.

    Args:
        path: the JSON file.
        folders: where the images may lie; if an image is in none, its path is in the first.
        skips: told of entries of `images` and `annotations` that can't be used: without a key, or of
            an image or category that isn't there.
        below: folder to look for an image that is in none of `folders` by its name as another system has
            written it, see `FolderFiles.find`; None for none.

    Returns:
        A record for each entry of `images`; an object with an impossible box or flag says so in its
        `problem`.

    Raises:
        AnnotationError: no JSON, not the three lists, or an id, a file name or a category is wrong or
            occurs twice.
    """
    data = _read_object(path)
    images = _read_images(data, path, skips)
    names = _category_names(data, path)
    objects: dict[CocoId, list[ObjectRecord]] = defaultdict(list)
    for where, entry in _entries(data, "annotations", path):
        try:
            image_id = _known(entry, "image_id", images, where)
            name = names[_known(entry, "category_id", names, where)]
            _get(entry, "bbox", where)
        except AnnotationError as error:
            skips.report(error)
            continue
        number = entry.get("id")
        if not isinstance(number, int | str):
            number = where.rpartition(" ")[2]
        objects[image_id].append(_object(entry, name, number))
    keys = unique_ids([image.file_name for image in images.values()])
    where = f"{path.name}, annotation"
    find = _Images(folders, path, below).find
    return [
        ImageRecord(
            key, find(image.file_name, skips), tuple(objects[image_id]), where, image.stated
        )
        for key, (image_id, image) in zip(keys, images.items(), strict=True)
    ]


def _read_object(path: Path) -> _Entry:
    data = read_json(path)
    if not isinstance(data, dict):
        raise AnnotationError(f"{path}: a {type(data).__name__}, expected an object")
    return data


def _entries(data: _Entry, key: str, path: Path) -> Iterator[tuple[str, _Entry]]:
    """Yield each entry of the list `key`, not yet checked, and its place: "coco.json, images, entry 3"."""
    entries = data.get(key)
    if not isinstance(entries, list):
        raise AnnotationError(f"{path}: no list {key!r}")
    for number, entry in enumerate(entries, start=1):
        yield f"{path}, {key}, entry {number}", entry


def _read_images(data: _Entry, path: Path, skips: Skips) -> dict[CocoId, _Image]:
    """Read `images` by id; report an entry without a name, refuse a repeated id or name."""
    images: dict[CocoId, _Image] = {}
    for where, entry in _entries(data, "images", path):
        try:
            entry_id, name = _id_and_text(entry, "file_name", where)
        except AnnotationError as error:
            skips.report(error)
            continue
        _refuse_repeated(entry_id, images, where)
        images[entry_id] = _Image(name, stated_size(entry.get("width"), entry.get("height")))
    for name, count in Counter(image.file_name for image in images.values()).items():
        if count > 1:
            raise AnnotationError(f"{path}, images: {name!r:.80} is there twice")
    return images


def _category_names(data: _Entry, path: Path) -> dict[CocoId, str]:
    """Read the class names by category id; several ids may share a name."""
    names: dict[CocoId, str] = {}
    for where, entry in _entries(data, "categories", path):
        entry_id, name = _id_and_text(entry, "name", where)
        _refuse_repeated(entry_id, names, where)
        names[entry_id] = name
    return names


def _id_and_text(entry: _Entry, key: str, where: str) -> tuple[CocoId, str]:
    """Get the id and the text at `key`, stripped."""
    entry_id, value = coco_id(_get(entry, "id", where), "id", where), _get(entry, key, where)
    if not isinstance(value, str) or not value.strip():
        raise AnnotationError(f"{where}: {key} {value!r:.80}, expected text")
    if problem := name_problem(value):
        raise AnnotationError(f"{where}: {key} {value} {problem}")
    return entry_id, value.strip()


def _refuse_repeated(entry_id: CocoId, known: Collection[CocoId], where: str) -> None:
    if entry_id in known:
        raise AnnotationError(f"{where}: id {entry_id!r:.80} is there twice")


def _known(entry: _Entry, key: str, known: Collection[CocoId], where: str) -> CocoId:
    value = coco_id(_get(entry, key, where), key, where)
    if value not in known:
        raise AnnotationError(f"{where}: {key} {value!r:.80} is not the id of any entry")
    return value


def coco_id(value: object, key: str, where: str) -> CocoId:
    """Check an id as COCO's tools write it: an integer (7.0 is 7) or text.

    Raises:
        AnnotationError: neither; `where` and `key` begin the message.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise AnnotationError(f"{where}: {key} {value!r:.80}, expected a number")
    return value


def _get(entry: object, key: str, where: str) -> Any:
    if not isinstance(entry, dict):
        raise AnnotationError(f"{where}: expected an object")
    if key not in entry:
        raise AnnotationError(f"{where}: no {key!r}")
    return entry[key]


def _object(entry: _Entry, name: str, number: CocoId) -> ObjectRecord:
    try:
        crowd, ignore, difficult, truncated = (
            read_flag(entry.get(key), key)
            for key in ("iscrowd", "ignore", "difficult", "truncated")
        )
        box = _box(entry["bbox"])
    except ValueError as error:
        return ObjectRecord(name, (0.0, 0.0, 0.0, 0.0), False, False, number, str(error))
    return ObjectRecord(name, box, crowd or ignore or difficult, truncated, number)


def _box(bbox: object) -> tuple[float, float, float, float]:
    """Convert [x, y, width, height] to xyxy; numbers given as text are refused."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_coordinate, bbox)):
        raise ValueError(f"bbox {bbox!r:.80}, expected 4 numbers")
    x, y, w, h = map(float, bbox)
    if w <= 0 or h <= 0:
        side, value = ("width", w) if w <= 0 else ("height", h)
        raise ValueError(f"{side} {value:g} <= 0")
    return x, y, x + w, y + h


class _Images:
    """The places where the images of an annotation file may lie."""

    def __init__(self, folders: tuple[Path, ...], file: Path, below: Path | None) -> None:
        self._folders = folders
        self._file = file
        self._below = below
        self._meant: dict[str, str] = {}  # files that names from elsewhere mean

    @cached_property
    def _files(self) -> FolderFiles | None:
        return None if self._below is None else FolderFiles(self._below)

    def find(self, file_name: str, skips: Skips) -> Path:
        """Find an image; its path in the first of the folders if it is in none."""
        candidates = [folder / file_name for folder in self._folders]
        if path := next((path for path in candidates if is_file(path)), None):
            return path
        if self._files is not None:
            near = os.path.relpath(self._file.parent, self._files.root)
            try:
                if found := self._files.image(file_name, near=near):
                    other = self._meant.setdefault(found, file_name)
                    if other != file_name:
                        raise AnnotationError(
                            f"{other!r:.80} and {file_name!r:.80} are both {found}"
                        )
                    return self._files.path(found)
            except AnnotationError as error:
                skips.report(AnnotationError(f"{self._file}, images: {error}"))
        return candidates[0]

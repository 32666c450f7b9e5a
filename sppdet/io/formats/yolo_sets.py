"""Sets and class names of YOLO's layouts, and where the labels of an image lie.

data.yaml is Ultralytics' (`path`, `train`, `val`, `test`: folders or lists of images; `names`); obj.data
and obj.names are Darknet's, as CVAT writes them; classes.txt is LabelImg's and Label Studio's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from sppdet.errors import AnnotationError, ConfigError, DataError, name_problem, one_line, shorten
from sppdet.io import plain_yaml
from sppdet.io.files import read_foreign_text, read_head
from sppdet.io.folder_files import FolderFiles, in_set
from sppdet.io.formats.common import Found, folder_of, folder_sets, ordered, such_as
from sppdet.io.records import Skips

_KEYS = ("train", "val", "test")
_NAME_FILES = ("classes.txt", "obj.names")
_LABEL = re.compile(r"\s*[0-9]+(\.0*)?(\s+[-+0-9.eE]+){4,}\s*(\n|\r|$)")
_HEAD_BYTES = 4096


class YoloSets:
    """The sets and classes that a folder's data.yaml, obj.data and classes.txt state.

    Attributes:
        keypoints: numbers of the keypoints behind each box; 0 for none.
    """

    def __init__(self, folder: FolderFiles, images: FolderFiles) -> None:
        self._folder = folder
        self._images = images
        self.file, self._data = _data_file(folder)
        shape = self._data.get("kpt_shape")
        numbers = isinstance(shape, list) and len(shape) == 2 and all(type(n) is int for n in shape)
        self.keypoints = shape[0] * shape[1] if numbers and shape else 0

    @cached_property
    def class_names(self) -> dict[int, str]:
        """The names of the classes by their numbers.

        Raises:
            AnnotationError: none are there, or they are no texts.
        """
        if self.file and not self.file.endswith(".data"):
            return _names_of(self._data.get("names"), self._folder.path(self.file))
        found = [n for n in self._folder.names if _is_name_file(n)]
        texts = {name: _lines(self._folder.path(name)) for name in found}
        if not texts:
            raise AnnotationError(
                f"{self._folder.root}: labels of YOLO without names; expected data.yaml or classes.txt"
            )
        if len({tuple(lines) for lines in texts.values()}) > 1:
            raise AnnotationError(
                f"{self._folder.root}: {found[0]} and {found[1]} differ; expected one list of classes"
            )
        return dict(enumerate(texts[found[0]]))

    @cached_property
    def sets(self) -> dict[str, list[str]]:
        """The folders and lists of images of each set, as they are written, below the root.

        A set whose folder isn't there is none, and neither is one with the images of another.
        """
        found: dict[str, list[str]] = {}
        for key in _KEYS:
            value = self._data.get(key)
            places = [value] if isinstance(value, str) else value
            if not isinstance(places, list) or not all(isinstance(p, str) for p in places):
                continue
            below = [self._below(place) for place in places]
            known = [place for place in below if place is not None]
            if known and known not in found.values():
                found[key] = known
        return found

    def images_of(self, set_name: str, skips: Skips) -> list[str]:
        """List the images of a set.

        Raises:
            AnnotationError: there is no such set, or a list names an image that isn't there.
        """
        if set_name not in self.sets:
            chosen = [name for name in self._images.images if in_set(name, set_name)]
            if not chosen:
                there = f"; there are: {shorten(list(self.sets))}" if self.sets else ""
                raise AnnotationError(f"{self._folder.root}: no images of a set {set_name}{there}")
            return chosen
        chosen = []
        for place in self.sets[set_name]:
            if place.endswith(".txt"):
                chosen += self._listed(place, skips)
            else:
                start = f"{place}/" if place else ""
                chosen += [name for name in self._images.images if name.startswith(start)]
        return list(dict.fromkeys(chosen))

    def _listed(self, place: str, skips: Skips) -> Iterator[str]:
        path, near = self._folder.path(place), folder_of(place)
        for number, line in enumerate(read_foreign_text(path).splitlines(), start=1):
            if not line.strip():
                continue
            try:
                found = self._images.image(line, near=near)
                if found is None:
                    raise AnnotationError(f"image {one_line(line, 80)} isn't there")
            except AnnotationError as error:
                skips.report(AnnotationError(f"{path}, line {number}: {error}"))
                continue
            yield found

    def _below(self, place: str) -> str | None:
        """Find a folder or list below the root; Roboflow's `../train/images` is train/images.

        It may be written relative to `path`, to data.yaml, or absolute on another machine.
        """
        if name_problem(place):
            return None
        own = folder_of(self.file)
        base = self._data.get("path")
        wanted = [f"{own}/{base}/{place}"] if isinstance(base, str) else []
        wanted += [f"{own}/{place}", place]
        # Darknet's paths start where it is called
        if re.match(r"[/\\]|[a-zA-Z]:", place) or self.file.endswith(".data"):
            parts = _plain_parts(place)
            wanted += ["/".join(parts[first:]) for first in range(1, len(parts))]
        below = ("/".join(_plain_parts(path)) for path in wanted)
        return next((path for path in below if path in self._places), None)

    @cached_property
    def _places(self) -> frozenset[str]:
        """The folders with images, and the lists."""
        folders = {p.as_posix() for n in self._images.images for p in PurePosixPath(n).parents}
        return frozenset((folders - {"."}) | {""} | set(self._folder.with_suffix(".txt")))


def _plain_parts(path: str) -> list[str]:
    return [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]


def find_yolo(folder: FolderFiles, images: FolderFiles) -> Found | None:
    """Find label files of images, or a data.yaml."""
    labels = [n for n in label_like(folder) if _has_image(PurePosixPath(n).name, images)]
    try:
        sets = YoloSets(folder, images)
    except AnnotationError:
        if not labels:
            return None
        raise
    described = bool(sets.file) and bool(sets.sets)
    if not labels and not described:
        return None
    names = sets.file or next(filter(_is_name_file, folder.names), "")
    evidence = such_as("label file", labels) if labels else "no label files"
    found = ordered(sets.sets) if "train" in sets.sets else folder_sets(images.images)
    return Found("yolo", f"{names}, {evidence}".lstrip(", "), found, folder.root)


def _has_image(label: str, images: FolderFiles) -> bool:
    try:
        return images.image(label) is not None
    except AnnotationError:  # two images have the name
        return True


def label_like(folder: FolderFiles) -> Iterator[str]:
    """Yield the text files that begin with a label."""
    for name in folder.with_suffix(".txt"):
        try:
            head = read_head(folder.path(name), _HEAD_BYTES).decode("utf-8", "replace")
        except DataError:
            continue
        if _LABEL.match(head):
            yield name


def label_files(
    folder: FolderFiles, images: FolderFiles, chosen: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Yield each image with its label file, where it has one.

    That is `images` made `labels` in the path, the last one, or the file beside the image; if no image has
    a label there, the file of its name anywhere below the folder.
    """
    names = frozenset(folder.names)
    found: list[tuple[str, str]] = []
    if folder.root == images.root:
        for image in chosen:
            stem = str(PurePosixPath(image).with_suffix(""))
            head, between, tail = f"/{stem}".rpartition("/images/")
            moved = f"{head}/labels/{tail}".lstrip("/") if between else stem
            label = next((n for n in (f"{moved}.txt", f"{stem}.txt") if n in names), None)
            if label is not None:
                found.append((image, label))
    if found:
        yield from found
        return
    for image in chosen:
        near = folder_of(image)
        label = folder.find(PurePosixPath(image).name, near=near, suffixes=(".txt",))
        if label is not None:
            yield image, label


def _data_file(folder: FolderFiles) -> tuple[str, dict[str, Any]]:
    """Find data.yaml, by its keys, or obj.data; "" if there is neither.

    Raises:
        AnnotationError: two files could be it, or it is damaged.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in folder.with_suffix(".yaml", ".yml"):
        data = _yaml(folder.path(name))
        if data is not None and "names" in data and any(key in data for key in _KEYS):
            found[name] = data
    if len(found) > 1:
        raise AnnotationError(
            f"{folder.root}: {' or '.join(list(found)[:2])}: expected one data.yaml"
        )
    if found:
        return next(iter(found.items()))
    for name in folder.with_suffix(".data"):
        pairs = (line.partition("=") for line in _lines(folder.path(name)))
        data = {key.strip(): value.strip() for key, _, value in pairs}
        if "names" in data:
            return name, {**data, "val": data.get("valid")}
    return "", {}


def _yaml(path: Path) -> dict[str, Any] | None:
    """Read a YAML file; None if it is no mapping and damaged in no way that could be data.yaml's."""
    try:
        text = read_foreign_text(path, max_bytes=1_000_000)
    except AnnotationError:
        return None
    try:
        data = plain_yaml.parse(text)
    except ConfigError as error:
        if re.search(r"^names\s*:", text, re.MULTILINE):
            raise AnnotationError(f"{path}: {error}") from None
        return None
    return data if isinstance(data, dict) else None


def _names_of(value: object, path: Path) -> dict[int, str]:
    """Read `names`, a list or a mapping of numbers to names."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(value, list):
        pairs = list(enumerate(value))
    elif isinstance(value, dict):
        pairs = list(value.items())
    names: dict[int, str] = {}
    for key, name in pairs:
        if isinstance(name, int | float) and not isinstance(name, bool):
            name = str(name)  # a class called 7
        if (
            not str(key).isascii()
            or not str(key).isdigit()
            or not isinstance(name, str)
            or not name.strip()
        ):
            raise AnnotationError(
                f"{path}: names: {one_line(f'{key}: {name}', 60)}, expected texts"
            )
        names[int(key)] = name.strip()
    if not names:
        raise AnnotationError(f"{path}: names: expected a list of classes")
    return names


def _is_name_file(name: str) -> bool:
    base = PurePosixPath(name).name.lower()
    return base in _NAME_FILES or base.endswith(".names")


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_foreign_text(path).splitlines() if line.strip()]

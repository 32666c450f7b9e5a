"""VOC annotations: reading and writing the layout of the PASCAL VOC devkit.

    root/Annotations/<id>.xml   root/JPEGImages/<id>.jpg   root/ImageSets/Main/<set>.txt

A file's boxes are 1-based and inclusive; they are converted once here, on reading and on writing.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

import defusedxml.ElementTree as SafeTree

from sppdet.errors import AnnotationError, name_problem, shorten
from sppdet.io.files import is_file, read_bytes, read_foreign_text
from sppdet.io.folder_files import FolderFiles
from sppdet.io.images import IMAGE_SUFFIXES
from sppdet.io.names import safe_id
from sppdet.io.records import (
    FAR_PX,
    ImageRecord,
    ObjectRecord,
    Skips,
    read_flag,
    read_number,
    stated_size,
)

_log = logging.getLogger("sppdet")
_DECLARATION = re.compile(
    rb"(?:\xef\xbb\xbf)?<\?xml[^>]*?\sencoding\s*=\s*[\"']([A-Za-z0-9._-]{1,40})[\"'][^>]*\?>"
)
_MAX_XML_BYTES = 64 * 2**20  # of one image's annotations; parsed they take some ten times as much


@dataclass(frozen=True)
class VocAnnotation:
    """One annotation file: the file name of its image ("" if missing) and its objects.

    `size` is the stated (width, height) of the image; None where it is missing or 0.
    """

    filename: str
    objects: tuple[ObjectRecord, ...]
    size: tuple[int, int] | None = None


def read_voc_annotation(path: Path) -> VocAnnotation:
    """Read one annotation file.

    Boxes become xyxy, 0-based, half-open: (xmin - 1, ymin - 1, xmax, ymax). `difficult` and
    `truncated` are false where missing; the boxes of `<part>`s are not read.

    Returns:
        The objects in the order of the file; one that can't be used says so in its `problem`.

    Raises:
        AnnotationError: the file is missing, is no VOC annotation, or declares a DTD or entities.
    """
    root = parse_xml(path)
    if root.tag != "annotation":
        raise AnnotationError(f"{path}: <{root.tag}>, expected <annotation>")
    objects = (_read_object(item, k) for k, item in enumerate(root.findall("object"), start=1))
    size = stated_size(_text(root, "size/width"), _text(root, "size/height"))
    return VocAnnotation(_text(root, "filename"), tuple(objects), size)


def read_voc_set(
    root: Path, set_name: str, *, images: Path | None, skips: Skips
) -> Iterator[ImageRecord]:
    """Read the annotations of one set, in the order of its file.

    Args:
        root: folder of the VOC layout.
        set_name: a file of ImageSets/Main without `.txt`.
        images: folder of the images; JPEGImages if None.
        skips: told of annotation files that can't be read.
    """
    folder = images or root / "JPEGImages"
    files = _Files(root / "Annotations", folder)
    for line in read_set_file(root, set_name):
        try:
            name = files.annotation(line)
            path = root / "Annotations" / f"{name}.xml"
            annotation = read_voc_annotation(path)
            image = files.image(name, annotation.filename)
        except AnnotationError as error:
            skips.report(error)
            continue
        where = f"{path.name}, object"
        yield ImageRecord(safe_id(name), image, annotation.objects, where, annotation.size)


class _Files:
    """The files of a devkit; where a name isn't that of a file, the one that it means."""

    def __init__(self, annotations: Path, images: Path) -> None:
        self._annotations = annotations
        self._images = images

    @cached_property
    def _all_annotations(self) -> FolderFiles:
        return FolderFiles(self._annotations)

    @cached_property
    def _all_images(self) -> FolderFiles:
        return FolderFiles(self._images)

    def annotation(self, line: str) -> str:
        """Find the name of an annotation, without `.xml`, that a line of a set means."""
        if is_file(self._annotations / f"{line}.xml"):
            return line
        found = self._all_annotations.find(line, near="", suffixes=(".xml",))
        return line if found is None else found[: -len(".xml")]

    def image(self, name: str, filename: str) -> Path:
        path = voc_image_path(self._images, name, filename)
        if is_file(path):
            return path
        for other in filter(None, (name, filename)):
            if found := self._all_images.image(other):
                return self._images / found
        return path


def read_set_file(root: Path, set_name: str) -> list[str]:
    """Read the image names in `root`/ImageSets/Main/`set_name`.txt, in its order.

    Empty lines are ignored, and so is the second column (1, 0 or -1) of the files that exist for
    each class. A repeated name is used once, with a warning.

    Raises:
        AnnotationError: there is no such set (the sets that exist are listed), it is empty, or a name
            can't be a file's.
    """
    path = root / "ImageSets" / "Main" / f"{set_name}.txt"
    if not is_file(path):
        raise AnnotationError(f"{path}: no such set; {_list_sets(path.parent)}")
    lines = [line.strip() for line in read_foreign_text(path).splitlines()]
    for number, line in enumerate(lines, start=1):
        if problem := name_problem(line):
            raise AnnotationError(f"{path}, line {number}: {line} {problem}")
    names = [_first_column(line, root) for line in lines if line]
    counts = Counter(names)
    if not counts:
        raise AnnotationError(f"{path}: lists no images")
    if repeated := [name for name, count in counts.items() if count > 1]:
        _log.warning("%s: repeated, used once: %s", path, shorten(repeated))
    return list(counts)


def voc_image_path(folder: Path, name: str, filename: str = "") -> Path:
    """Find the image of annotation `name` in `folder`.

    `name`.jpg comes first, then the other suffixes that OpenCV reads, in lower and upper case,
    then the annotation's own `filename`. If none of them exists, returns `name`.jpg.
    """
    default = folder / f"{name}.jpg"
    suffixes = [s for suffix in IMAGE_SUFFIXES for s in (suffix, suffix.upper())]
    candidates = [folder / f"{name}{suffix}" for suffix in suffixes]
    if base := re.split(r"[/\\]", filename)[-1]:  # some tools write a path of their machine
        candidates.append(folder / base)
    return next((path for path in candidates if is_file(path)), default)


def parse_xml(path: Path, *, max_bytes: int = _MAX_XML_BYTES) -> ElementTree.Element:
    """Parse an XML file in any declared encoding that is one of text.

    Raises:
        AnnotationError: the file can't be read, isn't well-formed, or declares a DTD or entities.
    """
    data = read_bytes(path, AnnotationError, max_bytes=max_bytes)
    try:
        return _from_string(data)
    except ElementTree.ParseError as error:
        problem = f"not well-formed XML: {error}"
    except (ValueError, LookupError) as error:  # an unknown encoding; DTDs and entities
        problem = f"XML that is refused: {' '.join(str(error).split())}"
    text = _decoded(data)
    if text is not None:
        with contextlib.suppress(ElementTree.ParseError, ValueError, LookupError):
            return _from_string(text)
    raise AnnotationError(f"{path}: {problem}")


def _from_string(data: bytes | str) -> ElementTree.Element:
    root: ElementTree.Element = SafeTree.fromstring(data, forbid_dtd=True)
    return root


def _decoded(data: bytes) -> str | None:
    """Decode XML in an encoding that expat doesn't know by its name, such as `utf8` or gb2312."""
    match = _DECLARATION.match(data)
    if match is None:
        return None
    name = match[1].decode("ascii").lower()
    try:
        # files that declare gb2312 mostly have the characters of its successors, too
        return data[match.end() :].decode("gb18030" if name in ("gb2312", "gbk") else name)
    except (LookupError, ValueError):
        return None


def _read_object(item: ElementTree.Element, number: int) -> ObjectRecord:
    name = _text(item, "name")
    try:
        if not name:
            raise ValueError("no <name>")
        flags = _read_flag(item, "difficult"), _read_flag(item, "truncated")
        box = _read_box(item)
    except ValueError as error:
        return ObjectRecord(name, (0.0, 0.0, 0.0, 0.0), False, False, number, str(error))
    return ObjectRecord(name, box, *flags, number)


def _read_box(item: ElementTree.Element) -> tuple[float, float, float, float]:
    bounds = item.find("bndbox")
    if bounds is None:
        raise ValueError("no <bndbox>")
    xmin, ymin, xmax, ymax = (_coordinate(bounds, t) for t in ("xmin", "ymin", "xmax", "ymax"))
    if xmax < xmin:
        raise ValueError(f"xmax {xmax:g} < xmin {xmin:g}")
    if ymax < ymin:
        raise ValueError(f"ymax {ymax:g} < ymin {ymin:g}")
    return xmin - 1, ymin - 1, xmax, ymax


def _coordinate(bounds: ElementTree.Element, tag: str) -> float:
    text = _text(bounds, tag)
    if not text:
        raise ValueError(f"no <{tag}>")
    try:
        value = read_number(text)
    except ValueError:
        value = math.nan
    if not abs(value) < FAR_PX:
        raise ValueError(f"{tag} {text!r} is not a number")
    return value


def _read_flag(item: ElementTree.Element, tag: str) -> bool:
    found = item.find(tag)
    if found is not None and len(found):
        raise ValueError(f"{tag} has elements in it, expected 0 or 1")
    text = _text(item, tag)
    return read_flag(None if text.lower() in ("", "unspecified") else text, tag)


def _text(item: ElementTree.Element, tag: str) -> str:
    return (item.findtext(tag) or "").strip()


def _first_column(line: str, root: Path) -> str:
    match = re.fullmatch(r"(.*\S)\s+(?:-1|0|1)", line)
    if match is None or is_file(root / "Annotations" / f"{line}.xml"):  # "my photo 1"
        return line
    return match.group(1)


def _list_sets(folder: Path) -> str:
    names = sorted(path.stem for path in folder.glob("*.txt"))
    own = [name for name in names if name.rpartition("_")[2] not in names or "_" not in name]
    if not own:
        return f"{folder} has none"
    return f"there are: {shorten(own)}"

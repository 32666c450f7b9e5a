"""VOC's XML without VOC's folders: beside the images or in a folder of its own.

LabelImg, Roboflow and CVAT write such files. Boxes are read as VOC's, 1-based and inclusive.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from sppdet.errors import AnnotationError, DataError
from sppdet.io.files import read_head
from sppdet.io.folder_files import FolderFiles
from sppdet.io.formats.common import (
    Found,
    Item,
    chosen_files,
    folder_of,
    folder_sets,
    found_in,
    records_of,
)
from sppdet.io.records import ImageRecord, Skips
from sppdet.io.voc import read_voc_annotation

_TAG = re.compile(rb"<([A-Za-z_][\w.-]*)[\s/>]")
_BEFORE_IT = ((b"<?", b"?>"), (b"<!--", b"-->"), (b"<!", b">"))
_HEAD_BYTES = 4096


def root_tag(folder: FolderFiles, name: str) -> str:
    """Read the tag of an XML file's root; "" where its beginning has none."""
    try:
        head = read_head(folder.path(name), _HEAD_BYTES)
    except DataError:
        return ""
    text = head.replace(b"\0", b"")  # of UTF-16
    at = 0
    while (at := text.find(b"<", at)) >= 0:
        if match := _TAG.match(text, at):
            return match[1].decode("ascii")
        end = next((e for begin, e in _BEFORE_IT if text.startswith(begin, at)), None)
        if end is None or (at := text.find(end, at)) < 0:
            break
    return ""


def find_xml(folder: FolderFiles) -> Found | None:
    """Find XML files whose root is VOC's."""
    names = [n for n in folder.with_suffix(".xml") if root_tag(folder, n) == "annotation"]
    return found_in(folder, "xml", "VOC annotation", names, folder_sets)


def read_xml(
    folder: FolderFiles, set_name: str, images: FolderFiles, skips: Skips
) -> list[ImageRecord]:
    """Read the annotations of a set, sorted by path.

    The image is the one with the annotation's stem, or else the one that its `filename` names.
    """
    return records_of(_items(folder, set_name, skips), images, set_name, skips)


def _items(folder: FolderFiles, set_name: str, skips: Skips) -> Iterator[Item]:
    for name in chosen_files(folder.with_suffix(".xml"), set_name):
        if root_tag(folder, name) not in ("annotation", ""):
            skips.leave_out("XML files that are no annotations of VOC", name)
            continue
        try:
            annotation = read_voc_annotation(folder.path(name))
        except AnnotationError as error:
            skips.report(error)
            continue
        path = PurePosixPath(name)
        names = tuple(filter(None, (path.stem, annotation.filename)))
        where = f"{path.name}, object"
        near = folder_of(name)
        yield Item(names, near, name, where, annotation.objects, annotation.size)

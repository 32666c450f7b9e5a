"""labelme's JSON: one file an image. Corners are pixels, 0-based, between pixels: no conversion."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from sppdet.errors import AnnotationError
from sppdet.io.files import read_json
from sppdet.io.folder_files import FolderFiles
from sppdet.io.formats.common import (
    Box,
    Item,
    box_around,
    chosen_files,
    class_name,
    folder_of,
    problem_object,
    records_of,
    with_area,
)
from sppdet.io.formats.json_kinds import json_kind
from sppdet.io.records import ImageRecord, ObjectRecord, Skips, read_flag, stated_size

_BOXED = ("rectangle", "polygon", "circle")


def read_labelme(
    folder: FolderFiles, set_name: str, images: FolderFiles, skips: Skips
) -> list[ImageRecord]:
    """Read the files of a set, sorted by path.

    Rectangles stay, polygons and circles become the boxes around them, other shapes are left out. The
    image is the one that `imagePath` names, or else the one with the file's stem.
    """
    return records_of(_items(folder, set_name, skips), images, set_name, skips)


def _items(folder: FolderFiles, set_name: str, skips: Skips) -> Iterator[Item]:
    for name in chosen_files(folder.with_suffix(".json"), set_name):
        kind = json_kind(folder.path(name))
        if kind not in ("labelme", "damaged"):
            skips.leave_out("JSON files that are not labelme's", name)
            continue
        try:
            data = read_json(folder.path(name))
            if not isinstance(data, dict) or not isinstance(data.get("shapes"), list):
                raise AnnotationError(f"{folder.path(name)}: no list 'shapes'")
        except AnnotationError as error:
            skips.report(error)
            continue
        path = PurePosixPath(name)
        objects = []
        for number, shape in enumerate(data["shapes"], start=1):
            if (found := _object(shape, number, name, skips)) is not None:
                objects.append(found)
        stated = data.get("imagePath")
        names = (stated, path.stem) if isinstance(stated, str) and stated else (path.stem,)
        size = stated_size(data.get("imageWidth"), data.get("imageHeight"))
        near = folder_of(name)
        yield Item(names, near, name, f"{path.name}, shape", tuple(objects), size)


def _object(shape: Any, number: int, file: str, skips: Skips) -> ObjectRecord | None:
    if not isinstance(shape, dict):
        return problem_object("", number, f"{shape!r:.40}, expected an object")
    kind = shape.get("shape_type") or "polygon"  # as in files of early versions
    if kind not in _BOXED:
        skips.leave_out(f"shapes that are no boxes ({kind!s:.20})", f"{file}, shape {number}")
        return None
    name = ""
    try:
        name = class_name(shape.get("label"), "label")
        stored = shape.get("flags")
        flags = stored if isinstance(stored, dict) else {}
        # labelme keeps flags of a shape in `flags`, X-AnyLabeling beside them
        difficult, truncated = (
            read_flag(shape.get(key, flags.get(key)), key) for key in ("difficult", "truncated")
        )
        return ObjectRecord(name, _box(kind, shape.get("points")), difficult, truncated, number)
    except ValueError as error:
        return problem_object(name, number, error)


def _box(kind: str, points: object) -> Box:
    if kind != "circle":
        return box_around(points)
    if not isinstance(points, list) or len(points) != 2:
        raise ValueError(f"points {points!r:.80}, expected a centre and a point of the circle")
    box_around([*points, [0, 0], [1, 1]])  # checks the numbers
    (x, y), (u, v) = points
    radius = math.hypot(u - x, v - y)
    return with_area(x - radius, y - radius, x + radius, y + radius)

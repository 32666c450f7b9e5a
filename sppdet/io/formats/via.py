"""Annotations of the VGG Image Annotator, version 2 (and 1): CSV, JSON, or its project file.

Coordinates are pixels, 0-based, between pixels: no conversion.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sppdet.errors import AnnotationError, one_line, shorten
from sppdet.io.files import read_json
from sppdet.io.folder_files import ALL, FolderFiles
from sppdet.io.formats.common import (
    Box,
    Item,
    box_around,
    class_name,
    folder_of,
    problem_object,
    records_of,
    with_area,
)
from sppdet.io.formats.csv_rows import read_rows
from sppdet.io.records import ImageRecord, ObjectRecord, Skips, is_coordinate, read_flag

VIA_COLUMNS = ("filename", "region_shape_attributes", "region_attributes")
_CLASS_KEYS = ("class", "label", "name", "category", "type", "object")
_FLAGS = ("difficult", "truncated")


class _Region(NamedTuple):
    number: int | str
    shape: Any
    attributes: Any


def read_via(
    folder: FolderFiles, set_name: str, images: FolderFiles, skips: Skips
) -> list[ImageRecord]:
    """Read one file, in its order.

    Rectangles stay; polygons, circles and ellipses become the boxes around them; other shapes are left
    out. The class is the value of the regions' only attribute, or of the one that is called class, label,
    name, category, type or object; `difficult` and `truncated` are flags.

    Raises:
        AnnotationError: not such a file, or the attribute of the class isn't certain.
    """
    path = folder.path(set_name)
    csv = set_name.lower().endswith(".csv")
    regions = _of_csv(path, skips) if csv else _of_json(path, skips)
    key = _class_key(regions, str(path))
    near = folder_of(set_name)
    items = []
    for image, own in regions.items():
        found = (_object(region, key, f"{image}, region", skips) for region in own)
        objects = tuple(one for one in found if one is not None)
        where = f"{path.name}, {one_line(image, 80)}, region"
        items.append(Item((image,), near, f"{set_name}, {one_line(image, 80)}", where, objects))
    return records_of(items, images, ALL, skips)


def _of_json(path: Any, skips: Skips) -> dict[str, list[_Region]]:
    data = read_json(path)
    if isinstance(data, dict) and "_via_img_metadata" in data:
        data = data["_via_img_metadata"]
    if not isinstance(data, dict):
        raise AnnotationError(f"{path}: expected an object of VIA's images")
    regions: dict[str, list[_Region]] = {}
    for key, entry in data.items():
        where = f"{path}, {one_line(str(key), 80)}"
        name = entry.get("filename") if isinstance(entry, dict) else None
        own = entry.get("regions", []) if isinstance(entry, dict) else None
        if isinstance(own, dict):  # as version 1 has them
            own = [own[number] for number in own]
        if not isinstance(name, str) or not name.strip() or not isinstance(own, list):
            skips.report(AnnotationError(f"{where}: expected a filename and regions"))
            continue
        if name in regions:
            skips.report(AnnotationError(f"{where}: {one_line(name, 80)} is there twice"))
            continue
        regions[name] = [
            _Region(k, one.get("shape_attributes"), one.get("region_attributes"))
            if isinstance(one, dict)
            else _Region(k, None, None)
            for k, one in enumerate(own, start=1)
        ]
    return regions


def _of_csv(path: Any, skips: Skips) -> dict[str, list[_Region]]:
    rows = iter(read_rows(path))
    _, header = next(rows, (0, []))
    columns = [name.strip().lstrip("#") for name in header]
    if missing := [name for name in VIA_COLUMNS if name not in columns]:
        raise AnnotationError(f"{path}: no column {missing[0]}, expected VIA's")
    at = {name: columns.index(name) for name in VIA_COLUMNS}
    regions: dict[str, list[_Region]] = defaultdict(list)
    for line, row in rows:
        try:
            name, shape, attributes = (row[at[key]] for key in VIA_COLUMNS)
            if not name.strip():
                raise ValueError("no filename")
            parsed = json.loads(shape or "{}"), json.loads(attributes or "{}")
        except (IndexError, ValueError, RecursionError) as error:
            reason = "too few columns" if isinstance(error, IndexError) else str(error)
            skips.report(AnnotationError(f"{path}, line {line}: {one_line(reason, 120)}"))
            continue
        own = regions[name]
        if parsed[0]:  # an image without regions has a row as well
            own.append(_Region(len(own) + 1, *parsed))
    return regions


def _class_key(regions: Mapping[str, Iterable[_Region]], where: str) -> str:
    """Choose the attribute that names the class of a region."""
    found: dict[str, None] = {}
    for own in regions.values():
        for region in own:
            if isinstance(region.attributes, dict):
                found.update(dict.fromkeys(region.attributes))
    keys = [key for key in found if key.lower() not in _FLAGS]
    if len(keys) > 1:
        named = [key for key in keys if key.lower() in _CLASS_KEYS]
        if len(named) != 1:
            raise AnnotationError(
                f"{where}: the class could be the attribute {shorten(named or keys, limit=4)}; expected "
                f"one, or one of them called {shorten(_CLASS_KEYS)}"
            )
        keys = named
    return keys[0] if keys else "class"


def _object(region: _Region, key: str, where: str, skips: Skips) -> ObjectRecord | None:
    shape = region.shape if isinstance(region.shape, dict) else {}
    kind = shape.get("name")
    if kind in ("point", "polyline", "line"):
        skips.leave_out(f"regions that are no boxes ({kind})", f"{where} {region.number}")
        return None
    name = ""
    try:
        attributes = region.attributes if isinstance(region.attributes, dict) else {}
        name = class_name(_choice(attributes.get(key)), f"attribute {key}")
        lower = {str(k).lower(): v for k, v in attributes.items()}
        difficult, truncated = (read_flag(lower.get(flag) or None, flag) for flag in _FLAGS)
        box = _box(kind, shape)
    except ValueError as error:
        return problem_object(name, region.number, error)
    return ObjectRecord(name, box, difficult, truncated, region.number)


def _choice(value: object) -> object:
    """Return the option that is ticked, if `value` is that of check boxes with one ticked."""
    if isinstance(value, dict):
        ticked = [option for option, on in value.items() if on is True]
        return ticked[0] if len(ticked) == 1 else value
    return value


def _box(kind: object, shape: Mapping[str, Any]) -> Box:
    keys = {
        "rect": ("x", "y", "width", "height"),
        "circle": ("cx", "cy", "r", "r"),
        "ellipse": ("cx", "cy", "rx", "ry"),
    }
    if kind == "polygon":
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
            raise ValueError("all_points_x and all_points_y, expected two lists of one length")
        return box_around([[x, y] for x, y in zip(xs, ys, strict=True)])
    if not isinstance(kind, str) or kind not in keys:
        raise ValueError(f"shape {kind!r:.40}, expected rect, polygon, circle or ellipse")
    if kind == "ellipse" and shape.get("theta"):
        raise ValueError("a turned ellipse, expected one without theta")
    values = [shape.get(key) for key in keys[kind]]
    if not all(map(is_coordinate, values)):
        raise ValueError(f"{', '.join(keys[kind])}: {values!r:.80}, expected numbers")
    a, b, c, d = (float(value) for value in values)  # type: ignore[arg-type]
    return (
        with_area(a, b, a + c, b + d) if kind == "rect" else with_area(a - c, b - d, a + c, b + d)
    )

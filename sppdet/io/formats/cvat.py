"""CVAT's own XML, "CVAT for images": one file with all images.

Corners are pixels, 0-based, between pixels: no conversion.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element

from sppdet.errors import AnnotationError, one_line
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
from sppdet.io.records import (
    FAR_PX,
    ImageRecord,
    ObjectRecord,
    Skips,
    read_flag,
    read_number,
    stated_size,
)
from sppdet.io.voc import parse_xml

_MAX_BYTES = 2**30  # of all images of a task
_OTHERS = ("polyline", "points", "cuboid", "skeleton", "mask", "ellipse", "tag")


def read_cvat(
    folder: FolderFiles, set_name: str, images: FolderFiles, skips: Skips
) -> list[ImageRecord]:
    """Read one file, in its order.

    Boxes stay, polygons become the boxes around them, other shapes are left out, and so are the tracks of
    "CVAT for video". The attributes `difficult` and `truncated` are flags.

    Raises:
        AnnotationError: not such a file; a turned box is one, too, unless skipped.
    """
    path = folder.path(set_name)
    root = parse_xml(path, max_bytes=_MAX_BYTES)
    if root.tag != "annotations":
        raise AnnotationError(f"{path}: <{root.tag}>, expected CVAT's <annotations>")
    entries = root.findall("image")
    if not entries and root.find("track") is not None:
        raise AnnotationError(f"{path}: tracks of a video; expected an export as CVAT for images")
    near = folder_of(set_name)
    items = []
    for number, entry in enumerate(entries, start=1):
        name = entry.get("name", "").strip()
        if not name:
            skips.report(AnnotationError(f"{path}, image {number}: no name"))
            continue
        shown = one_line(name, 80)
        found = [_object(s, k, shown, skips) for k, s in enumerate(entry, start=1)]
        objects = tuple(one for one in found if one is not None)
        size = stated_size(entry.get("width"), entry.get("height"))
        where = f"{path.name}, {shown}, shape"
        items.append(Item((name,), near, f"{set_name}, {shown}", where, objects, size))
    return records_of(items, images, ALL, skips)


def _object(shape: Element, number: int, image: str, skips: Skips) -> ObjectRecord | None:
    if shape.tag not in ("box", "polygon"):
        kind = shape.tag if shape.tag in _OTHERS else "unknown"
        skips.leave_out(f"shapes that are no boxes ({kind})", f"{image}, shape {number}")
        return None
    name = shape.get("label", "")
    try:
        name = class_name(name, "label")
        attributes = {a.get("name", "").lower(): (a.text or "").strip() for a in shape}
        difficult, truncated = (
            read_flag(attributes.get(key) or None, key) for key in ("difficult", "truncated")
        )
        box = _corners(shape) if shape.tag == "box" else _around(shape.get("points", ""))
    except ValueError as error:
        return problem_object(name, number, error)
    return ObjectRecord(name, box, difficult, truncated, number)


def _corners(shape: Element) -> Box:
    if read_number(shape.get("rotation") or "0"):
        raise ValueError(
            f"a box turned by {shape.get('rotation')} degrees, expected an upright one"
        )
    values = [read_number(shape.get(key, "")) for key in ("xtl", "ytl", "xbr", "ybr")]
    if not all(abs(value) < FAR_PX for value in values):
        raise ValueError(f"corners {values}, expected numbers")
    return with_area(*values)


def _around(points: str) -> Box:
    return box_around([[read_number(v) for v in pair.split(",")] for pair in points.split(";")])

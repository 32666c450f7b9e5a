"""CSV with a row for each object.

Without a header the columns are RetinaNet's, `path,x1,y1,x2,y2,class`; a row `path,,,,,` is an image
without objects. With a header they are told by their names, such as TensorFlow's
`filename,width,height,class,xmin,ymin,xmax,ymax`. Corners are pixels, 0-based, between pixels: no
conversion.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

from sppdet.errors import AnnotationError, DataError, one_line
from sppdet.io.files import read_foreign_text
from sppdet.io.folder_files import ALL, FolderFiles
from sppdet.io.formats.common import (
    Item,
    class_name,
    folder_of,
    problem_object,
    records_of,
    with_area,
)
from sppdet.io.formats.csv_rows import read_rows
from sppdet.io.formats.via import VIA_COLUMNS
from sppdet.io.images import IMAGE_SUFFIXES
from sppdet.io.records import FAR_PX, ImageRecord, ObjectRecord, Skips, read_number, stated_size

_ROWS = 20  # that tell what a file is
_RETINANET = ("path", "x1", "y1", "x2", "y2", "class")
_OTHER_NAMES = {
    **dict.fromkeys(("filename", "file_name", "image", "image_path", "img", "file"), "path"),
    **{"xmin": "x1", "ymin": "y1", "xmax": "x2", "ymax": "y2"},
    **dict.fromkeys(("label", "class_name", "category"), "class"),
}


def csv_kind(path: Path) -> str:
    """Tell what a CSV file is: "via", "csv" (boxes), "classes" (RetinaNet's), "damaged" or "other"."""
    try:
        rows = [row for _, row in islice(read_rows(path), _ROWS)] or [[""]]
    except DataError:
        return "damaged" if _may_be_meant(path) else "other"
    first = [cell.strip() for cell in rows[0]]
    if set(VIA_COLUMNS) <= {name.lstrip("#") for name in first}:
        return "via"
    if set(_RETINANET) <= set(_columns(first)):
        return "csv"
    if any(len(row) == len(_RETINANET) and _is_image(row[0]) for row in rows):
        return "csv"
    return "classes" if len(first) == 2 and first[1].isdigit() else "other"


def _may_be_meant(path: Path) -> bool:
    """Check whether a file that is no CSV begins with an image, or is in an encoding of Excel's."""
    try:
        return _is_image(read_foreign_text(path).partition(",")[0])
    except DataError:
        return True


def _is_image(cell: str) -> bool:
    return PurePosixPath(cell.strip()).suffix.lower() in IMAGE_SUFFIXES


def read_csv(
    folder: FolderFiles, set_name: str, images: FolderFiles, skips: Skips
) -> list[ImageRecord]:
    """Read one file, its images in the order of their first rows.

    Raises:
        AnnotationError: no such CSV.
    """
    path = folder.path(set_name)
    rows = list(read_rows(path))
    if not rows:
        raise AnnotationError(f"{path}: no rows")
    columns = _columns(rows[0][1])
    if set(_RETINANET) <= set(columns):
        rows = rows[1:]
    else:
        columns = list(_RETINANET)
    at = {name: columns.index(name) for name in columns}
    objects: dict[str, list[ObjectRecord]] = defaultdict(list)
    sizes: dict[str, tuple[int, int] | None] = {}
    for line, row in rows:
        cells = {name: row[k].strip() for name, k in at.items() if k < len(row)}
        image = cells.get("path", "")
        if not image or len(cells) < len(_RETINANET):
            skips.report(
                AnnotationError(
                    f"{path}, line {line}: {len(row)} cells, expected {','.join(columns)}"
                )
            )
            continue
        own = objects[image]
        sizes.setdefault(image, stated_size(cells.get("width"), cells.get("height")))
        if any(cells[name] for name in _RETINANET[1:]):
            own.append(_object(cells, line))
    near = folder_of(set_name)
    items = []
    for image, own in objects.items():
        source = f"{set_name}, {one_line(image, 80)}"
        items.append(Item((image,), near, source, f"{path.name}, line", tuple(own), sizes[image]))
    return records_of(items, images, ALL, skips)


def _columns(header: Sequence[str]) -> list[str]:
    names = [name.strip().lower() for name in header]
    return [_OTHER_NAMES.get(name, name) for name in names]


def _object(cells: dict[str, str], line: int) -> ObjectRecord:
    name = cells["class"]
    try:
        class_name(name, "class")
        corners = [read_number(cells[key]) for key in _RETINANET[1:5]]
        if not all(abs(value) < FAR_PX for value in corners):
            raise ValueError(f"corners {corners}, expected numbers")
        box = with_area(*corners)
    except ValueError as error:
        return problem_object(name, line, error)
    return ObjectRecord(name, box, False, False, line)

"""YOLO's label files: a line `class x y width height` for each object, in fractions of the image.

x and y are the centre. A longer line is an outline, `class x1 y1 x2 y2 x3 y3 ...`, which becomes the box
around it. Fractions are of the image as its EXIF orientation shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from sppdet.errors import AnnotationError, ImageError
from sppdet.io.files import read_foreign_text
from sppdet.io.folder_files import FolderFiles
from sppdet.io.formats.common import Box, image_id, problem_object, with_area
from sppdet.io.formats.yolo_sets import YoloSets, label_files, label_like
from sppdet.io.images import upright_size
from sppdet.io.records import ImageRecord, ObjectRecord, Skips, read_number

_SLACK = 0.01  # of the image: how far rounding may lead outside
_CORNERS = 8  # numbers of a quadrilateral, which an oriented box and an outline both have


def read_yolo(
    folder: FolderFiles, set_name: str, images: FolderFiles, skips: Skips
) -> list[ImageRecord]:
    """Read the images of a set and their labels; an image without a label file has no objects.

    Raises:
        AnnotationError: no such set, no names of the classes, or the labels are oriented boxes (obb) or
            can't be told from them: every outline has four corners, and one isn't an upright box.
    """
    sets = YoloSets(folder, images)
    chosen = sets.images_of(set_name, skips)
    labels = dict(label_files(folder, images, chosen))
    known = set(labels.values())
    folders = {str(PurePosixPath(name).parent) for name in known}
    for name in label_like(folder):
        if name not in known and str(PurePosixPath(name).parent) in folders:
            skips.leave_out("label files without an image", name)
    parsed = {image: _rows(folder, labels[image], skips) for image in chosen if image in labels}
    refuse_oriented(parsed, folder, labels, keypoints=sets.keypoints)
    records = []
    for image in chosen:
        path, label = images.path(image), labels.get(image, "")
        if not label:
            skips.leave_out("images without a label file, taken for images without objects", image)
        objects: tuple[ObjectRecord, ...] = ()
        if parsed.get(image):
            try:
                size = upright_size(path)
            except ImageError as error:
                skips.report(error)
                continue
            rows = parsed[image]
            objects = tuple(_object(row, line, sets, size) for line, row in rows)
        where = f"{label or image}, line"
        records.append(ImageRecord(image_id(image), path, objects, where))
    return records


def _rows(folder: FolderFiles, name: str, skips: Skips) -> list[tuple[int, list[str]]]:
    """Read the lines of a label file as words, with their numbers; a repeated line counts once."""
    try:
        text = read_foreign_text(folder.path(name))
    except AnnotationError as error:
        skips.report(error)
        return []
    rows: dict[tuple[str, ...], int] = {}
    for line, content in enumerate(text.splitlines(), start=1):
        words = tuple(content.split())
        if words in rows:
            skips.leave_out("lines that are there twice", f"{name}, line {line}")
        elif words:
            rows[words] = line
    return [(line, list(words)) for words, line in rows.items()]


def refuse_oriented(
    parsed: dict[str, list[tuple[int, list[str]]]],
    folder: FolderFiles,
    labels: dict[str, str],
    *,
    keypoints: int,
) -> None:
    """Refuse labels all of whose outlines have four corners, unless all of these are upright boxes."""
    if keypoints:
        return
    first = ""
    for image, rows in parsed.items():
        for line, words in rows:
            numbers = words[1:]
            if len(numbers) > 4 and len(numbers) != _CORNERS:
                return
            if len(numbers) == _CORNERS and not first and not _is_upright(numbers):
                first = f"{folder.path(labels[image])}, line {line}"
    if first:
        raise AnnotationError(
            f"{first}: four corners of no upright box: an oriented box (obb), or an outline that can't be "
            "told from one; expected `class x y width height`"
        )


def _is_upright(words: Sequence[str]) -> bool:
    try:
        x1, y1, x2, y2, x3, y3, x4, y4 = map(read_number, words)
    except ValueError:
        return True  # said where the line is read
    eps = 1e-4
    one = abs(x1 - x2) + abs(y2 - y3) + abs(x3 - x4) + abs(y4 - y1)
    other = abs(y1 - y2) + abs(x2 - x3) + abs(y3 - y4) + abs(x4 - x1)
    return min(one, other) < eps


def _object(words: list[str], line: int, sets: YoloSets, size: tuple[int, int]) -> ObjectRecord:
    name = ""
    try:
        name = _class(words[0], sets.class_names)
        values = [read_number(word) for word in words[1:]]
        outside = [value for value in values if not -_SLACK <= value <= 1 + _SLACK]
        if len(values) == 4 or (sets.keypoints and len(values) == 4 + sets.keypoints):
            outside = [value for value in values[:4] if not -_SLACK <= value <= 1 + _SLACK]
            fractions = _centred(*values[:4])
        elif len(values) >= 6 and len(values) % 2 == 0 and not sets.keypoints:
            fractions = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
        else:
            expected = f"5 or {5 + sets.keypoints}" if sets.keypoints else "5, or 7, 9, ..."
            raise ValueError(f"{len(words)} numbers, expected {expected}")
        if outside:
            raise ValueError(f"{outside[0]:g} is no fraction of the image, expected 0 to 1")
        width, height = size
        x1, y1, x2, y2 = fractions
        box = with_area(x1 * width, y1 * height, x2 * width, y2 * height)
    except ValueError as error:
        return problem_object(name, line, error)
    return ObjectRecord(name, box, False, False, line)


def _centred(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _class(word: str, names: dict[int, str]) -> str:
    number = read_number(word)
    if number not in names:
        raise ValueError(f"class {word:.20} has no name; there are {len(names)}, from 0")
    return names[int(number)]

"""Look at annotations before any training: classes, sizes of boxes, repeats, coverage.

Boxes are float32 xyxy, 0-based, half-open, in pixels of the original image.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from sppdet.boxes import box_iou
from sppdet.proposals.resized import searched_size
from sppdet.types import AnnotatedImage, Boxes, Flags, Labels

HUGE_FRACTION = 0.9
"""Fraction of the image's area from which on a box is huge."""
THIN_ASPECT = 10.0
"""Ratio of the longer to the shorter side from which on a box is thin."""
SAME_IOU = 0.9
"""IoU from which on two boxes are one."""
QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class ClassNumbers:
    """The objects of one class in several sets, a number for each set in their order.

    Objects that are difficult count apart. `side_px` and `fraction` have the quantiles `QUANTILES`, over
    all sets, of the square root of the boxes' areas and of their areas relative to the image's, difficult
    ones included; NaN without objects.
    """

    name: str
    objects: tuple[int, ...]
    difficult: tuple[int, ...]
    images: tuple[int, ...]
    side_px: tuple[float, ...]
    fraction: tuple[float, ...]


def class_numbers(
    sets: Sequence[Sequence[AnnotatedImage]], class_names: Sequence[str]
) -> list[ClassNumbers]:
    """Count the objects of each class and measure their boxes.

    Args:
        sets: images of each set; their sizes are known, label k is class_names[k - 1].
    """
    classes = len(class_names)
    counts = np.zeros((3, classes + 1, len(sets)), np.int64)  # objects, difficult, images
    sides: dict[int, list[float]] = defaultdict(list)
    fractions: dict[int, list[float]] = defaultdict(list)
    for k, images in enumerate(sets):
        for image in images:
            labels, aside = image.gt_labels, image.difficult
            counts[0, :, k] += np.bincount(labels[~aside], minlength=classes + 1)
            counts[1, :, k] += np.bincount(labels[aside], minlength=classes + 1)
            counts[2, np.unique(labels), k] += 1
            areas = _areas(image.gt_boxes)
            for label, area in zip(labels.tolist(), areas.tolist(), strict=True):
                sides[label].append(area**0.5)
                fractions[label].append(area / (image.width * image.height))
    rows = []
    for label, name in enumerate(class_names, start=1):
        objects, difficult, present = (tuple(part[label].tolist()) for part in counts)
        measured = (_quantiles(values[label]) for values in (sides, fractions))
        rows.append(ClassNumbers(name, objects, difficult, present, *measured))
    return rows


def _quantiles(values: Sequence[float]) -> tuple[float, ...]:
    if not values:
        return (float("nan"),) * len(QUANTILES)
    return tuple(np.quantile(values, QUANTILES).tolist())


def _areas(boxes: Boxes) -> NDArray[np.float64]:
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    return np.asarray(sides.prod(axis=1))


def alike_names(class_names: Sequence[str]) -> list[tuple[str, ...]]:
    """Group names that differ in nothing but case, blanks, hyphens, underscores or forms of Unicode."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in class_names:
        plain = unicodedata.normalize("NFKC", name).casefold()
        groups["".join(c for c in plain if not c.isspace() and c not in "-_")].append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


@dataclass(frozen=True)
class Shapes:
    """Boxes of one image with a shape out of the ordinary; each array is (N,)."""

    searched_px: NDArray[
        np.float64
    ]  # the shorter side in the image as proposals are searched in it
    fraction: NDArray[np.float64]  # of the image's area
    aspect: NDArray[np.float64]  # longer side / shorter side
    tiny: Flags  # searched_px below the least side of a proposal
    huge: Flags
    thin: Flags


def shapes(boxes: Boxes, *, width: int, height: int, image_width: int, min_size: int) -> Shapes:
    """Find tiny, huge and thin boxes.

    Args:
        boxes: (N, 4) with area, within the image.
        width: of the image, pixels.
        height: of the image, pixels.
        image_width: to which images are resized for the search of proposals.
        min_size: the least width and height of a proposal there, pixels; a box with a shorter side is tiny.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    searched = searched_size(width, height, image_width)
    resized = (sides * (searched[0] / width, searched[1] / height)).min(axis=1)
    fraction = sides.prod(axis=1) / (width * height)
    aspect = sides.max(axis=1) / sides.min(axis=1)
    return Shapes(
        searched_px=resized,
        fraction=fraction,
        aspect=aspect,
        tiny=resized < min_size,
        huge=fraction >= HUGE_FRACTION,
        thin=aspect >= THIN_ASPECT,
    )


def same_boxes(boxes: Boxes, labels: Labels) -> list[tuple[int, int, bool]]:
    """Pair boxes (N, 4) of one image that are the same, IoU >= `SAME_IOU`.

    Returns:
        (row, later row, whether their classes are the same), by row.
    """
    iou = np.triu(box_iou(boxes, boxes), k=1)
    return [
        (one, other, bool(labels[one] == labels[other]))
        for one, other in np.argwhere(iou >= SAME_IOU).tolist()
    ]


@dataclass(frozen=True)
class Repeat:
    """Images that show the same: rows, of which the first two are the pair that says most.

    Attributes:
        near: they aren't the same file, but look nearly alike.
        crosses: the first two are in different sets.
    """

    rows: tuple[int, ...]
    near: bool
    crosses: bool


def repeats(content: Sequence[str], groups: NDArray[np.int64], sets: Sequence[str]) -> list[Repeat]:
    """Find images that are there more than once, those with the same content first.

    A group of near-duplicates counts if two in it differ in content.

    Args:
        content: of each image a digest of its bytes.
        groups: (I,) of near-duplicates.
        sets: of each image the name of its set.
    """
    same = [_repeat(rows, content, sets, near=False) for rows in _grouped(content)]
    alike = [
        _repeat(rows, content, sets, near=True)
        for rows in _grouped(groups.tolist())
        if len({content[row] for row in rows}) > 1
    ]
    return same + alike


def _repeat(
    rows: Sequence[int], content: Sequence[str], sets: Sequence[str], *, near: bool
) -> Repeat:
    first, crosses = tuple(rows[:2]), False
    for one, other in combinations(rows, 2):
        if near == (content[one] != content[other]):
            first, crosses = (one, other), sets[one] != sets[other]
            if crosses:
                break
    return Repeat((*first, *(row for row in rows if row not in first)), near, crosses)


def _grouped(keys: Sequence[object]) -> list[list[int]]:
    members: dict[object, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        members[key].append(row)
    return [rows for rows in members.values() if len(rows) > 1]

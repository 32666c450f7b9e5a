"""Comparison of sizes in annotations with those of the images, and repair of boxes where they differ.

Boxes are float32 xyxy, 0-based, half-open, in pixels; sizes are (width, height).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from sppdet.boxes import empty_boxes
from sppdet.types import Boxes

Size = tuple[int, int]
Conflict = Literal["turned", "scaled", "turned and scaled", "swapped", "outside", "other"]
REPAIRABLE: tuple[Conflict, ...] = ("turned", "scaled", "turned and scaled")
EXPLAINED: dict[Conflict, tuple[str, str]] = {
    "turned": (
        "drawn by a tool that ignores the image's EXIF turn; its boxes lie beside the objects",
        "data.repair_sizes: true turns them",
    ),
    "scaled": (
        "drawn before the image was resized",
        "data.repair_sizes: true scales the boxes",
    ),
    "turned and scaled": (
        "drawn before the image was resized, by a tool that ignores its EXIF turn",
        "data.repair_sizes: true turns and scales the boxes",
    ),
    "swapped": (
        "the sides are swapped but the image has no EXIF turn: it was turned after annotating, one "
        "can't tell which way",
        "turn the image back or annotate it again",
    ),
    "outside": (
        "boxes reach outside the size stated, so that it isn't theirs",
        "they are taken as pixels of the image; correct the size",
    ),
    "other": (
        "another image, or one cut after annotating",
        "boxes are taken as pixels of the image; check them",
    ),
}
_ROUNDING_PX = 1.0  # of a resized image's sides, less than this


def compare_sizes(stated: Size, found: Size, *, orientation: int, boxes: Boxes) -> Conflict | None:
    """Classify how the stated size contradicts the image; None if it doesn't.

    A difference of one pixel a side is ignored, unless the sides are exactly swapped.

    Args:
        stated: both > 0.
        found: of the decoded image after its EXIF turn.
        orientation: the turn, 1 to 8.
        boxes: (N, 4) in the frame that was annotated.

    Returns:
        "turned": the size before a turn by a quarter; "scaled": both sides by one factor within
        rounding; "turned and scaled": both; "swapped": the sides are swapped but nothing says which way;
        "outside": one of the first three, but a box reaches more than a pixel out of the size stated;
        "other": none of these, or more than one.
    """
    quarter = orientation >= 5
    if stated == found:
        return None
    kind: Conflict = "other"
    if stated == found[::-1]:
        if not quarter:
            return "swapped"
        kind = "turned"
    elif max(abs(stated[0] - found[0]), abs(stated[1] - found[1])) <= 1:
        return None
    else:
        upright = one_factor(stated, found)
        if upright != (quarter and one_factor(stated, found[::-1])):
            kind = "scaled" if upright else "turned and scaled"
    reach = (boxes[:, 2:] - stated).max(initial=0.0)
    return "outside" if kind in REPAIRABLE and reach > 1 else kind


def one_factor(stated: Size, found: Size) -> bool:
    """Check that one factor scales `stated` to `found`, or back, within rounding (below a pixel)."""
    for small, large in ((stated, found), (found, stated)):
        low = max((s - _ROUNDING_PX) / b for s, b in zip(small, large, strict=True))
        high = min((s + _ROUNDING_PX) / b for s, b in zip(small, large, strict=True))
        if low < high:
            return True
    return False


def repaired_boxes(
    boxes: Boxes, conflict: Conflict | None, *, stated: Size, found: Size, orientation: int
) -> Boxes:
    """Map (N, 4) boxes from the frame `stated` to the frame `found`; unchanged if that isn't certain."""
    if conflict not in REPAIRABLE:
        return boxes
    turned = conflict != "scaled"
    stored = found[::-1] if turned else found
    factors = np.array([stored[0] / stated[0], stored[1] / stated[1]] * 2)
    scaled = (boxes * factors).astype(np.float32)
    return turned_boxes(scaled, stored, orientation) if turned else scaled


def turned_boxes(boxes: Boxes, stored: Size, orientation: int) -> Boxes:
    """Map boxes of an image as stored to the image as its EXIF orientation, 1 to 8, shows it.

    Args:
        boxes: (N, 4) in the stored image.
        stored: the size of that image.
    """
    if len(boxes) == 0:
        return empty_boxes()
    width, height = stored
    x1, y1, x2, y2 = boxes.T
    if orientation >= 5:  # first mirrored at the diagonal
        x1, y1, x2, y2, width, height = y1, x1, y2, x2, height, width
    if orientation in (2, 3, 6, 7):
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 7, 8):
        y1, y2 = height - y2, height - y1
    return np.stack([x1, y1, x2, y2], axis=1).astype(np.float32)

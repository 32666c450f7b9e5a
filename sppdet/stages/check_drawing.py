"""Drawings of the cases of a check: an image or a cut-out of it, and boxes, as values of the page."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sppdet.errors import ImageError
from sppdet.io.image_cache import ImageCache
from sppdet.pages.graphics import thumbnail
from sppdet.stages.check_findings import Part

_CLOSE = 4.0  # side of a cut-out, in the longer side of its boxes
_LEAST_PX = 48  # side of a cut-out
_OUTSIDE = 4.0  # how far outside of the image a box is still shown, in sides of the image


def draw_part(part: Part, cache: ImageCache) -> dict[str, Any]:
    """Draw a part of a case; `at` is where the drawn pixels lie in the image: x, y, width, height.

    The view is larger than the image where a box leaves it.
    """
    named = {"name": part.file.name, "split": part.split}
    try:
        pixels = cache.read(part.file)
    except ImageError:  # it has changed meanwhile
        return {"uri": "", **named}
    height, width = pixels.shape[:2]
    boxes = np.array([box for box, _ in part.boxes], np.float64).reshape(-1, 4)
    x1, y1, x2, y2 = 0, 0, width, height
    if part.close and len(boxes):
        x1, y1, x2, y2 = _cut_out(boxes, width, height)
    reach = _OUTSIDE * np.array([width, height])
    low = np.maximum(np.vstack([boxes[:, :2], [[x1, y1]]]).min(axis=0), -reach)
    high = np.minimum(np.vstack([boxes[:, 2:], [[x2, y2]]]).max(axis=0), reach)
    sides = np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]).round(2)
    return {
        **named,
        "uri": thumbnail(pixels[y1:y2, x1:x2]),
        "at": (x1, y1, x2 - x1, y2 - y1),
        "view": [*low.round(1).tolist(), *(high - low).round(1).tolist()],
        "boxes": [
            dict(zip(("x", "y", "width", "height"), row, strict=True)) for row in sides.tolist()
        ],
    }


def _cut_out(boxes: NDArray[np.float64], width: int, height: int) -> tuple[int, int, int, int]:
    """Choose the surroundings of boxes that lie in an image, within it."""
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    middle, side = (low + high) / 2, max(_LEAST_PX, _CLOSE * float((high - low).max()))
    x1, y1 = np.floor(np.clip(middle - side / 2, 0, (width - 1, height - 1))).astype(int).tolist()
    far = np.clip(middle + side / 2, (x1 + 1, y1 + 1), (width, height))
    x2, y2 = np.ceil(far).astype(int).tolist()
    return x1, y1, x2, y2

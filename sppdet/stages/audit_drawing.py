"""Drawings of suspicions: a part of the image, the annotated box in red, the suggested one in green."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from sppdet.evaluation.audit import Suspicion
from sppdet.types import AnnotatedImage, ImageArray

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_RED, _GREEN, _BLUE, _INK, _PAPER = (225, 45, 45), (40, 190, 70), (60, 130, 255), (0, 0, 0), 255
_SIDE_PX = 640  # of the longer side of a drawing
_LARGEST_FACTOR = 4.0
_LINE_PX = 20  # height of a line of the caption


def draw_suspicion(
    pixels: ImageArray, image: AnnotatedImage, one: Suspicion, caption: list[str]
) -> ImageArray:
    """Draw the surroundings of a suspicion, twice as large as it, below a caption; (H, W, 3) RGB.

    Other objects are blue. A green box lies within a red one where they are the same.
    """
    red = [image.gt_boxes[one.row]] if one.row is not None else []
    shown = np.stack([*red, one.box])
    corner, far = shown[:, :2].min(axis=0), shown[:, 2:].max(axis=0)
    margin = np.maximum((far - corner) / 2, 40)
    limit = np.array([image.width, image.height])
    x1, y1 = np.floor(np.maximum(corner - margin, 0)).astype(int).tolist()
    x2, y2 = np.ceil(np.minimum(far + margin, limit)).astype(int).tolist()
    factor = min(_SIDE_PX / max(x2 - x1, y2 - y1), _LARGEST_FACTOR)
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    size = max(1, round((x2 - x1) * factor)), max(1, round((y2 - y1) * factor))
    canvas = np.ascontiguousarray(cv2.resize(pixels[y1:y2, x1:x2], size, interpolation=method))

    def draw(
        box: NDArray[np.float32], colour: tuple[int, int, int], width: int, inset: int
    ) -> None:
        moved = (box - np.array([x1, y1, x1, y1])) * factor
        a, b, c, d = np.rint(moved).astype(int).tolist()
        corners = (a + inset, b + inset), (c - 1 - inset, d - 1 - inset)
        cv2.rectangle(canvas, *corners, colour, width)

    for row, box in enumerate(image.gt_boxes):
        if row not in (one.row, one.kept):
            draw(box, _BLUE, 1, 0)
    for box in red:
        draw(box, _RED, 2, 0)
    draw(one.box, _GREEN, 2, 3 if red else 0)
    return np.vstack([_caption(caption, canvas.shape[1]), canvas])


def _caption(lines: list[str], width: int) -> ImageArray:
    strip = np.full((_LINE_PX * len(lines) + 4, width, 3), _PAPER, dtype=np.uint8)
    for k, line in enumerate(lines, start=1):
        scale = 0.5
        (needed, _), _ = cv2.getTextSize(line, _FONT, scale, 1)
        scale *= min(1.0, (width - 8) / max(needed, 1))
        cv2.putText(strip, line, (4, _LINE_PX * k - 5), _FONT, scale, _INK, 1, cv2.LINE_AA)
    return strip

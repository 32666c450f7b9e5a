"""Detections drawn on their image: boxes, and labels that don't cover each other."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sppdet.arrays import Boxes, ImageArray, Labels, Scores
from sppdet.drawing.colours import Colour, class_colour, ink_on
from sppdet.drawing.places import Places, Rectangle
from sppdet.drawing.text import Line, fitted

_SMALLEST_TEXT_PX = 11  # per em: below, CJK characters can't be read
_TEXT = 1 / 42  # of the square root of the image's area
_LINE = 1 / 320
_LABELLED = 0.25  # fraction of the image that labels may take before their text becomes smaller
_SMALLER = 0.6  # factor on the text where labels take more


class Drawable(Protocol):
    """Describe what is drawn of detections; see `sppdet.detections.Detections`."""

    @property
    def boxes(self) -> Boxes: ...
    @property
    def scores(self) -> Scores: ...
    @property
    def labels(self) -> Labels: ...
    @property
    def probabilities(self) -> NDArray[np.float32] | None: ...
    def names(self) -> list[str]:
        """List the class name of every detection."""


def draw_detections(image: ImageArray, detections: Drawable) -> ImageArray:
    """Draw boxes and labels on a copy of the image (H, W, 3) RGB, the best on top.

    Beside the names are the probabilities in per cent, or the scores where there are none. A label
    stands above its box, below, in or beside it, where it covers no label of a better detection; where
    there is no room it loses its number, then it is left out. The colour of a class depends on its
    label alone. Lines and text grow with the image.
    """
    canvas: ImageArray = np.array(image, order="C")
    height, width = canvas.shape[:2]
    side = math.sqrt(width * height)
    line_px = max(1, round(side * _LINE))
    boxes = [_pixels(box, width, height) for box in detections.boxes.tolist()]
    colours = [class_colour(label) for label in detections.labels.tolist()]
    for box, colour in zip(boxes[::-1], colours[::-1], strict=True):
        _frame(canvas, box, colour, line_px)
    names, numbers = detections.names(), _numbers(detections)
    size_px = _text_size(names, numbers, side, width * height)
    places = Places(width, height, gap_px=_outside(line_px) + _halo(line_px))
    for name, number, box, colour in zip(names, numbers, boxes, colours, strict=True):
        for text in (number, ""):
            line = fitted(name, text, size_px=size_px, width_px=width)
            place = line and places.take(box, line.width, line.height)
            if line and place:
                _put(canvas, line, place, colour)
                break
    return canvas


def _pixels(box: list[float], width: int, height: int) -> Rectangle:
    """Round a box to pixels; it has one at least, and lies in the image."""
    x1, y1, x2, y2 = map(round, box)
    x1, y1 = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
    return x1, y1, min(max(x2, x1 + 1), width), min(max(y2, y1 + 1), height)


def _outside(line_px: int) -> int:
    return line_px // 2


def _halo(line_px: int) -> int:
    """Width of the black or white line along a coloured one."""
    return max(1, round(line_px / 3))


def _frame(canvas: ImageArray, box: Rectangle, colour: Colour, line_px: int) -> None:
    """Draw a line of a colour on the edge of a box, between two that contrast with it."""
    x1, y1, x2, y2 = box
    line_px = max(1, min(line_px, min(x2 - x1, y2 - y1) // 8))  # an object must be seen in its box
    out, halo = _outside(line_px), _halo(line_px)
    _ring(canvas, (x1 - out - halo, y1 - out - halo, x2 + out + halo, y2 + out + halo),
          line_px + 2 * halo if line_px > 1 else line_px + halo, ink_on(colour))  # fmt: skip
    _ring(canvas, (x1 - out, y1 - out, x2 + out, y2 + out), line_px, colour)


def _ring(canvas: ImageArray, outer: Rectangle, thickness: int, colour: Colour) -> None:
    """Fill the outermost pixels of a rectangle, as far as they are in the image."""
    x1, y1, x2, y2 = outer
    left, top = max(x1, 0), max(y1, 0)
    for a, b, c, d in (
        (left, top, x2, y1 + thickness),
        (left, y2 - thickness, x2, y2),
        (left, top, x1 + thickness, y2),
        (x2 - thickness, top, x2, y2),
    ):
        canvas[max(b, 0) : max(d, 0), max(a, 0) : max(c, 0)] = colour


def _put(canvas: ImageArray, line: Line, place: tuple[int, int], colour: Colour) -> None:
    x, y = place
    drawn = line.drawn(ink=ink_on(colour), ground=colour)
    canvas[y : y + line.height, x : x + line.width] = drawn


def _text_size(names: list[str], numbers: list[str], side: float, area: int) -> int:
    """Choose the size of all labels, smaller ones where there are many."""
    size_px = max(_SMALLEST_TEXT_PX, round(side * _TEXT))
    characters = sum(min(len(n), 30) + len(m) + 2 for n, m in zip(names, numbers, strict=True))
    labelled = characters * 0.6 * 1.3 * size_px**2  # of usual letters
    if labelled > _LABELLED * area:
        factor = max(_SMALLER, math.sqrt(_LABELLED * area / labelled))
        size_px = max(_SMALLEST_TEXT_PX, round(size_px * factor))
    return size_px


def _numbers(detections: Drawable) -> list[str]:
    if detections.probabilities is None:
        return [f"{score:.2f}" for score in detections.scores.tolist()]
    return [f"{100 * probability:.0f}%" for probability in detections.probabilities.tolist()]

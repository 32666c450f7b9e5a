"""Places of labels beside their boxes, so that no label covers another."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels, half-open


class Places:
    """Labels on an image of `width` × `height` pixels, none of which covers another."""

    def __init__(self, width: int, height: int, *, gap_px: int) -> None:
        self.width, self.height = width, height
        self.gap_px = gap_px  # between a label and the box beside it: half of the box's lines
        self._taken: NDArray[np.int64] = np.zeros((0, 4), np.int64)

    def take(self, box: Rectangle, width: int, height: int) -> tuple[int, int] | None:
        """Take the first free place beside or in a box for a label of `width` × `height`.

        Returns:
            The left and top pixel of the place; None if none is free.
        """
        if width > self.width or height > self.height:
            return None
        for x, y in self._candidates(box, width, height):
            if self._is_free(x, y, x + width, y + height):
                self._taken = np.vstack([self._taken, [[x, y, x + width, y + height]]])
                return x, y
        return None

    def _candidates(self, box: Rectangle, width: int, height: int) -> Iterator[tuple[int, int]]:
        """Yield places in order of preference, all of them inside the image."""
        x1, y1, x2, y2 = box
        gap, last_x, last_y = self.gap_px, self.width - width, self.height - height

        def moved(x: int, y: int) -> tuple[int, int]:
            return min(max(x, 0), last_x), min(max(y, 0), last_y)

        lefts, tops = (x1 - gap, x2 + gap - width), (y1 - gap, y2 + gap - height)
        above_below = [
            moved(x, y) for y in (y1 - gap - height, y2 + gap) if 0 <= y <= last_y for x in lefts
        ]
        beside = [
            moved(x, y) for x in (x2 + gap, x1 - gap - width) if 0 <= x <= last_x for y in tops
        ]
        inside = [
            moved(x, y) for y in (y1 + gap, y2 - gap - height) for x in (x1 + gap, x2 - gap - width)
        ]
        fits = width <= x2 - x1 - 2 * gap and height <= y2 - y1 - 2 * gap
        yield from above_below
        yield from (*inside, *beside) if fits else (*beside, *inside)

    def _is_free(self, x1: int, y1: int, x2: int, y2: int) -> bool:
        left, top, right, bottom = self._taken.T
        return not ((left < x2) & (x1 < right) & (top < y2) & (y1 < bottom)).any()

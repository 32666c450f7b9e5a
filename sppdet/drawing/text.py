"""Labels as small images: a name in any script and a number."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sppdet.arrays import ImageArray
from sppdet.drawing.colours import Colour
from sppdet.drawing.fonts import font_at, font_runs, latin_font

_MOST_CHARACTERS = 80  # of a name


@dataclass(frozen=True)
class Line:
    """A line of text at a size, with a margin around it."""

    runs: tuple[tuple[Path, str], ...]
    size_px: int  # per em

    @classmethod
    def of(cls, name: str, number: str, size_px: int) -> Line:
        """Choose the fonts of a name; the number stays out of the order of right-to-left letters."""
        runs = _runs(name)
        if number and runs and runs[-1][0] == latin_font() and not _is_right_to_left(runs[-1][1]):
            runs = (*runs[:-1], (latin_font(), f"{runs[-1][1]} {number}"))  # one run, drawn at once
        elif number:
            runs = (*runs, (latin_font(), f" {number}"))
        return cls(runs, size_px)

    @property
    def margin_px(self) -> int:
        """Pixels between the text and the edge of its ground."""
        return max(1, round(self.size_px / 6))

    @property
    def width(self) -> int:
        """Width in pixels."""
        return math.ceil(sum(length for length, _, _ in self._measures)) + 2 * self.margin_px

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self._ascent + self._descent + 2 * (self.margin_px // 2)

    @cached_property
    def _measures(self) -> list[tuple[float, int, int]]:
        return [_measured(path, text, self.size_px) for path, text in self.runs]

    @property
    def _ascent(self) -> int:
        """Pixels of ink above the base line, those of capitals at least."""
        return max([math.ceil(0.76 * self.size_px), *(above for _, above, _ in self._measures)])

    @property
    def _descent(self) -> int:
        """Pixels of ink below the base line, those of `g` at least."""
        return max([math.ceil(0.24 * self.size_px), *(below for _, _, below in self._measures)])

    def drawn(self, *, ink: Colour, ground: Colour) -> ImageArray:
        """Draw the line in `ink` on a `ground`; (height, width, 3) RGB."""
        image = Image.new("RGB", (self.width, self.height), ground)
        pen, x = ImageDraw.Draw(image), float(self.margin_px)
        base = self._ascent + self.margin_px // 2
        for (path, text), (length, _, _) in zip(self.runs, self._measures, strict=True):
            pen.text((x, base), text, fill=ink, font=font_at(path, self.size_px), anchor="ls")
            x += length
        return np.asarray(image)


def fitted(name: str, number: str, *, size_px: int, width_px: int) -> Line | None:
    """Make the line of a label; a name that is too long for `width_px` ends in an ellipsis.

    Returns:
        None if even one character of the name doesn't fit beside the number.
    """
    line = Line.of(name[:_MOST_CHARACTERS], number, size_px)
    if len(name) <= _MOST_CHARACTERS and line.width <= width_px:
        return line
    low, high, best = 0, min(len(name) - 1, _MOST_CHARACTERS), None
    while low < high:  # the longest beginning of the name that fits
        middle = (low + high + 1) // 2
        line = Line.of(f"{name[:middle]}…", number, size_px)
        if line.width <= width_px:
            low, best = middle, line
        else:
            high = middle - 1
    return best


def _is_right_to_left(text: str) -> bool:
    return any(unicodedata.bidirectional(character) in ("R", "AL") for character in text)


@lru_cache(maxsize=1024)
def _runs(name: str) -> tuple[tuple[Path, str], ...]:
    return tuple(font_runs(name))


@lru_cache(maxsize=4096)
def _measured(path: Path, text: str, size_px: int) -> tuple[float, int, int]:
    """Measure a run: its length, and its ink above and below the base line, in pixels."""
    font = font_at(path, size_px)
    _, top, _, bottom = font.getbbox(text, anchor="ls")
    return font.getlength(text), math.ceil(-top), math.ceil(bottom)

"""Modes of selective search: the hierarchies that it builds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mode:
    """Colour spaces, segmentation thresholds k and groupings; every combination is a hierarchy."""

    colours: tuple[str, ...]
    ks: tuple[int, ...]
    groupings: tuple[str, ...]  # c colour, t texture, s size, f fill; equal weights


_COLOURS = ("hsv", "lab", "rgi", "hue", "grey")
_GROUPINGS = ("ctsf", "tsf", "f", "s")
# fast and quality are Uijlings et al.'s, single is one segmentation of fast; diverse spends its time on
# colour spaces and groupings, since a segmentation takes most of it and a grouping the least
MODES = {
    "single": Mode(("hsv",), (50,), ("ctsf", "tsf")),
    "fast": Mode(("hsv", "lab"), (50, 100), ("ctsf", "tsf")),
    "diverse": Mode(_COLOURS, (100,), _GROUPINGS),
    "quality": Mode(_COLOURS, (50, 100, 150, 300), _GROUPINGS),
}

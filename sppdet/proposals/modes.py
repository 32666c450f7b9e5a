"""Modes of selective search: the hierarchies that it builds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mode:
    """Colour spaces, segmentation thresholds k and groupings; every combination is a hierarchy."""

    colours: tuple[str, ...]
    ks: tuple[int, ...]
    groupings: tuple[str, ...]  # c colour, t texture, s size, f fill; equal weights


MODES = {
    "single": Mode(("hsv",), (50,), ("ctsf", "tsf")),
    "fast": Mode(("hsv", "lab"), (50, 100), ("ctsf", "tsf")),
    "quality": Mode(
        ("hsv", "lab", "rgi", "hue", "grey"), (50, 100, 150, 300), ("ctsf", "tsf", "f", "s")
    ),
}

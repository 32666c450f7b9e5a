"""Colours of classes, and the ink that is readable on them, by the contrast ratio of WCAG 2."""

from __future__ import annotations

import colorsys
from functools import cache

Colour = tuple[int, int, int]  # RGB, 0..255

BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)
LEAST_CONTRAST = 9.0
"""Least contrast of a class colour with its ink: one of the two has 3 on any ground, since the
contrasts of a ground with both multiply to 9 at least."""

_OF_A_TONE = 8  # classes in a row that are all light or all dark


def luminance(colour: Colour) -> float:
    """Return the relative luminance of an sRGB colour, 0 to 1 (WCAG 2.2)."""
    red, green, blue = (_linear(value / 255) for value in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: Colour, other: Colour) -> float:
    """Return the contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@cache
def ink_on(ground: Colour) -> Colour:
    """Choose black or white, whichever has more contrast; it is 4.58 at least on any ground."""
    return max(BLACK, WHITE, key=lambda ink: contrast(ink, ground))


@cache
def class_colour(label: int) -> Colour:
    """Return the colour of label 1..K, whose contrast with black or white is `LEAST_CONTRAST`.

    Neighbouring labels are far apart on the colour circle; eight light colours and eight dark ones
    follow each other.
    """
    hue = ((label - 1) * 0.618034) % 1.0  # the golden ratio
    dark = (label - 1) // _OF_A_TONE % 2
    ink = WHITE if dark else BLACK
    for step in range(101):
        pure = colorsys.hsv_to_rgb(hue, 0.9, 1.0)
        share = step / 100  # of black or white
        red, green, blue = (round(255 * ((1 - share) * c + share * (1 - dark))) for c in pure)
        if contrast((red, green, blue), ink) >= LEAST_CONTRAST:
            break
    return red, green, blue


def _linear(value: float) -> float:
    return float(value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)

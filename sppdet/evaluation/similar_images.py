"""Images that must not be divided between training and test: near-duplicates and frames of one video."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from sppdet.types import ImageArray

# Copies of 180 photos at half the size and JPEG quality 60, 8 levels brighter, differed from them in up to
# 25 bits and 8 levels, two different ones of 550 photos (of one data set each) in 32 bits or more; images
# that have nothing in common differ in about 128 bits.
MAX_BITS = 28
MAX_BITS_OF_FRAMES = 64
MAX_COLOUR = 12.0  # mean difference of 8-bit values; plain images have like bits and other colours
MAX_COLOUR_OF_FRAMES = 24.0
_BLOCK = 512  # rows of the comparison at a time
_NUMBERED = re.compile(r"(|.*\D)(\d+)(\D*)", re.DOTALL)  # the last number of a name
_OF_ROBOFLOW = re.compile(r"_(jpe?g|png)\.rf\.[0-9a-f]+$")  # video_mp4-12_jpg.rf.0a1b2c
_OF_VIDEO = re.compile(
    r"frame|video|clip|(^|[^a-z])(mp4|mov|avi|mkv|webm|m4v)([^a-z]|$)", re.IGNORECASE
)


@dataclass(frozen=True)
class Look:
    """How an image looks: the signs of horizontal differences, 256 bits, and 8 x 8 colours."""

    bits: NDArray[np.uint8]  # (32,)
    colours: NDArray[np.uint8]  # (8, 8, 3)


def look_of(image: ImageArray) -> Look:
    """Compute the look of an image, (H, W, 3) uint8: a difference hash of 16 x 16 bits, and colours."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (17, 16), interpolation=cv2.INTER_AREA)
    bits = np.packbits(small[:, 1:] > small[:, :-1])
    colours = cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA)
    return Look(bits, np.asarray(colours, dtype=np.uint8))


def group_similar(names: Sequence[str], looks: Sequence[Look | None]) -> NDArray[np.int64]:
    """Group images that show nearly the same.

    Two images are in a group if they are near-duplicates, if their names are numbered alike and say that
    they are frames (`frame`, `video`, `clip`, or the suffix of a video), or if their numbers are next to
    each other and they look like frames of one scene. Groups that share an image are one.

    Args:
        names: paths without suffix.
        looks: None for an image that can't be read.

    Returns:
        (I,) the group of each image, from 0.
    """
    return _united(len(names), (*_duplicates(looks), *_frames(names, looks)))


def group_near_duplicates(looks: Sequence[Look | None]) -> NDArray[np.int64]:
    """Group near-duplicates alone, whatever their names; returns (I,) the group of each image, from 0."""
    return _united(len(looks), _duplicates(looks))


def _united(count: int, pairs: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
    group = list(range(count))

    def root(row: int) -> int:
        while group[row] != row:
            group[row] = group[group[row]]
            row = group[row]
        return row

    for one, other in pairs:
        first, second = sorted((root(one), root(other)))
        group[second] = first
    roots = [root(row) for row in range(count)]
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)


def differences(one: Look, other: Look) -> tuple[int, float]:
    """Compare two looks: bits that differ, of 256, and the mean difference of the colours, 0 to 255."""
    bits = int(np.unpackbits(one.bits ^ other.bits).sum())
    colours = np.abs(one.colours.astype(np.int64) - other.colours)
    return bits, float(colours.mean())


def _duplicates(looks: Sequence[Look | None]) -> list[tuple[int, int]]:
    """Compare all pairs."""
    rows = [row for row, look in enumerate(looks) if look is not None]
    if not rows:
        return []
    signs = np.array([np.unpackbits(looks[row].bits) for row in rows]).astype(np.float32)  # type: ignore[union-attr]
    signs = 2 * signs - 1  # so that a product counts the bits that agree
    found = []
    for start in range(0, len(rows), _BLOCK):
        apart = (256 - signs[start : start + _BLOCK] @ signs[start:].T) / 2
        for k, j in np.argwhere(apart <= MAX_BITS).tolist():
            one, other = rows[start + k], rows[start + j]
            if k < j and differences(looks[one], looks[other])[1] <= MAX_COLOUR:  # type: ignore[arg-type]
                found.append((one, other))
    return found


def _frames(names: Sequence[str], looks: Sequence[Look | None]) -> list[tuple[int, int]]:
    """Pair images whose names differ in the last number alone with the next number."""
    series: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for row, name in enumerate(names):
        folder, slash, base = name.rpartition("/")
        match = _NUMBERED.fullmatch(_OF_ROBOFLOW.sub("", base))
        if match is None:
            continue
        before, number, after = match.groups()
        series[folder + slash + before, after].append((int(number), row))
    found = []
    for (before, _), members in series.items():
        told = _OF_VIDEO.search(before.rpartition("/")[2]) is not None
        for (number, one), (following, other) in pairwise(sorted(members)):
            a, b = looks[one], looks[other]
            if told or (
                following - number == 1 and a is not None and b is not None and _one_scene(a, b)
            ):
                found.append((one, other))
    return found


def _one_scene(one: Look, other: Look) -> bool:
    bits, colours = differences(one, other)
    return bits <= MAX_BITS_OF_FRAMES and colours <= MAX_COLOUR_OF_FRAMES

"""Detection by tiles: large images, and objects that are small in them.

Tiles overlap, so that an object no larger than the overlap is whole in one of them. The whole image is
searched as well, for objects that are larger than a tile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sppdet.boxes import box_iou, intersections
from sppdet.types import Boxes, Detections, Flags

Tile = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the image, half-open

_NEAR = (
    0.01  # of a tile's side: an edge so near to the tile's may be the tile's, moved by regression
)
_COVERED = 0.5  # of a cut box's area
BEHIND = 0.1  # of the score, by which a cut box stands behind


@dataclass(frozen=True)
class Tiling:
    """Tiles of `side_px` pixels a side of which neighbours share the fraction `overlap` or more.

    Raises:
        ValueError: a side that is no integer or below 32, or an overlap that isn't in [0, 0.9].
    """

    side_px: int
    overlap: float = 0.2

    def __post_init__(self) -> None:
        if not isinstance(self.side_px, int) or self.side_px < 32:
            raise ValueError(f"tiles of {self.side_px!r} pixels: expected an integer, 32 or more")
        if not isinstance(self.overlap, int | float) or not 0 <= self.overlap <= 0.9:
            raise ValueError(f"overlap of tiles {self.overlap!r}: expected 0 to 0.9")

    def tiles(self, *, width: int, height: int) -> list[Tile]:
        """List the tiles of an image row by row, and last the whole image.

        Along each side there are as few as cover it, evenly apart; where it is no longer than a tile
        there is one. An image no larger than a tile is whole alone.
        """
        whole = (0, 0, width, height)
        if max(width, height) <= self.side_px:
            return [whole]
        tiles = [
            (x, y, min(x + self.side_px, width), min(y + self.side_px, height))
            for y in self._starts(height)
            for x in self._starts(width)
        ]
        return [*tiles, whole]

    def _starts(self, length: int) -> list[int]:
        room = length - self.side_px
        if room <= 0:
            return [0]
        step = max(1, math.floor(self.side_px * (1 - self.overlap)))
        steps = math.ceil(room / step)
        return [room * i // steps for i in range(steps + 1)]


def merge_tiles(
    found: Sequence[Detections],
    tiles: Sequence[Tile],
    *,
    max_iou: float,
    width: int,
    height: int,
    behind: float = BEHIND,
) -> Detections:
    """Merge the detections of an image's tiles, moved to the image, by NMS per class.

    A box that ends at an edge of its tile within the image (within 1 % of the tile's side) may be part
    of an object that another tile sees whole. Such a cut box stands `behind` its score in the order of
    NMS, so that of two views that score alike the whole one wins. It is dropped if its IoU with a kept
    box is > `max_iou`, as any is, and also if a kept box covers half of its area or more. A cut box that
    nothing better replaces stays: part of an object is better than none. Whole boxes don't go first
    whatever their scores, since a poor one would take the place of a good cut one.

    Args:
        found: of every tile, in pixels of the tile.
        tiles: their places; those of `Tiling.tiles`.
        max_iou: the IoU of the detector's own NMS.
        behind: of the score; margins of SVMs and log odds have a scale near 1.

    Returns:
        Detections in descending score; those of an only tile as they are.
    """
    if len(found) == 1 and tiles[0] == (0, 0, width, height):
        return found[0]
    moved = [_moved(one, tile) for one, tile in zip(found, tiles, strict=True)]
    boxes = np.concatenate([one.boxes for one in moved])
    scores = np.concatenate([one.scores for one in moved])
    labels = np.concatenate([one.labels for one in moved])
    cut = np.concatenate(
        [
            _is_cut(one.boxes, tile, width=width, height=height)
            for one, tile in zip(moved, tiles, strict=True)
        ]
    )
    kept = [
        rows[_keep(boxes[rows], scores[rows], cut[rows], max_iou=max_iou, behind=behind)]
        for rows in (np.flatnonzero(labels == label) for label in np.unique(labels))
    ]
    rows = np.concatenate([np.zeros(0, np.int64), *kept])
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    given = [one.probabilities for one in moved]
    probabilities = None
    if all(one is not None for one in given):
        probabilities = np.concatenate([one for one in given if one is not None])[rows]
    names = found[0].class_names
    return Detections(boxes[rows], scores[rows], labels[rows], names, probabilities=probabilities)


def _moved(found: Detections, tile: Tile) -> Detections:
    shift = np.array([tile[0], tile[1]] * 2, dtype=np.float32)
    return replace(found, boxes=found.boxes + shift)


def _is_cut(boxes: Boxes, tile: Tile, *, width: int, height: int) -> Flags:
    """Tell which boxes, in pixels of the image, end at an edge of the tile within the image."""
    x1, y1, x2, y2 = tile
    near_x, near_y = max(2.0, _NEAR * (x2 - x1)), max(2.0, _NEAR * (y2 - y1))
    cut = np.zeros(len(boxes), dtype=np.bool_)
    if x1 > 0:
        cut |= boxes[:, 0] <= x1 + near_x
    if y1 > 0:
        cut |= boxes[:, 1] <= y1 + near_y
    if x2 < width:
        cut |= boxes[:, 2] >= x2 - near_x
    if y2 < height:
        cut |= boxes[:, 3] >= y2 - near_y
    return cut


def _keep(
    boxes: Boxes, scores: NDArray[np.float32], cut: Flags, *, max_iou: float, behind: float
) -> NDArray[np.int64]:
    """Select the rows of one class; see `merge_tiles`."""
    kept: list[int] = []
    for row in np.argsort(-(scores - behind * cut), kind="stable").tolist():
        one, others = boxes[[row]], boxes[kept]
        covered = cut[row] and (intersections(one, others)[0] / _area(one) >= _COVERED).any()
        if not covered and not (box_iou(one, others) > max_iou).any():
            kept.append(row)
    return np.array(kept, dtype=np.int64)


def _area(boxes: Boxes) -> NDArray[np.float64]:
    sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]
    areas: NDArray[np.float64] = sides.prod(axis=1)
    return areas

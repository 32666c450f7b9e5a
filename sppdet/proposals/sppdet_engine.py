"""Selective search by sppdet's own compiled loops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sppdet.proposals.colours import in_colour_space
from sppdet.proposals.grouping import Hierarchy, group
from sppdet.proposals.modes import Mode
from sppdet.proposals.regions import describe_regions, pixel_bins
from sppdet.proposals.segmentation import segment, weigh_edges
from sppdet.types import ImageArray


@dataclass(frozen=True)
class Tree:
    """One hierarchy and what it was grown by."""

    colour: str
    k: int
    grouping: str
    hierarchy: Hierarchy


def hierarchies(image: ImageArray, mode: Mode) -> list[NDArray[np.int32]]:
    """Compute the boxes of every hierarchy, from the last merge to the initial regions.

    Args:
        image: (H, W, 3) RGB uint8.

    Returns:
        per hierarchy (N, 4) int32 boxes, xyxy, half-open.
    """
    return [tree.hierarchy.boxes[::-1] for tree in grow(image, mode)]


def grow(image: ImageArray, mode: Mode) -> Iterator[Tree]:
    """Grow the hierarchies of an image (H, W, 3) RGB uint8 one by one, in the order of `hierarchies`."""
    height, width = image.shape[:2]
    for colour in mode.colours:
        planes = np.ascontiguousarray(in_colour_space(image, colour).transpose(2, 0, 1))
        edges, bins = weigh_edges(planes), pixel_bins(planes)
        for k in mode.ks:
            regions = describe_regions(*segment(edges, k), bins)
            for grouping in mode.groupings:
                yield Tree(colour, k, grouping, group(regions, grouping, height * width))

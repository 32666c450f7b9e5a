"""Selective search by sppdet's own compiled loops."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sppdet.proposals.colours import in_colour_space
from sppdet.proposals.grouping import group
from sppdet.proposals.modes import Mode
from sppdet.proposals.regions import describe_regions, pixel_bins
from sppdet.proposals.segmentation import segment, weigh_edges
from sppdet.types import ImageArray


def hierarchies(image: ImageArray, mode: Mode) -> list[NDArray[np.int32]]:
    """Compute the boxes of every hierarchy, from the last merge to the initial regions.

    Args:
        image: (H, W, 3) RGB uint8.

    Returns:
        per hierarchy (N, 4) int32 boxes, xyxy, half-open.
    """
    height, width = image.shape[:2]
    found: list[NDArray[np.int32]] = []
    for colour in mode.colours:
        planes = np.ascontiguousarray(in_colour_space(image, colour).transpose(2, 0, 1))
        edges, bins = weigh_edges(planes), pixel_bins(planes)
        for k in mode.ks:
            regions = describe_regions(*segment(edges, k), bins)
            trees = (group(regions, grouping, height * width) for grouping in mode.groupings)
            found.extend(tree.boxes[::-1] for tree in trees)
    return found

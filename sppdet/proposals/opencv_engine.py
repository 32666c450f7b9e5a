"""Selective search by OpenCV, for comparison.

OpenCV hides the merge order and ranks boxes with C's `rand()`, so that its order depends on what ran
before in the process. Here the boxes of a segmentation are sorted from largest to smallest, which puts
every region after those that contain it.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sppdet.proposals.colours import in_colour_space
from sppdet.proposals.modes import Mode
from sppdet.proposals.segmentation import SIGMA
from sppdet.types import ImageArray


def hierarchies(image: ImageArray, mode: Mode) -> list[NDArray[np.int32]]:
    """Compute the boxes of all groupings of every segmentation, largest first.

    Args:
        image: (H, W, 3) RGB uint8.

    Returns:
        per segmentation (N, 4) int32 distinct boxes, xyxy, half-open.
    """
    found = []
    for colour in mode.colours:
        converted = in_colour_space(image, colour)
        for k in mode.ks:
            boxes = _search(image, converted, k, mode.groupings)
            area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            found.append(boxes[np.lexsort((*boxes.T[::-1], -area))])
    return found


def _search(
    image: ImageArray, converted: NDArray[np.uint8], k: int, groupings: tuple[str, ...]
) -> NDArray[np.int32]:
    segmentation = cv2.ximgproc.segmentation
    search = segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    search.addImage(converted)
    search.addGraphSegmentation(segmentation.createGraphSegmentation(SIGMA, float(k), k))
    for grouping in groupings:
        search.addStrategy(_strategy(grouping))
    xywh = np.asarray(search.process(), dtype=np.int32).reshape(-1, 4)
    return np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])


def _strategy(grouping: str) -> Any:
    segmentation = cv2.ximgproc.segmentation
    makers = {
        "c": segmentation.createSelectiveSearchSegmentationStrategyColor,
        "t": segmentation.createSelectiveSearchSegmentationStrategyTexture,
        "s": segmentation.createSelectiveSearchSegmentationStrategySize,
        "f": segmentation.createSelectiveSearchSegmentationStrategyFill,
    }
    combined = segmentation.createSelectiveSearchSegmentationStrategyMultiple()
    for letter in grouping:
        combined.addStrategy(makers[letter](), 1.0 / len(grouping))
    return combined

"""Edge boxes (Zitnick and Dollár, ECCV 2014): boxes scored by the contours that lie wholly inside.

OpenCV groups the pixels of an edge map into contours and scores a sliding window of many sizes and
aspect ratios by the strength of the contours inside, less that of contours that cross its border.

The paper's edge maps come from structured forests (Dollár and Zitnick, ICCV 2013), which need a trained
model. Without one, `gradient_edges` makes an edge map of the gradients of colour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sppdet.compiled import compiled
from sppdet.config import ProposalsConfig
from sppdet.proposals.resized import in_original, resized_for_search
from sppdet.types import ImageArray, Proposals

SIGMA = 1.5  # smoothing before the gradients, pixels
LOCAL_SIGMA = 8.0  # of the mean strength that a gradient is compared with, pixels
FLOOR = 0.02  # added to that mean, in units of L / 100 a pixel: faint gradients stay faint
RADIUS = 2  # non-maximum suppression, pixels to either side; as in the authors' code
ALPHA, BETA = 0.65, 0.75  # the paper's step of the sliding window and IoU of its suppression
SMALLEST = 8  # side of the smallest square searched for; OpenCV divides by zero near 1
VERSION = 1  # raise it when the same settings give other boxes
MOST = 10_000  # boxes before those with a short side are dropped; the authors' maximum


@dataclass(frozen=True)
class EdgeMap:
    """Edges of an image."""

    strength: NDArray[np.float32]  # (H, W), about 0 to 1; 0: no edge
    orientation: NDArray[
        np.float32
    ]  # (H, W) of the edge's normal, radians in [0, π); y points down


EdgeDetector = Callable[[ImageArray], EdgeMap]


def edge_boxes(
    image: ImageArray, config: ProposalsConfig, detect_edges: EdgeDetector | None = None
) -> Proposals:
    """Compute the proposals of one image.

    Args:
        image: (H, W, 3) RGB uint8.
        config: its `mode` and `seed` have no effect.
        detect_edges: detector of edges in the resized image; None: `gradient_edges`.

    Returns:
        At most `config.max_boxes` distinct boxes in original pixels, at least `config.min_size`
        resized pixels wide and high, in descending score. An image without edges gives one box, the
        whole image.
    """
    resized = resized_for_search(image, config.image_width)
    height, width = resized.shape[:2]
    boxes = np.zeros((0, 4), np.int32)
    if min(height, width) > 2:  # OpenCV ignores edges in the outermost pixels
        edges = (detect_edges or gradient_edges)(resized)
        boxes = score_boxes(edges, min_size=config.min_size, most=max(MOST, config.max_boxes))
    if not len(boxes):
        boxes = np.array([[0, 0, width, height]], np.int32)
    large = (boxes[:, 2:] - boxes[:, :2] >= config.min_size).all(axis=1)
    return Proposals(in_original(boxes[large][: config.max_boxes], resized, image))


def gradient_edges(image: ImageArray) -> EdgeMap:
    """Detect edges as maxima of the smoothed gradients of colour, relative to those around.

    Args:
        image: (H, W, 3) RGB uint8.
    """
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) / 100
    smooth = cv2.GaussianBlur(lab, (0, 0), SIGMA, borderType=cv2.BORDER_REPLICATE)
    padded = np.pad(smooth, ((1, 1), (1, 1), (0, 0)), mode="edge")
    dx = (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2
    dy = (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2
    squared = dx * dx + dy * dy
    strongest = squared.argmax(axis=2)[:, :, None]
    magnitude, dx, dy = (
        np.take_along_axis(a, strongest, axis=2)[:, :, 0] for a in (np.sqrt(squared), dx, dy)
    )
    around = cv2.GaussianBlur(magnitude, (0, 0), LOCAL_SIGMA, borderType=cv2.BORDER_REPLICATE)
    strength = magnitude / (magnitude + around + FLOOR)
    orientation = np.arctan2(dy, dx)
    orientation[orientation < 0] += np.float32(np.pi)
    orientation[orientation >= np.float32(np.pi)] = 0
    return EdgeMap(suppressed(strength, orientation), orientation)


@compiled
def suppressed(
    strength: NDArray[np.float32], orientation: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Set to 0 what is weaker than any of `RADIUS` neighbours on either side along its normal.

    Neighbours lie at whole distances and are interpolated bilinearly; ties stay.
    """
    height, width = strength.shape
    kept: NDArray[np.float32] = strength.copy()
    for y in range(height):
        for x in range(width):
            if strength[y, x] == 0:
                continue
            cos, sin = np.cos(orientation[y, x]), np.sin(orientation[y, x])
            for d in range(-RADIUS, RADIUS + 1):
                if d == 0:
                    continue
                at_x = min(max(x + d * cos, 0.0), width - 1.001)
                at_y = min(max(y + d * sin, 0.0), height - 1.001)
                x0, y0 = int(at_x), int(at_y)
                right, below = at_x - x0, at_y - y0
                top = strength[y0, x0] * (1 - right) + strength[y0, x0 + 1] * right
                bottom = strength[y0 + 1, x0] * (1 - right) + strength[y0 + 1, x0 + 1] * right
                if strength[y, x] < top * (1 - below) + bottom * below:
                    kept[y, x] = 0
                    break
    return kept


def score_boxes(edges: EdgeMap, *, min_size: int, most: int = MOST) -> NDArray[np.int32]:
    """Find the boxes with the highest scores.

    Args:
        min_size: side in pixels of the smallest square that is searched for.
        most: maximum number of boxes.

    Returns:
        (N, 4) int32 distinct boxes, xyxy, half-open, in descending score; none in an image without edges.
    """
    scorer = cv2.ximgproc.createEdgeBoxes(
        alpha=ALPHA, beta=BETA, maxBoxes=most, minBoxArea=float(max(min_size, SMALLEST) ** 2)
    )
    found, _ = scorer.getBoundingBoxes(edges.strength, edges.orientation)
    xywh: NDArray[np.int32] = np.asarray(found, dtype=np.int32).reshape(-1, 4)
    # OpenCV adds 1 to x and y as for MATLAB; its windows have the pixels x to x + w, both included
    boxes: NDArray[np.int32] = np.hstack([xywh[:, :2] - 1, xywh[:, :2] + xywh[:, 2:]])
    return boxes

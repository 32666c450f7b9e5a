"""The frame of the search: the image at a fixed width, and the way back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sppdet.boxes import clip_boxes
from sppdet.resizing import resized_to
from sppdet.types import Boxes, ImageArray

MAX_ASPECT = 4  # height / width above which an image is shrunk further, to bound the time


def searched_size(width: int, height: int, image_width: int) -> tuple[int, int]:
    """Compute the width and height in pixels at which an image is searched."""
    factor = min(image_width / width, MAX_ASPECT * image_width / height)
    return max(1, round(width * factor)), max(1, round(height * factor))


def resized_for_search(image: ImageArray, image_width: int) -> ImageArray:
    """Resize an image (H, W, 3) to the width of the search."""
    height, width = image.shape[:2]
    return resized_to(image, *searched_size(width, height, image_width))


def in_original(boxes: NDArray[np.int32], resized: ImageArray, image: ImageArray) -> Boxes:
    """Map boxes (N, 4) of the resized image to float32 original pixels, within the image."""
    height, width = image.shape[:2]
    scale = np.array([width / resized.shape[1], height / resized.shape[0]] * 2, dtype=np.float64)
    return clip_boxes((boxes * scale).astype(np.float32), width=width, height=height)

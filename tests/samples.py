"""Random boxes and images that several tests draw."""

from __future__ import annotations

import numpy as np

from sppdet.types import Boxes, ImageArray


def random_boxes(
    rng: np.random.Generator, count: int, *, width: int, height: int, whole: bool = False
) -> Boxes:
    """(count, 4) boxes of at least a pixel a side inside an image, on whole pixels if asked."""
    size = np.array([width, height], dtype=np.float64)
    a = rng.random((count, 2)) * (size - 1)
    b = a + 1 + rng.random((count, 2)) * (size - a - 1)
    boxes = np.hstack([a, b])
    if whole:
        boxes = np.hstack([np.floor(a), np.maximum(np.floor(b), np.floor(a) + 1)])
    return boxes.astype(np.float32)


def random_image(rng: np.random.Generator, *, width: int, height: int) -> ImageArray:
    """Coloured blocks under a little noise, so that a segmentation finds something."""
    image = np.full((height, width, 3), 128, dtype=np.int64)
    for box in random_boxes(rng, 12, width=width, height=height, whole=True).astype(int).tolist():
        x1, y1, x2, y2 = box
        image[y1:y2, x1:x2] = rng.integers(0, 256, 3)
    noisy = image + rng.integers(-9, 10, image.shape)
    clipped: ImageArray = np.clip(noisy, 0, 255).astype(np.uint8)
    return clipped

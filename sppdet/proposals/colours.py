"""Colour spaces of selective search."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from sppdet.types import ImageArray


def in_colour_space(image: ImageArray, name: str) -> NDArray[np.uint8]:
    """Convert an RGB image (H, W, 3) to a colour space.

    Args:
        name: hsv, lab, rgi (normalised red and green, and intensity), hue or grey.

    Returns:
        (H, W, C) uint8, C = 3 or 1.
    """
    if name in ("hsv", "lab", "hue"):
        code = cv2.COLOR_RGB2LAB if name == "lab" else cv2.COLOR_RGB2HSV
        converted = np.asarray(cv2.cvtColor(image, code), dtype=np.uint8)
        return np.ascontiguousarray(converted[:, :, :1]) if name == "hue" else converted
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    if name == "grey":
        return grey[:, :, None]
    total = np.maximum(image.sum(axis=2, keepdims=True, dtype=np.float32), 1.0)
    chroma = (image[:, :, :2] / total * 255).astype(np.uint8)
    return np.dstack([chroma, grey])

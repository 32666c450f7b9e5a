"""Resizing of images: area averaging where an axis shrinks, bilinear interpolation where it grows.

Without averaging, details finer than the resized pixels alias into noise: a texture of standard
deviation 40 shrunk from 3000 to 480 pixels keeps 26 of it instead of 6. Area averaging converges to
bilinear interpolation as the factor approaches 1, and it preserves more detail than a triangle filter
of twice the width.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

from sppdet.errors import ImageError
from sppdet.types import ImageArray

Interpolation = Literal["bilinear", "bicubic"]


def resized(
    image: ImageArray, factor: float, interpolation: Interpolation = "bilinear"
) -> ImageArray:
    """Resize an image (H, W, 3) by `factor`, to at least one pixel per side.

    The sides are rounded, the positions aren't: x in the image maps to x · `factor` in the result, in
    continuous pixels, on both axes.

    Args:
        interpolation: of an image that grows; one that shrinks is averaged over areas.

    Raises:
        ImageError: the result has more pixels than OpenCV supports.
    """
    height, width = image.shape[:2]
    if min(round(width * factor), round(height * factor)) < 1:
        sides = (max(1, round(side * factor)) for side in (width, height))
        return resized_to(image, *sides)
    larger = cv2.INTER_CUBIC if interpolation == "bicubic" else cv2.INTER_LINEAR
    kind = cv2.INTER_AREA if factor < 1 else larger
    source = np.ascontiguousarray(image)
    # passing a size instead of the factors would stretch the image to it
    try:
        out = cv2.resize(source, None, fx=factor, fy=factor, interpolation=kind)
    except cv2.error:
        raise ImageError(f"{width}x{height} pixels can't be resized by {factor:g}") from None
    return np.asarray(out, dtype=np.uint8)


def resized_to(image: ImageArray, width: int, height: int) -> ImageArray:
    """Resize an image (H, W, 3) to `width` × `height` pixels, each axis by its own factor."""
    smaller = (min(width, image.shape[1]), min(height, image.shape[0]))
    shrunk = _to_size(image, smaller, cv2.INTER_AREA)
    return _to_size(shrunk, (width, height), cv2.INTER_LINEAR)


def _to_size(image: ImageArray, size: tuple[int, int], kind: int) -> ImageArray:
    if size == (image.shape[1], image.shape[0]):
        return image
    try:
        out = cv2.resize(np.ascontiguousarray(image), size, interpolation=kind)
    except cv2.error:
        height, width = image.shape[:2]
        raise ImageError(
            f"{width}x{height} pixels can't be resized to {size[0]}x{size[1]}"
        ) from None
    return np.asarray(out, dtype=np.uint8)

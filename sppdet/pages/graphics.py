"""Images and curves inside a page: data URIs, and coordinates of SVG."""

from __future__ import annotations

import base64

import cv2
import numpy as np
from numpy.typing import NDArray

from sppdet.resizing import resized_to
from sppdet.types import Boxes, ImageArray

THUMBNAIL_PX = 320
_QUALITY = 72


def thumbnail(image: ImageArray, *, side: int = THUMBNAIL_PX) -> str:
    """Encode an image (H, W, 3) RGB as a JPEG of `side` pixels a side at most; returns a data URI."""
    height, width = image.shape[:2]
    factor = min(1.0, side / max(height, width))
    small = resized_to(image, max(1, round(width * factor)), max(1, round(height * factor)))
    return jpeg_uri(small)


def jpeg_uri(image: ImageArray) -> str:
    """Encode an image (H, W, 3) RGB as a JPEG; returns a data URI."""
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def heat_uri(values: NDArray[np.float32]) -> str:
    """Encode values (H, W) >= 0 as a PNG of H × W pixels, dark for 0 and bright for the largest."""
    top = float(values.max(initial=0.0)) or 1.0
    levels = np.rint(values * (255 / top)).astype(np.uint8)
    _, data = cv2.imencode(".png", cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS))
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()


def boxes_path(boxes: Boxes) -> str:
    """Return the data of one SVG path that outlines boxes (N, 4), rounded to whole pixels."""
    sides = np.rint(boxes).astype(np.int64).tolist()
    return "".join(f"M{a} {b}H{c}V{d}H{a}z" for a, b, c, d in sides)


def polyline(x: NDArray[np.float64], y: NDArray[np.float64], *, side: float = 200.0) -> str:
    """Return the points of an SVG polyline through (x, y) in [0, 1], y upwards; repeated points once."""
    points = np.column_stack([side * x, side * (1 - y)]).round(1)
    new = np.append(True, (np.diff(points, axis=0) != 0).any(axis=1))[: len(points)]
    return " ".join(f"{a:g},{b:g}" for a, b in points[new].tolist())

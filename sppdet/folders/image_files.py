"""The content of the files that an image has for itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

import cv2
import numpy as np

from sppdet.boxes import whole_pixels
from sppdet.drawing.draw import draw_detections
from sppdet.errors import DataError
from sppdet.folders.formats import Format
from sppdet.io.names import escape_name
from sppdet.io.voc_writing import voc_annotation
from sppdet.io.yolo_writing import yolo_labels
from sppdet.types import Detections, ImageArray


@dataclass(frozen=True)
class Finding:
    """An image by its name among the results, its pixels (H, W, 3) RGB, and its detections."""

    name: str
    image: ImageArray
    detections: Detections


def content_of(kind: Format, finding: Finding, number: int) -> bytes:
    """Make the content of a file; `number` counts an image's files of a format from 0.

    Raises:
        DataError: the format can't hold it.
    """
    return _CONTENTS[kind](finding, number)


def _drawing(finding: Finding, number: int) -> bytes:
    try:
        return _jpeg(draw_detections(finding.image, finding.detections))
    except (cv2.error, MemoryError):
        raise _no_jpeg(finding.image) from None


def _crop(finding: Finding, number: int) -> bytes:
    """Cut a detection out, its box rounded to whole pixels, of which it keeps at least one."""
    height, width = finding.image.shape[:2]
    ((x1, y1, x2, y2),) = whole_pixels(finding.detections.boxes[number : number + 1])
    return _jpeg(finding.image[max(y1, 0) : min(y2, height), max(x1, 0) : min(x2, width)])


def _jpeg(pixels: ImageArray) -> bytes:
    try:
        done, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    except (cv2.error, MemoryError):
        done = False
    if not done:
        raise _no_jpeg(pixels)
    return np.asarray(data).tobytes()


def _no_jpeg(pixels: ImageArray) -> DataError:
    height, width = pixels.shape[:2]
    return DataError(
        f"{width}x{height} pixels can't be encoded as JPEG, expected 65500 a side at most"
    )


def _voc(finding: Finding, number: int) -> bytes:
    height, width = finding.image.shape[:2]
    return voc_annotation(
        filename=PurePosixPath(finding.name).name,
        width=width,
        height=height,
        boxes=finding.detections.boxes,
        names=[escape_name(name) for name in finding.detections.names()],
    ).encode()


def _yolo(finding: Finding, number: int) -> bytes:
    height, width = finding.image.shape[:2]
    found = finding.detections
    return yolo_labels(found.boxes, found.labels, width=width, height=height).encode()


_CONTENTS: dict[Format, Callable[[Finding, int], bytes]] = {
    "images": _drawing,
    "voc": _voc,
    "yolo": _yolo,
    "crops": _crop,
}

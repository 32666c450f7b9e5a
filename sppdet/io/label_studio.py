"""Tasks of Label Studio: a JSON file to import, and the labelling interface that it is for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote
from xml.etree import ElementTree

from sppdet.io.names import escape_name

_FROM, _TO = "label", "image"  # names of the controls in the interface


class _Image(Protocol):
    """An image file with its size in pixels, as its EXIF orientation shows it."""

    @property
    def path(self) -> Path: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...


class Region(NamedTuple):
    """A box of a task; `note` is shown beside it, and `score` is given for a suggestion."""

    box: Sequence[float]  # xyxy, original pixels, half-open
    class_name: str
    note: str = ""
    score: float | None = None


def labelling_interface(class_names: Sequence[str]) -> str:
    """Build the XML of an interface with an image and boxes of these classes."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=_TO, value="$image")
    labels = ElementTree.SubElement(view, "RectangleLabels", name=_FROM, toName=_TO)
    for name in class_names:
        ElementTree.SubElement(labels, "Label", value=escape_name(name))
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def task(
    image: _Image, regions: Sequence[Region], *, model: str | None, path: Path | None = None
) -> dict[str, Any]:
    """Build a task with one prediction or annotation; sides are in per cent of the image.

    The image is named as Label Studio serves local files whose document root is `/`.

    Args:
        model: name of the model that predicts the regions; None for labels, which are an annotation.
        path: of the image, if that isn't its own.
    """
    name = os.fsencode((path or image.path).absolute().as_posix()).lstrip(b"/")
    data = {"image": f"/data/local-files/?d={quote(name)}"}
    scores = [region.score for region in regions if region.score is not None]
    result = [_region(image, region, f"r{k}") for k, region in enumerate(regions, start=1)]
    if model is None:
        return {"data": data, "annotations": [{"result": result}]}
    prediction = {"model_version": model, "score": max(scores, default=0.0), "result": result}
    return {"data": data, "predictions": [prediction]}


def _region(image: _Image, region: Region, key: str) -> dict[str, Any]:
    x1, y1, x2, y2 = region.box
    found: dict[str, Any] = {
        "id": key,
        "type": "rectanglelabels",
        "from_name": _FROM,
        "to_name": _TO,
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
        "value": {
            "x": 100 * x1 / image.width,
            "y": 100 * y1 / image.height,
            "width": 100 * (x2 - x1) / image.width,
            "height": 100 * (y2 - y1) / image.height,
            "rotation": 0,
            "rectanglelabels": [escape_name(region.class_name)],
        },
    }
    if region.score is not None:
        found["score"] = region.score
    if region.note:
        found["meta"] = {"text": [region.note]}
    return found

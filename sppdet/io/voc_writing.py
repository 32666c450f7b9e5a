"""Annotations as VOC's XML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.etree import ElementTree

from sppdet.types import Boxes, Flags


def voc_annotation(
    *,
    filename: str,
    width: int,
    height: int,
    boxes: Boxes,
    names: Sequence[str],
    difficult: Flags | None = None,
    truncated: Flags | None = None,
) -> str:
    """Build the text of one annotation file.

    Boxes are rounded to whole pixels, since many readers take nothing else, and keep at least one;
    then they become 1-based and inclusive: (x1 + 1, y1 + 1, x2, y2).

    Args:
        filename: the image's name, without folders.
        width, height: of the image, in pixels.
        boxes: (N, 4), inside the image.
        names: the N class names.
        difficult, truncated: (N,); false if None.
    """
    root = ElementTree.Element("annotation")
    _add(root, folder="JPEGImages", filename=filename)
    _add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
    _add(root, segmented=0)
    flags = {"truncated": truncated, "difficult": difficult}
    for row, (box, name) in enumerate(zip(boxes.tolist(), names, strict=True)):
        item = ElementTree.SubElement(root, "object")
        _add(item, name=name, pose="Unspecified")
        _add(item, **{tag: int(f is not None and f[row]) for tag, f in flags.items()})
        (x1, x2), (y1, y2) = _whole_pixels(box[0], box[2]), _whole_pixels(box[1], box[3])
        bounds = ElementTree.SubElement(item, "bndbox")
        _add(bounds, xmin=x1 + 1, ymin=y1 + 1, xmax=x2, ymax=y2)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add(parent: ElementTree.Element, **values: str | int) -> None:
    for tag, value in values.items():
        ElementTree.SubElement(parent, tag).text = str(value)


def _whole_pixels(low: float, high: float) -> tuple[int, int]:
    first, last = round(low), round(high)
    if last <= first:
        first = math.floor(low)
        last = first + 1
    return first, last

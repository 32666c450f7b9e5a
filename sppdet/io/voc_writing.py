"""Annotations as VOC's XML."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from sppdet.boxes import whole_pixels
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
    for row, (box, name) in enumerate(zip(whole_pixels(boxes).tolist(), names, strict=True)):
        item = ElementTree.SubElement(root, "object")
        _add(item, name=name, pose="Unspecified")
        _add(item, **{tag: int(f is not None and f[row]) for tag, f in flags.items()})
        bounds = ElementTree.SubElement(item, "bndbox")
        _add(bounds, xmin=box[0] + 1, ymin=box[1] + 1, xmax=box[2], ymax=box[3])
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add(parent: ElementTree.Element, **values: str | int) -> None:
    for tag, value in values.items():
        ElementTree.SubElement(parent, tag).text = str(value)

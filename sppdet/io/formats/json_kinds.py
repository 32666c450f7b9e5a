"""Kinds of JSON files, told by the keys in their text without parsing all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from sppdet.errors import DataError
from sppdet.io.files import read_foreign_text, read_head

JsonKind = Literal["coco", "labelme", "via", "via3", "damaged", "other"]
_HEAD_BYTES = 16 * 1024
_KEYS: tuple[tuple[JsonKind, tuple[str, ...]], ...] = (
    ("coco", ('"images"', '"annotations"', '"categories"')),
    ("labelme", ('"shapes"', '"points"', '"label"')),
    ("labelme", ('"shapes"', '"imagePath"')),  # without a shape
    ("via", ('"_via_img_metadata"',)),
    ("via", ('"shape_attributes"', '"region_attributes"', '"filename"')),
    ("via", ('"regions"', '"file_attributes"', '"filename"')),  # without a region
    ("via3", ('"vid_list"', '"metadata"')),
)


def json_kind(path: Path) -> JsonKind:
    """Tell which format a JSON file is in; "damaged" where it is none of them and no JSON."""
    try:
        head = read_head(path, _HEAD_BYTES)
        # the image in a labelme file would be read in vain
        kind = _of_keys(head.decode("utf-8", "replace"))
        if kind == "labelme":
            return kind
        text = read_foreign_text(path)
    except DataError:
        return "damaged"
    kind = _of_keys(text)
    if kind == "other":
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return "damaged"
    return kind


def _of_keys(text: str) -> JsonKind:
    for kind, keys in _KEYS:
        if all(key in text for key in keys):
            return kind
    return "other"

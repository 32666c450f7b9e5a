"""Labels as a JSON file of COCO's instances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sppdet.types import Boxes, Labels


class LabelledImage(NamedTuple):
    """An image's name below the folder of images, its size in pixels, and its objects."""

    file_name: str
    width: int
    height: int
    boxes: Boxes  # (N, 4) xyxy, original pixels, half-open
    labels: Labels  # (N,) 1..K


def coco_labels(images: Sequence[LabelledImage], class_names: Sequence[str]) -> dict[str, Any]:
    """Build the content of an annotation file; images, categories and objects are numbered from 1.

    Numbers have nine digits, so that float32 boxes come back to 1e-5 px.
    """
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(images, start=1):
        for (x1, y1, x2, y2), label in zip(
            image.boxes.tolist(), image.labels.tolist(), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": [_rounded(value) for value in (x1, y1, x2 - x1, y2 - y1)],
                    "area": _rounded((x2 - x1) * (y2 - y1)),
                    "iscrowd": 0,
                }
            )
    return {
        "images": [
            {"id": k, "file_name": one.file_name, "width": one.width, "height": one.height}
            for k, one in enumerate(images, start=1)
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(class_names, start=1)],
        "annotations": annotations,
    }


def _rounded(value: float) -> float:
    return float(f"{value:.9g}")

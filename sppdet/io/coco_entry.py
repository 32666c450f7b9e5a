"""One detection as an entry of a COCO results file, the same from `detect` and from `eval`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def results_entry(
    *,
    image_id: int | str,
    file_name: str,
    category_id: int | str,
    category_name: str,
    box: Sequence[float],
    score: float,
) -> dict[str, Any]:
    """Return a COCO results entry that says by name which image and class it is of.

    `image_id` and `category_id` are what COCO's tools look at; they mean something only beside the
    annotation file that they come from. `file_name` and `category_name` identify the image and the
    class anywhere, and pycocotools passes over them. `sppdet eval --detections` reads the names.

    Args:
        file_name: path of the image with `/` between folders: below the searched folder, or as much
            of its end as no other image of the set shares.
        box: x1, y1, x2, y2 in original pixels, 0-based, half-open.

    Returns:
        image_id, category_id, bbox [x, y, width, height], score, file_name, category_name. Nine
        digits, so that float32 scores come back as they were and boxes to 1e-5 px.
    """
    x1, y1, x2, y2 = box
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [float(f"{value:.9g}") for value in (x1, y1, x2 - x1, y2 - y1)],
        "score": float(f"{score:.9g}"),
        "file_name": file_name,
        "category_name": category_name,
    }

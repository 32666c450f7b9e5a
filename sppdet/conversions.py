"""Detections as a table, as supervision's type, as COCO results, and as HTML."""

from __future__ import annotations

import base64
import html
import importlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from sppdet.errors import ImageError, one_line

if TYPE_CHECKING:
    import pandas
    import supervision

    from sppdet.detections import Detections

_SHOWN_PX = 800  # of the longer side of an image in a notebook
_SHOWN_ROWS = 20


def to_pandas(found: Detections) -> pandas.DataFrame:
    """See `Detections.to_pandas`."""
    frame: Any = _library("pandas").DataFrame
    boxes = found.boxes.astype(np.float64)  # whose rounding prints few digits
    columns = dict(zip(("x1", "y1", "x2", "y2"), boxes.T, strict=True))
    columns["score"] = found.scores.astype(np.float64)
    columns["probability"] = np.full(len(found), np.nan)
    if found.probabilities is not None:
        columns["probability"] = found.probabilities.astype(np.float64)
    named = {"label": found.labels.copy(), "name": np.array(found.names(), dtype=object)}
    table: pandas.DataFrame = frame({**columns, **named})
    return table


def to_supervision(found: Detections) -> supervision.Detections:
    """See `Detections.to_supervision`."""
    kind: Any = _library("supervision").Detections
    sure = found.scores if found.probabilities is None else found.probabilities
    made: supervision.Detections = kind(
        xyxy=found.boxes.copy(),
        confidence=sure.copy(),
        class_id=found.labels - 1,
        data={"class_name": np.array(found.names(), dtype=str), "score": found.scores.copy()},
    )
    return made


def to_coco(
    found: Detections, image_id: int | str, category_ids: Mapping[str, int] | None
) -> list[dict[str, Any]]:
    """See `Detections.to_coco`."""
    if category_ids is None:
        names = found.class_names
        category_ids = {name: label for label, name in enumerate(names, start=1)}
    lacking = [name for name in found.names() if name not in category_ids]
    if lacking:
        raise ValueError(f"category_ids: no id of the class {one_line(lacking[0], 60)}")
    image = image_id, found.path.replace("\\", "/")
    entries = [
        results_entry(one.box, one.score, image=image, category=(category_ids[one.name], one.name))
        for one in found
    ]
    if not found.path:
        for entry in entries:
            del entry["file_name"]
    return entries


def results_entry(
    box: Sequence[float],
    score: float,
    *,
    image: tuple[int | str, str],
    category: tuple[int | str, str],
) -> dict[str, Any]:
    """Build a COCO results entry that names its image and class as well as numbering them.

    The ids are what COCO's tools look at; they mean something only beside the annotation file that
    they come from. The names identify image and class anywhere; pycocotools ignores them.

    Args:
        box: x1, y1, x2, y2 in original pixels, 0-based, half-open.
        image: id, and path with `/` between folders: below the searched folder, or as much of its
            end as no other image of the set shares.
        category: id and class name.

    Returns:
        image_id, category_id, bbox [x, y, width, height], score, file_name, category_name. Nine
        digits, so that float32 scores come back as they were and boxes to 1e-5 px.
    """
    x1, y1, x2, y2 = box
    return {
        "image_id": image[0],
        "category_id": category[0],
        "bbox": [float(f"{value:.9g}") for value in (x1, y1, x2 - x1, y2 - y1)],
        "score": float(f"{score:.9g}"),
        "file_name": image[1],
        "category_name": category[1],
    }


def html_of(found: Detections) -> str:
    """Write a table of the best detections, below the image with them where it is known."""
    rows = "".join(
        f"<tr><td>{html.escape(one_line(one.name, 80))}</td><td>{_number(one.probability, one.score)}"
        f"</td><td>{', '.join(f'{side:.0f}' for side in one.box)}</td></tr>"
        for one in found[:_SHOWN_ROWS]
    )
    title = html.escape(repr(found))
    more = f"<p>and {len(found) - _SHOWN_ROWS} more</p>" if len(found) > _SHOWN_ROWS else ""
    number = "score" if found.probabilities is None else "probability"
    head = f"<tr><th>name</th><th>{number}</th><th>x1, y1, x2, y2</th></tr>"
    table = f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>" if len(found) else ""
    return f"<div><p>{title}</p>{_image(found)}{table}{more}</div>"


def _number(probability: float | None, score: float) -> str:
    return f"{score:.2f}" if probability is None else f"{100 * probability:.0f}%"


def _image(found: Detections) -> str:
    """Draw the image at a size for a page; empty where it is unknown or can't be read."""
    import cv2

    try:
        pixels = found.read_image() if found.read_image is not None else None
    except ImageError:
        pixels = None
    if pixels is None:
        return ""
    height, width = pixels.shape[:2]
    factor = min(1.0, _SHOWN_PX / max(height, width))
    if factor < 1:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    best = found[:_SHOWN_ROWS]
    scaled = replace(best, boxes=best.boxes * np.float32(factor))
    data = io.BytesIO()
    scaled.plot(pixels).save(data, "JPEG", quality=85)
    uri = base64.b64encode(data.getvalue()).decode("ascii")
    return f'<img src="data:image/jpeg;base64,{uri}" alt="" style="max-width: 100%">'


def _library(name: str) -> ModuleType:
    """Import a library that isn't a dependency of sppdet."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ImportError(f"{name} isn't installed; `pip install {name}` installs it") from None

"""Table, JSON, CSV and page of suggested images."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sppdet.errors import ImageError, one_line, printable
from sppdet.io.image_cache import ImageCache
from sppdet.io.names import escape_name, text_cell
from sppdet.pages.graphics import thumbnail
from sppdet.pages.render import render
from sppdet.runs.progress import track
from sppdet.stages.suggest_order import Suggestion
from sppdet.types import Detections
from sppdet.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN = 20  # rows of the printed table
_DRAWN = 100  # images of the page
_COLUMNS = (
    *("rank", "score", "image", "file", "uncertainty", "coverage", "novelty", "like"),
    *("most_doubtful", "probability", "boxes", "reason"),
)


@dataclass(frozen=True)
class Report:
    """Result of a call: all unlabelled images, and what was left out.

    Attributes:
        rows: the best first.
        boxes: of each image, what is suggested as its labels.
        labelled: number of images that the run has used.
        failed: a line for each image that can't be read.
        threshold: of the boxes, in words.
        count: number of images to label now.
    """

    class_names: tuple[str, ...]
    rows: tuple[Suggestion, ...]
    boxes: tuple[Detections, ...]
    labelled: int
    failed: tuple[str, ...]
    threshold: str
    count: int


def report_files(found: Report, images: ImageCache) -> dict[str, bytes]:
    """Make suggest.json, suggest.csv and suggest.html."""
    rows = rows_of(found)
    content = {
        "version": __version__,
        "images": len(rows),
        "to_label": min(found.count, len(rows)),
        "left_out": found.labelled,
        "failed": [escape_name(line) for line in found.failed],
        "boxes_are": found.threshold,
        "rows": rows,
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    page = render("suggest.html", _page(found, images))
    return {
        "suggest.json": f"{text}\n".encode(),
        "suggest.csv": _csv(rows),
        "suggest.html": page.encode(),
    }


def rows_of(found: Report) -> list[dict[str, Any]]:
    """Collect the images as plain data; numbers of four digits."""
    rows = []
    for rank, (one, boxes) in enumerate(zip(found.rows, found.boxes, strict=True), start=1):
        classes = {
            name: {"uncertainty": _rounded(bits), "probability": _rounded(p)}
            for name, bits, p in zip(
                found.class_names, one.worth.by_class, one.probabilities, strict=True
            )
            if not math.isnan(p)
        }
        rows.append(
            {
                "rank": rank,
                "score": _rounded(one.score),
                "image": one.candidate.name,
                "file": escape_name(str(one.candidate.image.path)),
                "uncertainty": _rounded(one.worth.value),
                "classes": classes,
                "coverage": _rounded(one.coverage),
                "novelty": _rounded(one.novelty),
                "like": one.like,
                "boxes": len(boxes),
                "reason": one.reason,
            }
        )
    return rows


def print_rows(rows: Sequence[Suggestion], console: Console) -> None:
    """Print the first rows."""
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold")
    for heading in ("", "score"):
        table.add_column(heading, justify="right")
    for heading in ("image", "why"):
        table.add_column(heading)
    for rank, one in enumerate(rows[:_SHOWN], start=1):
        cells = one_line(one.candidate.name, 60), printable(one.reason)
        table.add_row(str(rank), f"{one.score:.3f}", *map(Text, cells))
    console.print(table)


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        classes: list[tuple[str, dict[str, float]]] = list(row["classes"].items())
        name, numbers = max(classes, key=lambda one: one[1]["uncertainty"], default=("", {}))
        cells = [row["rank"], row["score"], text_cell(row["image"]), text_cell(row["file"])]
        cells += [row["uncertainty"], row["coverage"], row["novelty"], text_cell(row["like"] or "")]
        cells += [text_cell(escape_name(name)), numbers.get("probability", "")]
        writer.writerow([*cells, row["boxes"], text_cell(row["reason"])])
    return text.getvalue().encode()


def _page(found: Report, images: ImageCache) -> dict[str, Any]:
    first = list(zip(found.rows, found.boxes, strict=True))[: min(found.count, _DRAWN)]
    cards = [
        _card(rank, one, boxes, images)
        for rank, (one, boxes) in enumerate(
            track(first, total=len(first), label="drawing"), start=1
        )
    ]
    return {
        "version": __version__,
        "images": len(found.rows),
        "to_label": min(found.count, len(found.rows)),
        "left_out": found.labelled,
        "failed": found.failed,
        "threshold": found.threshold,
        "cards": cards,
    }


def _card(rank: int, one: Suggestion, boxes: Detections, images: ImageCache) -> dict[str, Any]:
    image = one.candidate.image
    try:
        uri = thumbnail(images.read(image.path))
    except ImageError:  # it has changed meanwhile
        uri = ""
    p = boxes.probabilities
    return {
        "rank": rank,
        "name": one.candidate.name,
        "reason": one.reason,
        "uri": uri,
        "width": image.width,
        "height": image.height,
        "boxes": [
            {
                "x": round(x1, 1),
                "y": round(y1, 1),
                "width": round(x2 - x1, 1),
                "height": round(y2 - y1, 1),
            }
            for x1, y1, x2, y2 in boxes.boxes.tolist()
        ],
        "lines": [
            f"{name} {100 * value:.0f} %"
            for name, value in zip(boxes.names(), [] if p is None else p.tolist(), strict=True)
        ],
    }


def _rounded(value: float) -> float:
    return round(float(value), 4)

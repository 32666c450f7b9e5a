"""Detections of many images in one file: detections.json, .jsonl and .csv, and COCO results.

Images are written one after another, so that memory holds one.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from sppdet.conversions import results_entry
from sppdet.io.names import escape_name, text_cell


@dataclass(frozen=True)
class ImageResults:
    """The detections of an image, in descending score.

    Attributes:
        number: of the image in its file, from 1.
        name: of the image, see `escape_name`.
        origin: where the image is from, such as the path of its file.
        width, height: in pixels.
        boxes: xyxy, 0-based, half-open.
        labels: 1..K.
        probabilities: None without calibration.
        seconds: time of a frame of a video; None for an image.
    """

    number: int
    name: str
    origin: str
    width: int
    height: int
    boxes: Sequence[Sequence[float]]
    scores: Sequence[float]
    labels: Sequence[int]
    probabilities: Sequence[float] | None = None
    seconds: float | None = None

    def rows(self) -> Iterator[tuple[Sequence[float], float, int, float | None]]:
        """Yield box, score, label and probability of every detection."""
        unknown: list[float | None] = [None] * len(self.boxes)
        yield from zip(
            self.boxes, self.scores, self.labels, self.probabilities or unknown, strict=True
        )


Images = Callable[[], Iterable[ImageResults]]  # which may be called several times
Writer = Callable[[TextIO, Images, Sequence[str]], None]


def write_detections_json(out: TextIO, images: Images, class_names: Sequence[str]) -> None:
    """Write a data set as COCO has it, whose annotations have scores, and the names of image and class."""
    out.write('{"images": ')
    _write_list(out, map(_image_entry, images()))
    out.write(',\n"categories": ')
    names = enumerate(class_names, start=1)
    _write_list(out, ({"id": label, "name": name} for label, name in names))
    out.write(',\n"annotations": ')
    _write_list(out, _annotations(images, class_names))
    out.write("}\n")


def _image_entry(image: ImageResults) -> dict[str, Any]:
    return {
        "id": image.number,
        "file_name": image.name,
        "path": escape_name(image.origin),
        "width": image.width,
        "height": image.height,
        **({} if image.seconds is None else {"seconds": image.seconds}),
    }


def _annotations(images: Images, class_names: Sequence[str]) -> Iterator[dict[str, Any]]:
    rows = ((image, row) for image in images() for row in image.rows())
    for number, (image, (box, score, label, probability)) in enumerate(rows, start=1):
        x1, y1, x2, y2 = box
        yield {
            "id": number,
            "image_id": image.number,
            "category_id": label,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
            "score": score,
            **({} if probability is None else {"probability": probability}),
            "file_name": image.name,
            "class": class_names[label - 1],
        }


def write_jsonl(out: TextIO, images: Images, class_names: Sequence[str]) -> None:
    """Write a line for each image, with or without detections."""
    for image in images():
        found = [
            {
                "class": class_names[label - 1],
                "box": list(box),
                "score": score,
                **({} if probability is None else {"probability": probability}),
            }
            for box, score, label, probability in image.rows()
        ]
        entry = _image_entry(image)
        del entry["id"]
        out.write(json.dumps({**entry, "detections": found}, allow_nan=False) + "\n")


def write_results(out: TextIO, images: Images, class_names: Sequence[str]) -> None:
    """Write COCO results: a list of `results_entry`."""
    entries = (
        results_entry(
            box, score, image=(image.number, image.name), category=(label, class_names[label - 1])
        )
        for image in images()
        for box, score, label, _ in image.rows()
    )
    _write_list(out, entries)
    out.write("\n")


def write_csv(out: TextIO, images: Images, class_names: Sequence[str]) -> None:
    """Write a line for each detection, under a header."""
    writer = csv.writer(out, lineterminator="\n")
    columns = ["file_name", "class", "score", "x1", "y1", "x2", "y2", "probability", "seconds"]
    writer.writerow(columns)
    for image in images():
        time = "" if image.seconds is None else f"{image.seconds:.3f}"
        for box, score, label, probability in image.rows():
            texts = [text_cell(image.name), text_cell(escape_name(class_names[label - 1]))]
            sides = (f"{side:.2f}" for side in box)
            last = "" if probability is None else f"{probability:.4f}"
            writer.writerow([*texts, f"{score:.6f}", *sides, last, time])


def _write_list(out: TextIO, entries: Iterable[dict[str, Any]]) -> None:
    """Write a JSON list with a line per entry."""
    out.write("[")
    for number, entry in enumerate(entries):
        out.write((",\n" if number else "\n") + json.dumps(entry, allow_nan=False))
    out.write("]")

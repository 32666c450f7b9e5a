"""Files about all images of a call, written image by image from the journal."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from sppdet.conversions import results_entry
from sppdet.folders.journal import Result
from sppdet.folders.outputs import Outputs
from sppdet.folders.planning import JOINT_FILES, Format, Item
from sppdet.io.names import escape_name, text_cell
from sppdet.runs.progress import track


@dataclass(frozen=True)
class JointFiles:
    """Writes detections.json, detections.csv and coco_results.json; memory holds one image.

    `items` are the images that have results, in order; they are numbered from 1.
    """

    outputs: Outputs
    items: Sequence[Item]
    class_names: Sequence[str]

    def write(self, formats: Sequence[Format]) -> None:
        """Write the files of `formats`."""
        writers: dict[Format, Callable[[TextIO], None]] = {
            "json": self._write_json,
            "csv": self._write_csv,
            "coco": self._write_coco,
        }
        for kind in formats:
            if kind in writers:
                with (
                    self.outputs.writing(JOINT_FILES[kind]) as temporary,
                    temporary.open("w", encoding="utf-8", newline="") as out,
                ):
                    writers[kind](out)

    def _results(self) -> Iterator[tuple[int, Item, Result]]:
        results = self.outputs.journal.results(item.name for item in self.items)
        rows = zip(itertools.count(1), self.items, results, strict=False)
        return track(rows, total=len(self.items), label="files of all results")

    def _rows(self) -> Iterator[tuple[int, Item, list[float], float, int, float | None]]:
        """Number of the image, image, box, score, label and probability of every detection."""
        for number, item, result in self._results():
            unknown: list[float | None] = [None] * len(result.boxes)
            probabilities = result.probabilities or unknown
            rows = zip(result.boxes, result.scores, result.labels, probabilities, strict=True)
            for box, score, label, probability in rows:
                yield number, item, box, score, label, probability

    def _write_json(self, out: TextIO) -> None:
        names = enumerate(self.class_names, start=1)
        out.write('{"images": ')
        _write_list(out, self._image_entries())
        out.write(',\n"categories": ')
        _write_list(out, ({"id": label, "name": name} for label, name in names))
        out.write(',\n"annotations": ')
        _write_list(out, self._annotations())
        out.write("}\n")

    def _image_entries(self) -> Iterator[dict[str, Any]]:
        for number, item, result in self._results():
            yield {
                "id": number,
                "file_name": item.name,
                "path": escape_name(item.path.as_posix()),
                "width": result.width,
                "height": result.height,
            }

    def _annotations(self) -> Iterator[dict[str, Any]]:
        """COCO's annotations, each also with the image's name and the class's."""
        for number, row in enumerate(self._rows(), start=1):
            image_id, item, box, score, label, probability = row
            x1, y1, x2, y2 = box
            yield {
                "id": number,
                "image_id": image_id,
                "category_id": label,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "score": score,
                **({} if probability is None else {"probability": probability}),
                "file_name": item.name,
                "class": self.class_names[label - 1],
            }

    def _write_coco(self, out: TextIO) -> None:
        categories = list(enumerate(self.class_names, start=1))
        entries = (
            results_entry(box, score, image=(number, item.name), category=categories[label - 1])
            for number, item, box, score, label, _ in self._rows()
        )
        _write_list(out, entries)
        out.write("\n")

    def _write_csv(self, out: TextIO) -> None:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["file_name", "class", "score", "x1", "y1", "x2", "y2", "probability"])
        for _, item, box, score, label, probability in self._rows():
            texts = [text_cell(item.name), text_cell(escape_name(self.class_names[label - 1]))]
            sides = (f"{side:.2f}" for side in box)
            last = "" if probability is None else f"{probability:.4f}"
            writer.writerow([*texts, f"{score:.6f}", *sides, last])


def _write_list(out: TextIO, entries: Iterator[dict[str, Any]]) -> None:
    """Write a JSON list with a line per entry."""
    out.write("[")
    for number, entry in enumerate(entries):
        out.write((",\n" if number else "\n") + json.dumps(entry, allow_nan=False))
    out.write("]")

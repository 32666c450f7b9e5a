"""Files about all images of a call, written image by image from the journal."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

from sppdet.folders.formats import JOINT_FILES, Format
from sppdet.folders.outputs import Outputs
from sppdet.folders.planning import Item
from sppdet.io.writing import results
from sppdet.io.yolo_writing import yolo_data
from sppdet.runs.progress import track


@dataclass(frozen=True)
class JointFiles:
    """Writes detections.json and the like; memory holds one image.

    `items` are the images that have results, in order; they are numbered from 1.
    """

    outputs: Outputs
    items: Sequence[Item]
    class_names: Sequence[str]

    def write(self, formats: Sequence[Format]) -> None:
        """Write the files of `formats`."""
        for kind in formats:
            if kind in _WRITERS:
                with (
                    self.outputs.writing(JOINT_FILES[kind]) as temporary,
                    temporary.open("w", encoding="utf-8", newline="") as out,
                ):
                    _WRITERS[kind](out, self._images, self.class_names)

    def _images(self) -> Iterator[results.ImageResults]:
        found = self.outputs.journal.results(item.name for item in self.items)
        rows = zip(itertools.count(1), self.items, found, strict=False)
        for number, item, one in track(rows, total=len(self.items), label="files of all results"):
            yield results.ImageResults(
                number=number,
                name=item.name,
                origin=item.origin,
                width=one.width,
                height=one.height,
                boxes=one.boxes,
                scores=one.scores,
                labels=one.labels,
                probabilities=one.probabilities,
                seconds=item.seconds,
            )


def _write_yolo_data(out: TextIO, images: results.Images, class_names: Sequence[str]) -> None:
    out.write(yolo_data(class_names))


_WRITERS: dict[Format, results.Writer] = {
    "json": results.write_detections_json,
    "jsonl": results.write_jsonl,
    "csv": results.write_csv,
    "coco": results.write_results,
    "yolo": _write_yolo_data,
}

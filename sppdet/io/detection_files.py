"""Detection files: reading of any format, and a CSV for each class."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from sppdet.errors import DataError
from sppdet.evaluation.voc import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE
from sppdet.io.coco_results import CocoResults
from sppdet.io.comp4 import read_comp4
from sppdet.io.image_ids import IdMeaning
from sppdet.io.names import text_cell
from sppdet.runs.artifacts import write_text
from sppdet.types import ClassResult, Dataset, Detections

_COLUMNS = ("image", "score", "x1", "y1", "x2", "y2", "recall", "precision", "outcome")
_OUTCOMES = {TRUE_POSITIVE: "tp", FALSE_POSITIVE: "fp", IGNORED: "ignored"}


@dataclass(frozen=True)
class Comp4Folder:
    """A folder of `comp4` files; their names say which classes they are of."""

    path: Path

    def class_names(self, meaning: IdMeaning) -> list[str]:
        """List none: in names of files the characters of a class's name may be replaced."""
        return []

    def detections(self, dataset: Dataset, meaning: IdMeaning) -> dict[str, Detections]:
        """Group the detections of a split by image id (see `read_comp4`)."""
        return read_comp4(self.path, dataset)


def open_detections(path: Path) -> Comp4Folder | CocoResults:
    """Open detections made elsewhere: a folder of `comp4` files, COCO results, a `detections.json`.

    Raises:
        DataError: `path` is none of them.
    """
    if path.is_dir():
        return Comp4Folder(path)
    if path.is_file() and path.suffix.lower() == ".json":
        return CocoResults.read(path)
    problem = "neither a folder nor a .json file" if path.exists() else "no such file or folder"
    raise DataError(f"{path}: {problem}; expected comp4_det_*.txt in a folder or COCO results")


def read_detections(
    path: Path, dataset: Dataset, meaning: IdMeaning | None = None
) -> dict[str, Detections]:
    """Read detections made elsewhere of the split `dataset`.

    Args:
        meaning: how to read numbers in the file; by default only what is certain is read.

    Returns:
        The detections of every image of the split by its id, in descending score.

    Raises:
        DataError: `path` is no detections, or they are refused.
    """
    return open_detections(path).detections(dataset, meaning or IdMeaning())


def write_curve_csv(path: Path, result: ClassResult, image_ids: Sequence[str]) -> None:
    """Write one class's curve: a line per detection in descending score.

    Columns: image, score, x1, y1, x2, y2 (0-based, half-open), recall, precision, outcome (tp, fp,
    ignored). Where the result has no outcomes (COCO): recall, precision, score. Images' ids are
    written by `text_cell`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    curve = [_numbers(values) for values in (result.scores, result.recall, result.precision)]
    if len(result.outcomes) < len(result.scores):
        writer.writerow(["recall", "precision", "score"])
        writer.writerows(zip(curve[1], curve[2], curve[0], strict=True))
    else:
        writer.writerow(_COLUMNS)
        names = [text_cell(image_ids[index]) for index in result.image_index.tolist()]
        sides = [_numbers(side) for side in result.boxes.T]
        outcomes = [_OUTCOMES[outcome] for outcome in result.outcomes.tolist()]
        columns = (names, curve[0], *sides, *curve[1:], outcomes)
        writer.writerows(zip(*columns, strict=True))
    write_text(path, text.getvalue())


def _numbers(values: NDArray[Any]) -> list[str]:
    return [f"{value:.9g}" for value in values.tolist()]

"""From the lines of a detection file, whatever its format, to the detections of each picture."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sppdet.data.records import number_repeats, safe_id
from sppdet.errors import DataError
from sppdet.types import Dataset, Detections


class Rows:
    """The lines of detection files as they are read, in flat arrays: there may be millions."""

    def __init__(self) -> None:
        self._files: list[tuple[int, str]] = []  # first row of a file, what to say before a number
        self._integers = array("q")  # number in the file, row of the picture, label
        self._values = array("d")  # score, x1, y1, x2, y2

    def begin(self, where: str) -> None:
        """Start a file; a line is named by `where` and its number: "a.txt:" and 3, "a.txt:3"."""
        self._files.append((len(self._integers) // 3, where))

    def add(
        self,
        number: int,
        *,
        picture: int,
        label: int,
        score: float,
        box: tuple[float, float, float, float],
    ) -> None:
        """Take a line: its number, the row of its picture, xyxy 0-based, half-open."""
        self._integers.extend((number, picture, label))
        self._values.extend((score, *box))

    def group(self, dataset: Dataset) -> dict[str, Detections]:
        """The detections of every picture by its id, in descending score, ties in order read.

        Raises:
            DataError: a number that is not finite or a box without area, and where.
        """
        integers = np.array(self._integers, dtype=np.int64).reshape(-1, 3)
        values = np.array(self._values, dtype=np.float64).reshape(-1, 5)
        with np.errstate(over="ignore"):
            scores, boxes = values[:, 0].astype(np.float32), values[:, 1:].astype(np.float32)
        self._check(scores, boxes)
        order = np.lexsort((-scores, integers[:, 1]))
        ends = np.searchsorted(integers[order, 1], np.arange(len(dataset) + 1))
        return {
            image.id: Detections(
                boxes[some := order[ends[k] : ends[k + 1]]],
                scores[some],
                integers[some, 2],
                dataset.class_names,
                str(image.path),
            )
            for k, image in enumerate(dataset.images)
        }

    def _check(self, scores: NDArray[np.float32], boxes: NDArray[np.float32]) -> None:
        finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
        area = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        bad = np.flatnonzero(~(finite & area))
        if len(bad):
            row = int(bad[0])
            where = next(text for first, text in reversed(self._files) if first <= row)
            problem = "the box has no area" if finite[row] else "a number is not finite"
            raise DataError(f"{where}{self._integers[3 * row]}: {problem}")


def pictures_by_name(dataset: Dataset) -> dict[str, int]:
    """The row of every picture by its id, and by file name and stem where it is the only such."""
    rows: dict[str, int] = {}
    several: set[str] = set()
    for row, image in enumerate(dataset.images):
        for name in {image.path.name, image.path.stem} - {""}:
            if rows.setdefault(name, row) != row:
                several.add(name)
    for name in several:
        del rows[name]
    return rows | {image.id: row for row, image in enumerate(dataset.images)}


def class_file_names(class_names: Sequence[str]) -> list[str]:
    """The class names as parts of file names, different also where case does not count."""
    safe = [safe_id(name) for name in class_names]
    folded = [name.casefold() for name in safe]
    unique = number_repeats(folded)
    return [
        name + other[len(fold) :] for name, fold, other in zip(safe, folded, unique, strict=True)
    ]

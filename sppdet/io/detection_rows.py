"""Entries of a detection file, whatever its format, grouped into the detections of each image."""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sppdet.errors import DataError, shorten
from sppdet.types import Dataset, Detections

_log = logging.getLogger("sppdet")
Names = tuple[str, ...]  # of an image or a class, the best first
Key = Names | int | str  # names, or an id


class Rows:
    """Entries of detection files in flat arrays: there may be millions.

    Attributes:
        images: the keys that entries name images by, each with its position; in order of occurrence.
        classes: the keys of classes likewise.
    """

    def __init__(self, source: Path) -> None:
        """`source`, the file or folder, begins messages."""
        self.images: dict[Key, int] = {}
        self.classes: dict[Key, int] = {}
        self._source = source
        self._files: list[tuple[int, str]] = []  # first row of a file, prefix of an entry's number
        self._integers = array("q")  # number in the file, positions of the image and of the class
        self._values = array("d")  # score, x1, y1, x2, y2

    def begin(self, where: str) -> None:
        """Start a file; messages name entry 3 of "a.txt:" as "a.txt:3"."""
        self._files.append((len(self._integers) // 3, where))

    def add(
        self, number: int, *, image: Key, category: Key, score: float, box: tuple[float, ...]
    ) -> None:
        """Append an entry; `box` is xyxy, 0-based, half-open, of any floats."""
        image_position = self.images.setdefault(image, len(self.images))
        class_position = self.classes.setdefault(category, len(self.classes))
        self._integers.extend((number, image_position, class_position))
        self._values.extend((score, *box))

    def group(
        self,
        dataset: Dataset,
        *,
        images: Mapping[Key, int | None],
        labels: Mapping[Key, int | None],
    ) -> dict[str, Detections]:
        """Group the entries by image; count those that can't be scored and leave them out.

        Left out are entries of other images and of other classes, those with a number that is not
        finite and boxes without area.

        Args:
            images: key -> row of `dataset.images`, None for images that aren't in it.
            labels: key -> label, None for other classes.

        Returns:
            The detections of every image by its id, in descending score, ties in the order read.

        Raises:
            DataError: there are entries, but none of an image or none of a class of the data set.
        """
        integers = np.array(self._integers, dtype=np.int64).reshape(-1, 3)
        values = np.array(self._values, dtype=np.float64).reshape(-1, 5)
        known = [image.path.name for image in dataset.images]
        problem = f"image not in {dataset.name}"
        rows = self._translate(self.images, images, integers[:, 1], problem, known)
        problem, known = f"not a class of {dataset.name}", list(dataset.class_names)
        found = self._translate(self.classes, labels, integers[:, 2], problem, known)
        with np.errstate(over="ignore", invalid="ignore"):
            scores, boxes = values[:, 0].astype(np.float32), values[:, 1:].astype(np.float32)
            kept = np.flatnonzero((rows >= 0) & (found >= 0) & self._usable(scores, boxes))
        order = kept[np.lexsort((-scores[kept], rows[kept]))]
        ends = np.searchsorted(rows[order], np.arange(1, len(dataset)))
        groups = np.split(order, ends)[: len(dataset)]
        return {
            image.id: Detections(
                boxes[rows], scores[rows], found[rows], dataset.class_names, str(image.path)
            )
            for image, rows in zip(dataset.images, groups, strict=True)
        }

    def _translate(
        self,
        positions: Mapping[Key, int],
        meanings: Mapping[Key, int | None],
        column: NDArray[np.int64],
        problem: str,
        known: list[str],
    ) -> NDArray[np.int64]:
        """Map the key of each entry to its meaning, -1 for none; report keys without one."""
        table = [-1 if (meaning := meanings[key]) is None else meaning for key in positions]
        translated: NDArray[np.int64] = np.array(table, dtype=np.int64)[column]
        counts = np.bincount(column[translated < 0], minlength=len(positions)).tolist()
        lost = Counter({key: count for key, count in zip(positions, counts, strict=True) if count})
        if lost:
            keys = [key[-1] if isinstance(key, tuple) else key for key, _ in lost.most_common()]
            line = f"{self._source}: {problem}: {_listed(keys)}"
            if lost.total() == len(column):
                raise DataError(
                    f"{line}; none of the {len(column)} detections is left; the set has {_listed(known)}"
                )
            _log.warning("%s; %d of %d detections left out", line, lost.total(), len(column))
        return translated

    def _usable(self, scores: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
        finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
        usable: NDArray[np.bool_] = finite & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        bad = np.flatnonzero(~usable).tolist()
        if bad:
            where = next(text for first, text in reversed(self._files) if first <= bad[0])
            infinite = int((~finite).sum())
            _log.warning(
                "%s: %d of %d detections left out: %d boxes without area, %d with a number that is not"
                " finite; the first: %s%d",
                *(self._source, len(bad), len(scores), len(bad) - infinite, infinite),
                *(where, self._integers[3 * bad[0]]),
            )
        return usable


def _listed(keys: list[str] | list[int | str]) -> str:
    return shorten([f"{key!r:.60}" for key in keys], limit=3)

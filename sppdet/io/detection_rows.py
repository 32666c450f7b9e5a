"""From the entries of a detection file, whatever its format, to the detections of each image."""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sppdet.errors import DataError, shorten
from sppdet.io.records import number_repeats, safe_id
from sppdet.types import Dataset, Detections

log = logging.getLogger("sppdet")


class Rows:
    """The entries of detection files as they are read, in flat arrays: there may be millions.

    Images and classes are kept as the files name them, until all of them are known.
    """

    def __init__(self, source: object) -> None:
        """`source` begins messages: the file or folder."""
        self._source = source
        self._files: list[tuple[int, str]] = []  # first row of a file, what to say before a number
        self._integers = array(
            "q"
        )  # number in the file, position of the image's key, of the class's
        self._values = array("d")  # score, x1, y1, x2, y2
        self._images: dict[Hashable, int] = {}
        self._classes: dict[Hashable, int] = {}

    @property
    def image_keys(self) -> list[Hashable]:
        """What the entries name images by, in the order of the first entry of each."""
        return list(self._images)

    @property
    def class_keys(self) -> list[Hashable]:
        """What the entries name classes by, likewise."""
        return list(self._classes)

    def begin(self, where: str) -> None:
        """Start a file; an entry is named by `where` and its number: "a.txt:" and 3, "a.txt:3"."""
        self._files.append((len(self._integers) // 3, where))

    def add(
        self,
        number: int,
        *,
        image: Hashable,
        category: Hashable,
        score: float,
        box: tuple[float, float, float, float],
    ) -> None:
        """Take an entry: its number, its keys, xyxy 0-based, half-open; numbers may be any floats."""
        image_position = self._images.setdefault(image, len(self._images))
        class_position = self._classes.setdefault(category, len(self._classes))
        self._integers.extend((number, image_position, class_position))
        self._values.extend((score, *box))

    def group(
        self,
        dataset: Dataset,
        *,
        images: Mapping[Hashable, int | None],
        labels: Mapping[Hashable, int | None],
    ) -> dict[str, Detections]:
        """Sort the entries by image; what can't be scored is left out, counted and warned of.

        Left out are entries of other images and of other classes, those with a number that is not
        finite and boxes without area.

        Args:
            images: key -> row of `dataset.images`, None for images that aren't in it.
            labels: key -> label, None for other classes.

        Returns:
            The detections of every image by its id, in descending score, ties in the order read.

        Raises:
            DataError: there are entries, and no image or no class of them is in the data set.
        """
        integers = np.array(self._integers, dtype=np.int64).reshape(-1, 3)
        values = np.array(self._values, dtype=np.float64).reshape(-1, 5)
        rows = self._translate(self._images, images, integers[:, 1])
        found_labels = self._translate(self._classes, labels, integers[:, 2])
        problem, have = (
            f"image not in {dataset.name}",
            [image.path.name for image in dataset.images],
        )
        self._report_unknown(rows, integers[:, 1], self._images, problem, have)
        problem, have = f"not a class of {dataset.name}", list(dataset.class_names)
        self._report_unknown(found_labels, integers[:, 2], self._classes, problem, have)
        with np.errstate(over="ignore", invalid="ignore"):
            scores, boxes = values[:, 0].astype(np.float32), values[:, 1:].astype(np.float32)
            usable = self._usable(scores, boxes)
        kept = np.flatnonzero((rows >= 0) & (found_labels > 0) & usable)
        order = kept[np.lexsort((-scores[kept], rows[kept]))]
        ends = np.searchsorted(rows[order], np.arange(len(dataset) + 1))
        return {
            image.id: Detections(
                boxes[some := order[ends[k] : ends[k + 1]]],
                scores[some],
                found_labels[some],
                dataset.class_names,
                str(image.path),
            )
            for k, image in enumerate(dataset.images)
        }

    @staticmethod
    def _translate(
        positions: Mapping[Hashable, int],
        meanings: Mapping[Hashable, int | None],
        column: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """What each entry's key means; -1 for nothing."""
        table = np.full(len(positions), -1, dtype=np.int64)
        for key, position in positions.items():
            meaning = meanings[key]
            if meaning is not None:
                table[position] = meaning
        translated: NDArray[np.int64] = table[column]
        return translated

    def _report_unknown(
        self,
        translated: NDArray[np.int64],
        column: NDArray[np.int64],
        positions: Mapping[Hashable, int],
        problem: str,
        have: list[str],
    ) -> None:
        counts = np.bincount(column[translated < 0], minlength=len(positions))
        lost = Counter({key: int(counts[k]) for key, k in positions.items() if counts[k]})
        if not lost:
            return
        shown = shorten([f"{key!r:.60}" for key, _ in lost.most_common()], most=3)
        line = f"{self._source}: {problem}: {shown}"
        if lost.total() == len(translated):
            known = shorten([f"{name!r:.60}" for name in have], most=3)
            raise DataError(
                f"{line}; none of the {len(translated)} detections is left; the set has {known}"
            )
        log.warning("%s; %d of %d detections left out", line, lost.total(), len(translated))

    def _usable(self, scores: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
        finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
        area = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        bad = np.flatnonzero(~(finite & area))
        if len(bad):
            row = int(bad[0])
            where = next(text for first, text in reversed(self._files) if first <= row)
            infinite = int((~finite).sum())
            log.warning(
                "%s: %d of %d detections left out: %d boxes without area, %d with a number that is not"
                " finite; the first: %s%d",
                *(self._source, len(bad), len(scores), len(bad) - infinite, infinite),
                *(where, self._integers[3 * row]),
            )
        return finite & area


def class_file_names(class_names: Sequence[str]) -> list[str]:
    """The class names as parts of file names, different also where case does not count."""
    safe = [safe_id(name) for name in class_names]
    folded = [name.casefold() for name in safe]
    unique = number_repeats(folded)
    return [
        name + other[len(fold) :] for name, fold, other in zip(safe, folded, unique, strict=True)
    ]

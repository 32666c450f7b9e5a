"""Match names of images in other files with the images of a data set."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

from sppdet.errors import DataError
from sppdet.io.images import IMAGE_SUFFIXES
from sppdet.types import Dataset

_Parts = tuple[str, ...]  # folders and file name


def distinct_names(dataset: Dataset) -> list[str]:
    """Name each image by the shortest end of its path that no other image's path ends in.

    Returns:
        A name for each row of `dataset.images`: "1.jpg", or "x/1.jpg" and "y/1.jpg". An image that is
        in the set twice, or whose path ends another's, has its whole path.
    """
    paths = _paths(dataset)
    ends = Counter(parts[k:] for parts in paths for k in range(len(parts)))
    shortest = (
        next((parts[k:] for k in reversed(range(len(parts))) if ends[parts[k:]] == 1), parts)
        for parts in paths
    )
    return ["/".join(parts) for parts in shortest]


class ImageNames:
    """The images of a data set, to be found by name.

    A name is an image's id, or the end of its path from a folder on; the suffix of the file may be
    another or missing. Names that differ are taken to mean different images.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._paths = _paths(dataset)
        self._by_id = {image.id: row for row, image in enumerate(dataset.images)}
        self._by_file: dict[str, list[int]] = defaultdict(list)
        self._by_stem: dict[str, list[int]] = defaultdict(list)
        for row, parts in enumerate(self._paths):
            if parts:
                self._by_file[parts[-1]].append(row)
                self._by_stem[_stem(parts[-1])].append(row)

    def match(self, wanted: Sequence[Sequence[str]], *, paths: bool = False) -> list[int | None]:
        """Find the image that each of `wanted` means.

        The most specific names go first: ids, then the longest ends of paths, whole file names before
        those of another suffix. A row that they take is no match of a less specific name: of
        "y/a.jpg" and "a.jpg" the second is the image in the folder above.

        Args:
            wanted: for each image of a file its names, the best first; a later one is only looked
                at where those before match nothing.
            paths: the names are of files, so that none is an id.

        Returns:
            A row of `dataset.images` for each, or None where no image has such a name.

        Raises:
            DataError: a name fits several images equally well; they are named.
        """
        rows: list[int | None] = [None] * len(wanted)
        taken: set[int] = set()
        ambiguous: dict[int, str] = {}
        for rank in range(max(map(len, wanted), default=0)):
            groups: dict[tuple[int, int], dict[int, tuple[str, list[int]]]] = defaultdict(dict)
            for k, names in enumerate(wanted):
                if rows[k] is not None or rank >= len(names):
                    continue
                name = names[rank]
                parts = path_parts(name)
                inexact, candidates = self._candidates(parts)
                own = None if paths else self._by_id.get(name)
                if own is None:
                    groups[inexact, -len(parts)][k] = name, candidates
                elif not candidates or own in candidates:
                    rows[k] = own
                else:  # the id of one image and the file name of another
                    files = " or ".join(self._paths[row][-1] for row in (own, candidates[0]))
                    ambiguous[k] = f"image {name!r} could be {files}"
            for _, group in sorted(groups.items()):
                self._match_group(group, rows, taken, ambiguous)
        for k, problem in ambiguous.items():
            if rows[k] is None:
                raise DataError(problem)
        return rows

    def _match_group(
        self,
        group: dict[int, tuple[str, list[int]]],
        rows: list[int | None],
        taken: set[int],
        ambiguous: dict[int, str],
    ) -> None:
        """Match equally specific names, each with its candidate rows, by position in `rows`."""
        claims: dict[int, dict[int, _Parts]] = defaultdict(
            dict
        )  # row -> who wants it, by which path
        for k, (name, candidates) in group.items():
            left = [row for row in candidates if row not in taken]
            if len(left) == 1:
                claims[left[0]][k] = path_parts(name)
            elif left:
                images = " or ".join(map(self._shown, left[:2]))
                ambiguous[k] = f"image {name!r} could be {images}"
        for row, names in claims.items():
            if len(set(names.values())) == 1:
                for k in names:
                    rows[k] = row
            else:
                shown = " or ".join(sorted({"/".join(parts) for parts in names.values()})[:2])
                problem = f"image {self._shown(row)} could be meant by {shown}"
                ambiguous.update(dict.fromkeys(names, problem))
        taken.update(claims)

    def _candidates(self, parts: _Parts) -> tuple[int, list[int]]:
        """0 and the rows whose path ends in `parts`, or 1 and those that do but for the suffix."""
        if not parts:
            return 1, []

        def inside(rows: list[int]) -> list[int]:
            return [r for r in rows if self._paths[r][-len(parts) : -1] == parts[:-1]]

        if found := inside(self._by_file.get(parts[-1], [])):
            return 0, found
        return 1, inside(self._by_stem.get(_stem(parts[-1]), []))

    def _shown(self, row: int) -> str:
        return "/".join(self._paths[row][-3:])


def path_parts(name: str) -> _Parts:
    """Split a path of any system into folders and file name: Unicode composed, no `.` and `..`."""
    parts = unicodedata.normalize("NFC", name).replace("\\", "/").split("/")
    return tuple(part for part in parts if part not in ("", ".", ".."))


def _paths(dataset: Dataset) -> list[_Parts]:
    return [path_parts(os.path.abspath(image.path)) for image in dataset.images]


def _stem(file_name: str) -> str:
    """Strip the suffix of an image: "a.b" stays, "a.b.PNG" doesn't."""
    stem, dot, suffix = file_name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in IMAGE_SUFFIXES else file_name

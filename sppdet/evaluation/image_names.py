"""Which image of a data set a name in a detection file means."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from sppdet.data.images import PICTURE_SUFFIXES
from sppdet.errors import DataError
from sppdet.types import Dataset

_Parts = tuple[str, ...]


def distinct_names(dataset: Dataset) -> list[str]:
    """Name each image by the shortest end of its path that no other image's path ends in.

    Returns:
        A name for each row of `dataset.images`: "1.jpg", or "x/1.jpg" and "y/1.jpg".
    """
    paths = _whole_paths(dataset)
    names = ["/".join(parts) for parts in paths]
    open_rows = list(range(len(paths)))
    length = 1
    while open_rows:
        groups: dict[_Parts, list[int]] = defaultdict(list)
        for row in open_rows:
            groups[paths[row][-length:]].append(row)
        for end, rows in groups.items():
            if len(rows) == 1:
                names[rows[0]] = "/".join(end)
        # a path that is used up stays whole: its image is in the set twice, or ends another's path
        open_rows = [
            row
            for rows in groups.values()
            if len(rows) > 1
            for row in rows
            if len(paths[row]) > length
        ]
        length += 1
    return names


def path_parts(name: str) -> _Parts:
    """The folders and the file name of a path of any system, Unicode composed, without `.` and `..`."""
    parts = unicodedata.normalize("NFC", name).replace("\\", "/").split("/")
    return tuple(part for part in parts if part not in ("", ".", ".."))


@dataclass
class ImageNames:
    """The images of a data set as names in files find them.

    A name is an image's id, or the end of its path from a folder on; the suffix of the file may be
    another or missing. Names that differ are taken to mean different images.
    """

    dataset: Dataset
    _paths: list[_Parts] = field(init=False)
    _by_file: dict[str, list[int]] = field(init=False)
    _by_stem: dict[str, list[int]] = field(init=False)
    _by_id: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        images = self.dataset.images
        self._paths = _whole_paths(self.dataset)
        self._by_id = {image.id: row for row, image in enumerate(images)}
        self._by_file, self._by_stem = defaultdict(list), defaultdict(list)
        for row, parts in enumerate(self._paths):
            if parts:
                self._by_file[parts[-1]].append(row)
                self._by_stem[_stem(parts[-1])].append(row)

    def match(self, wanted: Sequence[Sequence[str]], *, paths: bool = False) -> list[int | None]:
        """Find the image that each of `wanted` means.

        The most specific names go first: ids, then the longest ends of paths, whole file names before
        those of another suffix. What they name is not what a less specific name means: of "y/a.jpg" and
        "a.jpg" the second is the image in the folder above.

        Args:
            wanted: for each image of a file its names, the best first; a later one is only looked
                at where those before match nothing.
            paths: whether the names are of files, so that none is an id.

        Returns:
            A row of `dataset.images` for each, or None where no image has such a name.

        Raises:
            DataError: a name fits several images equally well; they are named.
        """
        rows: list[int | None] = [None] * len(wanted)
        taken: set[int] = set()
        doubtful: dict[int, str] = {}
        for rank in range(max(map(len, wanted), default=0)):
            due = [k for k, names in enumerate(wanted) if rows[k] is None and rank < len(names)]
            self._match_names({k: wanted[k][rank] for k in due}, rows, taken, doubtful, paths=paths)
        for k, problem in doubtful.items():
            if rows[k] is None:
                raise DataError(problem)
        return rows

    def _match_names(
        self,
        names: dict[int, str],
        rows: list[int | None],
        taken: set[int],
        doubtful: dict[int, str],
        *,
        paths: bool,
    ) -> None:
        groups: dict[tuple[int, int], dict[int, list[int]]] = defaultdict(dict)
        for k, name in names.items():
            parts = path_parts(name)
            exactness, candidates = self._candidates(parts)
            own = None if paths else self._by_id.get(name)
            if own is None:
                groups[exactness, -len(parts)][k] = candidates
            elif not candidates or own in candidates:
                rows[k] = own
            else:  # the id of one image and the file name of another
                files = " or ".join(self._paths[row][-1] for row in (own, candidates[0]))
                doubtful[k] = f"image {name!r} could be {files}"
        for _, group in sorted(groups.items()):
            claims: dict[int, set[_Parts]] = defaultdict(set)
            left = {k: [row for row in found if row not in taken] for k, found in group.items()}
            for k, found in left.items():
                if len(found) == 1:
                    claims[found[0]].add(path_parts(names[k]))
                elif found:
                    images = " or ".join("/".join(self._paths[row][-3:]) for row in found[:2])
                    doubtful[k] = f"image {names[k]!r} could be {images}"
            for k, found in left.items():
                if len(found) == 1 and len(claims[found[0]]) == 1:
                    rows[k] = found[0]
                elif len(found) == 1:
                    shown = " or ".join(sorted("/".join(parts) for parts in claims[found[0]])[:2])
                    image = "/".join(self._paths[found[0]][-3:])
                    doubtful[k] = f"image {image} could be meant by {shown}"
            taken.update(claims)

    def _candidates(self, parts: _Parts) -> tuple[int, list[int]]:
        """0 and the rows whose path ends in `parts`, or 1 and those that do but for the suffix."""
        if not parts:
            return 1, []
        folders = parts[:-1]

        def inside(rows: list[int]) -> list[int]:
            return [r for r in rows if self._paths[r][-len(parts) : -1] == folders]

        if found := inside(self._by_file.get(parts[-1], [])):
            return 0, found
        return 1, inside(self._by_stem.get(_stem(parts[-1]), []))


def _whole_paths(dataset: Dataset) -> list[_Parts]:
    return [path_parts(os.path.abspath(image.path)) for image in dataset.images]


def _stem(file_name: str) -> str:
    """The file name without its suffix where that is an image's: "a.b" stays, "a.b.PNG" doesn't."""
    stem, dot, suffix = file_name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in PICTURE_SUFFIXES else file_name

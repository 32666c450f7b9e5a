"""Proposals computed elsewhere: R-CNN's selective-search `.mat` files and `.npz`."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from sppdet.boxes import empty_boxes
from sppdet.errors import DataError, one_line
from sppdet.io.files import is_file, read_bytes
from sppdet.io.matlab import MatlabError, Value, read_cells
from sppdet.io.npz import NpzError, read_npz
from sppdet.types import Boxes, Proposals


@dataclass(frozen=True)
class _Entry:
    """One image's boxes as in the file; MATLAB's are [y1, x1, y2, x2], 1-based inclusive."""

    file: Path
    boxes: Value
    by_matlab: bool


class StoredProposals:
    """Boxes by image id, from files or folders; the first that names an image wins.

    - `.mat`: cells `images` (ids) and `boxes`, each (P, 4) [y1, x1, y2, x2], 1-based inclusive, as
      R-CNN and Fast R-CNN distribute them, one file a split;
    - `.npz`: one (P, 4) array per image id, xyxy, 0-based, half-open, original pixels;
    - a folder: such `.mat` files, and one `<id>.npz` per image with an array `boxes` (see
      `file_name`).

    Raises:
        DataError: unreadable file, or an image that none of them names (on look-up).
    """

    def __init__(self, *paths: Path) -> None:
        self._where = ", ".join(map(str, paths))
        self._folders = [path for path in paths if path.is_dir()]
        files = [path for path in paths if not path.is_dir()]
        files += [file for folder in self._folders for file in sorted(folder.glob("*.mat"))]
        self._entries: dict[str, _Entry] = {}
        for file in reversed(files):
            self._entries.update(_read_file(file))

    def look_up(self, image_id: str, *, width: int, height: int, max_boxes: int) -> Proposals:
        """Look up the image's first `max_boxes` boxes, clipped, distinct, with area."""
        entry = self._entries.get(image_id)
        for folder in self._folders:
            file = folder / file_name(image_id)
            if entry is None and is_file(file):
                entry = _read_npz(file).get("boxes")
        if entry is None:
            raise DataError(f"{self._where}: no proposals for image {one_line(image_id, 80)}")
        return Proposals(_valid(entry, image_id, width, height)[:max_boxes])


def file_name(image_id: str) -> str:
    """Name the file of an image's proposals: `<id>.npz`, in a subfolder if the id has slashes.

    `id-<32 hexadecimal digits of its BLAKE2b hash>.npz` where that is no file name, or leads out of
    the folder.
    """
    name = f"{image_id}.npz"
    parts = PurePosixPath(name).parts
    try:
        fits = "\0" not in name and all(len(os.fsencode(part)) <= 255 for part in parts)
    except UnicodeEncodeError:
        fits = False
    if not fits or name.startswith("/") or ".." in parts:
        coded = image_id.encode(errors="surrogatepass")
        name = f"id-{hashlib.blake2b(coded, digest_size=16).hexdigest()}.npz"
    return name


def _read_file(path: Path) -> dict[str, _Entry]:
    if not is_file(path):
        raise DataError(f"{path}: no such file or folder of proposals")
    if path.suffix == ".mat":
        return _read_mat(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    raise DataError(f"{path}: expected .mat, .npz or a folder of them")


def _valid(entry: _Entry, image_id: str, width: int, height: int) -> Boxes:
    """Convert boxes to float32 xyxy, 0-based, half-open, clipped, distinct, with area."""
    where = f"{entry.file}, {one_line(image_id, 80)}"
    found = entry.boxes
    if isinstance(found, str):
        raise DataError(f"{where}: expected finite boxes of shape (P, 4), got text")
    if found.size == 0:
        return empty_boxes()
    numbers = found.dtype.kind in "iuf" and found.ndim == 2 and found.shape[1] == 4
    if not numbers or not np.isfinite(found).all():
        raise DataError(
            f"{where}: expected finite boxes of shape (P, 4), got {found.dtype} {found.shape}"
        )
    with np.errstate(over="ignore"):  # of long doubles; clipped below
        boxes = found.astype(np.float64)
    if entry.by_matlab:
        boxes = boxes[:, [1, 0, 3, 2]] - np.array([1.0, 1.0, 0.0, 0.0])
    # clipped before the cast: a number may be larger than float32's largest
    clipped: Boxes = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    has_area = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    kept = clipped[has_area]
    _, first = np.unique(kept, axis=0, return_index=True)
    return np.ascontiguousarray(kept[np.sort(first)])


def _read_npz(path: Path) -> dict[str, _Entry]:
    try:
        arrays = read_npz(path)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from None
    except NpzError as error:
        raise DataError(
            f"{path}: not an .npz file of plain arrays: {one_line(str(error), 160)}"
        ) from None
    return {name: _Entry(path, boxes, by_matlab=False) for name, boxes in arrays.items()}


def _read_mat(path: Path) -> dict[str, _Entry]:
    try:
        cells = read_cells(read_bytes(path, DataError), ("images", "boxes"))
    except MatlabError as error:
        raise DataError(f"{path}: not a MATLAB file of proposals: {error}") from None
    if cells.keys() != {"images", "boxes"}:
        raise DataError(f"{path}: expected the cells `images` and `boxes`")
    names, boxes = cells["images"], cells["boxes"]
    if len(names) != len(boxes):
        raise DataError(f"{path}: {len(names)} images but {len(boxes)} cells of boxes")
    entries: dict[str, _Entry] = {}
    for index, (name, found) in enumerate(zip(names, boxes, strict=True), start=1):
        if not isinstance(name, str) or not name:
            raise DataError(f"{path}: images, cell {index}: expected the id of an image, as text")
        if name in entries:
            raise DataError(f"{path}: images, cell {index}: {one_line(name, 80)} occurs twice")
        entries[name] = _Entry(path, found, by_matlab=True)
    return entries

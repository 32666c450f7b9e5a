"""Proposals that others computed: R-CNN's selective-search `.mat` files and `.npz`."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sppdet.boxes import clip_boxes, empty_boxes
from sppdet.errors import DataError
from sppdet.types import Boxes, Proposals


class StoredProposals:
    """Boxes by image id, from files or folders; the first that names a picture has it.

    - `.mat`: cells `images` (ids) and `boxes`, each (P, 4) [y1, x1, y2, x2], 1-based inclusive, as
      R-CNN and Fast R-CNN distribute them, one file a split;
    - `.npz`: one (P, 4) array per image id, xyxy, 0-based, half-open, original pixels;
    - a folder: such `.mat` files, and one `<id>.npz` per picture with an array `boxes`.

    Raises:
        DataError: unreadable file, or a picture that none of them names (on look-up).
    """

    def __init__(self, *paths: Path) -> None:
        self._where = ", ".join(map(str, paths))
        self._folders = [path for path in paths if path.is_dir()]
        files = [path for path in paths if not path.is_dir()]
        files += [file for folder in self._folders for file in sorted(folder.glob("*.mat"))]
        self._boxes: dict[str, Any] = {}
        for file in reversed(files):
            self._boxes.update(_read_file(file))

    def look_up(self, image_id: str, *, width: int, height: int, max_boxes: int) -> Proposals:
        """The picture's first `max_boxes` boxes, clipped, distinct; those without area are left out."""
        boxes = self._boxes.get(image_id)
        for folder in self._folders:
            if boxes is None and (folder / f"{image_id}.npz").is_file():
                boxes = _read_npz(folder / f"{image_id}.npz").get("boxes")
        if boxes is None:
            raise DataError(f"{self._where}: no proposals for picture {image_id}")
        return Proposals(_valid(boxes, f"{self._where}, {image_id}", width, height)[:max_boxes])


def _read_file(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder of proposals")
    if path.suffix == ".mat":
        return _read_mat(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    raise DataError(f"{path}: expected .mat, .npz or a folder of them")


def _valid(boxes: NDArray[Any], where: str, width: int, height: int) -> Boxes:
    if boxes.size == 0:
        return empty_boxes()
    numbers = boxes.dtype.kind in "iuf"
    if not numbers or boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise DataError(
            f"{where}: expected finite boxes of shape (P, 4), got {boxes.dtype} {boxes.shape}"
        )
    clipped = clip_boxes(boxes.astype(np.float32), width=width, height=height)
    has_area = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    kept = clipped[has_area]
    _, first = np.unique(kept, axis=0, return_index=True)
    return np.ascontiguousarray(kept[np.sort(first)])


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
        for name, value in found.items():
            if not isinstance(value, np.ndarray):  # numpy hands on what is no array as bytes
                raise ValueError(f"{name} is no array")
        return found
    except FileNotFoundError:
        raise DataError(f"{path}: no such file of proposals") from None
    except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not an .npz file of plain arrays: {error}") from None


def _read_mat(path: Path) -> dict[str, NDArray[Any]]:
    from scipy.io import loadmat

    try:
        content = loadmat(str(path), variable_names=["images", "boxes"])
    except NotImplementedError:
        raise DataError(f"{path}: a MATLAB 7.3 file; save it with -v7") from None
    except Exception as error:  # scipy raises whatever the damaged bytes lead it to
        raise DataError(f"{path}: not a MATLAB file: {error}") from None
    if "images" not in content or "boxes" not in content:
        raise DataError(f"{path}: expected the cells `images` and `boxes`")
    names = [str(np.asarray(cell).item()) for cell in content["images"].ravel()]
    cells = list(content["boxes"].ravel())
    if len(names) != len(cells):
        raise DataError(f"{path}: {len(names)} images but {len(cells)} cells of boxes")
    return {name: _from_matlab(cell) for name, cell in zip(names, cells, strict=True)}


def _from_matlab(boxes: NDArray[Any]) -> NDArray[np.float64]:
    if boxes.size == 0:
        return np.zeros((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        return boxes.astype(np.float64)  # refused with the picture's name on look-up
    swapped = boxes[:, [1, 0, 3, 2]].astype(np.float64)
    zero_based: NDArray[np.float64] = swapped - np.array([1.0, 1.0, 0.0, 0.0])
    return zero_based  # 1-based inclusive to 0-based half-open

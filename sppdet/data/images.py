"""Pictures: decoding them to RGB and finding them in folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from sppdet.data.files import read_bytes
from sppdet.errors import ImageError
from sppdet.types import Picture

# What OpenCV reads, `.jpg` first; GIF and AVIF only in builds that have them.
PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".jpe", ".jp2", ".dib", ".ppm"),
    *(".pgm", ".pbm", ".pnm", ".pfm", ".ras", ".sr", ".hdr", ".pic", ".gif", ".avif"),
)


def read_image(path: Path | str) -> Picture:
    """Read a picture as annotation tools show it.

    The EXIF orientation is applied; grey, palette, 16-bit and transparent pictures come out as
    8-bit RGB, transparency dropped. Of an animation it is the first picture.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ImageError: there is no such file, or it can't be decoded.
    """
    # not cv2.imread, which fails on non-ASCII paths on Windows
    return decode_image(read_bytes(Path(path), ImageError), path)


def decode_image(data: bytes, path: Path | str) -> Picture:
    """`read_image` of bytes already read; `path` only names them in errors."""
    try:
        bgr = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # no bytes, or more pixels than OpenCV takes
        bgr = None
    if bgr is None or bgr.size == 0:
        raise ImageError(f"{path}: can't be decoded as a picture")
    picture: Picture = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)
    return picture


def find_images(paths: Sequence[Path | str]) -> list[Path]:
    """The pictures named by `paths`: files as they are, folders searched to any depth.

    In folders every file with a suffix of `PICTURE_SUFFIXES` (any case) counts; hidden files and
    folders are passed over, links to folders are not followed.

    Returns:
        Paths, relative where the one given was, sorted by name, each file once.

    Raises:
        ImageError: a path doesn't exist, or there is not one picture.
    """
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise ImageError(f"{path}: no such file or folder")
        for picture in _walk(path) if path.is_dir() else (path,):
            found.setdefault(os.path.abspath(picture), picture)
    if not found:
        raise ImageError(f"{', '.join(map(str, paths)) or 'no paths given'}: no pictures found")
    return sorted(found.values(), key=lambda picture: picture.as_posix())


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in PICTURE_SUFFIXES:
                yield Path(parent, name)

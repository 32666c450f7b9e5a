"""Cache of facts about image files: a restart decodes none again, a run mixes no two states of one."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from sppdet.artifacts import write_json
from sppdet.data.files import read_bytes
from sppdet.data.headers import MAX_PIXELS
from sppdet.data.images import changed_image, decode, read_image_bytes
from sppdet.errors import DataError, ImageError
from sppdet.types import Picture

_log = logging.getLogger("sppdet")
_VERSION = 2  # of the file; another one is read as empty


@dataclass(frozen=True, slots=True)
class PictureInfo:
    """An image file that could be decoded: its state on disk and what was found in it.

    `width` and `height` are in pixels after EXIF orientation; `digest` is the BLAKE2b hash of the
    file's bytes, in hexadecimal; `orientation` and `depth` are those of `Decoded`.
    """

    file_bytes: int
    mtime_ns: int
    ctime_ns: int
    digest: str
    width: int
    height: int
    orientation: int
    depth: str


class PictureCache:
    """Image files by absolute path; a file whose size or one of whose times differs is read again.

    From its first look at a file on, a cache stands for one state of it: where the content is
    another later on, `look`, `digest` and `read` raise an error, so that whoever holds one cache
    through a run can't mix two states. Images that can't be decoded are not remembered, so they
    are tried again each time. Several threads may use one cache.
    """

    def __init__(self, *, max_pixels: int = MAX_PIXELS) -> None:
        self._known: dict[str, PictureInfo] = {}
        self._seen: set[str] = set()  # by this process, not only by the one that wrote the file
        self._lock = threading.Lock()
        self._file: Path | None = None
        self._max_pixels = max_pixels

    @classmethod
    def load(cls, path: Path, *, max_pixels: int = MAX_PIXELS) -> PictureCache:
        """The cache stored in `path`; an empty one if there is none or it can't be read."""
        cache = cls(max_pixels=max_pixels)
        cache._file = path
        if not path.exists():
            return cache
        try:
            data = json.loads(read_bytes(path, DataError))
            if data["version"] == _VERSION:
                cache._known = {name: _from_json(v) for name, v in data["pictures"].items()}
        except (DataError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            _log.warning("%s: damaged; every picture is read again", path)
        return cache

    def save(self, path: Path) -> None:
        """Store the cache in `path`, atomically; the same contents give the same bytes."""
        pictures = {name: asdict(self._known[name]) for name in sorted(self._known)}
        write_json(path, {"version": _VERSION, "pictures": pictures})

    def __len__(self) -> int:
        return len(self._known)

    def look(self, path: Path) -> PictureInfo:
        """Look up an image file, which is read and decoded unless it is known and unchanged.

        Raises:
            ImageError: there is no such file, it can't be decoded, has too many pixels, or its
                content isn't what it was at the first look.
        """
        key = os.path.abspath(path)
        try:
            stat = os.stat(key)  # before reading: a change meanwhile shows at the next look
        except (OSError, ValueError):
            read_image_bytes(path)  # raises the error that says what is wrong
            raise ImageError(f"{path}: no such file") from None
        state = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        known = self._known.get(key)
        if known and known.width * known.height > self._max_pixels:
            known = None  # the bound is a lower one than it was: reading says so
        if known and (known.file_bytes, known.mtime_ns, known.ctime_ns) == state:
            self._seen.add(key)
            return known
        data = read_image_bytes(path, max_pixels=self._max_pixels)
        digest = _digest(data)
        if known and known.digest == digest:  # touched or copied
            info = PictureInfo(
                *state, digest, known.width, known.height, known.orientation, known.depth
            )
        elif key in self._seen:
            raise self._changed(path)
        else:
            decoded = decode(data, path, max_pixels=self._max_pixels)
            height, width = decoded.pixels.shape[:2]
            info = PictureInfo(*state, digest, width, height, decoded.orientation, decoded.depth)
        with self._lock:
            # of two threads that saw different states one is refused
            if key in self._seen and self._known[key].digest != digest:
                raise self._changed(path)
            self._known[key] = info
            self._seen.add(key)
        return info

    def digest(self, path: Path) -> str:
        """The hash of the image's bytes, for fingerprints; errors as `look`."""
        return self.look(path).digest

    def read(self, path: Path) -> Picture:
        """The pixels of `path`, (H, W, 3) RGB: of the very bytes whose hash is `digest`.

        Raises:
            ImageError: as `look`; also where neither size nor time of the file tell of the change.
        """
        expected = self.digest(path)
        data = read_image_bytes(path, max_pixels=self._max_pixels)
        if _digest(data) != expected:
            raise self._changed(path)
        return decode(data, path, max_pixels=self._max_pixels).pixels

    def _changed(self, path: Path) -> ImageError:
        """The error of a file whose content is another one; the stored cache isn't trusted again.

        Otherwise a file whose size and time are the old ones would be refused by every later run.
        """
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        return changed_image(path)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=20).hexdigest()


def _from_json(entry: dict[str, int | str]) -> PictureInfo:
    info = PictureInfo(**entry)  # type: ignore[arg-type]
    for name, value in asdict(info).items():
        if not isinstance(value, str if name in ("digest", "depth") else int):
            raise TypeError("a picture's entry has values of the wrong type")
    return info

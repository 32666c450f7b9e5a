"""Cache of facts about image files: a restart decodes none again, a run mixes no two states of one."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from sppdet.errors import DataError, ImageError
from sppdet.io.files import read_bytes
from sppdet.io.images import changed_image, decode, read_image_bytes
from sppdet.runs.artifacts import write_json
from sppdet.setting_types import MAX_PIXELS
from sppdet.types import ImageArray

_log = logging.getLogger("sppdet")
_VERSION = 2  # of the file; another one is read as empty


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image file that could be decoded: its state on disk and its properties.

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


class ImageCache:
    """Image files by absolute path; a file whose size or one of whose times differs is read again.

    From the first look at a file on, a cache stands for one state of it: if the content changes,
    `look`, `digest` and `read` raise an error, so that a run with one cache can't mix two states.
    Images that can't be decoded are not cached, so they are tried again each time. Several threads
    may use one cache.
    """

    def __init__(
        self,
        *,
        max_pixels: int = MAX_PIXELS,
        on_decoded: Callable[[Path, ImageArray], None] | None = None,
    ) -> None:
        """Begin without images.

        Args:
            on_decoded: called by `look` with the path and the pixels of an image that it has decoded.
        """
        self._known: dict[str, ImageInfo] = {}
        self._seen: set[str] = set()  # by this process, not only by the one that wrote the file
        self._lock = threading.Lock()
        self._file: Path | None = None
        self._max_pixels = max_pixels
        self._on_decoded = on_decoded

    @classmethod
    def load(cls, path: Path, *, max_pixels: int = MAX_PIXELS) -> ImageCache:
        """Load the cache stored in `path`; an empty one if there is none or it is damaged."""
        cache = cls(max_pixels=max_pixels)
        cache._file = path
        if not path.exists():
            return cache
        try:
            data = json.loads(read_bytes(path, DataError))
            if data["version"] == _VERSION:
                cache._known = {name: _from_json(v) for name, v in data["images"].items()}
        except (DataError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            _log.warning("%s: damaged; every image is read again", path)
        return cache

    def save(self, path: Path) -> None:
        """Write the cache to `path`, atomically; the same contents give the same bytes."""
        images = {name: asdict(self._known[name]) for name in sorted(self._known)}
        write_json(path, {"version": _VERSION, "images": images})

    def __len__(self) -> int:
        return len(self._known)

    def look(self, path: Path) -> ImageInfo:
        """Look up an image file, which is read and decoded unless it is known and unchanged.

        Raises:
            ImageError: there is no such file, it can't be decoded, has too many pixels, or its
                content isn't what it was at the first look.
        """
        key = os.path.abspath(path)
        try:
            stat = os.stat(key)  # before reading, so that the next look sees a later change
        except (OSError, ValueError):
            read_image_bytes(path)  # raises the error that says what is wrong
            raise ImageError(f"{path}: no such file") from None
        state = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        with self._lock:
            known, seen = self._known.get(key), key in self._seen
        if known and known.width * known.height > self._max_pixels:
            known = None  # the bound is lower than it was: reading raises the error
        if known and (known.file_bytes, known.mtime_ns, known.ctime_ns) == state:
            self._seen.add(key)
            return known
        data = read_image_bytes(path, max_pixels=self._max_pixels)
        digest = _digest(data)
        if known and known.digest == digest:  # touched or copied
            info = ImageInfo(*state, *astuple(known)[3:])
        elif seen:
            raise self._changed(path)
        else:
            decoded = decode(data, path, max_pixels=self._max_pixels)
            height, width = decoded.pixels.shape[:2]
            if self._on_decoded is not None:
                self._on_decoded(path, decoded.pixels)
            info = ImageInfo(*state, digest, width, height, decoded.orientation, decoded.depth)
        with self._lock:
            # if two threads saw different states, one fails
            if key in self._seen and self._known[key].digest != digest:
                raise self._changed(path)
            self._known[key] = info
            self._seen.add(key)
        return info

    def digest(self, path: Path) -> str:
        """Hash of the image's bytes, for fingerprints; errors as `look`."""
        return self.look(path).digest

    def read(self, path: Path) -> ImageArray:
        """Read the pixels of `path`, (H, W, 3) RGB, from the very bytes whose hash is `digest`.

        Raises:
            ImageError: as `look`; also for a change that neither size nor times of the file show.
        """
        expected = self.digest(path)
        data = read_image_bytes(path, max_pixels=self._max_pixels)
        if _digest(data) != expected:
            raise self._changed(path)
        return decode(data, path, max_pixels=self._max_pixels).pixels

    def _changed(self, path: Path) -> ImageError:
        """Delete the stored cache and build the error of a file whose content has changed.

        With the stored cache every later run would refuse a file whose size and times are the old ones.
        """
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        return changed_image(path)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=20).hexdigest()


def _from_json(entry: dict[str, int | str]) -> ImageInfo:
    info = ImageInfo(**entry)  # type: ignore[arg-type]
    for name, value in asdict(info).items():
        if not isinstance(value, str if name in ("digest", "depth") else int):
            raise TypeError("an image's entry has values of the wrong type")
    return info

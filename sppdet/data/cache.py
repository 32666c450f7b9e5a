"""What is known of picture files, so that a restart need not decode them all again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from sppdet.artifacts import write_json
from sppdet.data.files import read_bytes
from sppdet.data.images import decode_image
from sppdet.errors import ImageError

_log = logging.getLogger("sppdet")
_VERSION = 1  # of the file; another one is read as empty


@dataclass(frozen=True, slots=True)
class PictureInfo:
    """A picture file that could be decoded: its state on disk and what was found in it.

    `width` and `height` are in pixels after EXIF orientation; `digest` is the BLAKE2b hash of the
    file's bytes, in hexadecimal.
    """

    file_bytes: int
    mtime_ns: int
    digest: str
    width: int
    height: int


class PictureCache:
    """Picture files by absolute path; a file whose size or time of change differs is read again.

    Pictures that can't be decoded are not remembered, so they are tried anew each time. Several
    threads may use one cache.
    """

    def __init__(self) -> None:
        self._known: dict[str, PictureInfo] = {}

    @classmethod
    def load(cls, path: Path) -> PictureCache:
        """The cache stored in `path`; an empty one if there is none or it can't be read."""
        cache = cls()
        try:
            data = json.loads(path.read_bytes())
            if data["version"] == _VERSION:
                cache._known = {name: _from_json(v) for name, v in data["pictures"].items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            _log.warning("%s: damaged; every picture is read again", path)
        return cache

    def save(self, path: Path) -> None:
        """Store the cache in `path`, atomically; the same contents give the same bytes."""
        pictures = {name: asdict(self._known[name]) for name in sorted(self._known)}
        write_json(path, {"version": _VERSION, "pictures": pictures})

    def __len__(self) -> int:
        return len(self._known)

    def look(self, path: Path) -> PictureInfo:
        """What is known of `path`, which is read and decoded unless it is known and unchanged.

        Raises:
            ImageError: there is no such file, or it can't be decoded.
        """
        key = os.path.abspath(path)
        try:
            state = os.stat(key)  # before reading: a change meanwhile shows at the next look
        except OSError:
            raise ImageError(f"{path}: no such file") from None
        known = self._known.get(key)
        if known and (known.file_bytes, known.mtime_ns) == (state.st_size, state.st_mtime_ns):
            return known
        data = read_bytes(path, ImageError)
        height, width = decode_image(data, path).shape[:2]
        digest = hashlib.blake2b(data, digest_size=20).hexdigest()
        info = PictureInfo(state.st_size, state.st_mtime_ns, digest, width, height)
        self._known[key] = info
        return info

    def digest(self, path: Path) -> str:
        """The hash of the picture's bytes, for fingerprints; errors as `look`."""
        return self.look(path).digest


def _from_json(entry: dict[str, int | str]) -> PictureInfo:
    info = PictureInfo(**entry)  # type: ignore[arg-type]
    numbers = (info.file_bytes, info.mtime_ns, info.width, info.height)
    if not all(isinstance(number, int) for number in numbers) or not isinstance(info.digest, str):
        raise TypeError("a picture's entry has values of the wrong type")
    return info

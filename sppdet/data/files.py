"""Reading whole files, with one clear line where that fails."""

from __future__ import annotations

from pathlib import Path

from sppdet.errors import AnnotationError, DataError


def read_bytes(path: Path, error: type[DataError]) -> bytes:
    """The bytes of `path`; raises `error` if it is missing or can't be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except OSError as reason:
        problem = "is a folder" if path.is_dir() else reason.strerror or str(reason)
        raise error(f"{path}: can't be read: {problem}") from None


def read_text(path: Path) -> str:
    """The UTF-8 text of `path`, with or without a byte order mark.

    Raises:
        AnnotationError: there is no such file, or it is not UTF-8.
    """
    try:
        return read_bytes(path, AnnotationError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: not UTF-8 text (byte {error.start})") from None

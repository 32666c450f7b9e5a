"""Reading of whole files, with an error of one clear line.

All files of users are read here: opening a FIFO would block forever, and /dev/zero has no end.
"""

from __future__ import annotations

import codecs
import json
import os
import stat
from pathlib import Path
from typing import Any

from sppdet.errors import AnnotationError, SppdetError, name_problem

MAX_BYTES = 4 * 2**30  # of any file; the annotations of the largest public sets take less

_KINDS = (
    (stat.S_ISDIR, "is a folder"),
    (stat.S_ISFIFO, "is a FIFO, expected a regular file"),
    (stat.S_ISSOCK, "is a socket, expected a regular file"),
    (stat.S_ISCHR, "is a device, expected a regular file"),
    (stat.S_ISBLK, "is a device, expected a regular file"),
)


def read_bytes(path: Path, error: type[SppdetError], *, max_bytes: int = MAX_BYTES) -> bytes:
    """Read the bytes of a regular file.

    Raises:
        error: the file is missing, isn't a regular file, has more than `max_bytes`, or can't be read.
    """
    return _read(path, error, max_bytes=max_bytes)


def read_head(path: Path, count: int) -> bytes:
    """Read the first `count` bytes of a regular file, or all of a shorter one.

    Raises:
        AnnotationError: as `read_bytes`.
    """
    return _read(path, AnnotationError, max_bytes=MAX_BYTES, count=count)


def _read(path: Path, error: type[SppdetError], *, max_bytes: int, count: int = -1) -> bytes:
    try:
        _check(os.stat(path), max_bytes)  # before opening, which blocks for a FIFO
        # not every system has these flags
        flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, os.O_RDONLY | flags)
        with open(descriptor, "rb") as handle:  # noqa: PTH123
            _check(os.fstat(descriptor), max_bytes)  # it may be another file by now
            return handle.read(count)
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except _NotReadable as reason:
        raise error(f"{path}: can't be read: {reason}") from None
    except OSError as reason:
        raise error(f"{path}: can't be read: {reason.strerror or reason}") from None
    except ValueError:
        problem = name_problem(str(path)) or "isn't a file name"
        raise error(f"{path}: no such file: the name {problem}") from None
    except MemoryError:
        raise error(f"{path}: can't be read: more bytes than memory holds") from None


def read_text(
    path: Path, error: type[SppdetError] = AnnotationError, *, max_bytes: int = MAX_BYTES
) -> str:
    """Read the UTF-8 text of a regular file, with or without a byte order mark.

    Raises:
        error: as `read_bytes`, or the file is not UTF-8.
    """
    try:
        return read_bytes(path, error, max_bytes=max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error(f"{path}: not UTF-8 text (byte {reason.start})") from None


def read_foreign_text(path: Path, *, max_bytes: int = MAX_BYTES) -> str:
    """Read a text file of another program: UTF-8, or UTF-16 by its byte order mark.

    PowerShell's `>` writes UTF-16.

    Raises:
        AnnotationError: as `read_bytes`, or the text is in neither encoding.
    """
    data = read_bytes(path, AnnotationError, max_bytes=max_bytes)
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as reason:
        kind = "UTF-16" if marked else "UTF-8"
        raise AnnotationError(f"{path}: not {kind} text (byte {reason.start})") from None


def read_json(path: Path) -> Any:
    """Read a JSON file made by anyone.

    Raises:
        AnnotationError: there is no such file, or it is not JSON, nested too deeply, or has a number
            of thousands of digits.
    """
    text = read_foreign_text(path)
    try:
        return json.loads(text)
    except RecursionError:
        raise AnnotationError(f"{path}: not JSON that can be read: nested too deeply") from None
    except ValueError as error:
        raise AnnotationError(f"{path}: not JSON: {error}") from None


def is_file(path: Path) -> bool:
    """Check that a file exists; False for a name that no file can have, such as one too long."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises for a name too long


class _NotReadable(Exception):
    """The file is of a kind or size that is refused."""


def _check(state: os.stat_result, max_bytes: int) -> None:
    for is_kind, problem in _KINDS:
        if is_kind(state.st_mode):
            raise _NotReadable(problem)
    if state.st_size > max_bytes:
        raise _NotReadable(f"{state.st_size} bytes, expected {max_bytes} at most")

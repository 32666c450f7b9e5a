"""Reading whole files, with one clear line where that fails.

Files from outside are read here and nowhere else: a FIFO would make the reader wait for ever, and
/dev/zero has no end.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from sppdet.errors import AnnotationError, SppdetError

MAX_BYTES = 4 * 2**30  # of any file; the annotations of the largest public sets take less

_KINDS = (
    (stat.S_ISDIR, "is a folder"),
    (stat.S_ISFIFO, "is a FIFO, expected a regular file"),
    (stat.S_ISSOCK, "is a socket, expected a regular file"),
    (stat.S_ISCHR, "is a device, expected a regular file"),
    (stat.S_ISBLK, "is a device, expected a regular file"),
)


def read_bytes(path: Path, error: type[SppdetError], *, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file.

    Raises:
        error: the file is missing, isn't a regular file, has more than `max_bytes`, or can't be read.
    """
    try:
        _check(os.stat(path), max_bytes)  # before opening, for which a FIFO waits
        descriptor = os.open(path, os.O_RDONLY | _flag("O_NONBLOCK") | _flag("O_BINARY"))
        with open(descriptor, "rb") as handle:  # noqa: PTH123
            _check(os.fstat(descriptor), max_bytes)  # it may be another file by now
            return handle.read()
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
    """The UTF-8 text of a regular file, with or without a byte order mark.

    Raises:
        error: as `read_bytes`, or the file is not UTF-8.
    """
    try:
        return read_bytes(path, error, max_bytes=max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error(f"{path}: not UTF-8 text (byte {reason.start})") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file made by anyone.

    Raises:
        AnnotationError: there is no such file, or it is not JSON, nested too deeply, or has a number
            of thousands of digits.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except RecursionError:
        raise AnnotationError(f"{path}: not JSON that can be read: nested too deeply") from None
    except ValueError as error:
        raise AnnotationError(f"{path}: not JSON: {error}") from None


def is_file(path: Path) -> bool:
    """Whether there is such a file; False for a name that no file can have, such as one too long."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises for a name too long


def name_problem(name: str) -> str:
    """Why `name`, as it stands in annotations, can't be that of a file or a class; "" if it can."""
    if "\0" in name:
        return "has a NUL byte"
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        return "has a lone surrogate"
    return ""


class _NotReadable(Exception):
    """The file is of a kind or size that isn't read."""


def _check(state: os.stat_result, max_bytes: int) -> None:
    for is_kind, problem in _KINDS:
        if is_kind(state.st_mode):
            raise _NotReadable(problem)
    if state.st_size > max_bytes:
        raise _NotReadable(f"{state.st_size} bytes, expected {max_bytes} at most")


def _flag(name: str) -> int:
    """A flag of `os.open` that not every system has."""
    value: int = getattr(os, name, 0)
    return value

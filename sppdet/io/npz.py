"""Reading of NumPy's `.npz` files of plain arrays; every declared size is checked before use."""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_EXPANSION = 50  # times the size of the file, or up to MAX_SMALL
MAX_SMALL = 16 * 2**20  # bytes
_DESCR = re.compile(rb"""['"]descr['"]\s*:\s*['"]([<>|=]?[a-zA-Z][0-9]{0,4})['"]""")
_ORDER = re.compile(rb"""['"]fortran_order['"]\s*:\s*(True|False)""")
_SHAPE = re.compile(rb"""['"]shape['"]\s*:\s*\(([0-9,\s]{0,200})\)""")


class NpzError(ValueError):
    """The file is no `.npz` of plain arrays; says why."""


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of a file, by name.

    Raises:
        OSError: the file can't be opened.
        NpzError: damaged, no array, an array of objects, a name twice, or more than
            `MAX_EXPANSION` times the bytes of the file.
    """
    with path.open("rb") as file:
        try:
            return _arrays(file)
        except NpzError:
            raise
        except Exception as error:  # zipfile has no common error for damaged files
            raise NpzError(str(error) or type(error).__name__) from None


def _arrays(file: Any) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    size = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > max(MAX_SMALL, MAX_EXPANSION * size):
            raise NpzError(f"it expands to more than {MAX_EXPANSION} times its size")
        for entry in entries:
            name = entry.filename.removesuffix(".npy")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise NpzError(f"{name}: compressed by method {entry.compress_type}")
            if name in arrays:
                raise NpzError(f"{name} occurs twice")
            # reads as many bytes as were declared, at most
            arrays[name] = _array(archive.read(entry), name)
    return arrays


def _array(content: bytes, name: str) -> NDArray[Any]:
    """Parse an array in NumPy's `.npy` format."""
    if not content.startswith(b"\x93NUMPY") or len(content) < 12:
        raise NpzError(f"{name} is no array")
    width = 2 if content[6] == 1 else 4  # bytes of the header's length in versions 1 and later
    begin = 8 + width + int.from_bytes(content[8 : 8 + width], "little")
    header = content[8 + width : begin]
    found = [pattern.search(header) for pattern in (_DESCR, _ORDER, _SHAPE)]
    descr, order, shape_text = (match.group(1).decode() if match else None for match in found)
    if begin > len(content) or descr is None or order is None or shape_text is None:
        raise NpzError(f"{name} is no plain array")
    dtype = np.dtype(descr)
    if dtype.hasobject or dtype.itemsize == 0:
        raise NpzError(f"{name} is an array of {dtype}; expected numbers")
    shape = tuple(int(part) for part in shape_text.split(",") if part.strip())
    if len(content) - begin != math.prod(shape) * dtype.itemsize:
        raise NpzError(f"{name}: shape {shape} with {len(content) - begin} bytes of {dtype}")
    values = np.frombuffer(content, dtype, offset=begin)
    return values.reshape(shape, order="F" if order == "True" else "C")

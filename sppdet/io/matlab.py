"""Reading of cells of text and numbers in MATLAB's `.mat` files (level 5, as written by -v6 and -v7).

A reader of our own: SciPy's crashes the interpreter on damaged files. Every declared size is checked
against the bytes of the file before use. Source: MathWorks, *MAT-File Format*, chapter 1.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Value = str | NDArray[Any]
MAX_EXPANSION = 50  # times the size of the file, or up to MAX_SMALL
MAX_SMALL = 16 * 2**20  # bytes

_MATRIX, _COMPRESSED = 14, 15
_CELL, _CHAR = 1, 4
_CLASSES = {2: "a structure", 3: "an object", 5: "a sparse matrix"}
_NUMERIC_CLASSES = range(6, 16)
_COMPLEX = 0x0800
# element type -> NumPy type
_NUMBERS = dict(enumerate(["i1", "u1", "i2", "u2", "i4", "u4", "f4"], start=1)) | {
    9: "f8",
    12: "i8",
    13: "u8",
}
_ENCODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_HEADER = 128


class MatlabError(ValueError):
    """The bytes are no `.mat` file of this kind."""


@dataclass(frozen=True)
class _Array:
    """Head of a matrix element, and the offset of its values."""

    kind: int
    is_complex: bool
    shape: tuple[int, ...]
    name: str
    values: int


def read_cells(content: bytes, names: Container[str]) -> dict[str, list[Value]]:
    """Read the cell arrays called `names`; other variables are ignored.

    Returns:
        The cells of each in column order: text (one row of characters), or an array of numbers with
        the shape that MATLAB shows and the type that the file stores.

    Raises:
        MatlabError: damaged, another format, a wanted variable that is no cell array or occurs
            twice, a cell with something else, or more than `MAX_EXPANSION` times the bytes.
    """
    order = _byte_order(content)
    room = max(MAX_SMALL, MAX_EXPANSION * len(content))
    found: dict[str, list[Value]] = {}
    for kind, data in _elements(memoryview(content)[_HEADER:], order):
        if kind == _COMPRESSED:
            # the name is within the first bytes: other variables need not be expanded
            if _array_head(_expanded(data, 2048, order, whole=False), order).name not in names:
                continue
            matrix = _expanded(data, room, order)
            room -= len(matrix)
        elif kind == _MATRIX:
            matrix = data
        else:
            raise MatlabError(f"an element of type {kind} where a variable is expected")
        array = _array_head(matrix, order)
        if array.name in names:
            if array.name in found:
                raise MatlabError(f"{array.name} occurs twice")
            found[array.name] = _cells(matrix, array, order)
    return found


def _byte_order(content: bytes) -> str:
    if len(content) < _HEADER or 0 in content[:4]:
        raise MatlabError("expected the header of MATLAB's level 5")
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise MatlabError("expected the header of MATLAB's level 5")
    (version,) = struct.unpack(order + "H", content[124:126])
    if version == 0x0200:
        raise MatlabError("a MATLAB 7.3 file; save it with -v7")
    if version != 0x0100:
        raise MatlabError(f"version {version:#06x}; expected 0x0100")
    return order


def _element(data: memoryview, at: int, order: str) -> tuple[int, memoryview, int]:
    """Type and data of the element at byte `at`, and the offset of the next one."""
    if at + 8 > len(data):
        raise MatlabError("it ends within an element")
    kind, size = struct.unpack_from(order + "II", data, at)
    begin = at + 8
    following = begin + (size if kind == _COMPRESSED else -(-size // 8) * 8)
    if kind >> 16:  # a small element: its size, its type and up to four bytes in one
        kind, size, begin, following = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        if size > 4:
            raise MatlabError(f"a small element of {size} bytes")
    if begin + size > len(data):
        raise MatlabError("it ends within an element")
    return kind, data[begin : begin + size], following


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    at = 0
    while at < len(data):
        kind, content, at = _element(data, at, order)
        yield kind, content


def _expanded(data: memoryview, room: int, order: str, *, whole: bool = True) -> memoryview:
    """Expand the matrix in a compressed element to up to `room` bytes; unless `whole`, its beginning."""
    stream = zlib.decompressobj()
    try:
        content = memoryview(stream.decompress(data, room))
    except zlib.error as error:
        raise MatlabError(str(error)) from None
    if whole and stream.unconsumed_tail:
        raise MatlabError(f"it expands to more than {MAX_EXPANSION} times its size")
    if whole and not stream.eof:
        raise MatlabError("a compressed variable is cut off")
    if len(content) < 8 or struct.unpack_from(order + "I", content)[0] != _MATRIX:
        raise MatlabError("no variable where one is expected")
    return _element(content, 0, order)[1] if whole else content[8:]


def _array_head(matrix: memoryview, order: str) -> _Array:
    if len(matrix) == 0:  # how an empty cell may be written
        return _Array(_NUMERIC_CLASSES[0], False, (0, 0), "", 0)
    _, flags, at = _element(matrix, 0, order)
    if len(flags) != 8:
        raise MatlabError("a variable without flags")
    (word,) = struct.unpack_from(order + "I", flags)
    kind = word & 0xFF
    if kind == 17:  # an object of a later kind: no shape comes before its name
        return _Array(kind, False, (), "", at)
    sort, data, at = _element(matrix, at, order)
    if sort not in (5, 6) or len(data) % 4 or not 2 <= len(data) // 4 <= 32:
        raise MatlabError("a variable without a shape")
    shape = struct.unpack(f"{order}{len(data) // 4}i", data)
    if min(shape) < 0:
        raise MatlabError(f"a variable of shape {shape}")
    _, name, at = _element(matrix, at, order)
    return _Array(kind, bool(word & _COMPLEX), shape, bytes(name).decode("latin-1"), at)


def _cells(matrix: memoryview, array: _Array, order: str) -> list[Value]:
    if array.kind != _CELL:
        raise MatlabError(f"{array.name} is {_kind(array)}; expected cells")
    count = math.prod(array.shape)
    if count > len(matrix) // 8:  # each has eight bytes or more
        raise MatlabError(f"{array.name}: {count} cells in {len(matrix)} bytes")
    cells = []
    at = array.values
    for index in range(1, count + 1):
        kind, data, at = _element(matrix, at, order)
        try:
            if kind != _MATRIX:
                raise MatlabError(f"an element of type {kind}; expected an array")
            cells.append(_value(data, _array_head(data, order), order))
        except MatlabError as error:
            raise MatlabError(f"{array.name}, cell {index}: {error}") from None
    return cells


def _value(matrix: memoryview, array: _Array, order: str) -> Value:
    if array.kind != _CHAR and array.kind not in _NUMERIC_CLASSES:
        raise MatlabError(f"{_kind(array)}; expected text or numbers")
    if array.is_complex:
        raise MatlabError("complex numbers; expected real ones")
    if math.prod(array.shape) == 0:
        return "" if array.kind == _CHAR else np.zeros(array.shape)
    kind, data, _ = _element(matrix, array.values, order)
    if array.kind == _CHAR:
        return _text(kind, data, array, order)
    if kind not in _NUMBERS:
        raise MatlabError(f"values of type {kind}; expected numbers")
    dtype = np.dtype(order + _NUMBERS[kind])
    if len(data) != math.prod(array.shape) * dtype.itemsize:
        raise MatlabError(f"shape {array.shape} with {len(data)} bytes of {dtype.name}")
    values: NDArray[Any] = np.frombuffer(data, dtype).reshape(array.shape, order="F")
    return values


def _text(kind: int, data: memoryview, array: _Array, order: str) -> str:
    if array.shape[0] != 1 or len(array.shape) != 2:
        raise MatlabError(f"characters of shape {array.shape}; expected one row")
    if kind not in _ENCODINGS:
        raise MatlabError(f"characters of type {kind}")
    encoding = _ENCODINGS[kind]
    if encoding in ("utf-16", "utf-32"):
        encoding += "-le" if order == "<" else "-be"
    try:
        return bytes(data).decode(encoding)
    except UnicodeDecodeError:
        raise MatlabError("characters that are no text") from None


def _kind(array: _Array) -> str:
    names = {_CELL: "cells", _CHAR: "characters", **_CLASSES}
    if array.kind in _NUMERIC_CLASSES:
        return "an array of numbers"
    return names.get(array.kind, f"an array of class {array.kind}")

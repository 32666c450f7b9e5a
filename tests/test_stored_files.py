"""Proposals of others in damaged and hostile `.mat` and `.npz` files: one line, never a crash."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from sppdet.errors import DataError, one_line
from sppdet.io.matlab import MatlabError, _Array, _array_head, _text, read_cells
from sppdet.io.stored_proposals import StoredProposals

IDS = ("000012", "a/b", "日本 é")


class Everything:
    def __contains__(self, _: object) -> bool:
        return True


def cells(*values: Any) -> Any:
    made = np.empty((len(values), 1), object)
    for i, value in enumerate(values):
        made[i, 0] = value
    return made


def boxes(rng: np.random.Generator, count: int, dtype: Any) -> Any:
    return rng.integers(1, 200, (count, 4)).cumsum(axis=1).astype(dtype)


def write_mat(path: Path, *, compressed: bool = False, **variables: Any) -> Path:
    scipy.io.savemat(str(path), variables, do_compression=compressed)
    return path


def write_npz(path: Path, arrays: dict[str, Any], *, compressed: bool = False) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def look_up(path: Path, image_id: str = "000012") -> Any:
    found = StoredProposals(path).look_up(image_id, width=500, height=300, max_boxes=2000)
    return found.boxes


# -- MATLAB's format against SciPy's reader -------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_cells_are_those_that_scipy_reads(
    compressed: bool, dtype: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    path = write_mat(
        tmp_path / "x.mat",
        compressed=compressed,
        other=rng.random((50, 50)),
        boxes=cells(*(rng.integers(0, 120, (n, 4)).astype(dtype) for n in (7, 1, 0, 300))),
        images=cells(*IDS, "x" * 300),
    )
    mine = read_cells(path.read_bytes(), ("images", "boxes"))
    reference = scipy.io.loadmat(str(path))
    assert mine["images"] == [str(cell.item()) for cell in reference["images"].ravel()]
    assert mine["images"][:3] == list(IDS)
    for found, expected in zip(mine["boxes"], reference["boxes"].ravel(), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert isinstance(found, np.ndarray) and found.shape == expected.shape


def test_files_that_matlab_wrote() -> None:
    """SciPy's own collection: MATLAB 5.3 to 7.4, both byte orders, compressed or not."""
    folder = Path(scipy.io.__file__).parent / "matlab" / "tests" / "data"
    files = [
        f
        for f in sorted(folder.glob("test*cell*.mat"))
        if "nest" not in f.name and "simple" not in f.name
    ]
    if not files:
        pytest.skip("this SciPy comes without its test data")
    for file in files:
        for name, found in read_cells(file.read_bytes(), Everything()).items():
            expected = scipy.io.loadmat(str(file))[name].ravel(order="F")
            for mine, cell in zip(found, expected, strict=True):
                if isinstance(mine, str):
                    assert mine == cell.item()
                else:
                    np.testing.assert_array_equal(mine, cell)
    for file in sorted(folder.glob("*.mat")):
        try:
            read_cells(file.read_bytes(), Everything())
        except MatlabError as error:
            assert str(error)


def test_the_order_of_cells_and_values_is_matlabs(tmp_path: Path) -> None:
    images = np.array([["a", "b"], ["c", "d"]], object)
    found = np.empty((2, 2), object)
    for row, column in np.ndindex(2, 2):
        found[row, column] = np.array([[1, 2, 30, 40 + 10 * row + column]])
    path = write_mat(tmp_path / "x.mat", images=images, boxes=found)
    assert [look_up(path, name)[0].tolist() for name in "abcd"] == [
        [1, 0, right, 30] for right in (40, 41, 50, 51)
    ]


# -- what is refused ------------------------------------------------------------------------------


def patched(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert old in content and len(old) == len(new)
    path.write_bytes(content.replace(old, new, 1))
    return path


def bomb_mat(path: Path) -> Path:
    """A compressed variable of 2 GB in 2 MB, by its own word."""
    head = struct.pack("<II", 14, 2**31 - 8)
    squeeze = zlib.compressobj()
    parts = [squeeze.compress(head)]
    flags = struct.pack("<IIII", 6, 8, 1, 0) + struct.pack("<IIII", 5, 8, 1, 1)
    parts.append(squeeze.compress(flags + struct.pack("<II", 1, 5) + b"boxes\0\0\0"))
    parts += [squeeze.compress(bytes(2**20)) for _ in range(64)]
    body = b"".join([*parts, squeeze.flush()])
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    path.write_bytes(header + struct.pack("<II", 15, len(body)) + body)
    return path


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    text = header.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(text)) + text + data


def zipped(path: Path, content: bytes, *, name: str = "000012.npy", **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr(name, content)
    return path


def twice(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.writestr("000012.npy", npy(HEADER, bytes(64)))
    return path


def old_format(path: Path) -> Path:
    scipy.io.savemat(str(path), {"boxes": np.ones((2, 4))}, format="4")
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


HEADER = "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 4), }\n"
MAT: dict[str, tuple[Callable[[Path], Path], str]] = {
    "names are numbers": (
        lambda p: write_mat(p, images=cells(12.0), boxes=cells(np.ones((1, 4)))),
        "images, cell 1: expected the id of an image, as text",
    ),
    "name without a letter": (
        lambda p: write_mat(p, images=cells(""), boxes=cells(np.ones((1, 4)))),
        "images, cell 1: expected the id of an image, as text",
    ),
    "names of several rows": (
        lambda p: write_mat(
            p, images=cells(np.array(["ab", "cd"])), boxes=cells(np.ones((1, 4)))
        ),
        "images, cell 1: characters of shape (2, 2); expected one row",
    ),
    "name twice": (
        lambda p: write_mat(p, images=cells("a", "a"), boxes=cells(1, 2)),
        "images, cell 2: a occurs twice",
    ),
    "boxes are text": (
        lambda p: write_mat(p, images=cells("000012"), boxes=cells("none")),
        "x.mat, 000012: expected finite boxes of shape (P, 4), got text",
    ),
    "complex boxes": (
        lambda p: write_mat(p, images=cells("000012"), boxes=cells(np.ones((1, 4)) * 1j)),
        "boxes, cell 1: complex numbers; expected real ones",
    ),
    "cells of cells": (
        lambda p: write_mat(p, images=cells("000012"), boxes=cells(cells(cells(1)))),
        "boxes, cell 1: cells; expected text or numbers",
    ),
    "structures": (
        lambda p: write_mat(p, images=cells("000012"), boxes=cells({"a": 1})),
        "boxes, cell 1: a structure; expected text or numbers",
    ),
    "sparse": (
        lambda p: write_mat(
            p, images=cells("000012"), boxes=cells(scipy.sparse.csc_array(np.eye(4)))
        ),
        "boxes, cell 1: a sparse matrix; expected text or numbers",
    ),
    "NaN": (
        lambda p: write_mat(p, images=cells("000012"), boxes=cells(np.full((1, 4), np.nan))),
        "x.mat, 000012: expected finite boxes of shape (P, 4), got float64 (1, 4)",
    ),
    "five columns": (
        lambda p: write_mat(p, images=cells("000012"), boxes=cells(np.ones((2, 5)))),
        "x.mat, 000012: expected finite boxes of shape (P, 4), got float64 (2, 5)",
    ),
    "no cells": (
        lambda p: write_mat(p, images="000012", boxes=cells(1)),
        "images is characters; expected cells",
    ),
    "an older format": (
        old_format,
        "expected the header of MATLAB's level 5",
    ),
    "7.3": (
        lambda p: patched(write_mat(p, a=1), b"\x00\x01IM", b"\x00\x02IM"),
        "a MATLAB 7.3 file; save it with -v7",
    ),
    "another version": (
        lambda p: patched(write_mat(p, a=1), b"\x00\x01IM", b"\x33\x01IM"),
        "version 0x0133",
    ),
    "negative size": (
        lambda p: patched(
            write_mat(p, images=cells("000012"), boxes=cells(np.ones((7, 4)))),
            struct.pack("<ii", 7, 4),
            struct.pack("<ii", -7, -4),
        ),
        "boxes, cell 1: a variable of shape (-7, -4)",
    ),
    "a larger size": (
        lambda p: patched(
            write_mat(p, images=cells("000012"), boxes=cells(np.ones((7, 4)))),
            struct.pack("<ii", 7, 4),
            struct.pack("<ii", 2**31 - 1, 4),
        ),
        "boxes, cell 1: shape (2147483647, 4) with 224 bytes of float64",
    ),
    "more cells": (
        lambda p: patched(
            write_mat(p, images=cells(*["a"] * 7), boxes=cells(1)),
            struct.pack("<ii", 7, 1),
            struct.pack("<ii", 2**31 - 1, 2**20),
        ),
        "images: 2251799812636672 cells in ",
    ),
    "a bomb": (bomb_mat, "expands to more than 50 times its size"),
    "a folder": (folder, "no proposals for image 000012"),
    "a FIFO": (fifo, "no such file or folder"),
}  # fmt: skip
NPZ: dict[str, tuple[Callable[[Path], Path], str]] = {
    "objects": (
        lambda p: write_npz(p, {"000012": np.array([None])}),
        "000012 is an array of object; expected numbers",
    ),
    "structured": (
        lambda p: write_npz(p, {"000012": np.zeros(2, [("a", "f4")])}),
        "000012 is no plain array",
    ),
    "complex": (
        lambda p: write_npz(p, {"000012": np.ones((2, 4)) * 1j}),
        "x.npz, 000012: expected finite boxes of shape (P, 4), got complex128 (2, 4)",
    ),
    "booleans": (
        lambda p: write_npz(p, {"000012": np.ones((2, 4), bool)}),
        "expected finite boxes of shape (P, 4), got bool (2, 4)",
    ),
    "infinite": (
        lambda p: write_npz(p, {"000012": np.full((2, 4), np.inf)}),
        "expected finite boxes of shape (P, 4), got float64 (2, 4)",
    ),
    "a number": (
        lambda p: write_npz(p, {"000012": np.float32(3)}),
        "expected finite boxes of shape (P, 4), got float32 ()",
    ),
    "a huge shape": (
        lambda p: zipped(p, npy(HEADER.replace("2,", "2000000000000,"), bytes(64))),
        "000012: shape (2000000000000, 4) with 64 bytes of float64",
    ),
    "a shape that overflows": (
        lambda p: zipped(p, npy(HEADER.replace("2,", "9" * 150 + ","), bytes(64))),
        "with 64 bytes of float64",
    ),
    "a negative shape": (
        lambda p: zipped(p, npy(HEADER.replace("2,", "-2,"), bytes(64))),
        "000012 is no plain array",
    ),
    "a deep header": (
        lambda p: zipped(p, npy("{'descr': " + "(" * 9000, bytes(64))),
        "000012 is no plain array",
    ),
    "cut off": (
        lambda p: zipped(p, npy(HEADER, bytes(63))),
        "000012: shape (2, 4) with 63 bytes of float64",
    ),
    "no header": (lambda p: zipped(p, b"\x93NUMPY"), "000012 is no array"),
    "no text": (lambda p: zipped(p, b"text", name="readme.txt"), "readme.txt is no array"),
    "a bomb": (
        lambda p: zipped(p, bytes(2**26), compression=zipfile.ZIP_DEFLATED),
        "it expands to more than 50 times its size",
    ),
    "another compression": (
        lambda p: zipped(p, npy(HEADER, bytes(64)), compression=zipfile.ZIP_LZMA),
        "000012: compressed by method 14",
    ),
    "a name twice": (twice, "000012 occurs twice"),
    "encrypted": (
        lambda p: patched(
            zipped(p, npy(HEADER, bytes(64))), b"PK\x01\x02\x14\x03\x14\0\0", b"PK\x01\x02\x14\x03\x14\0\1"
        ),
        "not an .npz file of plain arrays: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", [*(f"mat {c}" for c in MAT), *(f"npz {c}" for c in NPZ)])
def test_refusals_are_one_line_that_names_file_and_image(case: str, tmp_path: Path) -> None:
    suffix, _, name = case.partition(" ")
    make, expected = (MAT if suffix == "mat" else NPZ)[name]
    path = make(tmp_path / f"x.{suffix}")
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            look_up(path)
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()
    message = one_line(str(caught.value))
    assert message.startswith(str(path)) and expected in message


def test_a_message_names_the_file_among_several(tmp_path: Path) -> None:
    good = write_npz(tmp_path / "good.npz", {"7": np.ones((1, 4))})
    bad = write_npz(tmp_path / "bad.npz", {"000012": np.ones((1, 5))})
    stored = StoredProposals(good, bad)
    with pytest.raises(DataError, match=r"^\S+/bad\.npz, 000012: expected finite boxes"):
        stored.look_up("000012", width=9, height=9, max_boxes=9)
    with pytest.raises(DataError, match=r"good\.npz, .*bad\.npz: no proposals for image 8"):
        stored.look_up("8", width=9, height=9, max_boxes=9)
    for name in ("a\0b", "\udcff", "x" * 5000, "../../x"):
        with pytest.raises(DataError, match="no proposals for image"):
            StoredProposals(tmp_path).look_up(name, width=9, height=9, max_boxes=9)


def test_numbers_beyond_float32_are_clipped(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "x.npz", {"000012": np.array([[-1e300, 0, 1e300, 9]])})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert look_up(path).tolist() == [[0, 0, 500, 9]]


# -- damage by chance -----------------------------------------------------------------------------


def damaged(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Flip, cut, splice, or set a number where the formats keep sizes and types."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        at = (
            rng.randrange(len(data))
            if rng.random() < 0.5
            else min(rng.randrange(400), len(data) - 1)
        )
        kind = rng.randrange(6)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice((0, 1, 4, 5, 14, 15, 127, 128, 255))
        elif kind == 2:
            at -= at % 4
            value = rng.choice(
                (0, 1, 6, 17, 2**16 + 5, 2**31 - 1, 2**31, 2**32 - 1, rng.randrange(2**32))
            )
            data[at : at + 4] = struct.pack("<I", value)
        elif kind == 3:
            del data[at : at + rng.choice((1, 8, len(data)))]
        elif kind == 4:
            piece = rng.choice(others)
            begin = rng.randrange(len(piece))
            data[at:at] = piece[begin : begin + rng.choice((1, 8, 200))]
        else:
            data[at : at + 8] = data[at + 8 : at + 16]
        if not data:
            return b""
    return bytes(data)


def recompressed(content: bytes, rng: random.Random) -> bytes:
    """Damage within the compressed variables of a `.mat` file, which a checksum would find else."""
    out, at = content[:128], 128
    while at + 8 <= len(content):
        kind, size = struct.unpack_from("<II", content, at)
        inner = damaged(zlib.decompress(content[at + 8 : at + 8 + size]), [content], rng)
        packed = zlib.compress(inner)
        out += struct.pack("<II", kind, len(packed)) + packed
        at += 8 + size
    return out


def fuzz(folder: Path, cases: int, seed: int) -> tuple[int, int]:
    """Look up images in damaged files; returns how many were read and how many refused."""
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    made = {"images": cells(*IDS), "boxes": cells(*(boxes(numbers, n, "u2") for n in (30, 0, 5)))}
    arrays = dict(zip(IDS, (boxes(numbers, n, "f8") for n in (30, 0, 5)), strict=True))
    files = [
        write_mat(folder / "plain.mat", **made),
        write_mat(folder / "packed.mat", compressed=True, **made),
        write_npz(folder / "plain.npz", {k.replace("/", "_"): v for k, v in arrays.items()}),
        write_npz(folder / "packed.npz", {"000012": arrays["000012"]}, compressed=True),
    ]
    originals = [file.read_bytes() for file in files]
    read = refused = 0
    for case in range(cases):
        file, content = files[case % 4], originals[case % 4]
        if file.name == "packed.mat" and rng.random() < 0.7:
            broken = recompressed(content, rng)
        else:
            broken = damaged(content, originals, rng)
        path = folder / f"case{file.suffix}"
        path.write_bytes(broken)
        try:
            found = look_up(path)
            assert found.dtype == np.float32 and found.shape[1:] == (4,)
            read += 1
        except DataError as error:
            assert str(error).startswith(str(path))
            refused += 1
    return read, refused


def test_damaged_files_never_leave_another_error(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        read, refused = fuzz(tmp_path, 600, seed=0)
    assert read > 50 and refused > 250  # both ends are met


@pytest.mark.parametrize(
    ("kind", "encoding"), [(16, "utf-8"), (4, "utf-16"), (17, "utf-16"), (18, "utf-32")]
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_names_in_any_encoding_and_order_of_bytes(kind: int, encoding: str, order: str) -> None:
    name = "caf\u00e9 \u732b"
    suffix = "" if encoding == "utf-8" else "-le" if order == "<" else "-be"
    head = _Array(4, False, (1, len(name)), "", 0)
    data = memoryview(name.encode(encoding + suffix))
    assert _text(kind, data, head, order) == name


def test_an_empty_element_is_an_array_of_numbers_without_any() -> None:
    assert _array_head(memoryview(b""), "<") == _Array(6, False, (0, 0), "", 0)

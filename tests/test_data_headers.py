"""Headers of image files against Pillow's, and what becomes of damaged ones."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from sppdet.io.headers import exif_orientation, read_header
from sppdet.io.images import decode
from sppdet.types import ImageArray

PLAIN = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
TURNED = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")


def corners(*, width: int = 48, height: int = 32) -> ImageArray:
    """An image whose four quarters have four colours, which compression leaves apart."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[: height // 2, : width // 2] = (250, 10, 10)
    image[: height // 2, width // 2 :] = (10, 250, 10)
    image[height // 2 :, : width // 2] = (10, 10, 250)
    return image


def encoded(image: ImageArray, format: str, *, orientation: int = 1, **options: object) -> bytes:
    """The bytes of a file."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    if format == "TIFF":
        options["tiffinfo"] = {0x0112: orientation}
    elif format in TURNED and orientation > 1:
        options["exif"] = exif
    if format in ("WEBP", "JPEG2000"):
        options.setdefault("lossless" if format == "WEBP" else "irreversible", format == "WEBP")
    Image.fromarray(image).save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", PLAIN)
@pytest.mark.parametrize("size", [(1, 1), (3, 260), (513, 7)])
def test_sizes_are_pillows(format: str, size: tuple[int, int]) -> None:
    data = encoded(np.zeros((size[1], size[0], 3), dtype=np.uint8), format)
    header = read_header(data)
    assert header is not None
    assert (header.width, header.height, header.orientation) == (*size, 1)
    assert (header.bits, header.white) in ((8, 0), (8, 255))


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"quality": 100}, {"comment": b"\xff" * 99}]
)
def test_kinds_of_jpeg(options: dict[str, object]) -> None:
    header = read_header(encoded(corners(), "JPEG", orientation=6, **options))
    assert header is not None
    assert (header.width, header.height, header.orientation) == (48, 32, 6)


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("alpha", [True, False])
def test_kinds_of_webp(lossless: bool, alpha: bool) -> None:
    file = io.BytesIO()
    image = Image.fromarray(corners())
    if alpha:
        image.putalpha(77)
    image.save(file, "WEBP", lossless=lossless)
    header = read_header(file.getvalue())
    assert header is not None
    assert (header.width, header.height) == (48, 32)


def test_formats_that_only_opencv_writes() -> None:
    image = np.zeros((5, 7, 3), dtype=np.uint8)
    for suffix, values in ((".ras", image), (".pam", image), (".pgm", image[:, :, 0])):
        header = read_header(bytes(cv2.imencode(suffix, values)[1]))
        assert header is not None, suffix
        assert (header.width, header.height, header.bits) == (7, 5, 8)
    for suffix in (".hdr", ".pfm"):
        header = read_header(bytes(cv2.imencode(suffix, image.astype(np.float32))[1]))
        assert header is not None, suffix
        assert (header.width, header.height, header.bits) == (7, 5, 32)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", TURNED)
def test_every_turn_in_every_format(format: str, orientation: int) -> None:
    data = encoded(corners(), format, orientation=orientation)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    decoded = decode(data, "turned")
    assert decoded.orientation == orientation
    assert decoded.pixels.shape == expected.shape
    assert np.abs(decoded.pixels.astype(int) - expected).mean() < 6


def test_damaged_exif_turns_nothing() -> None:
    for exif in (
        b"",
        b"II",
        b"II*\0",
        b"XX*\0\x08\0\0\0",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*" + b"\xff" * 40,
    ):
        assert exif_orientation(exif) == 1
    for value in (0, 9, 65535):
        entry = struct.pack("<HHHIHH", 1, 0x0112, 3, 1, value, 0)
        assert exif_orientation(b"II*\0\x08\0\0\0" + entry) == 1
    entry = struct.pack("<HHHIHH", 1, 0x0112, 3, 1, 8, 0)
    assert exif_orientation(b"II*\0\x08\0\0\0" + entry) == 8


@pytest.mark.parametrize("format", [*PLAIN, "HDR"])
def test_damaged_headers_are_none_or_a_header(format: str) -> None:
    """No other error, whatever the bytes are, and soon."""
    if format == "HDR":
        data = bytes(cv2.imencode(".hdr", corners().astype(np.float32))[1])
    else:
        data = encoded(corners(), format, orientation=6 if format in TURNED else 1)
    for end in range(0, min(len(data), 400)):
        read_header(data[:end])
    rng = np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(data)
        for at in rng.integers(4, min(len(data), 300), 5).tolist():
            damaged[at] = int(rng.integers(256))
        read_header(bytes(damaged))
    assert read_header(b"") is None
    assert read_header(b"no image") is None


def test_png_with_very_many_chunks(tmp_path: Path) -> None:
    """Headers are looked at for a bounded time."""
    data = encoded(corners(), "PNG")
    empty = struct.pack(">I4sI", 0, b"teXt", 0)
    header = read_header(data[:33] + empty * 1_000_000 + data[33:])
    assert header is not None
    assert (header.width, header.height) == (48, 32)

"""Images that aren't 8-bit: what becomes of their values, and what is said of it."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import sppdet.io.images
from sppdet.errors import ImageError
from sppdet.io.images import decode, read_image


def written(suffix: str, values: NDArray[Any]) -> bytes:
    """A file by OpenCV; values (H, W, 3) are RGB."""
    return bytes(cv2.imencode(suffix, values[:, :, ::-1] if values.ndim == 3 else values)[1])


def tiff(
    values: NDArray[Any],
    *,
    kind: int = 1,
    tags: Sequence[tuple[int, int, int]] = (),
    packed: bytes = b"",
    bits: int = 0,
) -> bytes:
    """A grey TIFF file (H, W); `kind` 1: unsigned, 2: signed, 3: float; (tag, type, value)s win."""
    height, width = values.shape
    data = packed or values.astype(values.dtype.newbyteorder("<")).tobytes()
    all_tags = {
        256: (4, width), 257: (4, height), 258: (3, bits or values.dtype.itemsize * 8), 259: (3, 1),
        262: (3, 1), 273: (4, 8), 277: (3, 1), 278: (4, height), 279: (4, len(data)), 339: (3, kind),
    }  # fmt: skip
    all_tags |= {tag: (type_, value) for tag, type_, value in tags}
    entries = b"".join(
        struct.pack("<HHI", tag, type_, 1)
        + struct.pack(
            "<HH" if type_ == 3 else "<I", *([value, 0][: 3 - 1] if type_ == 3 else [value])
        )
        for tag, (type_, value) in sorted(all_tags.items())
    )
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(data))
        + data
        + struct.pack("<H", len(all_tags))
        + entries
        + b"\0" * 4
    )


def ramp(maximum: int, *, dtype: type = np.uint16) -> NDArray[Any]:
    """(8, 16) values from 0 to `maximum`."""
    values: NDArray[Any] = np.linspace(0, maximum, 128).round().astype(dtype)
    return values.reshape(8, 16)


def expected(values: NDArray[Any], white: float) -> NDArray[np.int64]:
    """The 8-bit values, by definition, one after another."""
    eight = [round(min(max(float(v) * 255 / white, 0), 255)) for v in values.ravel()]
    return np.array(eight, dtype=np.int64).reshape(values.shape)


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm"])
@pytest.mark.parametrize(
    ("maximum", "white"),
    [
        (255, 255),
        (256, 1023),
        (1023, 1023),
        (3000, 4095),
        (4095, 4095),
        (4096, 16383),
        (16384, 65535),
        (40000, 65535),
        (65535, 65535),
    ],
)
def test_sixteen_bits_by_their_range(suffix: str, maximum: int, white: int) -> None:
    values = ramp(maximum)
    decoded = decode(written(suffix, values), "deep")
    if suffix == ".pgm":
        white = 65535  # what OpenCV states in the file
    assert np.abs(decoded.pixels[:, :, 0] - expected(values, white)).max() == 0
    assert np.ptp(decoded.pixels, axis=2).max() == 0
    assert f"values of 16 bits, white at {white:g} by" in decoded.depth


def test_sixteen_bit_colour_keeps_its_channels() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4096, (9, 7, 3)).astype(np.uint16)
    values[0, 0] = (4095, 0, 2048)
    decoded = decode(written(".png", values), "deep")
    assert np.array_equal(decoded.pixels, expected(values, 4095))
    assert decoded.pixels[0, 0].tolist() == [255, 0, 128]


def png_with_significant_bits(values: NDArray[np.uint16], bits: int) -> bytes:
    data = written(".png", values)
    chunk = b"sBIT" + bytes([bits])
    return (
        data[:33] + struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    )


def test_png_states_its_bits() -> None:
    dark = ramp(900)
    decoded = decode(png_with_significant_bits(dark, 12), "deep")
    assert np.array_equal(decoded.pixels[:, :, 0], expected(dark, 4095))
    assert decoded.depth.endswith("by what the file states")


def test_png_whose_samples_are_scaled_up() -> None:
    scaled = (ramp(200) << 4).astype(np.uint16)  # 12 bits at the left, as the standard demands
    decoded = decode(png_with_significant_bits(scaled, 12), "deep")
    assert np.array_equal(decoded.pixels[:, :, 0], expected(scaled, 65535))


def test_few_values_above_white_are_hot_pixels() -> None:
    values = np.tile(ramp(4000), (10, 10))
    values[5, 5] = 65535
    decoded = decode(written(".png", values), "deep")
    assert np.array_equal(decoded.pixels[:, :, 0], expected(values, 4095))
    values[:4] = 65535  # one in twenty
    decoded = decode(written(".png", values), "deep")
    assert np.array_equal(decoded.pixels[:, :, 0], expected(values, 65535))


def test_floating_point_values_just_above_one() -> None:
    values = np.tile(ramp(1, dtype=np.float32), (10, 10)) * np.float32(0.9)
    values[5, 5] = 1.02
    decoded = decode(tiff(values, kind=3), "deep")
    assert np.array_equal(decoded.pixels[:, :, 0], expected(values, 1))
    # by the specification such samples are moved up: these are
    bright = ramp(65535)
    decoded = decode(png_with_significant_bits(bright, 12), "deep")
    assert np.array_equal(decoded.pixels[:, :, 0], expected(bright, 65535))


@pytest.mark.parametrize("white", [15, 100, 1000, 4095])
def test_pnm_states_its_white(white: int) -> None:
    dtype = ">u2" if white > 255 else "u1"
    values = np.linspace(0, white * 0.9, 12).round().astype(np.int64).reshape(3, 4)
    data = b"P5\n# a comment\n4 3\n%d\n" % white + values.astype(dtype).tobytes()
    assert np.array_equal(decode(data, "deep").pixels[:, :, 0], expected(values, white))
    text = b"P2\n4 3\n%d\n" % white + b"\n".join(b"%d" % v for v in values.ravel()) + b"\n"
    assert np.abs(decode(text, "deep").pixels[:, :, 0] - expected(values, white)).max() <= 1


def test_tiff_states_its_white() -> None:
    dark = ramp(900)
    decoded = decode(tiff(dark, tags=[(281, 3, 4095)]), "deep")
    assert np.array_equal(decoded.pixels[:, :, 0], expected(dark, 4095))
    # 65535 there is what writers put without looking
    decoded = decode(tiff(ramp(4095), tags=[(281, 3, 65535)]), "deep")
    assert decoded.pixels.max() == 255


def test_tiff_of_twelve_packed_bits() -> None:
    values = ramp(2000)
    text = "".join(format(int(v), "012b") for v in values.ravel())
    packed = int(text, 2).to_bytes(len(text) // 8, "big")
    decoded = decode(tiff(values, packed=packed, bits=12), "deep")
    assert np.array_equal(decoded.pixels[:, :, 0], expected(values, 4095))


def test_tiff_that_counts_down_from_white() -> None:
    values = ramp(4095)
    decoded = decode(tiff(values, tags=[(262, 3, 0)]), "deep")
    assert np.array_equal(decoded.pixels[:, :, 0], expected(4095 - values.astype(int), 4095))


@pytest.mark.parametrize(
    ("dtype", "kind", "maximum", "white"),
    [
        (np.int16, 2, 4000, 4095),
        (np.uint32, 1, 70_000, 2**24 - 1),
        (np.int32, 2, 1000, 1023),
    ],
)
def test_other_whole_numbers(dtype: type, kind: int, maximum: int, white: int) -> None:
    values = ramp(maximum, dtype=dtype)
    decoded = decode(tiff(values, kind=kind), "deep")
    assert np.array_equal(decoded.pixels[:, :, 0], expected(values, white))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("maximum", "white"), [(0.6, 1), (1.0, 1), (200.0, 255), (4000.0, 4095), (1e12, 1e12)]
)
def test_floating_point(dtype: type, maximum: float, white: float) -> None:
    values: NDArray[Any] = (np.linspace(-0.1, 1, 128) * maximum).astype(dtype).reshape(8, 16)
    values[0, 0] = np.nan
    values[7, 15] = maximum
    decoded = decode(tiff(values, kind=3), "deep")
    found = decoded.pixels[:, :, 0].astype(int)
    assert found[0, 0] == 0
    values[0, 0] = 0
    assert np.abs(found - expected(values, white)).max() <= 1  # float32 at a half
    assert f"floating-point values, white at {white:g} by their range" in decoded.depth


def test_radiance_is_white_at_one() -> None:
    values = np.full((6, 8, 3), 0.5, dtype=np.float32)
    values[0] = 30.0
    decoded = decode(written(".hdr", values), "deep")
    assert decoded.pixels[0].min() == 255
    assert np.abs(decoded.pixels[1:].astype(int) - 128).max() <= 1


@pytest.mark.filterwarnings("error")
def test_a_signalling_nan_is_black_without_a_warning() -> None:
    values = np.full((3, 4), 0.5, dtype="<f4")
    values.view("<u4")[2, 0] = 0x7F800001  # PFM begins at the bottom
    found = decode(b"Pf\n4 3\n-1.0\n" + values.tobytes(), "deep.pfm").pixels
    assert found[0, 0].tolist() == [0, 0, 0] and abs(int(found[1, 1, 0]) - 128) <= 1


def test_pfm_in_unit_range() -> None:
    values = np.linspace(0, 1, 6 * 8 * 3).astype(np.float32).reshape(6, 8, 3)
    decoded = decode(written(".pfm", values), "deep")
    assert np.abs(decoded.pixels - expected(values, 1)).max() <= 1


def test_black_and_grey_stay_so() -> None:
    assert decode(written(".png", np.zeros((4, 5), dtype=np.uint16)), "deep").pixels.max() == 0
    values = np.full((4, 5), 65535, dtype=np.uint16)
    assert decode(written(".png", values), "deep").pixels.min() == 255


def test_eight_bits_stay_as_they_are_and_nothing_is_said() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 30, 3)).astype(np.uint8)
    for suffix in (".png", ".tiff", ".bmp", ".ppm", ".jpg", ".webp", ".pam", ".ras"):
        data = written(suffix, image)
        bgr: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        decoded = decode(data, "plain")
        assert np.array_equal(decoded.pixels, bgr[:, :, ::-1]), suffix
        assert decoded.depth == ""


def test_large_images_are_converted_in_place() -> None:
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (30, 20, 3)).astype(np.uint8), (1999, 2999))
    assert np.array_equal(decode(written(".bmp", image), "large").pixels, image)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "PA", "1", "RGBA", "CMYK", "I;16"])
def test_modes(mode: str) -> None:
    """The colours under transparency stay; CMYK comes out as Pillow has it."""
    colour = Image.new("RGB", (6, 4), (200, 200, 200))
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 6), 200 * 257, dtype=np.uint16))
    elif mode == "PA":
        image = Image.new("P", (6, 4), 1)
        image.putpalette([0, 0, 0, 200, 200, 200])
        image.info["transparency"] = 1
    elif mode == "P":
        image = colour.quantize(4)
    else:
        image = colour.convert(mode, dither=Image.Dither.NONE)
    if mode in ("LA", "RGBA"):
        image.putalpha(0)
    file = io.BytesIO()
    image.save(file, "JPEG" if mode == "CMYK" else "PNG")
    pixels = decode(file.getvalue(), "mode").pixels
    assert pixels.shape == (4, 6, 3)
    assert np.abs(pixels.astype(int) - (255 if mode == "1" else 200)).max() <= 2


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_of_several_images(format: str) -> None:
    first, second = (Image.new("RGB", (9, 7), (value, value, value)) for value in (255, 0))
    file = io.BytesIO()
    first.save(file, format, save_all=True, append_images=[second])
    assert decode(file.getvalue(), "several").pixels.min() >= 250


def test_half_floats_are_refused_in_a_line() -> None:
    with pytest.raises(ImageError, match="deep: can't be decoded"):
        decode(tiff(np.zeros((4, 4), dtype=np.float16), kind=3), "deep")


def test_it_is_said_once_a_kind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sppdet.io.images, "_warned", set())
    paths = []
    for k, maximum in enumerate((4000, 4001, 1000)):
        paths.append(tmp_path / f"{k}.png")
        paths[-1].write_bytes(written(".png", ramp(maximum)))
    with caplog.at_level(logging.WARNING, logger="sppdet"):
        for path in paths:
            read_image(path)
    assert len(caplog.records) == 2
    assert caplog.messages[0].startswith(
        f"{paths[0]}: values of 16 bits, white at 4095 by their range"
    )
    assert "white at 1023" in caplog.messages[1]

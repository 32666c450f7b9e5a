"""Images: decoding them to RGB."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sppdet.errors import ImageError
from sppdet.io.files import read_bytes
from sppdet.io.headers import Header, read_header
from sppdet.io.heif import AVIF_SUFFIXES, HEIF_SUFFIXES, INSTALL, decode_avif, decode_heif
from sppdet.setting_types import MAX_PIXELS
from sppdet.types import ImageArray

_log = logging.getLogger("sppdet")

# `.jpg` first; GIF and AVIF only in builds of OpenCV that have them, HEIC with pillow-heif
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".jpe", ".jp2", ".dib", ".ppm"),
    *(".pgm", ".pbm", ".pnm", ".pfm", ".ras", ".sr", ".hdr", ".pic", ".gif"),
    *(*AVIF_SUFFIXES, *HEIF_SUFFIXES),
)


_BLOCK_ROWS = 256  # of large images to convert at once, which saves a second whole copy
_SMALL = 2**24  # values
_WHITES = tuple(2**bits - 1 for bits in (8, 10, 12, 14, 16, 24))  # of sensors and containers

_warned: set[str] = set()  # conversions to 8 bits


@dataclass(frozen=True)
class Decoded:
    """A decoded image: (H, W, 3) uint8 RGB pixels, turned by its EXIF `orientation` (1 to 8).

    `depth` describes the conversion of values to 8 bits; empty for 8-bit images.
    """

    pixels: ImageArray
    orientation: int
    depth: str


def read_image(
    path: Path | str,
    *,
    max_pixels: int = MAX_PIXELS,
    check: Callable[[bytes], None] | None = None,
) -> ImageArray:
    """Read an image as annotation tools show it.

    The EXIF orientation is applied; grey, palette, CMYK and transparent images become 8-bit RGB;
    transparency is dropped, which shows the colours under it. An animation or a file of several
    pages gives its first image. Values of more than 8 bits are scaled as by `decode`, with a warning
    once for each kind of scaling.

    Args:
        max_pixels: larger images are refused before they are decoded.
        check: called with the file's bytes before they are decoded; may raise an error.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ImageError: there is no such file, it has too many pixels, or it can't be decoded.
    """
    path = Path(path)
    data = read_image_bytes(path, max_pixels=max_pixels)
    if check is not None:
        check(data)
    return to_rgb(data, path, max_pixels=max_pixels)


def to_rgb(data: bytes, path: Path | str, *, max_pixels: int = MAX_PIXELS) -> ImageArray:
    """Decode the bytes of an image file as `read_image` does; `path` names it in messages."""
    decoded = decode(data, path, max_pixels=max_pixels)
    if decoded.depth and decoded.depth not in _warned:
        _warned.add(decoded.depth)
        _log.warning(
            "%s: %s, made 8 bits; the same of further images isn't told", path, decoded.depth
        )
    return decoded.pixels


def read_image_bytes(path: Path, *, max_pixels: int = MAX_PIXELS) -> bytes:
    """Read an image file; refuse more bytes than `most_bytes`."""
    return read_bytes(path, ImageError, max_bytes=most_bytes(max_pixels))


def most_bytes(max_pixels: int) -> int:
    """Return how many bytes an image file may have: more than its pixels need uncompressed."""
    return 8 * max_pixels + 2**26


def upright_size(path: Path) -> tuple[int, int]:
    """Read the (width, height) of an image, turned by its EXIF orientation, from its header.

    Raises:
        ImageError: there is no such file, or it is no image.
    """
    header = read_header(read_image_bytes(path))
    if header is None:
        raise ImageError(f"{path}: can't be decoded as an image")
    size = header.width, header.height
    return size[::-1] if header.orientation >= 5 else size


def changed_image(path: Path) -> ImageError:
    """Build the error of an image whose content has changed during the work."""
    return ImageError(
        f"{path}: changed while it was in use; the same command starts again with its new content"
    )


def decode(data: bytes, path: Path | str, *, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode the bytes of an image file.

    Values of more than 8 bits, and floating-point ones, are scaled linearly so that white becomes
    255. White is what the file states: the largest value of a PNM, the significant bits of a PNG
    (sBIT), the bits or MaxSampleValue of a TIFF, the bits of JPEG 2000, 1 in Radiance HDR. Where
    it states nothing, or has greater values, white is the smallest of 2**8 - 1, 2**10 - 1, 2**12 - 1,
    2**14 - 1, ... that at most one value in a thousand exceeds (such as of hot pixels, which become
    255); for floating-point values the smallest of 1 and these, or their maximum. Samples of a PNG that
    are scaled up to 16 bits, as its standard demands beside sBIT, have white at 2**16 - 1. Negative
    values and NaN become 0.

    Args:
        path: names the image in errors.
        max_pixels: larger images are refused by their header.

    Raises:
        ImageError: as `read_image`.
    """
    header = read_header(data)
    if header is None:
        raise ImageError(f"{path}: can't be decoded as an image")
    _check_size(header.width, header.height, path, max_pixels)
    deep = header.bits > 8 and header.format not in ("JPEG", "AVIF")  # whose decoders make 8 bits
    if header.format == "HEIF":
        try:
            bgr = decode_heif(data)
        except ImportError:
            raise ImageError(f"{path}: HEIC needs pillow-heif: {INSTALL}") from None
    else:
        bgr = _decode_bgr(data, header, deep=deep)
    if bgr is None and header.format == "AVIF":
        bgr = decode_avif(data)
    if bgr is None or bgr.size == 0 or bgr.ndim not in (2, 3):
        raise ImageError(f"{path}: can't be decoded as an image")
    _check_size(bgr.shape[1], bgr.shape[0], path, max_pixels)  # headers can lie
    depth = ""
    if bgr.dtype != np.uint8 or header.white not in (0, 255):
        bgr, depth = _eight_bits(bgr, header)
    # libraries turn TIFF and HEIF
    orientation = 1 if header.format in ("TIFF", "HEIF") else header.orientation
    return Decoded(turn(_to_rgb(bgr), orientation), header.orientation, depth)


def turn(pixels: ImageArray, orientation: int) -> ImageArray:
    """Turn an image as stored, (H, W, 3), by its EXIF orientation, 1 to 8."""
    turned: NDArray[Any] = pixels
    if orientation >= 5:
        turned = cv2.transpose(turned)
    if orientation in (2, 3, 6, 7):
        turned = cv2.flip(turned, 1)  # left and right
    if orientation in (3, 4, 7, 8):
        turned = cv2.flip(turned, 0)  # top and bottom
    return np.asarray(turned, dtype=np.uint8)


def _check_size(width: int, height: int, path: Path | str, max_pixels: int) -> None:
    if width <= 0 or height <= 0:
        raise ImageError(f"{path}: {width}x{height} pixels, expected one or more a side")
    if width * height > max_pixels:
        raise ImageError(
            f"{path}: {width}x{height} pixels, expected {max_pixels} at most (data.max_pixels)"
        )


def _decode_bgr(data: bytes, header: Header, *, deep: bool) -> NDArray[Any] | None:
    """Decode a file with OpenCV, as stored: (H, W, 3) BGR; deep images also (H, W) and (H, W, 4)."""
    encoded = np.frombuffer(data, dtype=np.uint8)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    ways = [flags]
    if deep:  # OpenCV makes no colour of some kinds of grey
        ways = [flags | cv2.IMREAD_ANYDEPTH, cv2.IMREAD_UNCHANGED]
    for way in ways:
        try:
            found: NDArray[Any] | None = cv2.imdecode(encoded, way)
        except (cv2.error, MemoryError):  # no bytes, or more pixels than OpenCV or memory takes
            continue
        if found is not None:
            return found
    return None


def _eight_bits(values: NDArray[Any], header: Header) -> tuple[ImageArray, str]:
    """Scale values so that white is 255, see `decode`; returns how white was found, too."""
    floating = bool(np.issubdtype(values.dtype, np.floating))
    kept = values[np.isfinite(values)] if floating else values
    largest = float(kept.max()) if kept.size else 0.0
    white, known_by = float(header.white), "by what the file states"
    step = 2**16 // (header.white + 1)
    if header.format == "PNG" and 255 < white < 2**16 - 1 and not (values % step).any():
        white = 2.0**16 - 1
    if header.format == "Radiance HDR":
        pass  # brighter than white is usual there
    elif not 0 < largest <= white or (white < 255 and header.format != "PNM"):
        known_by = "by their range"
        limit = np.inf if floating else np.iinfo(values.dtype).max
        steps = (1, *_WHITES, largest) if floating else (*_WHITES, limit)
        white = float(next(step for step in steps if step <= limit and _holds(kept, step)))
    result = np.empty(values.shape, dtype=np.uint8)
    for top in range(0, len(values), _BLOCK_ROWS):
        rows = slice(top, top + _BLOCK_ROWS)
        with np.errstate(invalid="ignore"):  # of a signalling NaN
            block = np.nan_to_num(values[rows].astype(np.float64), posinf=white)
        if header.zero_is_white and not floating:
            block = white - block
        result[rows] = np.rint(np.clip(block * 255 / white, 0, 255))
    kind = "floating-point values" if floating else f"values of {header.bits} bits"
    return result, f"{kind}, white at {white:g} {known_by}"


def _holds(values: NDArray[Any], white: float) -> bool:
    """Check that at most one value in a thousand is greater."""
    return bool(np.count_nonzero(values > white) <= values.size // 1000)


def _to_rgb(image: ImageArray) -> ImageArray:
    """Convert BGR, BGRA or grey to (H, W, 3) RGB; large BGR images in place."""
    if image.ndim == 3 and image.shape[2] == 3 and image.size >= _SMALL:
        for top in range(0, len(image), _BLOCK_ROWS):
            rows = image[top : top + _BLOCK_ROWS]
            rows[:] = cv2.cvtColor(rows, cv2.COLOR_BGR2RGB)
        return image
    way = cv2.COLOR_GRAY2RGB
    if image.ndim == 3:
        way = cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGB
    return np.asarray(cv2.cvtColor(image, way), dtype=np.uint8)

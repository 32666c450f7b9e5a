"""Headers of image files: size, EXIF orientation and depth, without decoding a pixel.

A file of a few kilobytes can decode to gigabytes, so that its size must be known before. Pillow and
OpenCV state neither the significant bits of a PNG nor the white of TIFF, PNM and JPEG 2000. Every
function takes the bytes of a file or of a part of it, and raises `struct.error`, `LookupError` or
`ValueError` where they end or make no sense; `read_header` turns these into None.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_MAX_PARTS = 100_000  # chunks, segments or boxes to read; real files have some thousands
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
# (quarter turns counter-clockwise, mirroring after it) of AVIF to the EXIF orientation
_AVIF_TURNS = {
    (0, None): 1, (0, 1): 2, (2, None): 3, (0, 0): 4,
    (1, 0): 5, (3, None): 6, (3, 0): 7, (1, None): 8,
    (2, 0): 2, (2, 1): 4, (1, 1): 7, (3, 1): 5,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Header:
    """The header of an image file.

    `width` and `height` are in pixels as stored, before the turn by `orientation` (EXIF, 1 to 8).
    `bits` is the size of a sample in the file. `white` is the maximum of a sample that the file
    states; 0 if it states none. With `zero_is_white` values count down from white.
    """

    format: str
    width: int
    height: int
    orientation: int = 1
    bits: int = 8
    white: int = 0
    zero_is_white: bool = False


def read_header(data: bytes) -> Header | None:
    """Read the header of an image file in a format of OpenCV's or HEIC; None for anything else."""
    for pattern, read in _READERS:
        if re.match(pattern, data, re.DOTALL):
            try:
                return read(data)
            except (struct.error, LookupError, ValueError):
                return None
    return None


def _jpeg(data: bytes) -> Header:
    at, orientation = 2, 0
    for _ in range(_MAX_PARTS):
        at = data.index(b"\xff", at)
        while data[at] == 0xFF:  # any number of them may come before a marker
            at += 1
        marker = data[at]
        at += 1
        if marker == 0 or marker in _JPEG_WITHOUT_LENGTH:
            continue
        length = struct.unpack_from(">H", data, at)[0]
        if marker == 0xE1 and data[at + 2 : at + 8] == b"Exif\0\0" and not orientation:
            orientation = exif_orientation(data[at + 8 : at + length])
        if marker in _JPEG_SIZES:
            bits, height, width = struct.unpack_from(">BHH", data, at + 2)
            return Header("JPEG", width, height, orientation or 1, bits)
        at += length
    raise ValueError("no frame")


def _png(data: bytes) -> Header:
    width, height, bits = struct.unpack_from(">IIB", data, 16)
    orientation = white = 0
    for kind, at, length in _chunks(data, 8, ">I4s", trailer=4):
        if kind == b"sBIT" and bits == 16:
            white = 2 ** max(data[at : at + min(length, 3)]) - 1
        elif kind == b"eXIf" and not orientation:
            orientation = exif_orientation(data[at : at + length])
        elif kind == b"IEND":
            break
    return Header("PNG", width, height, orientation or 1, bits, white)


def _webp(data: bytes) -> Header:
    orientation, size = 0, (0, 0)
    for kind, at, length in _chunks(data, 12, "<4sI", even=True):
        if kind == b"VP8X":
            low = struct.unpack_from("<HBHB", data, at + 4)
            size = (low[0] | low[1] << 16) + 1, (low[2] | low[3] << 16) + 1
        elif kind == b"VP8 " and size == (0, 0):
            width, height = struct.unpack_from("<HH", data, at + 6)
            size = width & 0x3FFF, height & 0x3FFF
        elif kind == b"VP8L" and size == (0, 0):
            packed = struct.unpack_from("<I", data, at + 1)[0]
            size = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
        elif kind == b"EXIF" and not orientation:
            exif = data[at : at + length]
            orientation = exif_orientation(exif.removeprefix(b"Exif\0\0"))
    return Header("WebP", *size, orientation or 1)


def _tiff(data: bytes) -> Header:
    tags = _directory(data)
    bits, signed_or_float = min(64, max(tags.get(258, (1,)))), max(tags.get(339, (1,))) != 1
    white = 0 if signed_or_float else max(tags.get(281, (0,)))
    if white == 2**bits - 1:  # what writers put there without looking
        white = 0
    if bits in (10, 12, 14):  # OpenCV moves packed samples to the upper end of 16 bits
        white = (2**bits - 1) << (16 - bits)
    return Header(
        "TIFF",
        tags[256][0],
        tags[257][0],
        _valid(tags.get(274, (1,))[0]),
        bits,
        white,
        zero_is_white=tags.get(262, (1,))[0] == 0,
    )


def _jp2(data: bytes) -> Header:
    at = data.index(b"ihdr") + 4
    height, width, _, bits = struct.unpack_from(">IIHB", data, at)
    return _jpeg2000(width, height, bits)


def _j2k(data: bytes) -> Header:
    right, bottom, left, top = struct.unpack_from(">4I", data, 8)
    return _jpeg2000(right - left, bottom - top, data[42])


def _jpeg2000(width: int, height: int, bits: int) -> Header:
    bits = (bits & 0x7F) + 1 if bits != 0xFF else 16  # the upper bit: signed; 255: one a channel
    return Header("JPEG 2000", width, height, bits=bits, white=2**bits - 1 if 8 < bits < 16 else 0)


def _heif(data: bytes) -> Header:
    """Read AVIF and HEIC, which are alike but for the brands in their first box."""
    name = "HEIF"
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind == b"ftyp" and re.search(b"avi[fs]", data[start:end]):
            name = "AVIF"
        if kind == b"meta":
            meta = data[start:end]
            sizes = [
                struct.unpack_from(">II", meta, m.end() + 4) for m in re.finditer(b"ispe", meta)
            ]
            width, height = max(sizes, key=lambda size: size[0] * size[1])
            turn, mirror = meta.find(b"\x09irot"), meta.find(b"\x09imir")
            quarters = meta[turn + 5] & 3 if turn >= 0 else 0
            axis = meta[mirror + 5] & 1 if mirror >= 0 else None
            return Header(name, width, height, _AVIF_TURNS[quarters, axis])
    raise ValueError("no meta box")


def _bmp(data: bytes) -> Header:
    if struct.unpack_from("<I", data, 14)[0] == 12:  # OS/2
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return Header("BMP", abs(width), abs(height))  # top-down where the height is negative


def _gif(data: bytes) -> Header:
    return Header("GIF", *struct.unpack_from("<HH", data, 6))


def _sun(data: bytes) -> Header:
    return Header("Sun raster", *struct.unpack_from(">II", data, 4))


def _pnm(data: bytes) -> Header:
    # comments may stand between the numbers
    found = re.match(rb"P([1-6])" + rb"(?:\s|#[^\n]*\n)+(\d{1,9})" * 2, data)
    if found is None:
        raise ValueError("no size")
    kind, width, height = map(int, found.groups())
    if kind in (1, 4):
        return Header("PNM", width, height, bits=1)
    maximum = re.compile(rb"(?:\s|#[^\n]*\n)+(\d{1,5})").match(data, found.end())
    if maximum is None:
        raise ValueError("no maximum")
    white = int(maximum[1])
    if white < 255 and kind in (2, 3):  # OpenCV itself scales what is written as text
        white = 255
    return Header("PNM", width, height, bits=8 if white < 256 else 16, white=white)


def _pam(data: bytes) -> Header:
    sizes = [
        re.search(rb"\n%s\s+(\d{1,9})" % key, data[:4096])
        for key in (b"WIDTH", b"HEIGHT", b"MAXVAL")
    ]
    if None in sizes:
        raise ValueError("no size")
    width, height, white = (int(found[1]) for found in sizes if found)
    return Header("PAM", width, height, bits=8 if white < 256 else 16, white=white)


def _pfm(data: bytes) -> Header:
    found = re.match(rb"P[fF]\s+(\d{1,9})\s+(\d{1,9})\s", data)
    if found is None:
        raise ValueError("no size")
    return Header("PFM", int(found[1]), int(found[2]), bits=32)


def _radiance(data: bytes) -> Header:
    found = re.search(rb"\n[-+]([XY]) (\d{1,9}) [-+][XY] (\d{1,9})\n", data[:65536])
    if found is None:
        raise ValueError("no size")
    first, second = int(found[2]), int(found[3])
    size = (second, first) if found[1] == b"Y" else (first, second)
    return Header("Radiance HDR", *size, bits=32, white=1)


_READERS: tuple[tuple[bytes, Callable[[bytes], Header]], ...] = (
    (rb"\xff\xd8", _jpeg),
    (rb"\x89PNG\r\n\x1a\n.{4}IHDR", _png),
    (rb"RIFF.{4}WEBP", _webp),
    (rb"II[*+]\0|MM\0[*+]", _tiff),
    (rb"\0\0\0\x0cjP  ", _jp2),
    (rb"\xff\x4f\xff\x51", _j2k),
    (rb".{4}ftyp", _heif),
    (rb"BM", _bmp),
    (rb"GIF8[79]a", _gif),
    (rb"\x59\xa6\x6a\x95", _sun),
    (rb"P[1-6]\s", _pnm),
    (rb"P7\s", _pam),
    (rb"P[fF]\s", _pfm),
    (rb"#\?(?:RADIANCE|RGBE)", _radiance),
)


def exif_orientation(exif: bytes) -> int:
    """Read the orientation, 1 to 8, of an EXIF block; 1 if it has none or is damaged."""
    try:
        return _valid(_directory(exif).get(274, (1,))[0])
    except (struct.error, LookupError, ValueError):
        return 1


def _valid(orientation: int) -> int:
    return orientation if 1 <= orientation <= 8 else 1


def _directory(data: bytes) -> dict[int, tuple[int, ...]]:
    """Read the integer tags in the first directory of a TIFF file or an EXIF block, by tag number."""
    order = {b"II": "<", b"MM": ">"}[data[:2]] if data[:2] in (b"II", b"MM") else ""
    if not order:
        raise ValueError("no byte order")
    big = struct.unpack_from(order + "H", data, 2)[0] == 43  # BigTIFF: offsets of 8 bytes
    start = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    count = struct.unpack_from(order + ("Q" if big else "H"), data, start)[0]
    at, entry = start + (8 if big else 2), order + ("HHQ8s" if big else "HHI4s")
    letters = {1: "B", 3: "H", 4: "I", 16: "Q"}
    tags = {}
    for _ in range(min(count, 4096)):
        tag, kind, values, inline = struct.unpack_from(entry, data, at)
        at += struct.calcsize(entry)
        if kind not in letters or not 1 <= values <= 64:
            continue
        layout = f"{order}{values}{letters[kind]}"
        if struct.calcsize(layout) <= len(inline):
            tags[tag] = struct.unpack_from(layout, inline)
        else:
            offset = struct.unpack(order + ("Q" if big else "I"), inline)[0]
            tags[tag] = struct.unpack_from(layout, data, offset)
    return tags


def _chunks(
    data: bytes, at: int, layout: str, *, trailer: int = 0, even: bool = False
) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start of the content, its length) of the chunks from `at` on."""
    for _ in range(_MAX_PARTS):
        if at + 8 > len(data):
            return
        first, second = struct.unpack_from(layout, data, at)
        kind, length = (first, second) if isinstance(first, bytes) else (second, first)
        yield kind, at + 8, length
        at += 8 + length + trailer + (length % 2 if even else 0)


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start of the content, its end) of the boxes of an ISO media file."""
    for _ in range(_MAX_PARTS):
        if at + 8 > end:
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if length == 1:
            length, head = struct.unpack_from(">Q", data, at + 8)[0], 16
        stop = end if length == 0 else min(end, at + length)
        yield kind, at + head, stop
        if stop <= at:
            return
        at = stop

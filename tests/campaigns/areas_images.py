"""Areas of images and of folders of images."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from campaigns.areas import Area, all_of, json_bytes, reader
from campaigns.mutation import WORDS
from campaigns.verdict import judge
from campaigns.workspace import Workspace
from sppdet.classification.data import read_folder
from sppdet.errors import SppdetError
from sppdet.io.finding import find_images
from sppdet.io.image_cache import ImageCache
from sppdet.io.images import read_image

_SIZES = st.sampled_from(
    (0, 1, 2, 3, 40, 255, 4096, 20000, 65535, 65536, 10**6, 2**31 - 1, 2**32 - 1)
)


def image_area(space: Workspace) -> Area:
    path = space.root / "fuzz.jpg"
    cache = ImageCache()

    def read() -> None:
        image = read_image(path)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"an image {image.dtype} {image.shape}")
        info = cache.look(path)
        if (info.height, info.width) != image.shape[:2]:
            raise ValueError(f"two sizes: {image.shape} and {info}")

    return Area(
        "images", ".jpg", list(_encoded_images()), reader(path, read),
        st.one_of(_png(), _headers()),
        [b"\xff\xd8", b"\xff\xd9", b"\xff\xe1\x00\x10Exif\x00\x00", b"II*\x00", b"MM\x00*",
         b"BM", b"P6 9999999 9999999 255\n", b"GIF89a", b"\xff\xff\xff\xff",
         b"RIFF", b"IDAT", b"IEND", b"acTL", b"\x00\x00\x00\x00"],
        weight=3, memory_mb=2500, seconds=60,
    )  # fmt: skip


def _encoded_images() -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (63, 71, 3)).astype(np.uint8)
    grey16 = rng.integers(0, 4096, (9, 11)).astype(np.uint16)
    suffixes = (
        "jpg",
        "png",
        "bmp",
        "tiff",
        "webp",
        "jp2",
        "ppm",
        "pgm",
        "ras",
        "hdr",
        "pfm",
        "gif",
        "avif",
    )
    for suffix in suffixes:
        image: NDArray[Any] = colour
        if suffix in ("hdr", "pfm"):
            image = colour.astype(np.float32) / 255
        if suffix == "pgm":
            image = colour[:, :, 0]
        try:
            done, data = cv2.imencode(f".{suffix}", image)
        except cv2.error:  # a build without it
            continue
        if done:
            yield data.tobytes()
    for suffix in ("png", "tiff", "pgm"):
        yield cv2.imencode(f".{suffix}", grey16)[1].tobytes()
    whole = Image.fromarray(colour)
    for mode, kind, more in (
        ("P", "PNG", {}), ("P", "GIF", {}), ("RGBA", "PNG", {}), ("LA", "PNG", {}), ("1", "PNG", {}),
        ("1", "PPM", {}), ("CMYK", "JPEG", {}), ("L", "JPEG", {"progressive": True}), ("CMYK", "TIFF", {}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}), ("1", "TIFF", {"compression": "group4"}),
        ("RGB", "TIFF", {"compression": "jpeg"}), ("P", "BMP", {}),
    ):  # fmt: skip
        buffer = io.BytesIO()
        whole.convert(mode).save(buffer, kind, **more)
        yield buffer.getvalue()
    for orientation in (1, 6, 8, 9):
        buffer, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = orientation
        whole.save(buffer, "JPEG", exif=exif)
        yield buffer.getvalue()
    buffer = io.BytesIO()
    whole.save(buffer, "GIF", save_all=True, append_images=[whole.rotate(90 * k) for k in range(3)])
    yield buffer.getvalue()


def _png() -> st.SearchStrategy[bytes]:
    """PNG files whose checksums hold: any size, depth, type and data."""

    @st.composite
    def png(draw: st.DrawFn) -> bytes:
        width, height = draw(_SIZES), draw(_SIZES)
        depth, kind = draw(st.sampled_from((1, 2, 4, 8, 16, 3, 0))), draw(st.integers(0, 7))
        header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, draw(st.integers(0, 2)))
        rows = zlib.compress(draw(st.binary(max_size=40)) * draw(st.sampled_from((1, 100, 20000))))
        chunks = [(b"IHDR", header)]
        if draw(st.booleans()):
            chunks.append((b"PLTE", draw(st.binary(max_size=12))))
        if draw(st.booleans()):
            names = (b"tRNS", b"eXIf", b"acTL", b"iCCP", b"gAMA", b"fcTL", b"zzzz")
            chunks.append((draw(st.sampled_from(names)), draw(st.binary(max_size=30))))
        chunks += [(b"IDAT", rows), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )

    return png()


def _headers() -> st.SearchStrategy[bytes]:
    """Headers of simple formats with any size, and little or no content."""

    @st.composite
    def header(draw: st.DrawFn) -> bytes:
        width, height, tail = draw(_SIZES), draw(_SIZES), draw(st.binary(max_size=60))
        kind = draw(st.sampled_from(("pnm", "bmp", "gif", "tiff", "hdr", "ras", "webp", "pam")))
        if kind == "pnm":
            magic, top = draw(st.integers(1, 7)), draw(st.sampled_from((0, 1, 255, 65535, 10**9)))
            return f"P{magic}\n{width} {height}\n{top}\n".encode() + tail
        if kind == "pam":
            return (f"P7\nWIDTH {width}\nHEIGHT {height}\nDEPTH {draw(st.integers(0, 5))}\nMAXVAL 255\n"
                    f"TUPLTYPE RGB\nENDHDR\n").encode() + tail  # fmt: skip
        if kind == "bmp":
            bits, packed = draw(st.sampled_from((1, 4, 8, 16, 24, 32, 7))), draw(st.integers(0, 6))
            info = struct.pack("<IIIHHIIIIII", 40, width, height, 1, bits, packed, 0, 0, 0, 0, 0)
            return b"BM" + struct.pack("<IHHI", 54 + len(tail), 0, 0, 54) + info + tail
        if kind == "gif":
            return (
                b"GIF89a" + struct.pack("<HHBBB", width & 65535, height & 65535, 0x80, 0, 0) + tail
            )
        if kind == "tiff":
            tags = [(256, 4, width), (257, 4, height),
                    (258, 3, draw(st.sampled_from((1, 8, 12, 16, 32, 64)))),
                    (259, 3, draw(st.sampled_from((1, 2, 5, 7, 8)))), (262, 3, draw(st.integers(0, 6))),
                    (273, 4, 8), (277, 3, draw(st.integers(0, 5))), (278, 4, height), (279, 4, len(tail)),
                    (339, 3, draw(st.integers(0, 4)))]  # fmt: skip
            rows = b"".join(struct.pack("<HHII", tag, size, 1, value) for tag, size, value in tags)
            return b"II*\x00" + struct.pack("<IH", 8, len(tags)) + rows + bytes(4) + tail
        if kind == "hdr":
            return f"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y {height} +X {width}\n".encode() + tail
        if kind == "ras":
            return struct.pack(">IIIIIIII", 0x59A66A95, width, height, 24, 0, 1, 0, 0) + tail
        extended = (
            struct.pack("<I", 0x10) + struct.pack("<I", width)[:3] + struct.pack("<I", height)[:3]
        )
        body = b"WEBPVP8X" + struct.pack("<I", 10) + extended + tail
        return b"RIFF" + struct.pack("<I", len(body)) + body

    return header()


def folder_area(space: Workspace) -> Area:
    """Folders with files of any name: `find_images` and `read_folder` list them."""
    import os
    import shutil

    root = space.root / "fuzz-folder"
    image = (space.voc / "fresh").iterdir().__next__()

    def check(data: bytes) -> str | None:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        try:
            entries = json.loads(data)
        except ValueError:
            return None
        for entry in entries if isinstance(entries, list) else []:
            if (
                not isinstance(entry, list)
                or len(entry) != 2
                or not all(isinstance(e, str) for e in entry)
            ):
                continue
            name, kind = entry
            try:
                path = root / name
                if not path.is_relative_to(root) or ".." in path.parts or path.exists():
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                if kind == "image":
                    path.symlink_to(image) if len(name) % 2 else shutil.copy(image, path)
                elif kind == "folder":
                    path.mkdir()
                elif kind == "fifo":
                    os.mkfifo(path)
                elif kind == "loop":
                    path.symlink_to(".")
                elif kind == "zero":
                    path.symlink_to("/dev/zero")
                else:
                    path.write_bytes(b"junk")
            except (OSError, ValueError):
                continue

        def read() -> None:
            from sppdet.io.images import read_image

            for path in find_images([root]):
                try:
                    read_image(path)
                except SppdetError:
                    continue

        return judge(all_of(read, lambda: read_folder(root)), "fuzz-folder")

    names = st.sampled_from([w for w in WORDS if w not in (".", "..", "")])
    kinds = st.sampled_from(("image", "image", "folder", "fifo", "loop", "zero", "junk"))
    entry = st.tuples(
        st.tuples(
            names, st.sampled_from(("/", "")), names, st.sampled_from((".jpg", ".PNG", ""))
        ).map("".join),
        kinds,
    )
    seed = [["a/b.jpg", "image"], ["c/d.jpg", "image"], ["a/e", "junk"]]
    return Area(
        "folders",
        ".json",
        [json.dumps(seed).encode()],
        check,
        st.lists(entry, max_size=6).map(json_bytes),
    )

"""Files from outside: only regular ones are read, and every fault is one line."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sppdet.config import Config
from sppdet.errors import (
    AnnotationError,
    ConfigError,
    ImageError,
    SppdetError,
    name_problem,
    one_line,
)
from sppdet.io.coco import read_coco_annotations
from sppdet.io.files import read_bytes, read_text
from sppdet.io.finding import find_images
from sppdet.io.images import decode, read_image
from sppdet.io.records import Skips
from sppdet.io.settings import load_config, load_settings
from sppdet.io.voc import read_set_file, read_voc_annotation, read_voc_set
from test_data_headers import corners, encoded

SPECIAL = ("FIFO", "socket", "device", "folder")


@pytest.fixture(params=SPECIAL)
def special(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, str]]:
    """A path that is no regular file, and how errors call it."""
    path, kind = tmp_path / "special.jpg", str(request.param)
    if kind == "folder":
        path.mkdir()
    elif not hasattr(os, "mkfifo"):
        pytest.skip("no such files on this system")
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as server:
            monkeypatch.chdir(tmp_path)  # names of sockets are short
            server.bind(path.name)
            yield path, kind
        return
    yield path, kind


def test_only_regular_files_are_read(special: tuple[Path, str]) -> None:
    """At once: a FIFO would be waited for, /dev/zero has no end."""
    path, kind = special
    readers = (
        lambda: read_bytes(path, ImageError),
        lambda: read_text(path),
        lambda: read_image(path),
        lambda: read_voc_annotation(path),
        lambda: read_coco_annotations(path, folders=(path.parent,), skips=Skips(stop=True)),
        lambda: load_settings(path, Config),
    )
    for reader in readers:
        with pytest.raises(SppdetError, match=rf"special\.jpg: can't be read: is a {kind}"):
            reader()


def test_a_folder_with_special_files_ends(tmp_path: Path) -> None:
    """In a process of its own, which a FIFO would stop for ever."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("no FIFOs on this system")
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    Image.new("RGB", (4, 3)).save(tmp_path / "c.png")
    code = (
        "import sys; from pathlib import Path\n"
        "from sppdet.io.finding import *; from sppdet.io.images import *\n"
        "for path in find_images([Path(sys.argv[1])]):\n"
        "    try: print(path.name, read_image(path).shape)\n"
        "    except Exception as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    assert [line.rpartition("/")[2] for line in done.stdout.splitlines()] == [
        "a.jpg: can't be read: is a FIFO, expected a regular file",
        "b.png: can't be read: is a device, expected a regular file",
        "c.png (3, 4, 3)",
    ]


def test_size_is_looked_at_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "sparse.xml"
    with path.open("wb") as file:
        file.truncate(2**40)  # a terabyte that takes no room
    with pytest.raises(AnnotationError, match=r"sparse\.xml: can't be read: 1099511627776 bytes, "):
        read_voc_annotation(path)
    with pytest.raises(ImageError, match="1099511627776 bytes"):
        read_image(path)
    with pytest.raises(AnnotationError, match="1099511627776 bytes"):
        read_text(path)
    small = tmp_path / "four"
    small.write_bytes(b"four")
    assert read_bytes(small, ImageError, max_bytes=4) == b"four"
    with pytest.raises(ImageError, match="four: can't be read: 4 bytes, expected 3 at most"):
        read_bytes(small, ImageError, max_bytes=3)


def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.jpg"
    path.write_bytes(b"")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(ImageError, match=r"secret\.jpg: can't be read: Permission denied"):
        read_image(path)


@pytest.mark.parametrize(
    ("name", "problem", "shown"),
    [("a\0b", "has a NUL byte", r"a\x00b"), ("a\ud800b", "has a lone surrogate", r"a\ud800b")],
)
def test_names_that_no_file_has(tmp_path: Path, name: str, problem: str, shown: str) -> None:
    assert name_problem(name) == problem
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / name)
    message = one_line(str(caught.value))  # as the command line prints it
    assert message == f"{tmp_path}/{shown}: no such file: the name {problem}"
    coco = {
        "images": [{"id": 1, "file_name": "fine.jpg"}, {"id": 2, "file_name": name}],
        "categories": [],
        "annotations": [],
    }
    path = tmp_path / "train.json"
    path.write_text(json.dumps(coco))
    with pytest.raises(AnnotationError) as caught_too:
        read_coco_annotations(path, folders=(tmp_path,), skips=Skips(stop=True))
    assert (
        one_line(str(caught_too.value)) == f"{path}, images, entry 2: file_name {shown} {problem}"
    )
    coco = {"images": [], "categories": [{"id": 1, "name": name}], "annotations": []}
    path.write_text(json.dumps(coco))
    with pytest.raises(AnnotationError, match=f"categories, entry 1: name .* {problem}"):
        read_coco_annotations(path, folders=(tmp_path,), skips=Skips(stop=True))


def test_nul_byte_in_a_set_file(tmp_path: Path) -> None:
    path = tmp_path / "ImageSets" / "Main" / "train.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"fine\n\nb\0ad 1\n")
    with pytest.raises(AnnotationError) as caught:
        read_set_file(tmp_path, "train")
    assert one_line(str(caught.value)) == f"{path}, line 3: b\\x00ad 1 has a NUL byte"
    for data in (b"<annotation>\0</annotation>", b"<annotation><filename>&#0;</filename></annotation>",
                 b"<annotation><filename>&#xD800;</filename></annotation>"):  # fmt: skip
        xml = tmp_path / "a.xml"
        xml.write_bytes(data)
        with pytest.raises(AnnotationError, match=r"a\.xml: not well-formed XML"):
            read_voc_annotation(xml)


def test_names_too_long_for_a_file(tmp_path: Path) -> None:
    """They are of images and annotations that aren't there; asking for them isn't an error."""
    name = "a" * 300
    path = tmp_path / "ImageSets" / "Main" / "train.txt"
    path.parent.mkdir(parents=True)
    path.write_text(f"{name} 1\n{name}b\nfine\n")
    (tmp_path / "Annotations").mkdir()
    xml = f"<annotation><filename>{name}</filename></annotation>"
    (tmp_path / "Annotations" / "fine.xml").write_text(xml)
    skips = Skips(stop=False)
    (record,) = read_voc_set(tmp_path, "train", images=None, skips=skips)
    assert record.path == tmp_path / "JPEGImages" / "fine.jpg" and len(skips.lines) == 2
    with pytest.raises(AnnotationError, match=r"a\.txt: no such set"):
        read_set_file(tmp_path, name)
    coco = {"images": [{"id": 1, "file_name": name}], "categories": [], "annotations": []}
    (tmp_path / "train.json").write_text(json.dumps(coco))
    (entry,) = read_coco_annotations(tmp_path / "train.json", folders=(tmp_path,), skips=skips)
    with pytest.raises(ImageError, match="File name too long"):
        read_image(entry.path)


def test_bytes_in_names_that_are_not_text(tmp_path: Path) -> None:
    """Names of files need not be UTF-8; such images are read all the same."""
    name = os.fsencode(tmp_path) + b"/\xff.png"
    try:
        Path(os.fsdecode(name)).write_bytes(encoded(corners(), "PNG"))
    except OSError:
        pytest.skip("no such names on this system")
    (path,) = find_images([tmp_path])
    assert read_image(path).shape == (32, 48, 3)


def test_xml_that_is_a_fifo_is_reported_for_its_image(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no FIFOs on this system")
    for folder in ("Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    os.mkfifo(tmp_path / "Annotations" / "a.xml")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    skips = Skips(stop=False)
    assert list(read_voc_set(tmp_path, "train", images=None, skips=skips)) == []
    assert skips.lines == [
        f"{tmp_path}/Annotations/a.xml: can't be read: is a FIFO, expected a regular file"
    ]


def test_fifo_as_settings(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no FIFOs on this system")
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match=r"a\.yaml: can't be read: is a FIFO"):
        load_config(tmp_path / "a.yaml")


# -- hostile images ------------------------------------------------------------------------------


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(width: int, height: int) -> bytes:
    """A grey image of zeros, which a thousandth of its bytes describe."""
    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    rows = packer.compress(bytes(min(height, 1000) * (width + 1))) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", size)
        + png_chunk(b"IDAT", rows)
        + png_chunk(b"IEND", b"")
    )


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("cv2.imdecode", refuse)


def patched_sizes(width: int, height: int) -> dict[str, bytes]:
    """Small files that claim to be large."""
    small = {
        name: bytearray(encoded(corners(), name)) for name in ("JPEG", "BMP", "GIF", "TIFF", "WEBP")
    }
    at = small["JPEG"].index(b"\xff\xc0")
    struct.pack_into(">HH", small["JPEG"], at + 5, min(height, 65535), min(width, 65535))
    struct.pack_into("<ii", small["BMP"], 18, width, height)
    struct.pack_into("<HH", small["GIF"], 6, min(width, 65535), min(height, 65535))
    small["WEBP"] = (
        bytearray(b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0")
        + (width - 1).to_bytes(3, "little")
        + (height - 1).to_bytes(3, "little")
        + bytes(30)
    )
    small["PPM"] = bytearray(b"P6 %d %d 255\n" % (width, height))
    small["HDR"] = bytearray(
        b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % (height, width)
    )
    small["PNG"] = bytearray(png_bomb(width, height))
    del small["TIFF"]
    return {name: bytes(data) for name, data in small.items()}


def test_too_many_pixels_are_refused_before_decoding(no_decoding: None) -> None:
    for name, data in patched_sizes(20_000, 20_001).items():
        with pytest.raises(ImageError) as caught:
            decode(data, name)
        assert str(caught.value) == (
            f"{name}: 20000x20001 pixels, expected 200000000 at most (data.max_pixels)"
        )
    for format in ("JPEG", "PNG", "TIFF", "AVIF", "JPEG2000"):
        with pytest.raises(ImageError, match="48x32 pixels, expected 1535 at most"):
            decode(encoded(corners(), format), format, max_pixels=48 * 32 - 1)
    with pytest.raises(AssertionError):
        decode(encoded(corners(), "PNG"), "PNG", max_pixels=48 * 32)


def test_sides_of_zero_and_less(no_decoding: None) -> None:
    data = bytearray(encoded(corners(), "BMP"))
    struct.pack_into("<i", data, 18, 0)
    with pytest.raises(ImageError, match="BMP: 0x32 pixels, expected one or more a side"):
        decode(bytes(data), "BMP")
    with pytest.raises(ImageError, match="PNG: 0x9 pixels"):
        decode(png_bomb(0, 9), "PNG")


@pytest.mark.parametrize("size", [(1_000_000, 2), (2, 1_000_000), (1, 1)])
def test_extreme_shapes_are_read(size: tuple[int, int]) -> None:
    image = np.full((size[1], size[0], 3), 7, dtype=np.uint8)
    assert np.array_equal(decode(bytes(cv2.imencode(".png", image)[1]), "long").pixels, image)


@pytest.mark.parametrize(
    "format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF"]
)
def test_half_a_file_is_refused(format: str) -> None:
    rng = np.random.default_rng(0)
    data = encoded(rng.integers(0, 256, (90, 70, 3)).astype(np.uint8), format)
    for part in (0.1, 0.5, 0.9):
        with pytest.raises(ImageError, match="half: can't be decoded as an image"):
            decode(data[: int(part * len(data))], "half")


def test_compressed_extras_cost_nothing() -> None:
    """100 MB of text, of a colour profile and of EXIF in a small file."""
    data = encoded(corners(), "PNG")
    bomb = zlib.compress(bytes(100_000_000), 9)
    text = png_chunk(b"zTXt", b"a\0\0" + bomb)
    profile = png_chunk(b"iCCP", b"a\0\0" + bomb)
    for extra in (text, profile):
        assert np.array_equal(decode(data[:33] + extra + data[33:], "bomb").pixels, corners())


def test_long_exif() -> None:
    """The longest that a segment holds, several of them, and counts beyond the end."""
    plain = encoded(corners(), "JPEG")
    entry = struct.pack("<HHHIHH", 60000, 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + entry
    segment = b"\xff\xe1" + struct.pack(">H", 65535) + exif + bytes(65533 - len(exif))
    decoded = decode(plain[:2] + segment * 20 + plain[2:], "long")
    assert decoded.pixels.shape == (48, 32, 3)

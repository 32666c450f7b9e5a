"""Decoding and finding images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sppdet.errors import ImageError
from sppdet.io.finding import find_images
from sppdet.io.images import read_image


def test_colours_are_rgb(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    Image.new("RGB", (3, 2), (255, 10, 0)).save(path)
    image = read_image(path)
    assert image.shape == (2, 3, 3)
    assert image.dtype == np.uint8
    assert image[0, 0].tolist() == [255, 10, 0]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    plain = np.zeros((40, 80, 3), dtype=np.uint8)
    plain[:, :40] = 255  # white on the left of the stored image
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    path = tmp_path / "turned.jpg"
    Image.fromarray(plain).save(path, exif=exif, quality=95)
    image = read_image(path)
    assert image.shape == (80, 40, 3)
    assert image[:35].min() > 200  # its left has become the top
    assert image[45:].max() < 50


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(path)
    image = read_image(path)
    assert image.shape == (4, 5, 3)
    assert image.min() == 255


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    cv2.imwrite(str(path), np.full((4, 5), 0x8000, dtype=np.uint16))
    image = read_image(path)
    assert image.dtype == np.uint8
    assert abs(int(image[0, 0, 0]) - 128) <= 1


def test_non_ascii_path(tmp_path: Path) -> None:
    path = tmp_path / "Bär 熊.png"
    Image.new("RGB", (3, 2)).save(path)
    assert read_image(str(path)).shape == (2, 3, 3)


@pytest.mark.parametrize("data", [b"", b"no image"])
def test_undecodable(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(caught.value) == f"{path}: can't be decoded as an image"


def test_truncated_jpeg_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ImageError, match="can't be decoded"):
        read_image(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg: no such file"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)


def _touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_find_images_in_folders(tmp_path: Path) -> None:
    wanted = [tmp_path / "a.JPG", tmp_path / "b" / "c" / "d.png", tmp_path / "z.jpeg"]
    _touch(*wanted, tmp_path / "notes.txt", tmp_path / ".hidden.jpg", tmp_path / ".git" / "x.jpg")
    assert find_images([tmp_path]) == wanted
    assert find_images([wanted[2], tmp_path, tmp_path / "b", wanted[0]]) == wanted


def test_a_file_given_by_name_needs_no_suffix(tmp_path: Path) -> None:
    _touch(tmp_path / "image")
    assert find_images([tmp_path / "image"]) == [tmp_path / "image"]


def test_find_images_errors(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file or folder"):
        find_images([tmp_path / "gone"])
    with pytest.raises(ImageError, match="no images found"):
        find_images([tmp_path])
    with pytest.raises(ImageError, match="no paths given: no images found"):
        find_images([])

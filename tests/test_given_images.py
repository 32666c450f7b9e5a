"""Images of every kind that a detector is called with."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from sppdet.errors import ConfigError, ImageError, SppdetError
from sppdet.io.given_images import pixels_of
from sppdet.io.images import read_image
from sppdet.stages.combined import CombinedDetector
from sppdet.stages.detector import Detector
from sppdet.types import ImageArray


def of(image: Any, *, bgr: bool = False) -> ImageArray:
    return pixels_of(image, bgr=bgr, max_pixels=10_000).array


@pytest.fixture
def rgb(rng: np.random.Generator) -> ImageArray:
    return rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def fresh(demo_root: Path) -> list[Path]:
    return sorted((demo_root / "fresh").glob("*.jpg"))


def cv2_image(path: Path) -> ImageArray:
    image = cv2.imread(str(path))
    assert image is not None
    return np.asarray(image, dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **settings)
    return data.getvalue()


def test_every_kind_gives_the_same_pixels(rgb: ImageArray, tmp_path: Path) -> None:
    pil = Image.fromarray(rgb)
    path = tmp_path / "a.png"
    pil.save(path)
    tensor = torch.from_numpy(rgb)
    channels_first = tensor.permute(2, 0, 1)
    data = path.read_bytes()
    images: list[Any] = [
        *(path, str(path), data, bytearray(data), memoryview(data)),
        *(pil, Image.open(path), rgb, np.asfortranarray(rgb)),
        *(
            tensor,
            channels_first,
            channels_first.contiguous(),
            channels_first.requires_grad_(False),
        ),
        *(channels_first.float() / 255, channels_first.double() / 255, tensor.float() / 255),
        (channels_first.float() / 255).requires_grad_(),
        (channels_first.float() / 255).half(),
    ]
    for image in images:
        given = pixels_of(image, bgr=False, max_pixels=100)
        assert np.array_equal(given.array, rgb) and given.array.dtype == np.uint8
        assert np.array_equal(given.again(), rgb)
        assert given.path == (str(path) if isinstance(image, str | Path) else "")
    assert np.array_equal(of(cv2_image(path), bgr=True), rgb)
    assert np.array_equal(of(torch.from_numpy(cv2_image(path)), bgr=True), rgb)


def test_a_tensor_of_three_rows_is_channels_first(rng: np.random.Generator) -> None:
    values = rng.integers(0, 256, (3, 5, 3), dtype=np.uint8)
    assert np.array_equal(of(torch.from_numpy(values)), values.transpose(1, 2, 0))


def test_floating_point_values_are_those_of_torchvision(rgb: ImageArray) -> None:
    from torchvision.transforms.functional import to_tensor

    assert np.array_equal(of(to_tensor(rgb)), rgb)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_a_pil_image_of_any_mode_is_as_its_file(mode: str, rgb: ImageArray, tmp_path: Path) -> None:
    grey = Image.fromarray(rgb).convert("L")
    image = grey if mode in ("I;16", "I", "F", "1") else Image.fromarray(rgb)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    elif mode == "I":
        image = Image.fromarray(np.asarray(grey).astype(np.int32) * 257)
    elif mode == "F":
        image = Image.fromarray(np.asarray(grey).astype(np.float32) / 255)
    else:
        image = image.convert(mode)
    assert image.mode == mode
    found = of(image)
    expected = rgb if mode in ("RGBA", "CMYK") else np.asarray(image.convert("RGB"))
    if mode in ("I;16", "I", "F"):
        expected = np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)
    assert np.array_equal(found, expected)
    if mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        path = tmp_path / "a.png"
        image.save(path)
        assert np.array_equal(read_image(path), found)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_pil_image_is_turned_by_its_exif_orientation(orientation: int, tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(7 * 9 * 3, dtype=np.uint8).reshape(7, 9, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    image.save(path, exif=exif)
    assert np.array_equal(of(Image.open(path)), read_image(path))


ARRAY = np.zeros((4, 5, 3), np.uint8)
TENSOR = torch.zeros(3, 4, 5)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({}, "image: dict, expected a path, the bytes of an image file, a PIL image, an array"),
        (None, "image: NoneType, expected a path"),
        (3, "image: int, expected a path"),
        (iter([ARRAY]), "image: list_iterator, expected a path, .* or a list of them"),
        ([ARRAY], "image: list, expected a path"),
        (ARRAY[:, :, 0], r"image: uint8 \(4, 5\), expected uint8 \(H, W, 3\) RGB"),
        (ARRAY[:0], r"image: uint8 \(0, 5, 3\), expected"),
        (ARRAY.astype(np.float32), r"image: float32 \(4, 5, 3\), expected uint8"),
        (
            TENSOR[None],
            r"tensor float32 \(1, 3, 4, 5\), .*a batch is passed as a list: list\(batch\)",
        ),
        (TENSOR[:2], r"tensor float32 \(2, 4, 5\), expected \(3, H, W\) or \(H, W, 3\)"),
        (TENSOR[:, :0], r"tensor float32 \(3, 0, 5\), expected"),
        (
            TENSOR.int(),
            r"tensor int32 \(3, 4, 5\), expected uint8, or floating-point values in 0..1",
        ),
        (TENSOR + 255, r"tensor float32 \(3, 4, 5\) from 255 to 255, expected uint8, or values in"),
        (TENSOR - 0.1, r"from -0.1 to -0.1, expected uint8, or values in 0..1"),
        (TENSOR * float("nan"), r"from nan to nan, expected uint8, or values in 0..1"),
        (
            TENSOR.to_sparse(),
            r"tensor float32 \(3, 4, 5\), torch.sparse_coo: expected a dense tensor",
        ),
        (TENSOR.to("meta"), "meta: expected a dense tensor with values"),
        (TENSOR.to(torch.float8_e4m3fn), "float8_e4m3fn .*, expected uint8, or floating-point"),
        ("", "image: an empty path, expected a path"),
    ],
)
def test_what_is_no_image(image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        of(image)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "image of 0 bytes: can't be decoded as an image"),
        (b"GIF89a", "image of 6 bytes: can't be decoded"),
        ("nowhere.jpg", "nowhere.jpg: no such file"),
        (Image.new("RGB", (200, 100)), r"200x100 pixels, expected 1 to 10000 \(data.max_pixels\)"),
        (Image.new("La", (4, 4)), "PIL image La: can't be converted to RGB"),
        (encoded(Image.new("RGB", (200, 100)), "PNG"), "200x100 pixels, expected 10000 at most"),
    ],
)
def test_images_that_cant_be_read(image: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        of(image)
    assert "\n" not in str(caught.value)


def test_a_truncated_pil_image(rng: np.random.Generator) -> None:
    whole = encoded(Image.fromarray(rng.integers(0, 256, (90, 90, 3), dtype=np.uint8)), "JPEG")
    with pytest.raises(ImageError, match=r"PIL image RGB: can't be converted to RGB: .*truncated"):
        of(Image.open(io.BytesIO(whole[: len(whole) // 2])))


@pytest.mark.parametrize("image", ["a.jpg", Path("a.jpg"), b"12", Image.new("RGB", (2, 2))])
def test_bgr_is_for_arrays(image: Any) -> None:
    with pytest.raises(ValueError, match=r"bgr with .*: expected an array"):
        of(image, bgr=True)


def test_a_list_gives_what_single_calls_give(detector: Detector, fresh: list[Path]) -> None:
    images: list[Any] = [
        fresh[0],
        fresh[1].read_bytes(),
        Image.open(fresh[2]),
        read_image(fresh[0]),
    ]
    single = [detector(image) for image in images]
    assert any(len(found) for found in single)
    assert detector(images) == single and detector(tuple(images)) == single
    assert detector([]) == [] and detector([fresh[0]]) == single[:1]
    assert single[0] != single[1]
    # compared without __eq__, which is ours
    for one, other in zip(detector(images), single, strict=True):
        assert np.array_equal(one.boxes, other.boxes) and np.array_equal(one.scores, other.scores)


def test_an_error_in_a_list_names_the_image(detector: Detector, fresh: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"^images\[1\]: image: dict, expected a path"):
        detector([fresh[0], {}, fresh[1]])
    with pytest.raises(SppdetError, match=r"^images\[2\]: nowhere.jpg: no such file"):
        detector([fresh[0], fresh[1], "nowhere.jpg"])
    bgr = cv2_image(fresh[0])
    assert detector([bgr], bgr=True) == [detector(read_image(fresh[0]))]
    with pytest.raises(ValueError, match=r"^images\[1\]: bgr with .*: expected an array"):
        detector([bgr, fresh[0]], bgr=True)


def test_combined_detectors_take_the_same(detector: Detector, fresh: list[Path]) -> None:
    both = CombinedDetector.of([detector, detector])
    array = read_image(fresh[0])
    expected = both(fresh[0])
    assert len(expected)
    for image in (fresh[0].read_bytes(), Image.open(fresh[0]), torch.from_numpy(array)):
        assert np.array_equal(both(image).boxes, expected.boxes)
    listed = both([array, fresh[1]])
    assert np.array_equal(listed[0].boxes, expected.boxes) and listed[1] == both(fresh[1])
    with pytest.raises(ValueError, match="image: dict, expected a path"):
        both({})  # type: ignore[call-overload]


def test_combined_detectors_search_the_tiles_of_the_first(
    detector: Detector, fresh: list[Path]
) -> None:
    tiled = detector.tiled(160, overlap=0.3)
    expected, whole = tiled(fresh[0]), detector(fresh[0])
    assert not np.array_equal(expected.boxes, whole.boxes)
    for others, same in (([tiled, detector], expected), ([detector, tiled], whole)):
        found = CombinedDetector.of(others)(fresh[0])
        assert np.array_equal(found.boxes, same.boxes)
        assert np.array_equal(found.scores, same.scores)


def test_a_detector_shows_itself_in_a_line(detector: Detector) -> None:
    names = ", ".join(detector.class_names)
    assert repr(detector) == f"<Detector: {names} on cpu>"
    assert repr(detector.tiled(160)) == f"<Detector: {names} on cpu, tiles of 160 px>"
    assert len({detector, detector.tiled(160), detector}) == 2  # by identity


@pytest.mark.parametrize("device", ["gpu", None, 3, torch.device("meta")])
def test_devices_that_arent_there(device: Any, trained: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected auto, cpu, cuda, cuda:N or mps"):
        Detector.load(trained, device=device)


def test_detections_of_any_kind_can_be_plotted(detector: Detector, fresh: list[Path]) -> None:
    expected = np.asarray(detector(fresh[0]).plot())
    for image in (fresh[0].read_bytes(), Image.open(fresh[0]), read_image(fresh[0])):
        assert np.array_equal(np.asarray(detector(image).plot()), expected)
    bgr = cv2_image(fresh[0])
    assert np.array_equal(np.asarray(detector(bgr, bgr=True).plot()), expected)
    assert np.array_equal(np.asarray(detector([fresh[1], fresh[0]])[1].plot()), expected)


def test_detections_of_a_file_keep_no_pixels(detector: Detector, fresh: list[Path]) -> None:
    import gc
    import pickle

    found = detector([fresh[0], fresh[1]])
    held = [x for one in found for x in gc.get_referents(one) if isinstance(x, np.ndarray)]
    assert all(array.ndim < 3 for array in held)
    assert len(pickle.dumps(found)) < 100_000  # such as for another process; 200 x 150 x 3 is 90 kB


def test_detections_of_a_file_that_is_gone(
    detector: Detector, fresh: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(fresh[0].read_bytes())
    found = detector(path)
    path.unlink()
    with pytest.raises(ImageError, match=r"a\.jpg: no such file"):
        found.plot()
    assert "<img" not in found._repr_html_() and "<table>" in found._repr_html_()

"""Crops of a detection set: which boxes they show, at which scale, and where they are written."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from runs import contents
from sppdet.boxes import box_iou
from sppdet.classification import crops
from sppdet.classification.crops import BACKGROUND, CropConfig, cut_crop, draw_crops, write_crops
from sppdet.errors import DataError
from sppdet.io.dataset import load_dataset
from sppdet.io.images import read_image
from sppdet.randomness import rng
from sppdet.types import Boxes, Dataset

SMALL = CropConfig(scales=(120, 200), canonical_size=40, side=56, max_side=2400)
MEAN = np.rint(255 * np.array([0.485, 0.456, 0.406]))  # of ImageNet


@pytest.fixture(scope="module")
def dataset(demo_root: Path) -> Dataset:
    return load_dataset(
        format="voc",
        roots=[demo_root],
        sets=["trainval"],
        images=None,
        class_names=None,
        on_error="stop",
        read_images=True,
        known=None,
    )


def box_of(*corners: float) -> Boxes:
    return np.array([corners], dtype=np.float32)


def test_jitter_and_background_keep_to_their_iou() -> None:
    rng = np.random.default_rng(0)
    for target in (box_of(60, 50, 160, 120), box_of(0, 0, 30, 200), box_of(300, 220, 320, 240)):
        near_ones = []
        for _ in range(100):
            near = crops._near_object(target, (320, 240), rng)
            assert box_iou(near, target)[0, 0] >= 0.6
            near_ones.append(near[0])
            background = crops._background(target, (320, 240), rng)
            assert background is not None and box_iou(background, target)[0, 0] < 0.3
            for box in (near, background):
                assert box[0, :2].min() >= 0 and box[0, 2] <= 320 and box[0, 3] <= 240
        assert np.std(near_ones, axis=0).max() > 1  # it does jitter


def test_no_place_for_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crops, "_BACKGROUND_IOU", 0.0)  # so that every box is too near
    whole = box_of(0, 0, 320, 240)
    assert crops._background(whole, (320, 240), np.random.default_rng(0)) is None


def test_a_image_without_objects_has_background() -> None:
    none = np.zeros((0, 4), dtype=np.float32)
    box = crops._background(none, (320, 240), np.random.default_rng(0))
    assert box is not None and (box[0, 2:] > box[0, :2]).all()


def seen_box(crop: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> list[int]:
    """(left, top, right, bottom) of the bright part."""
    bright = crop[:, :, 1] > 180
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize(
    ("corners", "factor"),
    [
        ((30, 100, 70, 140), 200 / 240),  # 33.3 px is nearer to 40 than 20 px
        ((100, 60, 180, 140), 120 / 240),  # 40 px exactly
        ((20, 20, 80, 100), 120 / 240),  # 34.6 by area, not 57.7
    ],
)
def test_the_object_lies_in_the_middle_at_the_detectors_scale(
    corners: tuple[int, int, int, int], factor: float
) -> None:
    image = np.zeros((240, 320, 3), dtype=np.uint8)
    x1, y1, x2, y2 = corners
    image[y1:y2, x1:x2] = 255
    rng, zooms = np.random.default_rng(0), []
    for _ in range(40):
        crop = cut_crop(image, box_of(*corners), SMALL, rng=rng)
        assert crop.shape == (56, 56, 3) and crop.dtype == np.uint8
        left, top, right, bottom = seen_box(crop)
        assert abs((left + right) / 2 - 28) <= 1 and abs((top + bottom) / 2 - 28) <= 1
        for seen, original in ((right - left, x2 - x1), (bottom - top, y2 - y1)):
            zooms.append(math.log(min(seen, 56) / (original * factor)))
    assert min(zooms) > -0.15 - 0.1 and max(zooms) < 0.15 + 0.1
    assert np.ptp(zooms) > 0.1  # the scale is drawn
    assert abs(float(np.mean(zooms))) < 0.06


def test_a_cap_on_the_longer_side() -> None:
    image = np.zeros((100, 400, 3), dtype=np.uint8)
    image[30:70, 180:220] = 255
    capped = replace(SMALL, scales=(100,), max_side=200)  # half, not once
    for config, factor in ((replace(SMALL, scales=(100,)), 1.0), (capped, 0.5)):
        crop = cut_crop(image, box_of(180, 30, 220, 70), config, rng=np.random.default_rng(1))
        left, _, right, _ = seen_box(crop)
        assert (right - left) / 40 == pytest.approx(factor, rel=0.25)


@pytest.mark.parametrize("factor", [0.5, 1, 2])
def test_a_crop_is_a_part_of_the_resized_image(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a change of scale; half a pixel beside it would show at factor 2."""
    monkeypatch.setattr(crops, "_ZOOM", 0.0)
    image = np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    config = CropConfig(scales=(int(100 * factor),), canonical_size=40, side=20, max_side=2400)
    crop = cut_crop(image, box_of(40, 30, 60, 70), config, rng=np.random.default_rng(0))
    size, kind = (int(120 * factor), int(100 * factor)), cv2.INTER_LINEAR
    larger = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else kind)
    first = int(50 * factor) - 10
    difference = larger[first : first + 20, first : first + 20].astype(int) - crop
    assert np.abs(difference).max() <= 2


def test_outside_the_image_is_the_mean_colour() -> None:
    image = np.zeros((60, 60, 3), dtype=np.uint8)
    config = CropConfig(scales=(40,), canonical_size=40, side=120, max_side=2400)
    crop = cut_crop(image, box_of(0, 0, 60, 60), config, rng=np.random.default_rng(0))
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1), (60, 2)):
        assert np.abs(crop[row, column] - MEAN).max() <= 1
    assert not crop[60, 60].any()


def test_crops_of_one_image(dataset: Dataset) -> None:
    image = max(dataset.images, key=lambda image: len(image.gt_boxes))
    assert len(image.gt_boxes) > 3
    pixels = read_image(image.path)
    labels = [label for _, label in draw_crops(image, pixels, SMALL, rng=np.random.default_rng(0))]
    assert labels[-1] == 0 and len(labels) == 4
    assert set(labels[:3]) <= set(image.gt_labels.tolist())
    difficult = replace(image, difficult=np.arange(len(image.gt_boxes)) != 1)
    labels = [
        label for _, label in draw_crops(difficult, pixels, SMALL, rng=np.random.default_rng(0))
    ]
    assert labels == [image.gt_labels[1], 0]


def by_folder(folder: Path) -> dict[str, dict[str, bytes]]:
    return {p.name: contents(p) for p in folder.iterdir()}


def test_folders_of_crops(dataset: Dataset, tmp_path: Path) -> None:
    count = write_crops(dataset, tmp_path / "a", SMALL, rounds=2, seed=4)
    written = by_folder(tmp_path / "a")
    assert set(written) == {BACKGROUND, *dataset.class_names}
    assert sum(map(len, written.values())) == count
    objects = [min(3, int((~image.difficult).sum())) for image in dataset.images]
    assert count == 2 * sum(objects) + len(written[BACKGROUND])
    assert 0 < len(written[BACKGROUND]) <= 2 * len(dataset)
    names = [name for files in written.values() for name in files]
    assert len(set(names)) == count and all(name.endswith(".png") for name in names)
    assert {name.rpartition("-")[0] for name in names} == {i.id for i in dataset.images}

    assert write_crops(dataset, tmp_path / "b", SMALL, rounds=2, seed=4) == count
    assert by_folder(tmp_path / "b") == written
    write_crops(dataset, tmp_path / "c", SMALL, rounds=2, seed=5)
    assert by_folder(tmp_path / "c") != written


def test_what_is_written_is_what_is_drawn(dataset: Dataset, tmp_path: Path) -> None:
    few = replace(dataset, images=dataset.images[:1])
    write_crops(few, tmp_path, SMALL, rounds=1, seed=4)
    image = few.images[0]
    drawn = rng(4, "crops", 0)
    names = (BACKGROUND, *dataset.class_names)
    for number, (crop, label) in enumerate(
        draw_crops(image, read_image(image.path), SMALL, rng=drawn)
    ):
        written = read_image(tmp_path / names[label] / f"{image.id}-{number:03}.png")
        assert np.array_equal(written, crop)  # RGB, and lossless


def test_a_class_called_background(dataset: Dataset, tmp_path: Path) -> None:
    names = (BACKGROUND, *dataset.class_names[1:])
    with pytest.raises(DataError, match="a class is called background"):
        write_crops(replace(dataset, class_names=names), tmp_path, SMALL, rounds=1, seed=0)
    assert not any(tmp_path.iterdir())

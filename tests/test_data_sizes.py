"""Sizes that annotations state: contradictions found, counted, and repaired where that is certain."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samples import random_boxes
from sppdet.data_config import DataConfig
from sppdet.io.dataset import load_dataset
from sppdet.io.images import turn
from sppdet.io.records import stated_size
from sppdet.io.splits import read_split
from sppdet.io.stated_sizes import compare_sizes, one_factor, repaired_boxes, turned_boxes
from sppdet.types import Boxes, Dataset

NONE = np.zeros((0, 4), dtype=np.float32)


def painted(box: list[int], *, width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A black image whose pixels in `box` are white."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    return image


def found_box(image: np.ndarray[Any, np.dtype[np.uint8]]) -> list[int]:
    """The box around the white pixels."""
    rows, columns = np.nonzero(image[:, :, 0])
    return [*(int(v.min()) for v in (columns, rows)), *(int(v.max()) + 1 for v in (columns, rows))]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_as_pixels_do(orientation: int) -> None:
    rng = np.random.default_rng(orientation)
    boxes = random_boxes(rng, 20, width=31, height=17, whole=True)
    turned = turned_boxes(boxes, (31, 17), orientation)
    for box, expected in zip(boxes.astype(int).tolist(), turned.tolist(), strict=True):
        assert found_box(turn(painted(box, width=31, height=17), orientation)) == expected
    assert turned_boxes(NONE, (31, 17), orientation).shape == (0, 4)


@pytest.mark.parametrize(
    ("stated", "found", "orientation", "kind"),
    [
        ((640, 480), (640, 480), 6, None),
        ((640, 480), (480, 640), 6, "turned"),
        ((640, 480), (480, 640), 5, "turned"),
        ((640, 480), (480, 640), 1, "swapped"),
        ((640, 480), (480, 640), 3, "swapped"),
        ((640, 480), (641, 479), 1, None),
        ((640, 480), (1280, 960), 1, "scaled"),
        ((4032, 3024), (500, 375), 1, "scaled"),
        ((500, 333), (1000, 667), 1, "scaled"),
        ((1000, 667), (500, 333), 8, "scaled"),
        ((4032, 3024), (375, 500), 8, "turned and scaled"),
        ((4032, 3024), (375, 500), 2, "other"),
        ((640, 480), (640, 400), 1, "other"),
        ((100, 100), (200, 200), 6, "other"),  # turned or not, who knows
        ((101, 100), (100, 101), 6, "turned"),
    ],
)
def test_kinds_of_contradiction(
    stated: tuple[int, int], found: tuple[int, int], orientation: int, kind: str | None
) -> None:
    assert compare_sizes(stated, found, orientation=orientation, boxes=NONE) == kind


def test_boxes_that_do_not_fit_the_size_stated() -> None:
    def kind(*corners: float) -> str | None:
        boxes = np.array([[0, 0, *corners]], dtype=np.float32)
        return compare_sizes((64, 48), (48, 64), orientation=6, boxes=boxes)

    assert (kind(64, 48), kind(65, 49), kind(40, 60)) == ("turned", "turned", "outside")


def test_one_factor_within_rounding() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        width, height = rng.integers(40, 4000, 2).tolist()
        factor = float(rng.uniform(0.1, 3))
        for rounding in (round, int, np.ceil):
            resized = (int(rounding(width * factor)), int(rounding(height * factor)))
            if min(resized) > 20:
                assert one_factor((width, height), resized)
                assert one_factor(resized, (width, height))
    assert not one_factor((500, 375), (1000, 740))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("factor", [1, 3])
def test_repair_equals_the_pixels(orientation: int, factor: int) -> None:
    """The image is enlarged and turned; the boxes were drawn before."""
    rng = np.random.default_rng(7)
    boxes = random_boxes(rng, 10, width=31, height=17, whole=True)
    for box, row in zip(boxes.astype(int).tolist(), boxes, strict=True):
        large = np.kron(painted(box, width=31, height=17), np.ones((factor, factor, 1), np.uint8))
        shown = turn(large, orientation)
        found = (shown.shape[1], shown.shape[0])
        kind = compare_sizes((31, 17), found, orientation=orientation, boxes=row[None])
        assert kind == ("turned" if factor == 1 else "turned and scaled")
        moved = repaired_boxes(
            row[None], kind, stated=(31, 17), found=found, orientation=orientation
        )
        assert moved.tolist() == [found_box(shown)]


def test_stated_sizes() -> None:
    assert (
        stated_size("640", "480")
        == stated_size(640, 480.0)
        == stated_size(" 640 ", 480)
        == (640, 480)
    )
    for width in (
        0,
        "0",
        "",
        None,
        "wide",
        -3,
        1.5,
        float("nan"),
        float("inf"),
        10**400,
        [640],
        "1e999",
    ):
        assert stated_size(width, 480) is None


# -- data sets -----------------------------------------------------------------------------------


def _xml(size: tuple[int, int] | None, boxes: Boxes) -> str:
    """A VOC annotation, 1-based and inclusive."""
    objects = "".join(
        f"<object><name>cat</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for x1, y1, x2, y2 in boxes.astype(int).tolist()
    )
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return f"<annotation>{stated}{objects}</annotation>"


BOX = [5, 2, 20, 11]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """60x40 images, labelled: rightly, before their turn, before they were enlarged, of another image."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    plain = painted(BOX, width=60, height=40)
    cases: dict[str, tuple[tuple[int, int] | None, Any, int]] = {
        "right": ((60, 40), plain, 1),
        "silent": (None, plain, 1),
        "zero": ((0, 0), plain, 1),
        "turned": ((60, 40), plain, 6),
        "turned2": ((60, 40), plain, 8),
        "larger": ((60, 40), np.kron(plain, np.ones((2, 2, 1), np.uint8)), 1),
        "other": ((77, 40), plain, 1),
        "swapped": ((40, 60), plain, 1),
    }
    for name, (size, image, orientation) in cases.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(image).save(tmp_path / "JPEGImages" / f"{name}.png", exif=exif)
        text = _xml(size, np.array([BOX], dtype=np.float32))
        (tmp_path / "Annotations" / f"{name}.xml").write_text(text)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("\n".join(cases))
    coco = {
        "images": [
            {"id": k, "file_name": f"{name}.png"}
            | ({"width": size[0], "height": str(size[1])} if size else {})
            for k, (name, (size, *_)) in enumerate(cases.items())
        ],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 1, "bbox": [BOX[0], BOX[1], 15, 9]}
            for k in range(len(cases))
        ],
    }
    (tmp_path / "train.json").write_text(json.dumps(coco))
    return tmp_path


def _load(root: Path, format: str, *, repair: bool) -> Dataset:
    return load_dataset(
        format="voc" if format == "voc" else "coco", roots=[root], sets=["train"],
        images=root / "JPEGImages", class_names=None, on_error="stop", read_images=True, known=None,
        repair_sizes=repair,
    )  # fmt: skip


@pytest.mark.parametrize("format", ["voc", "coco"])
def test_contradictions_are_said_and_boxes_stay(
    root: Path, format: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="sppdet"):
        dataset = _load(root, format, repair=False)
    assert all(image.gt_boxes.tolist() == [BOX] for image in dataset.images)
    assert len(caplog.messages) == 4
    turned, scaled, other, swapped = caplog.messages
    assert "2 of 8 images haven't the size that was annotated" in turned
    assert "(turned.png 60x40 for 40x60, turned2.png 60x40 for 40x60)" in turned
    assert turned.endswith("data.repair_sizes: true turns them")
    assert "1 of 8 images" in scaled and "larger.png 60x40 for 120x80" in scaled
    assert "other.png 77x40 for 60x40" in other
    assert "swapped.png 40x60 for 60x40" in swapped and "no EXIF turn" in swapped


@pytest.mark.parametrize("format", ["voc", "coco"])
def test_repaired_boxes_lie_on_the_objects(
    root: Path, format: str, caplog: pytest.LogCaptureFixture
) -> None:
    from sppdet.io.images import read_image

    with caplog.at_level(logging.WARNING, logger="sppdet"):
        dataset = _load(root, format, repair=True)
    assert "repaired (data.repair_sizes)" in caplog.messages[0]
    for image in dataset.images:
        assert image.gt_boxes.tolist() == [found_box(read_image(image.path))], image.id
    assert dataset.clipped_boxes == 0


def test_detections_of_others_meet_the_repaired_boxes(root: Path) -> None:
    """Where annotations alone are read, repairing needs the images all the same."""
    config = DataConfig(root=[root], train=["train"], repair_sizes=True)
    alone = read_split(config, "train", None, None, workers=1)
    repaired = _load(root, "voc", repair=True)
    for one, other in zip(alone.images, repaired.images, strict=True):
        assert np.array_equal(one.gt_boxes, other.gt_boxes)

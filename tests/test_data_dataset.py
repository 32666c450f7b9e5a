"""Data sets: joining, checking and labelling annotations; the memory of images."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sppdet.errors import AnnotationError, DataError, ImageError
from sppdet.io.dataset import load_dataset
from sppdet.io.image_cache import ImageCache
from sppdet.io.images import decode
from sppdet.types import Dataset

Item = tuple[str, int, int, int, int]  # name, xmin, ymin, xmax, ymax, 1-based inclusive
Content = dict[str, Sequence[Item]]
SIZE = (60, 40)  # width, height of every image made here


def _voc(root: Path, content: Content, set_name: str = "train") -> Path:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, items in content.items():
        objects = "".join(
            f"<object><name>{item}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for item, x1, y1, x2, y2 in items
        )
        size = "<size><width>0</width><height>0</height></size>"
        path = root / "Annotations" / f"{name}.xml"
        path.write_text(f"<annotation>{size}{objects}</annotation>", encoding="utf-8")
        Image.new("RGB", SIZE).save(root / "JPEGImages" / f"{name}.jpg")
    set_file = root / "ImageSets" / "Main" / f"{set_name}.txt"
    set_file.write_text("\n".join(content), encoding="utf-8")
    return root


def _load(*roots: Path, **changes: Any) -> Dataset:
    settings: dict[str, Any] = {
        "format": "voc",
        "roots": roots,
        "sets": ["train"] * len(roots),
        "images": None,
        "class_names": None,
        "on_error": "stop",
        "read_images": True,
        "known": None,
    }
    return load_dataset(**{**settings, **changes})


def _ids(dataset: Dataset) -> list[str]:
    return [image.id for image in dataset.images]


def test_labels_sizes_and_order(tmp_path: Path) -> None:
    content: Content = {"b": [("dog", 1, 1, 10, 10), ("cat", 5, 6, 7, 8)], "a": []}
    dataset = _load(_voc(tmp_path / "Mine", content))
    assert dataset.name == "Mine-train"
    assert dataset.class_names == ("cat", "dog")
    assert _ids(dataset) == ["b", "a"]  # the order of the set file
    first, empty = dataset.images
    assert (first.width, first.height) == SIZE  # not the 0x0 of the annotation
    assert first.gt_boxes.tolist() == [[0, 0, 10, 10], [4, 5, 7, 8]]
    assert first.gt_labels.tolist() == [2, 1]
    assert empty.gt_boxes.shape == (0, 4)
    assert (dataset.clipped_boxes, dataset.skipped) == (0, ())


def test_classes_found_are_sorted(tmp_path: Path) -> None:
    names = [f"class {letter}" for letter in "hbgacfed"]
    dataset = _load(_voc(tmp_path, {"a": [(name, 1, 1, 9, 9) for name in names]}))
    assert dataset.class_names == tuple(sorted(names))
    assert [dataset.class_names[k - 1] for k in dataset.images[0].gt_labels] == names


def test_workers_make_no_difference(tmp_path: Path) -> None:
    root = _voc(tmp_path, {f"p{k}": [("cat", 1 + k, 1, 20, 20)] for k in range(9)})
    one, four = _load(root, workers=1), _load(root, workers=4)
    assert _ids(one) == _ids(four)
    for a, b in zip(one.images, four.images, strict=True):
        assert np.array_equal(a.gt_boxes, b.gt_boxes)


def test_turned_image_has_the_size_it_is_shown_with(tmp_path: Path) -> None:
    root = _voc(tmp_path, {"a": [("cat", 1, 1, 40, 60)]})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE).save(root / "JPEGImages" / "a.jpg", exif=exif)
    dataset = _load(root)
    assert (dataset.images[0].width, dataset.images[0].height) == (40, 60)
    assert dataset.clipped_boxes == 0


def test_boxes_are_clipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = [("cat", 0, 1, 30, 30), ("cat", 5, 5, 999, 30), ("cat", 1, 1, 60, 40)]
    dataset = _load(_voc(tmp_path, {"a": items}))
    assert dataset.images[0].gt_boxes.tolist() == [[0, 0, 30, 30], [4, 4, 60, 30], [0, 0, 60, 40]]
    assert dataset.clipped_boxes == 2
    assert "2 boxes reached outside" in caplog.text


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (("cat", 15, 2, 14, 9), "a.xml, object 2: xmax 14 < xmin 15"),
        (
            ("cat", 70, 2, 80, 9),
            "a.xml, object 2: box (69, 1, 80, 9) lies outside the 60x40 image",
        ),
    ],
)
def test_box_without_area(tmp_path: Path, item: Item, problem: str) -> None:
    root = _voc(tmp_path, {"a": [("cat", 1, 1, 9, 9), item, ("cat", 2, 2, 8, 8)]})
    with pytest.raises(AnnotationError) as caught:
        _load(root)
    assert str(caught.value) == problem
    dataset = _load(root, on_error="skip")
    assert dataset.skipped == (problem,)
    assert dataset.images[0].gt_boxes.tolist() == [[0, 0, 9, 9], [1, 1, 8, 8]]


@pytest.mark.parametrize("kind", ["no image", "broken image", "no xml", "broken xml"])
def test_image_that_cannot_be_used(tmp_path: Path, kind: str) -> None:
    root = _voc(tmp_path, {"a": [("cat", 1, 1, 9, 9)], "b": [("cat", 1, 1, 9, 9)]})
    xml = kind.endswith("xml")
    path = root / ("Annotations/a.xml" if xml else "JPEGImages/a.jpg")
    path.unlink()
    if kind.startswith("broken"):
        path.write_bytes(b"<annotation")
    with pytest.raises(AnnotationError if xml else ImageError) as caught:
        _load(root)
    assert str(caught.value).startswith(str(path))
    dataset = _load(root, on_error="skip")
    assert _ids(dataset) == ["b"]
    assert dataset.skipped == (str(caught.value),)


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    root = _voc(tmp_path, {"a": [("cat", 1, 1, 9, 9)]})
    (root / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"no image can be read; the first: .*a\.jpg"):
        _load(root, on_error="skip")
    with pytest.raises(DataError, match="no set is named"):
        _load(root, sets=[None])
    with pytest.raises(DataError, match="2 sets for 1 roots"):
        _load(root, sets=["train", "test"])


def test_without_images_nothing_is_clipped(tmp_path: Path) -> None:
    root = _voc(tmp_path, {"a": [("cat", 0, 1, 999, 30)]})
    (root / "JPEGImages" / "a.jpg").unlink()
    dataset = _load(root, read_images=False)
    image = dataset.images[0]
    assert (image.width, image.height, dataset.clipped_boxes) == (0, 0, 0)
    assert image.gt_boxes.tolist() == [[-1, 0, 999, 30]]
    assert image.path == root / "JPEGImages" / "a.jpg"


def test_given_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = [("dog", 1, 1, 9, 9), ("cat", 1, 1, 9, 9), ("cow", 9, 9, 1, 1)]
    dataset = _load(_voc(tmp_path, {"a": items}), class_names=["emu", "dog"])
    assert dataset.class_names == ("emu", "dog")
    assert dataset.images[0].gt_labels.tolist() == [2]
    assert "2 objects of other classes left out: cat 1, cow 1" in caplog.text


def test_class_names_must_differ_and_exist(tmp_path: Path) -> None:
    root = _voc(tmp_path, {"a": []})
    with pytest.raises(DataError, match="class names given twice: dog"):
        _load(root, class_names=["dog", "dog"])
    with pytest.raises(DataError, match="no class"):
        _load(root)
    assert len(_load(root, class_names=["dog"])) == 1


def test_object_without_name_is_an_error_for_given_classes_too(tmp_path: Path) -> None:
    root = _voc(tmp_path, {"a": [("", 1, 1, 9, 9)]})
    with pytest.raises(AnnotationError, match=r"a\.xml, object 1: no <name>"):
        _load(root, class_names=["cat"])


def test_two_roots(tmp_path: Path) -> None:
    one = _voc(tmp_path / "VOC2007", {"a": [("cat", 1, 1, 9, 9)], "b": []})
    two = _voc(tmp_path / "VOC2012", {"c": [("dog", 1, 1, 9, 9)]}, "trainval")
    dataset = _load(one, two, sets=["train", "trainval"])
    assert _ids(dataset) == ["a", "b", "c"]
    assert dataset.name == "VOC2007-train+VOC2012-trainval"
    assert dataset.class_names == ("cat", "dog")
    assert _ids(_load(one, two, sets=[None, "trainval"])) == ["c"]


def test_two_roots_with_the_same_ids(tmp_path: Path) -> None:
    content: Content = {"a": [("cat", 1, 1, 9, 9)]}
    one = _voc(tmp_path / "x" / "Left", {**content, "b": []})
    two = _voc(tmp_path / "x" / "Right", content)
    three = _voc(tmp_path / "y" / "Left", content)
    assert _ids(_load(one, two)) == ["Left__a", "Left__b", "Right__a"]
    assert _ids(_load(one, three)) == ["Left_1__a", "Left_1__b", "Left_2__a"]


def test_ids_are_safe_file_names(tmp_path: Path) -> None:
    root = _voc(tmp_path, {"plain": [("cat", 1, 1, 9, 9)], "Bär 熊": []})
    for folder, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        (root / folder / "sub").mkdir()
        (root / folder / f"plain.{suffix}").rename(root / folder / "sub" / f"x.{suffix}")
    set_file = root / "ImageSets" / "Main" / "train.txt"
    set_file.write_text("sub/x\nBär 熊\n", encoding="utf-8")
    dataset = _load(root)
    assert _ids(dataset) == ["sub__x", "Bär 熊"]
    assert dataset.images[0].path == root / "JPEGImages" / "sub" / "x.jpg"


def test_coco(tmp_path: Path) -> None:
    data = {
        "images": [{"id": 9, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "categories": [
            {"id": 80, "name": "dog"},
            {"id": 5, "name": "cat"},
            {"id": 1, "name": "pets"},
        ],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 80, "bbox": [50, 1, 20, 4]},
            {"id": 2, "image_id": 9, "category_id": 5, "bbox": [0, 0, 5, 5], "iscrowd": 1},
        ],
    }
    (tmp_path / "train.json").write_text(json.dumps(data))
    for name in ("a.png", "b.png"):
        Image.new("RGB", SIZE).save(tmp_path / name)
    dataset = _load(tmp_path, format="coco")
    assert dataset.class_names == ("cat", "dog")  # no object is of the class "pets"
    assert _ids(dataset) == ["a", "b"]
    assert dataset.images[0].gt_labels.tolist() == [2, 1]
    assert dataset.images[0].gt_boxes.tolist() == [[50, 1, 60, 5], [0, 0, 5, 5]]
    assert dataset.images[0].difficult.tolist() == [False, True]
    assert dataset.clipped_boxes == 1


def test_rounding_is_not_counted_as_clipping(tmp_path: Path) -> None:
    annotation = {"id": 1, "image_id": 9, "category_id": 5, "bbox": [50, 1, 10.004, 4]}
    data = {
        "images": [{"id": 9, "file_name": "a.png"}],
        "categories": [{"id": 5, "name": "cat"}],
        "annotations": [annotation],
    }
    (tmp_path / "train.json").write_text(json.dumps(data))
    Image.new("RGB", SIZE).save(tmp_path / "a.png")
    dataset = _load(tmp_path, format="coco")
    assert dataset.clipped_boxes == 0
    assert dataset.images[0].gt_boxes[0, 2] == SIZE[0]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of every image that is decoded."""
    names: list[str] = []

    def count(data: bytes, path: Path, **bounds: int) -> Any:
        names.append(Path(path).name)
        return decode(data, path, **bounds)

    monkeypatch.setattr("sppdet.io.image_cache.decode", count)
    return names


def test_known_images_are_not_decoded_again(tmp_path: Path, decoded: list[str]) -> None:
    root = _voc(tmp_path / "set", {"a": [("cat", 1, 1, 9, 9)], "b": []})
    store = tmp_path / "cache" / "images.json"
    known = ImageCache.load(store)  # there is none yet
    first = _load(root, known=known)
    assert sorted(decoded) == ["a.jpg", "b.jpg"]
    known.save(store)
    decoded.clear()
    again = ImageCache.load(store)
    second = _load(root, known=again)
    assert decoded == []
    assert [(i.width, i.height) for i in second.images] == [SIZE, SIZE]
    path = first.images[0].path
    assert again.digest(path) == known.digest(path)
    assert len(again) == 2


def test_changed_image_is_read_again(tmp_path: Path, decoded: list[str]) -> None:
    path = tmp_path / "a.bmp"
    Image.new("RGB", SIZE).save(path)
    cache = ImageCache()
    before = cache.look(path)
    cache.save(tmp_path / "images.json")
    Image.new("RGB", SIZE, (9, 9, 9)).save(path)  # the same number of bytes
    os.utime(path, ns=(before.mtime_ns, before.mtime_ns))  # and, for all that tells, as old
    again = ImageCache.load(tmp_path / "images.json")
    assert again.look(path).file_bytes == before.file_bytes
    assert again.digest(path) != before.digest
    assert len(decoded) == 2


def test_undecodable_image_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"nothing")
    cache = ImageCache()
    with pytest.raises(ImageError, match="can't be decoded"):
        cache.look(path)
    assert len(cache) == 0
    with pytest.raises(ImageError, match="no such file"):
        cache.digest(tmp_path / "gone.png")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 2, "images": {"a": {"width": 1}}}', '{"version": 2}']
)
def test_damaged_cache_is_empty(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "images.json"
    path.write_text(text)
    assert len(ImageCache.load(path)) == 0
    assert "damaged" in caplog.text


def test_cache_of_another_version_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "images.json"
    path.write_text('{"version": 0, "images": {"a": "b"}}')
    assert len(ImageCache.load(path)) == 0


@pytest.mark.parametrize(("name", "classes"), [("frk5", 5), ("fddb", 1)])
def test_real_sets(name: str, classes: int) -> None:
    folder = os.environ.get("SPPDET_DATA")
    root = Path(folder or ".") / "data" / name
    if folder is None or not root.is_dir():
        pytest.skip(f"SPPDET_DATA names no folder with data/{name}")
    dataset = _load(root, sets=["test"], workers=2)
    assert len(dataset.class_names) == classes
    assert len(dataset) > 100
    assert all(image.width > 0 and image.height > 0 for image in dataset.images)

"""The demo set: the same bytes for a seed, boxes in their images, a layout the readers take."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sppdet.demo.scene import CLASS_NAMES, CLASSES, DIFFICULT_BELOW, DemoObject, draw_scene
from sppdet.demo.set import MANIFEST, make_demo_set
from sppdet.errors import DataError
from sppdet.io.dataset import load_dataset
from sppdet.io.images import read_image
from sppdet.io.voc import read_voc_annotation
from sppdet.types import Dataset


def small_set(root: Path, *, seed: int = 0) -> Path:
    return make_demo_set(root, seed=seed, train_images=3, test_images=2, fresh_images=2)


def load(root: Path, split: str) -> Dataset:
    return load_dataset(
        format="voc",
        roots=[root],
        sets=[split],
        images=None,
        class_names=None,
        on_error="stop",
        read_images=True,
        known=None,
    )


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    first, second = small_set(tmp_path / "a"), small_set(tmp_path / "b")
    assert contents(first) == contents(second)


def test_other_seed_other_images(tmp_path: Path) -> None:
    first, second = contents(small_set(tmp_path / "a")), contents(small_set(tmp_path / "b", seed=1))
    assert first.keys() == second.keys()
    images = [name for name in first if name.endswith(".jpg")]
    assert len(images) == 7
    assert all(first[name] != second[name] for name in images)


def test_images_do_not_depend_on_the_counts(tmp_path: Path) -> None:
    few = small_set(tmp_path / "few")
    more = make_demo_set(tmp_path / "more", seed=0, train_images=5, test_images=2, fresh_images=0)
    for a, b in (("000001", "000001"), ("000004", "000006")):  # first of trainval, of test
        name = f"JPEGImages/{a}.jpg"
        assert (few / name).read_bytes() == (more / f"JPEGImages/{b}.jpg").read_bytes()


def test_layout(tmp_path: Path) -> None:
    root = small_set(tmp_path / "set")
    train, test = load(root, "trainval"), load(root, "test")
    assert [image.id for image in train.images] == ["000001", "000002", "000003"]
    assert [image.id for image in test.images] == ["000004", "000005"]
    assert sorted(path.name for path in (root / "fresh").iterdir()) == ["000006.jpg", "000007.jpg"]
    assert len(list((root / "JPEGImages").iterdir())) == 5
    assert len(list((root / "Annotations").iterdir())) == 5


def test_annotations_are_the_scene(tmp_path: Path) -> None:
    root = small_set(tmp_path / "set")
    for split_index, (split, first) in enumerate((("trainval", 1), ("test", 4))):
        for index, image in enumerate(load(root, split).images):
            pixels, objects = draw_scene(np.random.default_rng([0, split_index, index]))
            assert image.id == f"{first + index:06d}"
            assert image.gt_boxes.tolist() == [list(item.box) for item in objects]
            assert image.difficult.tolist() == [item.difficult for item in objects]
            assert image.truncated.tolist() == [item.truncated for item in objects]
            stored = read_voc_annotation(root / "Annotations" / f"{image.id}.xml")
            assert [item.name for item in stored.objects] == [item.name for item in objects]
            loss = np.abs(read_image(image.path).astype(float) - pixels.astype(float)).mean()
            assert loss < 6  # what JPEG changes


def test_scenes_are_valid_and_varied() -> None:
    names: set[str] = set()
    hidden = 0
    for number in range(60):
        image, objects = draw_scene(np.random.default_rng(number))
        height, width = image.shape[:2]
        assert image.dtype == np.uint8
        assert 224 <= min(height, width) < max(height, width) <= 400
        assert 1 <= len(objects) <= 4
        for item in objects:
            x1, y1, x2, y2 = item.box
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
            assert min(x2 - x1, y2 - y1) >= 20
            assert 0.3 <= item.visible <= 1
        names.update(item.name for item in objects)
        hidden += sum(item.truncated for item in objects)
    assert names == set(CLASS_NAMES)
    assert hidden > 5


def test_flags_follow_the_visible_share() -> None:
    shares = (1.0, 0.8, 0.79, DIFFICULT_BELOW, 0.49)
    objects = [DemoObject("disc", (0, 0, 40, 40), share) for share in shares]
    assert [item.truncated for item in objects] == [False, False, True, True, True]
    assert [item.difficult for item in objects] == [False, False, False, False, True]


def test_every_class_in_both_splits(tmp_path: Path) -> None:
    root = make_demo_set(tmp_path / "s", seed=3, train_images=40, test_images=30, fresh_images=0)
    for split in ("trainval", "test"):
        assert load(root, split).class_names == CLASS_NAMES


def test_shapes_fill_the_unit_circle() -> None:
    v, u = np.mgrid[-1.2:1.2:121j, -1.2:1.2:121j].astype(np.float32)
    for name, (shape, pattern) in CLASSES.items():
        inside = shape(u, v) < 0
        assert 0.15 < inside.mean() < 0.6, name
        assert np.hypot(u, v)[inside].max() < 1.15, name
        mix = pattern(u, v, np.random.default_rng(0))
        assert mix.min() >= 0 and mix.max() <= 1, name
        assert mix[inside].std() > 0.2, name


def test_a_complete_set_is_left_alone(tmp_path: Path) -> None:
    root = small_set(tmp_path / "set")
    marked = root / "JPEGImages" / "000001.jpg"
    marked.write_bytes(b"ours")
    assert small_set(root) == root
    assert marked.read_bytes() == b"ours"


@pytest.mark.parametrize("how", ["lost file", "cut short"])
def test_an_incomplete_set_is_painted_again(tmp_path: Path, how: str) -> None:
    root = small_set(tmp_path / "set")
    whole = contents(root)
    (root / "JPEGImages" / "000002.jpg").unlink()
    if how == "cut short":
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        (root / MANIFEST).write_text(json.dumps({**manifest, "complete": False}), encoding="utf-8")
        (root / "JPEGImages" / "000002.jpg").write_bytes(b"half")
    small_set(root)
    assert contents(root) == whole


def test_another_set_is_not_overwritten(tmp_path: Path) -> None:
    root = small_set(tmp_path / "set")
    with pytest.raises(DataError, match=r"'seed': 0.*expected.*'seed': 1"):
        small_set(root, seed=1)


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DataError, match="expected an empty folder"):
        small_set(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_negative_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected >= 0"):
        make_demo_set(tmp_path / "set", seed=0, test_images=-1)

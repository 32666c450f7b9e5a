"""Folders named by class, draws from them, and what training does to an image."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from images import save_image, shape_folders, shape_sets
from samples import random_image
from sppdet.classification.config import AugmentConfig, FolderConfig
from sppdet.classification.data import (
    LabelledImages,
    augmented,
    read_folder,
    read_sets,
    split_classes,
    training_batches,
)
from sppdet.errors import DataError, ImageError
from sppdet.io.images import read_image
from sppdet.randomness import rng
from sppdet.types import ImageArray

PLAIN = AugmentConfig(resize=40, crop=32, flip=False, colour=0.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train` with 5 images of three classes, `val` with 3; not to be changed."""
    return shape_sets(tmp_path_factory.mktemp("folders"), train=5, val=3)


def small_image(seed: int = 0) -> ImageArray:
    return random_image(np.random.default_rng(seed), width=8, height=6)


def names(images: LabelledImages) -> list[str]:
    return [f"{path.parent.name}/{path.name}" for path in images.paths]


def by_class(images: LabelledImages) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: [] for name in images.class_names}
    for path, label in zip(images.paths, images.labels.tolist(), strict=True):
        assert path.parent.name == images.class_names[label]
        found[images.class_names[label]].append(path.name)
    return found


def test_classes_and_images_are_sorted(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.png", "a/x.png", "c/deep/er/y.png", ".hidden/z.png"):
        save_image(tmp_path / name, small_image())
    (tmp_path / "b" / "notes.txt").write_text("no image")
    (tmp_path / "list.csv").write_text("no folder")
    found = read_folder(tmp_path)
    assert found.class_names == ("a", "b", "c") and found.name == tmp_path.name
    assert names(found) == ["a/x.png", "b/10.png", "b/2.png", "er/y.png"]
    assert found.labels.tolist() == [0, 1, 1, 2] and len(found) == 4


def test_labels_are_those_of_the_training_set(tmp_path: Path) -> None:
    save_image(tmp_path / "b" / "1.png", small_image())
    save_image(tmp_path / "c" / "1.png", small_image())
    found = read_folder(tmp_path, ("a", "b", "c"))
    assert found.class_names == ("a", "b", "c") and found.labels.tolist() == [1, 2]
    with pytest.raises(DataError, match=r"/c: no such class in the training set"):
        read_folder(tmp_path, ("a", "b"))


def test_what_is_no_folder_of_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/none: no such folder"):
        read_folder(tmp_path / "none")
    save_image(tmp_path / "loose.png", small_image())
    with pytest.raises(DataError, match="no folders in it; expected one a class"):
        read_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"/empty: no images found"):
        read_folder(tmp_path)


def test_two_draws_have_nothing_in_common(folders: Path) -> None:
    whole = read_folder(folders / "train")
    one, two = split_classes(whole, first=2, second=2, seed=4)
    counts = [Counter(part.labels.tolist()) for part in (one, two)]
    assert counts[0] == counts[1] == {0: 2, 1: 2, 2: 2}
    assert not set(one.paths) & set(two.paths)
    assert list(one.paths) == sorted(one.paths)
    by_class(one), by_class(two)  # the labels fit
    _, rest = split_classes(whole, first=2, second=None, seed=4)
    assert set(one.paths) | set(rest.paths) == set(whole.paths) and len(rest) == 9
    everything, nothing = split_classes(whole, first=None, second=3, seed=4)
    assert everything.paths == whole.paths and len(nothing) == 0
    more, few = split_classes(whole, first=4, second=4, seed=4)
    assert (len(more), len(few)) == (12, 3)


def test_a_draw_comes_from_its_seed(folders: Path) -> None:
    whole = read_folder(folders / "train")
    draws = [names(split_classes(whole, first=2, second=0, seed=seed)[0]) for seed in range(6)]
    assert draws[0] == names(split_classes(whole, first=2, second=0, seed=0)[0])
    assert len({tuple(draw) for draw in draws}) > 1


def test_a_class_has_the_same_draw_whatever_other_classes_there_are(
    folders: Path, tmp_path: Path
) -> None:
    (tmp_path / "square").symlink_to(folders / "train" / "square")
    save_image(tmp_path / "zebra" / "1.png", small_image())
    whole, other = read_folder(folders / "train"), read_folder(tmp_path)
    one, two = (by_class(split_classes(x, first=2, second=0, seed=1)[0]) for x in (whole, other))
    assert one["square"] == two["square"] and len(two["zebra"]) == 1


def test_both_sets(folders: Path) -> None:
    training, validation = read_sets(FolderConfig(root=folders), workers=2)
    assert validation is not None
    assert (len(training), len(validation)) == (15, 9)
    assert training.class_names == validation.class_names == ("cross", "disc", "square")
    assert {path.parent.parent for path in validation.paths} == {folders / "val"}
    few = FolderConfig(root=folders, train_per_class=2, val_per_class=1)
    training, validation = read_sets(few, workers=1)
    assert validation is not None and (len(training), len(validation)) == (6, 3)
    alone, none = read_sets(FolderConfig(root=folders, val=None), workers=1)
    assert none is None and len(alone) == 15


def test_both_sets_from_one_folder(folders: Path) -> None:
    config = FolderConfig(
        root=folders / "train", train=".", val=".", train_per_class=3, val_per_class=1
    )
    training, validation = read_sets(config, workers=1)
    assert validation is not None and (len(training), len(validation)) == (9, 3)
    assert not set(training.paths) & set(validation.paths)
    greedy = config.model_copy(update={"train_per_class": 5})
    with pytest.raises(DataError, match="no images are left for validation"):
        read_sets(greedy, workers=1)
    with pytest.raises(ValueError, match="train_per_class: expected where train and val are the"):
        FolderConfig(root=folders, train="train", val="train")


@pytest.mark.parametrize("part", ["train", "val"])
def test_broken_images(part: str, tmp_path: Path) -> None:
    for folder in ("train", "val"):
        shape_folders(tmp_path / folder, count=2, seed=3)
    broken = tmp_path / part / "disc" / "000.png"
    broken.write_bytes(b"\x89PNG and no more")
    training, validation = read_sets(FolderConfig(root=tmp_path, on_error="skip"), workers=2)
    assert validation is not None
    damaged, whole = (training, validation) if part == "train" else (validation, training)
    assert (len(damaged), len(whole)) == (5, 6)
    assert broken not in damaged.paths and by_class(damaged)["disc"] == ["001.png"]
    assert damaged.skipped == (f"{broken}: can't be decoded as an image",)
    assert whole.skipped == ()
    stopping, _ = read_sets(FolderConfig(root=tmp_path, val=None), workers=1)
    if part == "train":  # found when it is used
        rows = [np.arange(len(stopping))]
        batches = training_batches(stopping, rows, PLAIN, size=32, key=(0, 0), workers=2)
        with pytest.raises(ImageError, match=r"000\.png: can't be decoded"):
            list(batches)


# -- what training does to an image -------------------------------------------------------------


def coordinates(*, width: int, height: int) -> ImageArray:
    """An image whose red is the column and whose green is the row."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[:, :, 0], image[:, :, 1] = np.arange(width), np.arange(height)[:, None]
    return image


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 70), (40, 40)])
@pytest.mark.parametrize("choice", ["random", "five"])
def test_crops_lie_inside(width: int, height: int, choice: str) -> None:
    image = coordinates(width=width, height=height)  # the shorter side is `resize` already
    config = PLAIN.model_copy(update={"crop_choice": choice})
    rng = np.random.default_rng(0)
    corners = set()
    for _ in range(400):
        crop = augmented(image, config, size=32, rng=rng)
        assert crop.shape == (32, 32, 3) and crop.dtype == np.float32
        left, top = crop[0, 0, :2].astype(int).tolist()
        assert np.array_equal(crop, image[top : top + 32, left : left + 32])
        corners.add((left, top))
    room = width - 32, height - 32
    five = {(room[0] // 2, room[1] // 2), *((x, y) for x in (0, room[0]) for y in (0, room[1]))}
    if choice == "five":
        assert corners == five
    else:
        assert len(corners) > 60
        lefts, tops = ({corner[axis] for corner in corners} for axis in (0, 1))
        assert {0, room[0]} <= lefts and {0, room[1]} <= tops  # both ends are drawn


def test_half_of_the_crops_are_mirrored() -> None:
    image = coordinates(width=40, height=40)
    config = AugmentConfig(resize=40, crop=40, flip=True, colour=0.0)
    crops = [
        augmented(image, config, size=40, rng=np.random.default_rng(seed)) for seed in range(200)
    ]
    mirrored = [np.array_equal(crop, image[:, ::-1]) for crop in crops]
    plain = [np.array_equal(crop, image) for crop in crops]
    assert all(a != b for a, b in zip(mirrored, plain, strict=True))
    assert 70 < sum(mirrored) < 130


@pytest.mark.parametrize("size", [32, 24, 50])
def test_a_crop_is_resized(size: int) -> None:
    image = random_image(np.random.default_rng(1), width=80, height=100)
    config = AugmentConfig(resize=32, crop=32, flip=False, colour=0.0)
    crop = augmented(image, config, size=size, rng=np.random.default_rng(0))
    larger = cv2.resize(image, (32, 40), interpolation=cv2.INTER_AREA)
    kind = cv2.INTER_AREA if size < 32 else cv2.INTER_LINEAR
    expected = [
        cv2.resize(larger[top : top + 32], (size, size), interpolation=kind) for top in range(9)
    ]
    assert any(np.array_equal(crop, other) for other in expected)


def test_colours_move_along_the_principal_components() -> None:
    # eigenvalues and eigenvectors of ImageNet's RGB / 255, as published with AlexNet's successors
    deviations = np.array([0.2175, 0.0188, 0.0045])
    first = np.array([-0.5675, -0.5808, -0.5836])
    second = np.array([0.7192, -0.0045, -0.6948])
    third = np.array([0.4009, -0.8140, 0.4203])
    image = random_image(np.random.default_rng(1), width=40, height=40)
    config = AugmentConfig(resize=40, crop=40, flip=False, colour=0.1)
    shifts = []
    for seed in range(400):
        crop = augmented(image, config, size=40, rng=np.random.default_rng(seed))
        change = crop - image
        assert np.ptp(change.reshape(-1, 3), axis=0).max() < 1e-3  # the same everywhere
        shifts.append(change[0, 0])
    along = np.array(shifts) @ np.stack([first, second, third], axis=1)
    np.testing.assert_allclose(along.std(axis=0), 0.1 * 255 * deviations, rtol=0.12)
    assert np.abs(along.mean(axis=0)).max() < 0.3 * along.std(axis=0).max()
    assert np.abs(np.corrcoef(along.T) - np.eye(3)).max() < 0.2


def test_the_same_seed_the_same_crop() -> None:
    image = random_image(np.random.default_rng(1), width=60, height=50)
    config = AugmentConfig(resize=40, crop=32)
    one, two, other = (
        augmented(image, config, size=32, rng=np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert np.array_equal(one, two) and not np.array_equal(one, other)


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="crop: 41 is more than resize 40"):
        AugmentConfig(resize=40, crop=41)


def test_batches(folders: Path) -> None:
    images = read_folder(folders / "train")
    rows = [np.array([3, 11, 0]), np.array([], dtype=np.int64), np.array([14, 3])]
    config = AugmentConfig(resize=40, crop=32)
    made = list(training_batches(images, rows, config, size=24, key=(5, 2), workers=2))
    assert [labels.tolist() for _, labels in made] == [[0, 2, 0], [2, 0]]
    assert [tuple(x.shape) for x, _ in made] == [(3, 3, 24, 24), (2, 3, 24, 24)]
    assert torch.equal(made[0][0][0], made[1][0][1])  # what happens to an image is the epoch's
    crop = augmented(
        read_image(images.paths[11]), config, size=24, rng=rng(5, "augmentation", 2, 11)
    )
    expected = (crop / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(
        made[0][0][1].permute(1, 2, 0).numpy(), expected, rtol=1e-4, atol=1e-5
    )


def test_batches_are_the_same_for_any_number_of_workers(folders: Path) -> None:
    images = read_folder(folders / "train")
    rows = np.array_split(np.random.default_rng(0).permutation(15), 4)
    config = AugmentConfig(resize=40, crop=32)
    found = [
        torch.cat(
            [
                x
                for x, _ in training_batches(
                    images, rows, config, size=32, key=key, workers=workers
                )
            ]
        )
        for key, workers in (((0, 1), 1), ((0, 1), 4), ((0, 2), 1), ((1, 1), 1))
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2]) and not torch.equal(found[0], found[3])


def test_an_image_that_can_not_be_resized_is_named(tmp_path: Path) -> None:
    path = save_image(tmp_path / "strips" / "strip.png", np.zeros((1, 1_000_000, 3), np.uint8))
    images = read_folder(tmp_path)
    config = AugmentConfig(resize=16_000, crop=32)
    batches = training_batches(images, [np.array([0])], config, size=32, key=(0, 0), workers=0)
    with pytest.raises(ImageError, match=f"^{path}: 1000000x1 pixels can't be resized by 16000"):
        next(batches)

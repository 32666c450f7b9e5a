"""Numbers of the checks of a data set, against loops and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sppdet.boxes import box_iou
from sppdet.evaluation.dataset_check import (
    alike_names,
    class_numbers,
    repeats,
    same_boxes,
    shapes,
)
from sppdet.evaluation.similar_images import (
    MAX_BITS,
    MAX_COLOUR,
    differences,
    group_near_duplicates,
    look_of,
)
from sppdet.proposals.recall import best_ious
from sppdet.types import AnnotatedImage


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    low = rng.integers(0, 60, (count, 2))
    return np.hstack([low, low + rng.integers(1, 60, (count, 2))]).astype(np.float32)


def random_image(rng: np.random.Generator, name: str, classes: int) -> AnnotatedImage:
    count = int(rng.integers(0, 7))
    return AnnotatedImage(
        id=name,
        path=Path(name),
        width=int(rng.integers(120, 200)),
        height=int(rng.integers(120, 200)),
        gt_boxes=random_boxes(rng, count),
        gt_labels=rng.integers(1, classes + 1, count),
        difficult=rng.random(count) < 0.3,
        truncated=np.zeros(count, np.bool_),
    )


def test_numbers_of_classes_against_a_loop(rng: np.random.Generator) -> None:
    names = ("a", "b", "never")
    sets = [[random_image(rng, f"{k}{j}", 2) for j in range(9)] for k in range(2)]
    for label, one in enumerate(class_numbers(sets, names), start=1):
        sides, fractions = [], []
        for k, images in enumerate(sets):
            objects = difficult = present = 0
            for image in images:
                here = False
                for box, own, aside in zip(
                    image.gt_boxes.tolist(), image.gt_labels, image.difficult, strict=True
                ):
                    if own != label:
                        continue
                    here = True
                    objects, difficult = objects + (not aside), difficult + bool(aside)
                    area = (box[2] - box[0]) * (box[3] - box[1])
                    sides.append(area**0.5)
                    fractions.append(area / (image.width * image.height))
                present += here
            assert (one.objects[k], one.difficult[k], one.images[k]) == (
                objects,
                difficult,
                present,
            )
        if not sides:
            assert one.name == "never" and np.isnan(one.side_px).all()
            continue
        for q, value, share in zip((0.05, 0.5, 0.95), one.side_px, one.fraction, strict=True):
            assert value == pytest.approx(np.quantile(sides, q))
            assert share == pytest.approx(np.quantile(fractions, q))


def test_alike_names() -> None:
    names = [
        "cat",
        "Cat",
        "c at",
        "dog",
        "traffic_light",
        "traffic light",
        "\ufb01sh",
        "fish",
        "dogs",
    ]
    assert alike_names(names) == [
        ("cat", "Cat", "c at"),
        ("traffic_light", "traffic light"),
        ("\ufb01sh", "fish"),
    ]
    assert alike_names([]) == []


def test_shapes_by_hand() -> None:
    # 400 x 200 is searched as 200 x 100: halved
    boxes = np.array(
        [[0, 0, 40, 38], [0, 0, 40, 40], [0, 0, 400, 180], [0, 0, 300, 30]], np.float32
    )
    one = shapes(boxes, width=400, height=200, image_width=200, min_size=20)
    assert one.searched_px.tolist() == [19, 20, 90, 15]
    assert one.tiny.tolist() == [True, False, False, True]
    assert one.fraction[2] == pytest.approx(0.9) and one.huge.tolist() == [
        False,
        False,
        True,
        False,
    ]
    assert one.aspect[3] == 10 and one.thin.tolist() == [False, False, False, True]
    none = shapes(boxes[:0], width=400, height=200, image_width=200, min_size=20)
    assert len(none.tiny) == len(none.huge) == len(none.thin) == 0


def test_same_boxes_against_a_loop(rng: np.random.Generator) -> None:
    boxes = random_boxes(rng, 30)
    boxes[10:20] = boxes[:10] + rng.integers(0, 2, (10, 4)).astype(np.float32)
    labels = rng.integers(1, 3, 30)
    wanted = [
        (i, j, labels[i] == labels[j])
        for i in range(30)
        for j in range(i + 1, 30)
        if box_iou(boxes[[i]], boxes[[j]])[0, 0] >= 0.9
    ]
    assert same_boxes(boxes, labels) == wanted and len(wanted) > 3
    assert same_boxes(boxes[:0], labels[:0]) == []


def test_best_ious_against_a_loop(rng: np.random.Generator) -> None:
    objects, proposals = random_boxes(rng, 6), random_boxes(rng, 20)
    wanted = [max(box_iou(objects[[i]], proposals[[j]])[0, 0] for j in range(20)) for i in range(6)]
    assert best_ious(objects, proposals).tolist() == wanted
    assert best_ious(objects, proposals[:0]).tolist() == [0] * 6
    assert len(best_ious(objects[:0], proposals)) == 0


def test_repeats_by_hand() -> None:
    content = ["a", "b", "a", "c", "d", "a", "e"]
    sets = ["train", "train", "train", "test", "train", "test", "train"]
    groups = np.array([0, 1, 0, 1, 2, 0, 2])
    found = [(one.rows, one.near, one.crosses) for one in repeats(content, groups, sets)]
    assert found == [
        ((0, 5, 2), False, True),  # begins with two of different sets
        ((1, 3), True, True),
        ((4, 6), True, False),
    ]
    # a group of near-duplicates that cross only in the same content crosses as a copy
    found = [
        (one.rows, one.near, one.crosses)
        for one in repeats(["a", "a", "b"], np.zeros(3, np.int64), ["train", "test", "train"])
    ]
    assert found == [((0, 1), False, True), ((1, 2, 0), True, True)]
    assert repeats([], np.zeros(0, np.int64), []) == []


def test_groups_of_near_duplicates_against_a_loop(rng: np.random.Generator) -> None:
    images = [rng.integers(0, 256, (40, 50, 3)).astype(np.uint8) for _ in range(6)]
    images += [np.clip(image.astype(int) + 6, 0, 255).astype(np.uint8) for image in images[:3]]
    looks = [None if k == 4 else look_of(image) for k, image in enumerate(images)]
    groups = list(range(9))
    for i in range(9):
        for j in range(9):
            a, b = looks[i], looks[j]
            if a is None or b is None:
                continue
            bits, colours = differences(a, b)
            if bits <= MAX_BITS and colours <= MAX_COLOUR:
                groups = [groups[i] if group == groups[j] else group for group in groups]
    result = group_near_duplicates(looks).tolist()
    for i in range(9):
        for j in range(9):
            assert (result[i] == result[j]) == (groups[i] == groups[j])
    assert len(set(result)) == 6

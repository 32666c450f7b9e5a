"""Labels, negatives and thinning out, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation_samples import make_image
from sppdet.boxes import box_iou
from sppdet.training.sampling import IGNORED, draw, label_boxes, negatives_of_class, thin_out
from sppdet.types import Boxes


def boxes_of_iou(*ious: float) -> Boxes:
    """Boxes inside (0, 0, 100, 100) whose IoU with it is as asked."""
    return np.array([[0, 0, 100, 100 * iou] for iou in ious], np.float32)


ONE = make_image("a", [(2, (0, 0, 100, 100))])


def labels(
    boxes: Boxes, image: object = ONE, negative: tuple[float, float] = (0.1, 0.5)
) -> list[int]:
    found = label_boxes(boxes, image, positive_iou=0.5, negative_iou=negative)  # type: ignore[arg-type]
    assert found.dtype == np.int64
    as_list: list[int] = found.tolist()
    return as_list


def test_bounds_are_half_open() -> None:
    boxes = boxes_of_iou(1.0, 0.5, 0.49, 0.1, 0.09)
    far = np.array([[200, 200, 210, 210]], np.float32)
    assert labels(np.concatenate([boxes, far])) == [2, 2, 0, 0, IGNORED, IGNORED]


def test_between_the_bounds_is_ignored() -> None:
    assert labels(boxes_of_iou(0.6, 0.4, 0.2), negative=(0.1, 0.3)) == [2, IGNORED, 0]
    far = np.array([[200, 200, 210, 210]], np.float32)
    assert labels(far, negative=(0.0, 0.5)) == [0]


def test_the_object_of_greatest_iou_gives_the_label() -> None:
    image = make_image("a", [(1, (0, 0, 10, 10)), (3, (2, 0, 12, 10)), (2, (2, 0, 12, 10))])
    boxes = np.array([[0, 0, 10, 10], [2, 0, 12, 10], [1, 0, 11, 10]], np.float32)
    assert labels(boxes, image) == [1, 3, 1]  # ties take the earlier


def test_difficult_objects_count_neither_way() -> None:
    image = make_image("a", [(1, (0, 0, 10, 10)), (2, (20, 0, 30, 10))], [False, True])
    boxes = np.array(
        [[0, 0, 10, 10], [20, 0, 30, 10], [20, 0, 30, 3], [20, 0, 30, 0.5], [0, 0, 10, 3]],
        np.float32,
    )
    assert labels(boxes, image) == [1, IGNORED, IGNORED, IGNORED, 0]


def test_no_objects() -> None:
    empty = make_image("a", [])
    assert labels(boxes_of_iou(1.0, 0.5), empty) == [IGNORED, IGNORED]
    assert labels(boxes_of_iou(1.0, 0.5), empty, (0.0, 0.5)) == [0, 0]
    assert labels(np.zeros((0, 4), np.float32)) == []


def test_negatives_of_a_class() -> None:
    image = make_image("a", [(1, (0, 0, 10, 10)), (2, (50, 0, 60, 10))], [False, True])
    boxes = np.array(
        [[0, 0, 10, 3], [0, 0, 10, 2.9], [0, 0, 10, 10], [50, 0, 60, 10], [90, 90, 99, 99]],
        np.float32,
    )
    assert negatives_of_class(boxes, image, 1, max_iou=0.3).tolist() == [
        False,
        True,
        False,
        True,
        True,
    ]
    assert negatives_of_class(boxes, image, 2, max_iou=0.3).tolist() == [True] * 3 + [False, True]
    assert negatives_of_class(boxes, image, 3, max_iou=0.3).tolist() == [True] * 5
    assert negatives_of_class(boxes[:0], image, 1, max_iou=0.3).shape == (0,)


def test_thinned_out_in_the_given_order(rng: np.random.Generator) -> None:
    for _ in range(5):
        corner = rng.integers(0, 20, (40, 2))
        boxes = np.hstack([corner, corner + rng.integers(10, 20, (40, 2))]).astype(np.float32)
        chosen = rng.random(40) < 0.7
        kept: list[int] = []
        for row in np.flatnonzero(chosen).tolist():
            if all(box_iou(boxes[[row]], boxes[[k]])[0, 0] <= 0.4 for k in kept):
                kept.append(row)
        assert np.flatnonzero(thin_out(boxes, chosen, max_iou=0.4)).tolist() == kept
        assert 0 < len(kept) < chosen.sum()


def test_an_iou_of_exactly_the_bound_is_kept() -> None:
    boxes = boxes_of_iou(1.0, 0.5, 0.5)
    assert thin_out(boxes, np.ones(3, np.bool_), max_iou=0.5).tolist() == [True, True, False]


def test_a_bound_of_one_thins_nothing() -> None:
    boxes = boxes_of_iou(1.0, 1.0)
    chosen = np.ones(2, np.bool_)
    assert thin_out(boxes, chosen, max_iou=1.0).all()
    assert not thin_out(boxes, ~chosen, max_iou=0.5).any()


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (3, 3), (9, 5)])
def test_draw_without_repeats(count: int, expected: int, rng: np.random.Generator) -> None:
    rows = np.array([4, 8, 15, 16, 23])
    drawn = draw(rows, count, rng=rng).tolist()
    assert len(drawn) == len(set(drawn)) == expected and set(drawn) <= set(rows.tolist())


def test_draw_is_even() -> None:
    rng = np.random.default_rng(0)
    counts = np.zeros(5)
    for _ in range(2000):
        counts[draw(np.arange(5), 2, rng=rng)] += 1
    np.testing.assert_allclose(counts, 800, rtol=0.1)

"""Tiles of large images, and the merging of their detections, against slow loops of the definitions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from samples import random_boxes
from sppdet.boxes import intersections
from sppdet.detection.tiles import Tile, Tiling, merge_tiles
from sppdet.types import Detections

Rows = list[tuple[list[float], float, int]]


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize(
    ("width", "height"), [(100, 64), (333, 200), (1000, 70), (65, 65), (64, 640)]
)
def test_tiles_cover_the_image_and_overlap_enough(overlap: float, width: int, height: int) -> None:
    side = 64
    *tiles, whole = Tiling(side, overlap).tiles(width=width, height=height)
    assert whole == (0, 0, width, height)
    covered = np.zeros((height, width), dtype=int)
    for x1, y1, x2, y2 in tiles:
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        assert (x2 - x1, y2 - y1) == (min(side, width), min(side, height))
        covered[y1:y2, x1:x2] += 1
    assert covered.min() >= 1
    for low, high, length in ((0, 2, width), (1, 3, height)):
        starts = sorted({tile[low] for tile in tiles})
        assert starts[0] == 0 and max(tile[high] for tile in tiles) == length
        steps = np.diff(starts)
        assert (steps <= side * (1 - overlap)).all()
        if len(starts) > 1:  # as few as there can be: one less would be too far apart
            step = int(side * (1 - overlap))
            assert (len(starts) - 2) * step < length - side
            assert steps.max() - steps.min() <= 1


def test_an_object_no_larger_than_the_overlap_is_whole_in_a_tile() -> None:
    *tiles, _ = Tiling(100, 0.3).tiles(width=517, height=389)
    shared = 30
    for x in range(517 - shared + 1):
        assert any(x1 <= x and x + shared <= x2 for x1, _, x2, _ in tiles)
    for y in range(389 - shared + 1):
        assert any(y1 <= y and y + shared <= y2 for _, y1, _, y2 in tiles)


def test_small_images_are_whole_alone() -> None:
    assert Tiling(64).tiles(width=64, height=64) == [(0, 0, 64, 64)]
    assert Tiling(64).tiles(width=9, height=1) == [(0, 0, 9, 1)]
    assert len(Tiling(64).tiles(width=65, height=9)) == 3


@pytest.mark.parametrize(
    ("side", "overlap"), [(31, 0.2), (64, -0.1), (64, 0.91), (64, float("nan"))]
)
def test_tilings_that_are_refused(side: int, overlap: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        Tiling(side, overlap)


def test_shared_areas(rng: np.random.Generator) -> None:
    boxes = random_boxes(rng, 12, width=20, height=20, whole=True)
    area = intersections(boxes[:5], boxes[5:])
    for i in range(5):
        for j in range(7):
            masks = np.zeros((2, 20, 20), dtype=bool)
            for mask, box in zip(masks, (boxes[i], boxes[5 + j]), strict=True):
                x1, y1, x2, y2 = box.astype(int).tolist()
                mask[y1:y2, x1:x2] = True
            assert area[i, j] == np.logical_and(*masks).sum()


# -- merging ---------------------------------------------------------------------------------------


def detections(*rows: tuple[list[float], float, int]) -> Detections:
    return Detections(
        np.array([row[0] for row in rows], dtype=np.float32).reshape(-1, 4),
        np.array([row[1] for row in rows], dtype=np.float32),
        np.array([row[2] for row in rows], dtype=np.int64),
        ("a", "b"),
    )


def area(box: list[float]) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def shared(a: list[float], b: list[float]) -> float:
    return area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])


def slow_merge(
    found: list[Detections], tiles: list[Tile], max_iou: float, width: int, height: int
) -> Rows:
    """The definition, box by box."""
    entries = []
    for one, (x1, y1, x2, y2) in zip(found, tiles, strict=True):
        for box, score, label in zip(one.boxes.tolist(), one.scores, one.labels, strict=True):
            moved = [box[0] + x1, box[1] + y1, box[2] + x1, box[3] + y1]
            near = [max(2, 0.01 * (x2 - x1)), max(2, 0.01 * (y2 - y1))]
            cut = (
                (x1 > 0 and moved[0] <= x1 + near[0])
                or (y1 > 0 and moved[1] <= y1 + near[1])
                or (x2 < width and moved[2] >= x2 - near[0])
                or (y2 < height and moved[3] >= y2 - near[1])
            )
            entries.append((cut, -float(score), moved, int(label)))
    kept: Rows = []
    for cut, negative, box, label in sorted(entries, key=lambda e: (e[0], e[1])):
        for other, _, other_label in kept:
            both = shared(box, other)
            iou = both / (area(box) + area(other) - both)
            if label == other_label and (iou > max_iou or (cut and both / area(box) >= 0.5)):
                break
        else:
            kept.append((box, -negative, label))
    return sorted(kept, key=lambda row: -row[1])


@pytest.mark.parametrize("seed", range(20))
def test_merging_is_that_of_a_slow_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height = 150, 110
    tiles = Tiling(64, 0.25).tiles(width=width, height=height)
    found = list[Detections]()
    for x1, y1, x2, y2 in tiles:
        boxes = random_boxes(rng, 8, width=x2 - x1, height=y2 - y1)
        boxes[::3] = np.floor(boxes[::3])
        boxes[::3, 2:] = np.maximum(boxes[::3, 2:], boxes[::3, :2] + 1)
        scores = np.sort(rng.permutation(1000)[:8].astype(np.float32))[::-1].copy()
        scores += np.float32(0.001 * len(found))  # no ties
        found.append(Detections(boxes, scores, rng.integers(1, 3, 8), ("a", "b")))
    merged = merge_tiles(found, tiles, max_iou=0.3, width=width, height=height)
    expected = slow_merge(found, tiles, 0.3, width, height)
    assert 0 < len(merged) == len(expected) < 8 * len(tiles)
    np.testing.assert_allclose(merged.boxes, [row[0] for row in expected], atol=1e-4)
    np.testing.assert_allclose(merged.scores, [row[1] for row in expected])
    assert merged.labels.tolist() == [row[2] for row in expected]


TWO: list[Tile] = [(0, 0, 100, 100), (80, 0, 180, 100), (0, 0, 180, 100)]


def merged(*found: Detections) -> Rows:
    one = merge_tiles(found, TWO, max_iou=0.3, width=180, height=100)
    return list(zip(one.boxes.tolist(), one.scores.tolist(), one.labels.tolist(), strict=True))


def test_the_whole_object_is_preferred_to_its_cut_part_of_higher_score() -> None:
    cut = detections(([70, 40, 100, 60], 2.0, 1))  # its right part is beyond the tile
    whole = detections(
        ([4, 40, 40, 60], 1.0, 1)
    )  # 84 to 120 in the image, where the part begins at 70
    assert merged(cut, whole, detections()) == [([84, 40, 120, 60], 1.0, 1)]


def test_an_object_larger_than_the_overlap_is_found_in_the_whole_image() -> None:
    left, right = detections(([30, 40, 100, 60], 3.0, 1)), detections(([0, 40, 60, 60], 2.0, 1))
    whole = detections(([30, 40, 140, 60], 0.5, 1))
    assert merged(left, right, whole) == [([30, 40, 140, 60], 0.5, 1)]


def test_a_cut_object_that_nothing_replaces_stays() -> None:
    left, right = detections(([30, 40, 100, 60], 3.0, 1)), detections(([0, 40, 60, 60], 2.0, 1))
    # less than half of the right part is covered
    assert merged(left, right, detections()) == [
        ([30, 40, 100, 60], 3.0, 1),
        ([80, 40, 140, 60], 2.0, 1),
    ]


def test_an_edge_of_the_image_cuts_nothing() -> None:
    at_the_edge = detections(([0, 40, 30, 60], 1.0, 1))
    inside = detections(([0, 38, 40, 62], 0.9, 1))
    assert merged(at_the_edge, detections(), inside) == [([0, 40, 30, 60], 1.0, 1)]


def test_classes_are_merged_apart() -> None:
    boxes = [50.0, 40.0, 75.0, 60.0]
    assert len(merged(detections((boxes, 1.0, 1)), detections(), detections((boxes, 0.9, 2)))) == 2


def test_probabilities_go_with_their_boxes() -> None:
    one = detections(([10, 10, 20, 20], 1.0, 1), ([30, 10, 40, 20], 0.5, 2))
    one = dataclasses.replace(one, probabilities=np.array([0.9, 0.4], np.float32))
    other = dataclasses.replace(
        detections(([60, 60, 90, 90], 0.7, 1)), probabilities=np.array([0.6], np.float32)
    )
    nothing = dataclasses.replace(detections(), probabilities=np.zeros(0, np.float32))
    found = merge_tiles([one, other, nothing], TWO, max_iou=0.3, width=180, height=100)
    assert found.probabilities is not None
    assert found.scores.tolist() == pytest.approx([1.0, 0.7, 0.5])
    assert found.probabilities.tolist() == pytest.approx([0.9, 0.6, 0.4])


def test_nothing_found_anywhere() -> None:
    assert merged(detections(), detections(), detections()) == []

"""Boxes against the devkit's inclusive formulas, slow loops and hand calculation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from samples import random_boxes
from sppdet.boxes import (
    box_iou,
    clip_boxes,
    decode_deltas,
    empty_boxes,
    encode_deltas,
    flip_boxes,
    nms,
    soft_nms,
    vote_boxes,
)
from sppdet.types import Boxes, Scores


def devkit_iou(a: list[int], b: list[int]) -> float:
    """VOCevaldet.m on 1-based inclusive boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    area_a = (a[2] - a[0] + 1) * (a[3] - a[1] + 1)
    area_b = (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
    return width * height / (area_a + area_b - width * height)


def pixels(box: list[float]) -> set[tuple[int, int]]:
    x1, y1, x2, y2 = map(int, box)
    return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}


def slow_nms(boxes: Boxes, scores: Scores, max_iou: float) -> list[int]:
    kept: list[int] = []
    for row in sorted(range(len(boxes)), key=lambda r: (-scores[r], r)):
        if all(box_iou(boxes[[row]], boxes[[k]])[0, 0] <= max_iou for k in kept):
            kept.append(row)
    return kept


def test_iou_is_the_devkits(rng: np.random.Generator) -> None:
    boxes = random_boxes(rng, 30, width=25, height=20, whole=True)
    inclusive = (boxes + np.array([1, 1, 0, 0])).astype(int).tolist()
    expected = [[devkit_iou(a, b) for b in inclusive] for a in inclusive]
    assert np.array_equal(box_iou(boxes, boxes), np.array(expected))


def test_iou_counts_pixels(rng: np.random.Generator) -> None:
    boxes = random_boxes(rng, 12, width=15, height=15, whole=True)
    sets = [pixels(box) for box in boxes.tolist()]
    expected = [[len(a & b) / len(a | b) for b in sets] for a in sets]
    np.testing.assert_allclose(box_iou(boxes, boxes), expected, rtol=1e-15)


@pytest.mark.parametrize(("shift", "side"), [(0, 2), (300, 2), (7, 1022)])
def test_iou_of_exactly_a_half(shift: int, side: int) -> None:
    whole = np.array([[0, 0, side, side]], np.float32) + np.float32(shift)
    half = np.array([[0, 0, side, side // 2]], np.float32) + np.float32(shift)
    assert box_iou(whole, half)[0, 0] == 0.5


def test_boxes_that_touch_have_iou_zero() -> None:
    a = np.array([[0, 0, 4, 4]], np.float32)
    b = np.array([[4, 0, 8, 4], [0, 4, 4, 8], [9, 9, 10, 10]], np.float32)
    assert box_iou(a, b).tolist() == [[0, 0, 0]]


def test_empty_arrays() -> None:
    none, one = empty_boxes(), np.array([[0, 0, 1, 1]], np.float32)
    assert none.shape == (0, 4) and none.dtype == np.float32
    assert box_iou(none, one).shape == (0, 1)
    assert box_iou(one, none).shape == (1, 0)
    assert clip_boxes(none, width=3, height=3).shape == (0, 4)
    assert flip_boxes(none, width=3).shape == (0, 4)
    assert encode_deltas(none, none).shape == (0, 4)
    assert decode_deltas(none, np.zeros((0, 4), np.float32)).shape == (0, 4)
    kept = nms(none, np.zeros(0, np.float32), max_iou=0.3)
    assert kept.shape == (0,) and kept.dtype == np.int64


def test_clip() -> None:
    boxes = np.array([[-5, -6, 70, 80], [1, 2, 3, 4], [60, 60, 70, 70]], np.float32)
    expected = [[0, 0, 50, 40], [1, 2, 3, 4], [50, 40, 50, 40]]
    clipped = clip_boxes(boxes, width=50, height=40)
    assert clipped.tolist() == expected and clipped.dtype == np.float32


def test_flip(rng: np.random.Generator) -> None:
    assert flip_boxes(np.array([[1, 2, 4, 9]], np.float32), width=10).tolist() == [[6, 2, 9, 9]]
    boxes = random_boxes(rng, 50, width=80, height=60, whole=True)
    assert np.array_equal(flip_boxes(flip_boxes(boxes, width=80), width=80), boxes)
    image = np.zeros((60, 80), int)
    x1, y1, x2, y2 = map(int, boxes[0].tolist())
    image[y1:y2, x1:x2] = 1
    x1, y1, x2, y2 = map(int, flip_boxes(boxes[:1], width=80)[0].tolist())
    assert image[:, ::-1][y1:y2, x1:x2].all() and image.sum() == (x2 - x1) * (y2 - y1)


def test_deltas_by_hand() -> None:
    proposal = np.array([[10, 20, 30, 60]], np.float32)  # centre (20, 40), 20×40
    target = np.array([[20, 20, 60, 40]], np.float32)  # centre (40, 30), 40×20
    expected = [[1.0, -0.25, np.log(2), -np.log(2)]]
    np.testing.assert_allclose(encode_deltas(proposal, target), expected, rtol=1e-6)
    np.testing.assert_allclose(
        decode_deltas(proposal, np.array(expected, np.float32)), target, rtol=1e-6
    )


def test_decoding_undoes_encoding(rng: np.random.Generator) -> None:
    proposals = random_boxes(rng, 200, width=500, height=375)
    targets = random_boxes(rng, 200, width=500, height=375)
    decoded = decode_deltas(proposals, encode_deltas(proposals, targets))
    np.testing.assert_allclose(decoded, targets, atol=2e-3)


def test_wild_deltas_stay_finite() -> None:
    box = np.array([[0, 0, 10, 10]], np.float32)
    decoded = decode_deltas(box, np.array([[0, 0, 500, -500]], np.float32))
    np.testing.assert_allclose(decoded, [[-4995, 4.995, 5005, 5.005]], rtol=1e-5)


@pytest.mark.parametrize("max_iou", [0.0, 0.3, 0.5, 0.7])
def test_nms_against_a_slow_loop_with_ties(max_iou: float) -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        boxes = random_boxes(rng, 60, width=60, height=60)
        scores = (rng.integers(0, 6, 60) / 2).astype(np.float32)
        assert nms(boxes, scores, max_iou=max_iou).tolist() == slow_nms(boxes, scores, max_iou)
        for most in (1, 2, 7, 1000):
            kept = nms(boxes, scores, max_iou=max_iou, max_boxes=most).tolist()
            assert kept == slow_nms(boxes, scores, max_iou)[:most]


def test_nms_of_many_ties_keeps_the_earlier_row() -> None:
    boxes = np.tile(np.array([[0, 0, 5, 5]], np.float32), (500, 1))
    assert nms(boxes, np.ones(500, np.float32), max_iou=0.5).tolist() == [0]


@pytest.mark.parametrize("tenths", range(1, 10))
def test_nms_keeps_an_iou_of_exactly_the_bound(tenths: int) -> None:
    boxes = np.array([[0, 0, 70, 10], [0, 0, 70, tenths]], np.float32)
    scores = np.array([1, 2], np.float32)
    assert nms(boxes, scores, max_iou=tenths / 10).tolist() == [1, 0]
    assert nms(boxes, scores, max_iou=tenths / 10 - 1e-4).tolist() == [1]


def slow_soft_nms(
    boxes: Boxes, scores: Scores, sigma: float, min_score: float
) -> list[tuple[int, float]]:
    """Algorithm 1 of Bodla et al. with Gaussian decay, on probabilities."""
    left = {row: 1 / (1 + math.exp(-score)) for row, score in enumerate(scores.tolist())}
    kept = []
    while left:
        best = max(left, key=lambda row: (left[row], -row))
        p = left.pop(best)
        kept.append((best, math.log(p / (1 - p))))
        for row in left:
            iou = box_iou(boxes[[best]], boxes[[row]])[0, 0]
            left[row] *= math.exp(-(iou**2) / sigma)
    return [(row, score) for row, score in kept if score >= min_score]


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_soft_nms_against_a_loop(rng: np.random.Generator, sigma: float) -> None:
    boxes = random_boxes(rng, 60, width=30, height=30)
    scores = rng.normal(size=60).astype(np.float32) * 2
    for least in (-1e9, -0.5):
        rows, decayed = soft_nms(boxes, scores, sigma=sigma, min_score=least, max_boxes=60)
        expected = slow_soft_nms(boxes, scores, sigma, least)
        assert rows.tolist() == [row for row, _ in expected]
        np.testing.assert_allclose(decayed, [score for _, score in expected], rtol=1e-5, atol=1e-5)
        assert rows.dtype == np.int64 and decayed.dtype == np.float32
        assert (decayed <= scores[rows]).all() and (decayed < scores[rows]).sum() > 5
        few, best = soft_nms(boxes, scores, sigma=sigma, min_score=least, max_boxes=7)
        assert np.array_equal(few, rows[:7]) and np.array_equal(best, decayed[:7])


def test_soft_nms_by_hand() -> None:
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 2], [8, 8, 9, 9]], np.float32)
    # IoU 1/2: p of a margin of 0 is 1/2, and a quarter of it is left
    sigma = 0.25 / math.log(4)
    scores = np.array([2, 0, -3], np.float32)
    rows, decayed = soft_nms(boxes, scores, sigma=sigma, min_score=-9, max_boxes=3)
    assert rows.tolist() == [0, 1, 2]
    np.testing.assert_allclose(decayed, [2, math.log((1 / 8) / (7 / 8)), -3], rtol=1e-6)
    assert soft_nms(boxes, scores, sigma=sigma, min_score=-1.9, max_boxes=3)[0].tolist() == [0]
    same, score = soft_nms(boxes[[1, 1]], scores[[1, 1]], sigma=1, min_score=-9, max_boxes=2)
    assert same.tolist() == [0, 1] and score[1] < 0  # a tie keeps the earlier row first
    none = soft_nms(empty_boxes(), scores[:0], sigma=1, min_score=-9, max_boxes=3)
    assert [len(part) for part in none] == [0, 0]


@pytest.mark.filterwarnings("error")
def test_soft_nms_of_extreme_margins() -> None:
    boxes = np.repeat(np.array([[0, 0, 4, 4]], np.float32), 3, axis=0)
    scores = np.array([1e4, 999, -1e4], np.float32)
    for sigma in (1e-300, 0.5, 1e300):
        rows, decayed = soft_nms(boxes, scores, sigma=sigma, min_score=-1e6, max_boxes=3)
        assert np.isfinite(decayed).all() and (decayed <= scores[rows]).all()
        assert (len(rows) == 1) == (sigma < 1e-9)


@pytest.mark.parametrize("min_iou", [0.3, 0.5, 1.0])
def test_votes_against_a_loop(rng: np.random.Generator, min_iou: float) -> None:
    boxes = random_boxes(rng, 80, width=20, height=20, whole=True)
    weights = rng.random(80) + 0.1
    kept = boxes[::4]
    expected = []
    for box in kept:
        near = [j for j in range(80) if box_iou(box[None], boxes[[j]])[0, 0] >= min_iou]
        total = sum(weights[j] for j in near)
        expected.append([sum(weights[j] * boxes[j, c] for j in near) / total for c in range(4)])
    found = vote_boxes(kept, boxes, weights, min_iou=min_iou)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.array_equal(found, kept) == (min_iou == 1.0)


def test_votes_by_hand() -> None:
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 2], [1, 0, 4, 1]], np.float32)
    weights = np.array([3.0, 1.0, 50.0])
    voted = vote_boxes(boxes[:1], boxes, weights, min_iou=0.5)  # an IoU of exactly 0.5 votes
    assert voted.tolist() == [[0, 0, 4, 3.5]]
    away = np.array([[30, 30, 40, 40]], np.float32)
    assert vote_boxes(away, boxes, weights, min_iou=0.5).tolist() == away.tolist()
    assert vote_boxes(empty_boxes(), boxes, weights, min_iou=0.5).shape == (0, 4)
    assert vote_boxes(away, empty_boxes(), weights[:0], min_iou=0.5).tolist() == away.tolist()

"""Intermediate results of detection against loops."""

from __future__ import annotations

import numpy as np
import pytest

from causes_samples import trace_of
from samples import random_boxes, random_image
from sppdet.boxes import find_suppressors, nms
from sppdet.config import DetectConfig
from sppdet.detection.detect import select, suppress
from sppdet.detection.trace import regressed_boxes, suppressors
from sppdet.features.backbones import Backbone
from sppdet.types import Proposals
from stages import Box, slow_iou
from test_detector import HEIGHT, WIDTH, make_detector, normalised


def row_of(box: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Box:
    x1, y1, x2, y2 = (float(side) for side in box)
    return x1, y1, x2, y2


@pytest.mark.parametrize("limit", [None, 1, 4])
def test_suppressors_against_a_loop(limit: int | None, rng: np.random.Generator) -> None:
    for max_iou in (0.3, 0.5, 1.0):
        boxes = random_boxes(rng, 60, width=60, height=50, whole=True)
        scores = rng.integers(0, 9, 60).astype(np.float32)  # ties
        kept = nms(boxes, scores, max_iou=max_iou, max_boxes=limit)
        found = find_suppressors(boxes, kept, max_iou=max_iou)
        order = sorted(range(60), key=lambda r: (-scores[r], r))
        for row in range(60):
            before = [k for k in kept.tolist() if order.index(k) < order.index(row)]
            met = [k for k in before if slow_iou(row_of(boxes[k]), row_of(boxes[row])) > max_iou]
            expected = met[0] if met and row not in kept else -1
            assert found[row] == expected
        if limit is None:
            assert ((found < 0) == np.isin(np.arange(60), kept)).all()


def test_a_suppressor_by_rounding_is_found() -> None:
    """NMS compares in float32: whatever it has dropped without a limit has a suppressor."""
    rng = np.random.default_rng(5)
    for _ in range(200):
        w = rng.integers(1, 2000, 3).astype(np.float32) / np.float32(7)
        boxes = np.array([[0, 0, w[0], w[1]], [0, 0, w[0], w[2]]], np.float32)
        iou = slow_iou(row_of(boxes[0]), row_of(boxes[1]))
        for bound in (iou, np.nextafter(iou, 0), float(np.float32(iou))):
            if 0 < bound < 1:
                scores = np.array([1, 0], np.float32)
                kept = nms(boxes, scores, max_iou=bound)
                found = find_suppressors(boxes, kept, max_iou=bound)
                assert len(kept) == 2 or found.tolist() == [-1, 0]
    none = np.zeros(0, dtype=np.int64)
    empty = find_suppressors(np.zeros((0, 4), np.float32), none, max_iou=0.3)
    assert empty.tolist() == []


def test_soft_nms_names_the_box_of_the_largest_iou() -> None:
    def at(x: float) -> Box:
        return x, 0.0, x + 100, 100.0

    config = DetectConfig(soft_nms=0.5, min_score=-5.0)
    windows = [at(0), at(60), at(30), at(300)]
    trace = trace_of([], windows, [[2.0, -9], [1.5, -9], [0.5, -9], [0.4, -9]], config=config)
    assert trace.rows.tolist() == [0, 1, 3, 2] or trace.rows.tolist() == [0, 1, 2, 3]
    # the first meets none before it, the second the first; the third has IoU 0.538 with both
    assert trace.suppressor.tolist() == [[-1, -1], [0, -1], [0, -1], [-1, -1]]
    # a box that was kept later has lowered nothing
    trace = trace_of([], [at(0), at(10)], [[0.5, -9], [2.0, -9]], config=config)
    assert trace.suppressor[:, 0].tolist() == [1, -1]


@pytest.mark.parametrize("voting", [None, 0.5])
def test_a_real_detector_is_traced(tiny: Backbone, voting: float | None) -> None:
    image = random_image(np.random.default_rng(8), width=WIDTH, height=HEIGHT)
    boxes = random_boxes(np.random.default_rng(9), 90, width=WIDTH, height=HEIGHT)
    config = DetectConfig(min_score=-0.5, box_voting=voting, max_per_class=5)
    detector = make_detector(tiny, bbox="pool5", config=config)
    maps = detector.maps.compute(detector.maps.scaled(image))
    detector = normalised(detector, maps.to(detector.maps.device))
    scored = detector.score_in(maps, Proposals(boxes), width=WIDTH)
    selection = select([scored], config, width=WIDTH, height=HEIGHT)
    found, rows = selection.detections, selection.rows
    plain = suppress([scored], config, width=WIDTH, height=HEIGHT)
    assert (found.boxes == plain.boxes).all() and (found.scores == plain.scores).all()
    assert len(found) == 15 == len(rows)
    assert (found.scores == scored.scores[rows, found.labels - 1]).all()
    by = suppressors(scored, selection, config)
    below = scored.scores < -0.5
    assert (by[below] == -1).all() and (by[rows, found.labels - 1] == -1).all()
    dropped = by >= 0
    assert dropped.any() and (~dropped & ~below).sum() > len(rows)  # some are cut by the limit
    p, k = np.nonzero(dropped)
    for window, label, other in zip(p.tolist(), k.tolist(), by[p, k].tolist(), strict=True):
        assert slow_iou(row_of(boxes[window]), row_of(boxes[other])) > 0.3
        assert scored.scores[other, label] >= scored.scores[window, label]
        assert other in rows[found.labels == label + 1]
    # every third proposal is an object of its own; others stay where they are
    targets = boxes[::3]
    labels = np.resize(np.array([1, 2], np.int64), len(targets))
    moved = regressed_boxes(
        scored,
        selection,
        config,
        targets=targets,
        labels=labels,
        min_iou=0.5,
        width=WIDTH,
        height=HEIGHT,
    )
    everything = [np.arange(len(boxes))] * 3
    expected = np.stack(scored.move(everything, width=WIDTH, height=HEIGHT), axis=1)
    for p_, box in enumerate(boxes):
        for label in (1, 2, 3):
            on = any(
                slow_iou(row_of(box), row_of(target)) >= 0.5
                for target, own in zip(targets, labels, strict=True)
                if own == label
            )
            kept = voting is None and p_ in rows[found.labels == label]
            wanted = expected[p_, label - 1] if on or kept else box
            np.testing.assert_allclose(moved[p_, label - 1], wanted, atol=1e-4)
    if voting is None:
        assert (moved[rows, found.labels - 1] == found.boxes).all()

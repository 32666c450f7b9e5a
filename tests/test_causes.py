"""Causes of errors: one made case for each by hand, and random cases against loops."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from causes_samples import (
    FINEST,
    dataset_of,
    random_trace,
    slow_false,
    slow_misses,
    slow_outcomes,
    trace_of,
)
from sppdet.config import DetectConfig
from sppdet.evaluation.causes import CERTAIN_SCORE, certain_scores, false_detections, judge
from sppdet.evaluation.traces import (
    FALSE_CAUSES,
    MISS_CAUSES,
    FalseDetection,
    ImageTrace,
    JudgedImage,
    Miss,
    Rival,
)
from sppdet.evaluation.voc import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE, evaluate_voc
from stages import Box

OBJECT: Box = (0.0, 0.0, 100.0, 100.0)
FAR: Box = (250.0, 250.0, 300.0, 300.0)
ZERO = np.zeros(2)


def about(value: float) -> Any:
    return pytest.approx(value)


def shifted(x: float, box: Box = OBJECT) -> Box:
    """A box whose IoU with an object of side 100 is (100 - x) / (100 + x)."""
    return box[0] + x, box[1], box[2] + x, box[3]


def moved_to(*rows: Box) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """(P, 2, 4) regressed boxes, the same for both classes."""
    return np.repeat(np.array(rows, dtype=np.float32)[:, None], 2, axis=1)


def judged(trace: ImageTrace) -> JudgedImage:
    return judge(trace, ZERO, finest_level=FINEST)


def only_miss(trace: ImageTrace) -> Miss:
    (miss,) = judged(trace).misses
    return miss


def only_false(trace: ImageTrace, certain: float = np.inf) -> FalseDetection:
    (one,) = false_detections(judged(trace), np.full(2, certain))
    return one


# -- missed objects --------------------------------------------------------------------------------


def test_an_object_that_is_found_is_no_miss() -> None:
    assert judged(trace_of([(1, OBJECT)], [shifted(10)], [[0.0, -2]])).misses == ()


def test_not_proposed() -> None:
    miss = only_miss(trace_of([(1, OBJECT)], [shifted(40)], [[5.0, -2]]))
    assert miss == Miss(0, 1, "not proposed", about(60 / 140))
    miss = only_miss(trace_of([(1, OBJECT)], [], []))
    assert miss == Miss(0, 1, "not proposed", 0.0)


def test_a_proposal_at_exactly_half_is_one() -> None:
    # 50 x 100 of 100 x 100
    trace = trace_of([(1, OBJECT)], [(0.0, 0.0, 50.0, 100.0)], [[-1.0, -2]])
    assert only_miss(trace).cause == "scored below the threshold"


def test_not_scored() -> None:
    trace = trace_of([(1, OBJECT)], [shifted(40)], [[5.0, -2]], unscored=[OBJECT])
    assert only_miss(trace) == Miss(0, 1, "not scored", 1.0)


def test_proposed_badly() -> None:
    # IoU 0.667 before regression, 0.429 after
    trace = trace_of(
        [(1, OBJECT)],
        [shifted(20), FAR],
        [[1.0, -2], [-1.0, -2]],
        regressed=moved_to(shifted(40), FAR),
    )
    miss = only_miss(trace)
    assert miss.cause == "proposed badly" and miss.repair_score == miss.score == 1.0
    assert miss.proposal_iou == about(80 / 120)
    assert miss.regressed_iou == about(60 / 140)


def test_moved_off_by_regression() -> None:
    # IoU 0.818 before
    trace = trace_of([(1, OBJECT)], [shifted(10)], [[0.5, -2]], regressed=moved_to(shifted(40)))
    miss = only_miss(trace)
    assert miss.cause == "moved off by regression" and miss.repair_score == 0.5


def test_regression_that_leaves_one_window_is_no_cause() -> None:
    # the other stays, of a score below the threshold
    trace = trace_of(
        [(1, OBJECT)],
        [shifted(10), shifted(-10)],
        [[-0.2, -2], [-0.4, -2]],
        regressed=moved_to(shifted(40), shifted(-10)),
    )
    miss = only_miss(trace)
    assert miss.cause == "scored below the threshold" and miss.score == pytest.approx(-0.4)


@pytest.mark.parametrize(
    ("width", "height", "cause"),
    [
        (2, 1, "pooled too coarsely"),
        (1, 3, "pooled too coarsely"),
        (2, 2, "scored below the threshold"),
    ],
)
def test_pooled_too_coarsely(width: int, height: int, cause: str) -> None:
    # the finest level has 2 x 2 bins; the window of the best score counts, not the other
    cells = np.array([[0, 3, 4, 3 + width - 1, 4 + height - 1], [0, 0, 0, 9, 9]])
    scores = [[-0.5, -2], [-0.75, -2]]
    trace = trace_of([(1, OBJECT)], [shifted(5), shifted(-5)], scores, cells=cells)
    miss = only_miss(trace)
    assert (miss.cause, miss.cells) == (cause, (width, height))
    assert miss.score == -0.5 and miss.repair_score == 0.0


def test_coarse_windows_that_score_enough_are_no_cause() -> None:
    cells = np.array([[0, 0, 0, 0, 0]])
    assert judged(trace_of([(1, OBJECT)], [OBJECT], [[0.1, -2]], cells=cells)).misses == ()


def test_wrong_class() -> None:
    trace = trace_of([(1, OBJECT)], [shifted(10)], [[-0.5, 0.75]])
    miss = only_miss(trace)
    assert miss.cause == "wrong class" and miss.repair_score == 0.75
    assert miss.rival == Rival(2, 0.75, about(90 / 110), FALSE_POSITIVE)
    assert miss.replaces == 0


def test_a_true_detection_of_another_class_is_no_wrong_class() -> None:
    # an object of each class at one place: that of class 2 is found
    trace = trace_of([(1, OBJECT), (2, shifted(10))], [shifted(10)], [[-0.5, 0.75]])
    miss = only_miss(trace)
    assert (miss.row, miss.cause) == (0, "scored below the threshold")
    # nor is a duplicate on it
    trace = trace_of(
        [(1, OBJECT), (2, shifted(10))],
        [shifted(-30), shifted(30)],
        [[-2, 0.75], [-2, 0.5]],
        regressed=moved_to(shifted(10), shifted(12)),
    )
    causes = [one.cause for one in false_detections(judged(trace), np.full(2, np.inf))]
    assert causes == ["duplicate"]
    assert only_miss(trace).cause == "scored below the threshold"


def test_scored_below_the_threshold() -> None:
    trace = trace_of([(1, OBJECT)], [shifted(10), FAR], [[-0.5, -0.25], [2.0, -2]])
    miss = only_miss(trace)
    assert miss.cause == "scored below the threshold" and miss.score == -0.5
    assert miss.other == Rival(2, -0.25)
    # the best detection there, at any score; the far one isn't there
    assert miss.rival == Rival(2, -0.25, about(90 / 110), FALSE_POSITIVE)
    assert miss.repair_score == 0.0


def test_thresholds_are_those_of_the_class() -> None:
    trace = trace_of([(1, OBJECT), (2, FAR)], [OBJECT, FAR], [[0.5, -2], [-2, 0.5]])
    for thresholds, missed in (([0.5, 0.5], []), ([0.6, 0.5], [0]), ([0.5, 0.6], [1])):
        image = judge(trace, np.array(thresholds), finest_level=FINEST)
        assert [miss.row for miss in image.misses] == missed
    assert image.misses[0].repair_score == 0.6


def test_suppressed_by_nms() -> None:
    # the suppressor, at IoU 1/3 with the object, has IoU 0.429 > 0.3 with the window
    trace = trace_of([(1, OBJECT)], [shifted(50), shifted(10)], [[2.0, -2], [1.0, -2]])
    miss = only_miss(trace)
    assert miss.cause == "suppressed by NMS" and miss.score == miss.repair_score == 1.0
    assert miss.rival == Rival(1, 2.0, about(60 / 140), FALSE_POSITIVE)


def test_suppressed_by_the_detection_of_another_object() -> None:
    objects = [(1, OBJECT), (1, shifted(50))]
    trace = trace_of(objects, [shifted(50), shifted(10)], [[2.0, -2], [1.0, -2]])
    miss = only_miss(trace)
    assert (miss.row, miss.cause) == (0, "suppressed by NMS")
    assert miss.rival is not None and miss.rival.outcome == TRUE_POSITIVE


def test_lowered_by_soft_nms() -> None:
    trace = trace_of(
        [(1, OBJECT)],
        [shifted(20), shifted(50), FAR],
        [[0.1, -2], [2.0, -2], [0.05, -2]],
        config=DetectConfig(soft_nms=0.3),
    )
    miss = only_miss(trace)
    assert miss.cause == "suppressed by NMS" and miss.score == pytest.approx(0.1)
    assert miss.rival == Rival(1, 2.0, about(70 / 130), FALSE_POSITIVE)


def test_over_max_per_class() -> None:
    windows, scores = [FAR, OBJECT], [[2.0, -2], [1.0, -2]]
    assert judged(trace_of([(1, OBJECT)], windows, scores)).misses == ()
    trace = trace_of([(1, OBJECT)], windows, scores, config=DetectConfig(max_per_class=1))
    miss = only_miss(trace)
    assert miss.cause == "over max_per_class" and miss.repair_score == 1.0


def test_moved_off_by_box_voting() -> None:
    # five votes at IoU 1/3 with the object, one at 0.538
    windows = [shifted(30), *[shifted(50)] * 5]
    scores = [[1.0, -2], *[[0.9, -2]] * 5]
    assert judged(trace_of([(1, OBJECT)], windows, scores)).misses == ()
    trace = trace_of([(1, OBJECT)], windows, scores, config=DetectConfig(box_voting=0.5))
    miss = only_miss(trace)
    assert miss.cause == "moved off by box voting"
    assert miss.rival is not None and miss.rival.score == miss.repair_score == 1.0


def test_counted_for_another_object() -> None:
    # one window at IoU 0.852 with the first object and 0.786 with the second
    trace = trace_of([(1, OBJECT), (1, shifted(20))], [shifted(8)], [[1.0, -2]])
    miss = only_miss(trace)
    assert (miss.row, miss.cause) == (1, "counted for another object")
    assert miss.rival == Rival(1, 1.0, about(88 / 112), TRUE_POSITIVE)


def test_difficult_objects_are_no_misses() -> None:
    trace = trace_of([(1, OBJECT)], [], [], difficult=[True])
    assert judged(trace).misses == ()


# -- false detections ------------------------------------------------------------------------------


def test_duplicate() -> None:
    trace = trace_of(
        [(1, OBJECT)],
        [OBJECT, shifted(60)],
        [[2.0, -2], [1.0, -2]],
        regressed=moved_to(OBJECT, shifted(5)),
    )
    one = only_false(trace)
    assert (one.row, one.cause, one.target) == (1, "duplicate", 0)


def test_wrong_class_comes_before_badly_localised() -> None:
    # IoU 0.538 with an object of class 2 and 0.333 with one of its own
    trace = trace_of([(2, OBJECT), (1, shifted(80))], [shifted(30)], [[1.0, -2]])
    one = only_false(trace)
    assert (one.cause, one.target, one.other_target) == ("wrong class", 1, 0)
    assert (one.iou, one.other_iou) == (about(50 / 150), about(70 / 130))


def test_badly_localised_from_a_tenth() -> None:
    for side, cause in ((10.0, "badly localised"), (9.9, "background")):
        trace = trace_of([(1, OBJECT)], [(0.0, 0.0, 100.0, side)], [[1.0, -2]])
        assert only_false(trace).cause == cause


def test_looks_unlabelled() -> None:
    trace = trace_of([(1, OBJECT)], [FAR], [[1.0, -2]])
    assert only_false(trace, certain=0.99).cause == "looks unlabelled"
    assert only_false(trace, certain=1.0).cause == "background"
    # near an object of another class it is background
    trace = trace_of([(2, OBJECT)], [shifted(70)], [[1.0, -2]])
    assert only_false(trace, certain=0.0).cause == "background"


def test_certain_scores() -> None:
    found = [OBJECT, shifted(120), shifted(240), FAR]
    objects = [(1, OBJECT), (1, shifted(120)), (1, shifted(240))]
    scores = [[0.25, -2], [0.5, -2], [-0.5, -2], [4.0, 3.0]]
    image = judged(trace_of(objects, found, scores))
    # the median of 0.25 and 0.5: the true detection below the threshold doesn't count
    assert certain_scores([image], ZERO, probabilities=False).tolist() == [0.375, np.inf]
    certain = certain_scores([image], ZERO, probabilities=True)
    assert certain.tolist() == [CERTAIN_SCORE] * 2
    assert 1 / (1 + np.exp(-certain[0])) == pytest.approx(0.9)
    causes = [one.cause for one in false_detections(image, np.array([0.375, np.inf]))]
    assert causes == ["looks unlabelled", "background"]


def test_detections_of_difficult_objects_are_not_false() -> None:
    trace = trace_of([(1, OBJECT)], [OBJECT], [[1.0, -2]], difficult=[True])
    image = judged(trace)
    assert image.outcomes.tolist() == [IGNORED]
    assert false_detections(image, np.full(2, np.inf)) == []


def test_images_without_objects_or_detections() -> None:
    empty = judged(trace_of([], [], []))
    assert empty.misses == () and false_detections(empty, np.full(2, np.inf)) == []
    assert only_false(trace_of([], [FAR], [[1.0, -2]])).cause == "background"
    assert certain_scores([], ZERO, probabilities=False).tolist() == [np.inf] * 2


def test_shapes_are_checked() -> None:
    trace = trace_of([(1, OBJECT)], [OBJECT], [[1.0, -2]])
    fields = {**vars(trace), "cells": trace.cells[:, :4]}
    with pytest.raises(ValueError, match=r"cells: \(1, 4\), expected \(1, 5\)"):
        ImageTrace(**fields)


# -- random cases ----------------------------------------------------------------------------------


def test_every_error_has_one_cause() -> None:
    """Against loops, and the sums against the evaluation's counts."""
    classes, seen, seen_false = 3, Counter[str](), Counter[str]()
    for seed in range(300):
        rng = np.random.default_rng([11, seed])
        trace = random_trace(rng, classes=classes)
        thresholds = rng.choice([-0.4, 0.0, 0.3], classes)
        image = judge(trace, thresholds, finest_level=FINEST)
        assert {m.row: m.cause for m in image.misses} == slow_misses(trace, thresholds.tolist())
        assert len(image.misses) == len({m.row for m in image.misses})
        words = {TRUE_POSITIVE: "true", FALSE_POSITIVE: "false", IGNORED: "ignored"}
        assert [words[o] for o in image.outcomes.tolist()] == slow_outcomes(trace)[0]
        certain = rng.choice([0.0, np.inf], classes)
        false = false_detections(image, certain)
        assert {one.row: one.cause for one in false} == slow_false(trace, certain.tolist())
        assert len(false) == len({one.row for one in false})
        seen.update(m.cause for m in image.misses)
        seen_false.update(one.cause for one in false)
        # what the evaluation counts
        result = evaluate_voc(*dataset_of([trace], classes), metric="voc07")
        for k, one in enumerate(result.classes):
            above = one.scores >= thresholds[k]
            missed = one.ground_truths - int((one.outcomes[above] == TRUE_POSITIVE).sum())
            assert missed == sum(m.label == k + 1 for m in image.misses)
            labels = trace.detections.labels[[f.row for f in false]]
            assert int((one.outcomes == FALSE_POSITIVE).sum()) == int((labels == k + 1).sum())
    # votes that move a box off an object don't happen by chance
    assert set(seen) == {*MISS_CAUSES} - {"moved off by box voting"}, seen
    assert set(seen_false) == set(FALSE_CAUSES), seen_false

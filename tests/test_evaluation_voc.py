"""VOC average precision: published answers, difficult objects by hand, a slow loop."""

from __future__ import annotations

import logging
import math
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from evaluation_samples import Box, make_detections, make_image, random_split
from sppdet.errors import DataError
from sppdet.evaluation.curves import average_precision
from sppdet.evaluation.voc import (
    FALSE_POSITIVE,
    IGNORED,
    TRUE_POSITIVE,
    evaluate_voc,
    match_class,
    match_image,
    precision_recall,
)
from sppdet.types import Dataset, Detections


def reference(name: str) -> Path:
    root = os.environ.get("SPPDET_DATA")
    if not root:
        pytest.skip("SPPDET_DATA is not set: no reference/average_precision")
    folder = Path(root) / "reference" / "average_precision" / name
    if not folder.is_dir():
        pytest.skip(f"{folder}: no such folder")
    return folder


def load_case1(plus_one: int) -> tuple[Dataset, dict[str, Detections]]:
    folder = reference("case1")
    images, detections = [], {}

    def corners(fields: list[str]) -> Box:
        x, y, w, h = (float(field) for field in fields)
        return (x, y, x + w + plus_one, y + h + plus_one)

    for path in sorted((folder / "gts").glob("*.txt")):
        lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
        images.append(make_image(path.stem, [(1, corners(fields[1:])) for fields in lines]))
        found = (folder / "dets" / path.name).read_text().splitlines()
        rows = [(1, float(f[1]), corners(f[2:])) for f in map(str.split, found) if f]
        detections[path.stem] = make_detections(sorted(rows, key=lambda row: -row[1]))
    return Dataset("case1", ("object",), tuple(images)), detections


@pytest.mark.parametrize(
    ("min_iou", "eleven", "area", "area_without_one"),
    [
        (0.1, 0.3689064559, 0.3371980676, 0.2801328502),
        (0.3, 0.2683982683, 0.2456866804, 0.2253968254),
        (0.5, 0.0303030303, 0.0222222222, 0.0222222222),
        (0.75, 0.0, 0.0, 0.0),
    ],
)
def test_published_case(
    min_iou: float, eleven: float, area: float, area_without_one: float
) -> None:
    dataset, detections = load_case1(plus_one=1)
    assert sum(len(found) for found in detections.values()) == 24
    voc07 = evaluate_voc(dataset, detections, metric="voc07", min_iou=min_iou)
    voc10 = evaluate_voc(dataset, detections, metric="voc10", min_iou=min_iou)
    assert voc07.classes[0].ground_truths == 15
    assert voc07.mean_ap == pytest.approx(eleven, abs=1e-9)
    assert voc10.mean_ap == pytest.approx(area, abs=1e-9)
    dataset, detections = load_case1(plus_one=0)
    bare = evaluate_voc(dataset, detections, metric="voc10", min_iou=min_iou)
    assert bare.mean_ap == pytest.approx(area_without_one, abs=1e-9)


def load_toy() -> tuple[Dataset, dict[str, Detections]]:
    folder = reference("toy")
    trees = {p.stem: ElementTree.parse(p).getroot() for p in sorted((folder / "gts").glob("*.xml"))}
    names = sorted({node.text or "" for tree in trees.values() for node in tree.iter("name")})
    images, detections = [], {}

    def half_open(values: list[str]) -> Box:
        x1, y1, x2, y2 = (float(value) for value in values)
        return (x1 - 1, y1 - 1, x2, y2)

    for image_id, tree in trees.items():
        objects = []
        for node in tree.iter("object"):
            sides = [node.findtext(f"bndbox/{k}") or "" for k in ("xmin", "ymin", "xmax", "ymax")]
            objects.append((names.index(node.findtext("name") or "") + 1, half_open(sides)))
        images.append(make_image(image_id, objects))
        lines = (folder / "dets" / f"{image_id}.txt").read_text().splitlines()
        rows = [
            (names.index(f[0]) + 1, float(f[1]), half_open(f[2:]))
            for f in map(str.split, lines)
            if f
        ]
        detections[image_id] = make_detections(sorted(rows, key=lambda row: -row[1]))
    return Dataset("toy", tuple(names), tuple(images)), detections


@pytest.mark.parametrize(("min_iou", "eleven", "area"), [(0.5, 88.64, 89.58), (0.75, 49.24, 50.97)])
def test_published_toy(min_iou: float, eleven: float, area: float) -> None:
    dataset, detections = load_toy()
    voc07 = evaluate_voc(dataset, detections, metric="voc07", min_iou=min_iou)
    voc10 = evaluate_voc(dataset, detections, metric="voc10", min_iou=min_iou)
    assert sum(c.ground_truths for c in voc07.classes) == 12
    assert round(100 * voc07.mean_ap, 2) == eleven
    assert round(100 * voc10.mean_ap, 2) == area


def test_recall_grid_is_exact() -> None:
    # recall 9/15 reaches 6/10 and no more: precision 1 at k = 0..6
    recall = np.array([k / 15 for k in range(1, 10)])
    assert average_precision(recall, np.ones(9), metric="voc07") == pytest.approx(7 / 11)
    for ground_truths in range(1, 200):
        for tp in range(1, ground_truths + 1):
            one = np.array([tp / ground_truths])
            reached = sum(tp * 10 >= k * ground_truths for k in range(11))
            ap = average_precision(one, np.ones(1), metric="voc07")
            assert round(ap * 11) == reached, (tp, ground_truths)


def test_average_precision_by_hand() -> None:
    # tp, fp, tp of 4 objects: recall 1/4, 1/4, 1/2, precision 1, 1/2, 2/3
    recall, precision = precision_recall(np.array([1, 0, 1], np.int8), ground_truths=4)
    assert recall.tolist() == [0.25, 0.25, 0.5]
    assert precision.tolist() == [1.0, 0.5, 2 / 3]
    area = average_precision(recall, precision, metric="voc10")
    assert area == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)
    eleven = average_precision(recall, precision, metric="voc07")
    assert eleven == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)
    with pytest.raises(ValueError, match="voc2007"):
        average_precision(recall, precision, metric="voc2007")  # type: ignore[arg-type]


def outcomes_of(
    found: list[tuple[float, Box]], truth: list[tuple[Box, bool]], min_iou: float = 0.5
) -> list[int]:
    """Match in one image; the outcomes in descending score."""
    _, outcomes = match_class(
        np.array([box for _, box in found], np.float32).reshape(-1, 4),
        np.array([score for score, _ in found], np.float32),
        np.zeros(len(found), np.int64),
        gt_boxes=np.array([box for box, _ in truth], np.float32).reshape(-1, 4),
        gt_image_index=np.zeros(len(truth), np.int64),
        gt_difficult=np.array([flag for _, flag in truth], np.bool_),
        min_iou=min_iou,
    )
    return [int(outcome) for outcome in outcomes]


TP, FP, IG = TRUE_POSITIVE, FALSE_POSITIVE, IGNORED
A: Box = (0, 0, 10, 10)
B: Box = (20, 20, 30, 30)


def test_difficult_matches_are_ignored_any_number_of_times() -> None:
    assert outcomes_of([(3, A), (2, A), (1, A)], [(A, True)]) == [IG, IG, IG]


def test_second_match_of_a_normal_object_after_a_difficult_one() -> None:
    found = [(4.0, B), (3.0, A), (2.0, A), (1.0, B)]
    assert outcomes_of(found, [(A, False), (B, True)]) == [IG, TP, FP, IG]


def test_greatest_iou_is_chosen_even_if_difficult() -> None:
    # IoU with the difficult object 1, with the normal one 8/10 >= 0.5: ignored all the same
    normal: Box = (0, 0, 10, 8)
    assert outcomes_of([(1, A)], [(normal, False), (A, True)]) == [IG]
    assert outcomes_of([(2, A), (1, normal)], [(normal, False), (A, True)]) == [IG, TP]


def test_greatest_iou_is_chosen_even_if_taken() -> None:
    # the second detection overlaps the free object by 8/10 but the taken one by more
    other: Box = (0, 0, 10, 8)
    assert outcomes_of([(2, A), (1, A)], [(A, False), (other, False)]) == [TP, FP]


def test_iou_of_exactly_half_matches_and_below_does_not() -> None:
    assert outcomes_of([(1, (0, 0, 10, 5))], [(A, False)]) == [TP]
    assert outcomes_of([(1, (0, 0, 10, 4.999))], [(A, False)]) == [FP]
    assert outcomes_of([(1, (0, 0, 10, 4))], [(A, True)]) == [FP]  # no match: not ignored
    with pytest.raises(ValueError, match="min_iou: 0"):
        outcomes_of([(1, A)], [(A, False)], min_iou=0)


def test_ties_keep_their_order() -> None:
    order, outcomes = match_class(
        np.array([B, A, A], np.float32),
        np.array([1, 1, 1], np.float32),
        np.array([5, 5, 5]),
        gt_boxes=np.array([A], np.float32),
        gt_image_index=np.array([5]),
        gt_difficult=np.array([False]),
        min_iou=0.5,
    )
    assert order.tolist() == [0, 1, 2]
    assert outcomes.tolist() == [FP, TP, FP]


def test_difficult_objects_do_not_count_in_recall() -> None:
    images = (make_image("a", [(1, A), (1, B)], [False, True]), make_image("b", [(2, A)]))
    dataset = Dataset("val", ("cat", "dog"), images)
    found = {"a": make_detections([(1, 0.9, B), (1, 0.8, A)])}
    result = evaluate_voc(dataset, found, metric="voc10")
    cat, dog = result.classes
    assert (cat.ap, cat.ground_truths, cat.detections) == (1.0, 1, 2)
    assert cat.recall.tolist() == [0.0, 1.0]
    assert cat.precision.tolist() == [0.0, 1.0]
    assert cat.outcomes.tolist() == [IG, TP]
    assert (dog.ap, dog.ground_truths, dog.detections) == (0.0, 1, 0)
    assert (result.mean_ap, result.images, result.split) == (0.5, 2, "val")


def test_a_class_with_only_difficult_objects_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = (make_image("a", [(1, A), (2, B)], [False, True]),)
    dataset = Dataset("val", ("cat", "dog", "cow"), images)
    found = {"a": make_detections([(1, 0.9, A), (2, 0.8, B), (3, 0.7, B)])}
    with caplog.at_level(logging.WARNING, logger="sppdet"):
        result = evaluate_voc(dataset, found, metric="voc07")
    assert [math.isnan(c.ap) for c in result.classes] == [False, True, True]
    assert result.mean_ap == 1.0
    assert "dog, cow" in caplog.text


@pytest.mark.parametrize("metric", ["voc07", "voc10"])
def test_no_detections_and_no_ground_truth(metric: str) -> None:
    truth = Dataset("val", ("cat",), (make_image("a", [(1, A)]),))
    assert evaluate_voc(truth, {}, metric=metric).mean_ap == 0.0  # type: ignore[arg-type]
    bare = Dataset("val", ("cat",), (make_image("a", []),))
    found = {"a": make_detections([(1, 0.9, A)])}
    assert math.isnan(evaluate_voc(bare, found, metric=metric).mean_ap)  # type: ignore[arg-type]
    nothing = evaluate_voc(Dataset("val", ("cat",), ()), {}, metric=metric)  # type: ignore[arg-type]
    assert math.isnan(nothing.mean_ap)


def test_detections_that_do_not_fit_are_refused() -> None:
    dataset = Dataset("val", ("cat",), (make_image("a", [(1, A)]),))
    with pytest.raises(DataError, match=r"'b', which is not in val"):
        evaluate_voc(dataset, {"b": make_detections([(1, 0.9, A)])}, metric="voc07")
    with pytest.raises(DataError, match=r"'a': a label is not in 1..1"):
        evaluate_voc(dataset, {"a": make_detections([(2, 0.9, A)])}, metric="voc07")
    with pytest.raises(DataError, match="not finite"):
        evaluate_voc(dataset, {"a": make_detections([(1, math.nan, A)])}, metric="voc07")
    two = Dataset("val", ("cat",), (make_image("a", [(1, A)]), make_image("b", [])))
    with pytest.raises(DataError, match=r"'b': a label is not in 1..1"):
        found = {"a": make_detections([]), "b": make_detections([(2, 0.9, A)])}
        evaluate_voc(two, found, metric="voc07")
    one = make_detections([(1, 0.9, A)])
    other = Detections(one.boxes, one.scores, one.labels, ("dog",))
    with pytest.raises(DataError, match="label 1 is 'dog', expected 'cat'"):
        evaluate_voc(dataset, {"a": other}, metric="voc07")


# The devkit's VOCevaldet, line by line, on inclusive boxes.


def slow_ap(dataset: Dataset, detections: dict[str, Detections], label: int, metric: str) -> float:
    truth = {
        image.id: [
            [*box, bool(flag), False]
            for box, k, flag in zip(
                image.gt_boxes.tolist(), image.gt_labels, image.difficult, strict=True
            )
            if k == label
        ]
        for image in dataset.images
    }
    npos = sum(not gt[4] for gts in truth.values() for gt in gts)
    found = [
        (-float(score), number, image.id, box)
        for number, image in enumerate(dataset.images)
        for box, score, k in zip(
            detections[image.id].boxes.tolist(),
            detections[image.id].scores,
            detections[image.id].labels,
            strict=True,
        )
        if k == label
    ]
    found.sort(key=lambda row: row[:2])
    tp, fp, points = 0, 0, []
    for _, _, image_id, bb in found:
        best_iou, best = -math.inf, None
        for gt in truth[image_id]:
            # inclusive corners: x2 - 1, and +1 on every length
            iw = min(bb[2] - 1, gt[2] - 1) - max(bb[0], gt[0]) + 1
            ih = min(bb[3] - 1, gt[3] - 1) - max(bb[1], gt[1]) + 1
            if iw > 0 and ih > 0:
                union = (
                    (bb[2] - bb[0]) * (bb[3] - bb[1]) + (gt[2] - gt[0]) * (gt[3] - gt[1]) - iw * ih
                )
                if iw * ih / union > best_iou:
                    best_iou, best = iw * ih / union, gt
        if best is not None and best_iou >= 0.5:
            if not best[4]:
                if best[5]:
                    fp += 1
                else:
                    tp, best[5] = tp + 1, True
        else:
            fp += 1
        points.append((tp, fp))
    if npos == 0:
        return math.nan
    if metric == "voc07":
        tops = [
            max((t / (t + f) for t, f in points if t + f and t * 10 >= k * npos), default=0.0)
            for k in range(11)
        ]
        return sum(tops) / 11
    area, last = 0.0, 0
    for i, (t, _) in enumerate(points):
        if t > last:
            area += (t - last) / npos * max(a / (a + b) for a, b in points[i:] if a + b)
            last = t
    return area


@pytest.mark.parametrize("metric", ["voc07", "voc10"])
@pytest.mark.parametrize("seed", range(10))
def test_equals_the_devkit_loop(seed: int, metric: str) -> None:
    dataset, detections = random_split(seed)
    result = evaluate_voc(dataset, detections, metric=metric)  # type: ignore[arg-type]
    slow = [slow_ap(dataset, detections, k, metric) for k in range(1, 5)]
    np.testing.assert_allclose([c.ap for c in result.classes], slow, rtol=0, atol=1e-12)
    assert math.isnan(slow[3])
    assert 0.05 < result.mean_ap < 0.95
    assert result.mean_ap == pytest.approx(np.nanmean(slow))


def test_detections_of_one_image_in_any_order(rng: np.random.Generator) -> None:
    dataset, detections = random_split(5)
    for image in dataset.images:
        found = detections[image.id]
        scores = rng.permutation(len(found)).astype(np.float32)  # no ties
        order = np.argsort(-scores)
        mixed = Detections(found.boxes, scores, found.labels)
        sorted_ = Detections(found.boxes[order], scores[order], found.labels[order])
        outcomes, targets = (
            np.concatenate(both)
            for both in zip(
                *(
                    match_image(
                        one,
                        gt_boxes=image.gt_boxes,
                        gt_labels=image.gt_labels,
                        gt_difficult=image.difficult,
                        min_iou=0.5,
                    )
                    for one in (mixed, sorted_)
                ),
                strict=True,
            )
        )
        count = len(found)
        assert outcomes[:count][order].tolist() == outcomes[count:].tolist()
        assert targets[:count][order].tolist() == targets[count:].tolist()

"""Gains of repaired causes and groups of objects, against the evaluation of changed detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from causes_samples import FINEST, SCALES_PX, dataset_of, random_trace, trace_of
from evaluation_samples import make_image
from sppdet.config import DetectConfig
from sppdet.evaluation.causes import certain_scores, false_detections, judge
from sppdet.evaluation.curves import average_precision
from sppdet.evaluation.groups import Grouping, by_group, groupings
from sppdet.evaluation.repairs import Outcomes, gains
from sppdet.evaluation.traces import FALSE_CAUSES, MISS_CAUSES, FalseDetection, JudgedImage
from sppdet.evaluation.voc import evaluate_voc
from sppdet.types import Boxes, Dataset, Detections
from stages import Box

CLASSES, MIN_SCORE = 3, -1.5
OBJECT: Box = (0.0, 0.0, 100.0, 100.0)


def random_split(seed: int) -> tuple[list[JudgedImage], list[list[FalseDetection]]]:
    rng = np.random.default_rng([13, seed])
    thresholds = rng.choice([-0.41, 0.013, 0.31], CLASSES)
    images = [
        judge(random_trace(rng, classes=CLASSES), thresholds, finest_level=FINEST) for _ in range(8)
    ]
    certain = certain_scores(images, thresholds, probabilities=False)
    return images, [false_detections(image, certain) for image in images]


def changed(
    found: Detections, without: Sequence[int], more: Sequence[tuple[Boxes, float, int]]
) -> Detections:
    """Detections without some rows and with more (box, score, label)."""
    keep = np.setdiff1d(np.arange(len(found)), without)
    return Detections(
        np.concatenate([found.boxes[keep], *(box[None] for box, _, _ in more)]),
        np.append(found.scores[keep], np.array([score for _, score, _ in more], np.float32)),
        np.append(found.labels[keep], np.array([label for _, _, label in more], np.int64)),
    )


def mean_ap(
    images: Sequence[JudgedImage], detections: Sequence[Detections], classes: NDArray[np.int64]
) -> float:
    """The evaluation's mean over classes; one without objects has AP 1."""
    dataset, _ = dataset_of(images, CLASSES)
    found = {f"im{i}": one for i, one in enumerate(detections)}
    result = evaluate_voc(dataset, found, metric="voc07")
    aps = [result.classes[label - 1].ap for label in classes.tolist()]
    return float(np.mean(np.nan_to_num(aps, nan=1.0)))


def without_miss(image: JudgedImage, cause: str) -> tuple[JudgedImage, Detections]:
    """An image whose misses of a cause are repaired: one with other flags, or other detections."""
    difficult, found = image.difficult.copy(), image.detections
    gone, more = [], []
    for miss in image.misses:
        if miss.cause != cause:
            continue
        true = [
            d for d in range(len(found)) if image.targets[d] == miss.row and image.outcomes[d] == 1
        ]
        if miss.repair_score is None:
            difficult[miss.row] = True
        elif miss.repair_score >= MIN_SCORE and all(
            found.scores[d] < miss.repair_score for d in true
        ):
            gone += [*true, *([] if miss.replaces is None else [miss.replaces])]
            more.append((image.gt_boxes[miss.row], miss.repair_score, miss.label))
    return replace(image, difficult=difficult), changed(found, gone, more)


def without_false(image: JudgedImage, false: Sequence[FalseDetection], cause: str) -> Detections:
    """Detections of an image whose false ones of a cause are repaired."""
    found, more = image.detections, []
    due = [one for one in false if one.cause == cause]
    taken = {int(g) for g, o in zip(image.targets, image.outcomes, strict=True) if o == 1}
    for one in sorted(due, key=lambda one: -float(found.scores[one.row])):
        g = {"wrong class": one.other_target, "badly localised": one.target}.get(cause)
        if g is not None and not image.difficult[g] and g not in taken:
            taken.add(g)
            more.append((image.gt_boxes[g], float(found.scores[one.row]), int(image.gt_labels[g])))
    return changed(found, [one.row for one in due], more)


def test_gains_against_the_evaluation() -> None:
    above: set[str] = set()
    for seed in range(25):
        images, false = random_split(seed)
        found = gains(images, false, min_score=MIN_SCORE)
        labels = np.concatenate([i.gt_labels[~i.difficult] for i in images])
        classes, plain = np.unique(labels), [image.detections for image in images]
        before = mean_ap(images, plain, classes)
        assert found.mean_ap == pytest.approx(before, abs=1e-12)
        for miss_cause in MISS_CAUSES:
            repaired = [without_miss(image, miss_cause) for image in images]
            after = mean_ap([i for i, _ in repaired], [d for _, d in repaired], classes)
            gain = found.missed[miss_cause]
            assert gain == pytest.approx(after - before, abs=1e-12), (seed, miss_cause)
            above |= {miss_cause} if gain > 0.001 else set()
        for cause in FALSE_CAUSES:
            rest = [without_false(i, of, cause) for i, of in zip(images, false, strict=True)]
            gain = found.false[cause]
            assert gain == pytest.approx(mean_ap(images, rest, classes) - before, abs=1e-12)
            above |= {f"false: {cause}"} if gain > 0.001 else set()
    expected = {*MISS_CAUSES, *(f"false: {cause}" for cause in FALSE_CAUSES)}
    assert above >= expected - {"moved off by box voting", "false: duplicate"}, above


def test_gain_of_duplicates_by_hand() -> None:
    # true, duplicate, true: recall 1/2 at precision 1, then 1 at 2/3
    second: Box = (200.0, 0.0, 300.0, 100.0)
    trace = trace_of(
        [(1, OBJECT), (1, second)],
        [OBJECT, (60.0, 0.0, 160.0, 100.0), second],
        [[2.0, -2], [1.5, -2], [1.0, -2]],
        regressed=np.repeat(np.array([OBJECT, OBJECT, second], np.float32)[:, None], 2, axis=1),
    )
    image = judge(trace, np.zeros(2), finest_level=FINEST)
    found = gains([image], [false_detections(image, np.full(2, np.inf))], min_score=MIN_SCORE)
    assert found.mean_ap == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert found.false["duplicate"] == pytest.approx(5 / 33)
    assert found.false["background"] == 0


def test_gain_of_votes_by_hand() -> None:
    windows: list[Box] = [(30.0, 0.0, 130.0, 100.0), *[(50.0, 0.0, 150.0, 100.0)] * 5]
    config = DetectConfig(box_voting=0.5)
    trace = trace_of([(1, OBJECT)], windows, [[1.0, -2], *[[0.9, -2]] * 5], config=config)
    image = judge(trace, np.zeros(2), finest_level=FINEST)
    found = gains([image], [false_detections(image, np.full(2, np.inf))], min_score=MIN_SCORE)
    # the false detection becomes the true one
    assert (found.mean_ap, found.missed["moved off by box voting"]) == (0.0, 1.0)


def test_a_window_below_the_minimum_score_gains_nothing() -> None:
    moved = np.tile(np.array([40, 0, 140, 100], np.float32), (1, 2, 1))
    for score, gain in ((-1.4, 1.0), (-1.6, 0.0)):
        trace = trace_of([(1, OBJECT)], [(10.0, 0.0, 110.0, 100.0)], [[score, -2]], regressed=moved)
        image = judge(trace, np.zeros(2), finest_level=FINEST)
        false = [false_detections(image, np.full(2, np.inf))]
        found = gains([image], false, min_score=-1.5)
        assert image.misses[0].replaces == (0 if gain else None)
        assert found.missed["moved off by regression"] == pytest.approx(gain)


def test_a_class_that_has_no_object_left_is_perfect() -> None:
    image = judge(trace_of([(1, OBJECT)], [], []), np.zeros(2), finest_level=FINEST)
    found = gains([image], [[]], min_score=-1.5)
    assert (found.mean_ap, found.missed["not proposed"]) == (0.0, 1.0)
    assert np.isnan(gains([], [], min_score=-1.5).mean_ap)


def test_best_threshold_against_all() -> None:
    for seed in range(10):
        images, _ = random_split(seed)
        flat = Outcomes.of(images)
        best = flat.best_threshold()
        assert best is not None
        f1 = []
        for score in sorted(set(flat.scores.tolist()), reverse=True):
            outcomes = flat.outcomes[flat.scores >= score].tolist()
            true, false = outcomes.count(1), outcomes.count(0)
            f1.append((2 * true / (true + false + flat.counted.sum()), score))
        highest = max(value for value, _ in f1)
        assert best[0] == max(score for value, score in f1 if value > highest - 1e-12)
        assert 2 * best[1] * best[2] / (best[1] + best[2]) == pytest.approx(highest)
    assert Outcomes.of([]).best_threshold() is None


# -- groups ----------------------------------------------------------------------------------------


def slow_group(
    images: Sequence[JudgedImage],
    grouping: Grouping,
    group: int,
    label: int,
    thresholds: NDArray[np.float64],
) -> tuple[int, int, float]:
    """Objects of a class in a group, how many are found, and AP: the others are difficult ones, and
    false detections of another group are left out."""
    special = grouping.groups[group] == "difficult"
    made, found = [], {}
    for i, image in enumerate(images):
        member = (grouping.objects[i] == group) & (image.difficult == special)
        pairs = [
            (int(k), (b[0], b[1], b[2], b[3]))
            for k, b in zip(image.gt_labels, image.gt_boxes.tolist(), strict=True)
        ]
        made.append(make_image(f"im{i}", pairs, (~member).tolist()))
        keep = image.targets >= 0
        if grouping.detections is not None:
            keep |= grouping.detections[i] == group
        else:
            keep |= True
        one = image.detections
        found[f"im{i}"] = Detections(one.boxes[keep], one.scores[keep], one.labels[keep])
    names = tuple("abcdefgh"[:CLASSES])
    result = evaluate_voc(Dataset("made", names, tuple(made)), found, metric="voc07")
    one_class = result.classes[label - 1]
    above = one_class.scores >= thresholds[label - 1]
    hits = int((one_class.outcomes[above] == 1).sum())
    ap = one_class.ap
    if grouping.detections is None and one_class.ground_truths:
        count = sum(int(((image.gt_labels == label) & ~image.difficult).sum()) for image in images)
        weight = max(1.0, count / one_class.ground_truths)
        true = np.cumsum(one_class.outcomes == 1) * weight
        false = np.cumsum(one_class.outcomes == 0)
        precision = true / np.maximum(true + false, 1)
        ap = average_precision(one_class.recall, precision, metric="voc07")
    return one_class.ground_truths, hits, ap


def test_groups_against_the_evaluation() -> None:
    thresholds = np.array([-0.4, 0.0, 0.3])
    for seed in range(8):
        images, _ = random_split(seed)
        rng = np.random.default_rng(seed)
        images = [replace(i, truncated=rng.random(len(i.truncated)) < 0.4) for i in images]
        counted = sum(int((~image.difficult).sum()) for image in images)
        for grouping in groupings(images, SCALES_PX):
            results = by_group(images, grouping, thresholds)
            for group, one in enumerate(results):
                slow = [
                    slow_group(images, grouping, group, label, thresholds)
                    for label in range(1, CLASSES + 1)
                ]
                assert one.objects == sum(objects for objects, _, _ in slow)
                assert one.found == sum(hits for _, hits, _ in slow)
                aps = [ap for objects, _, ap in slow if objects]
                assert (
                    np.isnan(one.mean_ap) if not aps else one.mean_ap == pytest.approx(np.mean(aps))
                )
            rest = [one for one in results if one.name != "difficult"]
            assert sum(one.objects for one in rest) == counted


def test_groups_by_hand() -> None:
    def of(name: str, *boxes: Box) -> list[int]:
        trace = trace_of([(1, box) for box in boxes], [], [])
        image = judge(trace, np.zeros(2), finest_level=FINEST)
        (grouping,) = [g for g in groupings([image], SCALES_PX) if g.name == name]
        return [int(group) for group in grouping.objects[0]]

    squares: list[Box] = [(0, 0, side, side) for side in (31.9, 32, 95.9, 96)]
    assert of("size", *squares) == [0, 1, 1, 2]
    shapes: list[Box] = [(0, 0, width, 100) for width in (49, 50, 99, 100, 199, 200)]
    assert of("aspect ratio", *shapes) == [0, 1, 1, 2, 2, 3]
    for count, crowd in ((1, 0), (2, 1), (4, 1), (5, 2)):
        assert of("objects in the image", *[OBJECT] * count) == [crowd] * count


def test_scale_and_cells_of_windows() -> None:
    cells = np.array([[0, 0, 0, 0, 0], [1, 0, 0, 3, 3]])
    windows = [OBJECT, (200.0, 200.0, 300.0, 300.0)]
    trace = trace_of([(1, OBJECT)], windows, [[1.0, -2], [0.5, -2]], cells=cells)
    image = judge(trace, np.zeros(2), finest_level=FINEST)
    found = {g.name: g for g in groupings([image], SCALES_PX)}
    scale, bins = found["image scale of the window"], found["cells of the window"]
    assert scale.groups == ("100 px", "200 px") and bins.groups[0] == "fewer cells than bins"
    assert scale.detections is not None and scale.detections[0].tolist() == [0, 1]
    assert bins.detections is not None and bins.detections[0].tolist() == [0, 1]
    assert scale.objects[0].tolist() == [0] and bins.objects[0].tolist() == [1]

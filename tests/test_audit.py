"""The label audit: its definitions on hand-made scenes and against a slow loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sppdet.evaluation.audit import Suspicion, audit, corrected, rather, supported, suspicions
from sppdet.types import AnnotatedImage, Dataset, Detections
from stages import Box, slow_iou

NAMES = ("ant", "bee", "cow")
OBJECT: Box = (100, 100, 200, 200)
UNSEEN = 0.01 * 0.9 / (0.01 * 0.9 + 0.99 * 0.1)  # of an object that no detection is on


def annotated(
    objects: Sequence[tuple[Box, int]], *, name: str = "im", difficult: Sequence[int] = ()
) -> AnnotatedImage:
    return AnnotatedImage(
        name,
        Path(f"{name}.jpg"),
        400,
        300,
        np.array([box for box, _ in objects], dtype=np.float32).reshape(-1, 4),
        np.array([label for _, label in objects], dtype=np.int64),
        np.array([row in difficult for row in range(len(objects))], dtype=np.bool_),
        np.array([row == 0 for row in range(len(objects))], dtype=np.bool_),
    )


def detected(found: Sequence[tuple[Box, int, float]]) -> Detections:
    p = np.array([p for *_, p in found], dtype=np.float32)
    return Detections(
        np.array([box for box, *_ in found], dtype=np.float32).reshape(-1, 4),
        p,
        np.array([label for _, label, _ in found], dtype=np.int64),
        NAMES,
        probabilities=p,
    )


def of(
    objects: Sequence[tuple[Box, int]],
    found: Sequence[tuple[Box, int, float]],
    *,
    difficult: Sequence[int] = (),
) -> list[Suspicion]:
    return suspicions(annotated(objects, difficult=difficult), detected(found))


def moved(box: Box, dx: float, dy: float = 0.0) -> Box:
    return box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy


def test_probabilities_by_hand() -> None:
    # 0.8 · 0.7 against 0.2 · 0.3
    assert rather(0.8, 0.3) == pytest.approx(0.56 / 0.62)
    assert rather(1.0, 0.0) == 1.0 and rather(1.0, 1.0) == 0.5
    # odds of 9 and of 0.25
    assert supported(0.2) == pytest.approx(2.25 / 3.25)
    assert supported(0.0) == supported(0.01) == pytest.approx(UNSEEN)
    assert supported(1.0) == 1.0


def test_a_detection_far_from_all_objects_looks_unlabelled() -> None:
    (one,) = of([(OBJECT, 1)], [(OBJECT, 1, 0.95), (moved(OBJECT, 150), 2, 0.8)])
    assert (one.kind, one.row, one.label, one.detection) == ("unlabelled", None, 2, 1)
    assert one.score == pytest.approx(0.8) and one.box.tolist() == [250, 100, 350, 200]
    (one,) = of([], [(OBJECT, 3, 0.6)])
    assert one.kind == "unlabelled" and one.score == pytest.approx(0.6)


def test_beside_an_object_it_counts_as_much_as_that_object_is_found() -> None:
    beside = moved(OBJECT, 50)  # IoU 1/3
    both = [(OBJECT, 1, 0.9), (beside, 1, 0.8)]
    (one,) = of([(OBJECT, 1)], both)
    assert one.kind == "unlabelled" and one.score == pytest.approx(0.72)
    (one,) = of([(OBJECT, 1)], both[1:])  # without another detection the object may be meant
    assert one.kind == "loose box" and one.score == pytest.approx(rather(0.8, UNSEEN))
    assert (one.row, one.label) == (0, 1) and one.box.tolist() == list(beside)


def test_a_loose_box_needs_one_object_of_its_class() -> None:
    beside = moved(OBJECT, 50)
    assert [one.kind for one in of([(OBJECT, 2)], [(beside, 1, 0.8)])] == []
    neighbour = moved(OBJECT, 110)  # IoU 0.25 with the detection
    assert of([(OBJECT, 1), (neighbour, 1)], [(beside, 1, 0.8)]) == []
    assert len(of([(OBJECT, 1), (neighbour, 2)], [(beside, 1, 0.8)])) == 1
    far = moved(OBJECT, 70)  # IoU 0.18 is not near
    (one,) = of([(OBJECT, 1)], [(far, 1, 0.8)])
    assert one.kind == "unlabelled"


def test_of_two_classes_at_one_place_the_surer_one_is_suggested() -> None:
    (one,) = of([], [(OBJECT, 1, 0.6), (moved(OBJECT, 10), 2, 0.5)])
    assert (one.label, one.detection) == (1, 0)
    assert len(of([], [(OBJECT, 1, 0.6), (moved(OBJECT, 40), 2, 0.5)])) == 2  # IoU 60 / 140
    (one,) = of([(OBJECT, 1)], [(moved(OBJECT, 50), 1, 0.6), (moved(OBJECT, 60), 2, 0.5)])
    assert (one.kind, one.detection) == ("loose box", 0)


def test_a_part_of_an_object_counts_little() -> None:
    for part in ((100, 100, 200, 145), (90, 90, 210, 300), (95, 150, 160, 185)):
        assert of([(OBJECT, 1)], [(OBJECT, 1, 0.9), (part, 1, 0.8)]) == []
    (one,) = of([(OBJECT, 1)], [((100, 100, 200, 145), 1, 0.8)])
    assert one.kind == "loose box" and one.score == pytest.approx(rather(0.08, UNSEEN))
    (one,) = of([(OBJECT, 2)], [((100, 100, 200, 145), 1, 0.8), (OBJECT, 2, 0.9)])
    assert one.kind == "unlabelled" and one.score == pytest.approx(0.72)  # of another class
    for left, p in ((115, 0.08), (116, 0.8)):  # 85 of its 100 columns are inside, or 84
        (one,) = of([(OBJECT, 1)], [((left, 100, left + 100, 130), 1, 0.8)])
        assert one.score == pytest.approx(rather(p, UNSEEN))


def test_a_class_that_looks_swapped() -> None:
    on = moved(OBJECT, 10)
    (one,) = of([(OBJECT, 1)], [(on, 2, 0.9), (OBJECT, 1, 0.02)])
    assert (one.kind, one.row, one.label) == ("swapped class", 0, 2)
    assert one.box.tolist() == list(OBJECT)  # the annotated one stays
    assert one.score == pytest.approx(rather(0.9, supported(0.02)))
    (one,) = of([(OBJECT, 1)], [(on, 2, 0.9), (OBJECT, 1, 0.8)])  # both classes are seen
    assert one.score == pytest.approx(rather(0.9, 7.2 / 7.4)) and one.score < 0.21
    # an object of the detection's class explains it
    assert of([(OBJECT, 1), (moved(OBJECT, 30), 2)], [(on, 2, 0.9)]) == []


def test_difficult_objects_are_no_suspects_and_explain_detections() -> None:
    on, beside = moved(OBJECT, 10), moved(OBJECT, 50)
    assert of([(OBJECT, 1)], [(on, 2, 0.9)], difficult=[0]) == []
    assert of([(OBJECT, 1)], [(on, 1, 0.9)], difficult=[0]) == []
    assert of([(OBJECT, 1)], [(beside, 1, 0.9)], difficult=[0]) == []


def test_an_object_without_detections_is_not_suspected() -> None:
    assert of([(OBJECT, 1)], []) == []
    assert of([], []) == []


def test_of_two_boxes_the_one_that_fits_better_stays() -> None:
    other = moved(OBJECT, 10)  # IoU 90 / 110
    (one,) = of([(OBJECT, 1), (other, 1)], [(moved(OBJECT, 12), 1, 0.9)])
    assert (one.kind, one.row, one.kept) == ("double box", 0, 1)
    assert one.score == pytest.approx(90 / 110) and one.box.tolist() == list(other)
    (one,) = of([(OBJECT, 1), (OBJECT, 2)], [(OBJECT, 1, 0.9)])
    assert (one.row, one.kept, one.label, one.score) == (1, 0, 1, 1.0)
    (one,) = of([(OBJECT, 1), (other, 1)], [])
    assert (one.row, one.kept) == (1, 0)  # nothing tells
    assert of([(OBJECT, 1), (moved(OBJECT, 12), 1)], []) == []  # IoU 88 / 112


def test_corrections_are_applied() -> None:
    boxes = [moved(OBJECT, 20.0 * k) for k in range(4)]
    image = annotated([(box, k % 3 + 1) for k, box in enumerate(boxes)])
    new = np.array([1, 2, 3, 4], dtype=np.float32)
    found = [
        Suspicion("loose box", 0.5, "im", new, 2, 1),
        Suspicion("unlabelled", 0.5, "im", new + 1, 3),
        Suspicion("double box", 0.5, "im", image.gt_boxes[3], 1, 0, 3),
        Suspicion("swapped class", 0.5, "im", image.gt_boxes[2], 1, 2),
    ]
    after = corrected(image, found)
    expected = [new, image.gt_boxes[2], image.gt_boxes[3], new + 1]
    assert after.gt_boxes.tolist() == [list(box) for box in expected]
    assert after.gt_labels.tolist() == [2, 1, 1, 3]
    assert not after.truncated.any() and image.truncated.any()  # the first one is gone
    assert image.gt_labels.tolist() == [1, 2, 3, 1]
    assert corrected(image, []).gt_boxes.tolist() == image.gt_boxes.tolist()


def test_rows_of_all_images_come_by_score() -> None:
    images = tuple(annotated([], name=name) for name in "abc")
    found = {
        "a": detected([(OBJECT, 1, 0.3)]),
        "b": detected([(OBJECT, 1, 0.9), (moved(OBJECT, 150), 2, 0.05)]),
    }
    rows = audit(Dataset("set", NAMES, images), found)
    assert [(one.image, round(one.score, 2)) for one in rows] == [("b", 0.9), ("a", 0.3)]
    with pytest.raises(ValueError, match="a: detections without probabilities"):
        suspicions(images[0], replace(found["a"], probabilities=None))


def nested(a: Box, b: Box) -> bool:
    """Whether 85 % or more of one box is inside the other."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    return width > 0 and height > 0 and width * height >= 0.85 * smaller


def slow_claims(image: AnnotatedImage, found: Detections) -> list[tuple[float, str, int, int, int]]:
    """What could be said, from the definitions: score, kind, object, other object, detection."""
    assert found.probabilities is not None
    objects = list(zip(map(tuple, image.gt_boxes.tolist()), image.gt_labels.tolist(), strict=True))
    boxes = list(map(tuple, found.boxes.tolist()))
    ps, labels = found.probabilities.astype(float).tolist(), found.labels.tolist()
    claims = []

    def own(row: int) -> float:
        box, label = objects[row]
        on = [p for b, k, p in zip(boxes, labels, ps, strict=True) if k == label]
        ious = [slow_iou(box, b) for b, k in zip(boxes, labels, strict=True) if k == label]
        return max((p for p, iou in zip(on, ious, strict=True) if iou >= 0.5), default=0.0)

    def fit(row: int) -> float:
        box, label = objects[row]
        pairs = zip(boxes, labels, ps, strict=True)
        return max((slow_iou(box, b) * p for b, k, p in pairs if k == label), default=0.0)

    for d, (box, label, p) in enumerate(zip(boxes, labels, ps, strict=True)):
        ious = [slow_iou(box, other) for other, _ in objects]
        same = [k == label for _, k in objects]
        if p < 0.01 or any(iou >= 0.5 and s for iou, s in zip(ious, same, strict=True)):
            continue
        if any(s and nested(box, other) for s, (other, _) in zip(same, objects, strict=True)):
            p *= 0.1
        if all(iou < 0.5 for iou in ious):
            score = p
            for row, iou in enumerate(ious):
                score *= own(row) if iou >= 0.3 else 1.0
            claims.append((score, "unlabelled", -1, -1, d))
        on = [row for row, iou in enumerate(ious) if iou >= 0.5]
        if on:
            row = max(on, key=lambda row: ious[row])
            if not image.difficult[row]:
                claims.append((rather(p, supported(own(row))), "swapped class", row, -1, d))
        near = [row for row, iou in enumerate(ious) if iou >= 0.2 and same[row]]
        if len(near) == 1 and not image.difficult[near[0]]:
            claims.append((rather(p, supported(own(near[0]))), "loose box", near[0], -1, d))
    for i in range(len(objects)):
        for j in range(i + 1, len(objects)):
            iou = slow_iou(objects[i][0], objects[j][0])
            if iou >= 0.8:
                row, kept = (j, i) if fit(i) >= fit(j) else (i, j)
                claims.append((iou, "double box", row, kept, -1))
    return claims


def test_random_scenes_agree_with_a_slow_loop(rng: np.random.Generator) -> None:
    kinds = set()
    for _ in range(150):
        corners = rng.integers(0, 12, (9, 2)) * 8
        sides = rng.integers(4, 9, (9, 2)) * 8
        boxes = [(float(x), float(y), float(x + w), float(y + h)) for (x, y), (w, h) in
                 zip(corners.tolist(), sides.tolist(), strict=True)]  # fmt: skip
        boxes[1] = moved(boxes[0], 2)
        labels = rng.integers(1, 3, 9).tolist()
        image = annotated(list(zip(boxes[:4], labels[:4], strict=True)), difficult=[3])
        ps = np.sort(rng.uniform(0, 1, 5) ** 2)[::-1].tolist()
        given = list(zip([*boxes[4:8], moved(boxes[0], 4)], labels[4:], ps, strict=True))
        found = detected(given)
        chosen = []
        suggested: list[Box] = []
        used: set[tuple[str, int]] = set()
        for claim in sorted(slow_claims(image, found), key=lambda claim: -claim[0]):
            score, kind, row, kept, d = claim
            parts = {("o", row), ("o", kept), ("d", d)} - {("o", -1), ("d", -1)}
            new = kind in ("unlabelled", "loose box")
            box = tuple(found.boxes[d].tolist())
            repeated = new and any(slow_iou(box, other) >= 0.5 for other in suggested)
            if score >= 0.1 and not parts & used and not repeated:
                suggested += [box] if new else []
                chosen.append((round(score, 6), kind, row, kept, d))
                used |= parts
        got = suspicions(image, found)
        rows = [
            tuple(-1 if part is None else part for part in (one.row, one.kept, one.detection))
            for one in got
        ]
        assert [(round(o.score, 6), o.kind, *r) for o, r in zip(got, rows, strict=True)] == chosen
        kinds |= {one.kind for one in got}
    assert len(kinds) == 4

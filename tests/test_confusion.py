"""The confusion matrix with background against a loop from its definition, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation_samples import make_detections, make_image, random_split
from sppdet.evaluation.confusion import confusion_matrix, judge_images
from sppdet.evaluation.operating_point import operating_points
from sppdet.evaluation.voc import class_results
from sppdet.types import AnnotatedImage, Dataset, Detections
from stages import Box, slow_iou


def _box(row: NDArray[np.float32]) -> Box:
    x1, y1, x2, y2 = row.tolist()
    return x1, y1, x2, y2


def slow_matrix(
    images: tuple[AnnotatedImage, ...],
    detections: dict[str, Detections],
    least: NDArray[np.float32],
) -> NDArray[np.int64]:
    """Count cell by cell: true detections by VOC's rules first, then objects of other classes."""
    matrix = np.zeros((len(least) + 1, len(least) + 1), np.int64)
    for image in images:
        found, taken, wrong = detections[image.id], set(), []
        objects = range(len(image.gt_boxes))
        for d in range(len(found)):
            label = int(found.labels[d])
            if found.scores[d] < least[label - 1]:
                continue
            iou = [slow_iou(_box(found.boxes[d]), _box(box)) for box in image.gt_boxes]
            own = [g for g in objects if image.gt_labels[g] == label]
            best = max(own, key=lambda g: iou[g], default=None)
            if best is None or iou[best] < 0.5 or (best in taken and not image.difficult[best]):
                wrong.append((label, iou))
            elif not image.difficult[best]:
                taken.add(best)
                matrix[label, label] += 1
        for label, iou in wrong:
            free = [
                g
                for g in objects
                if g not in taken
                and not image.difficult[g]
                and image.gt_labels[g] != label
                and iou[g] >= 0.5
            ]
            if free:
                best = max(free, key=lambda g: iou[g])
                taken.add(best)
                matrix[image.gt_labels[best], label] += 1
            else:
                matrix[0, label] += 1
        for g in objects:
            if g not in taken and not image.difficult[g]:
                matrix[image.gt_labels[g], 0] += 1
    return matrix


@pytest.mark.parametrize("seed", range(8))
def test_against_a_loop(seed: int) -> None:
    dataset, detections = random_split(seed)
    least = np.array([0.0, 0.5, 1.0, 0.0], np.float32)
    verdicts = judge_images(dataset, detections, least)
    matrix = confusion_matrix(verdicts, 4)
    assert matrix.tolist() == slow_matrix(dataset.images, detections, least).tolist()
    # the margins are what precision and recall are computed from
    results = class_results(dataset, detections, metric="voc07")
    points = operating_points(results, least, images=len(dataset))
    for k, point in enumerate(points[:-1], start=1):
        assert matrix[k, k] == point.right
        assert matrix[k].sum() == point.objects
        assert matrix[:, k].sum() == point.right + point.wrong
    assert sum(one.errors for one in verdicts) == sum(
        p.objects - p.right + p.wrong for p in points[:-1]
    )


def test_by_hand() -> None:
    a, b, far = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (50.0, 50.0, 60.0, 60.0)
    image = make_image("one", [(1, a), (2, b), (1, far)], [False, False, True])
    found = make_detections(
        [
            (1, 0.9, a),  # true
            (2, 0.8, a),  # on an object that is found: background
            (1, 0.7, b),  # takes the object of class 2
            (1, 0.6, b),  # and this one comes too late
            (1, 0.5, far),  # difficult: counts neither way
            (2, 0.4, far),  # false; a difficult object can't be confused
            (2, 0.1, b),  # below the threshold
        ]
    )
    dataset = Dataset("hand", ("a", "b"), (image, make_image("two", [(2, a)])))
    verdicts = judge_images(dataset, {"one": found}, np.array([0.2, 0.2], np.float32))
    assert confusion_matrix(verdicts, 2).tolist() == [[0, 1, 2], [0, 1, 0], [1, 1, 0]]
    assert verdicts[0].missed.tolist() == [False, True, False]
    assert (verdicts[0].errors, verdicts[1].errors) == (5, 1)


def test_nothing() -> None:
    dataset = Dataset("none", ("a",), (make_image("x", []),))
    verdicts = judge_images(dataset, {}, np.zeros(1, np.float32))
    assert confusion_matrix(verdicts, 1).tolist() == [[0, 0], [0, 0]] and not verdicts[0].errors

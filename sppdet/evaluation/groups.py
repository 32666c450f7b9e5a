"""Recall and average precision by groups of objects: size, scale, shape, occlusion, crowding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sppdet.evaluation.curves import VocMetric, average_precision, mean_of_known
from sppdet.evaluation.repairs import Outcomes
from sppdet.evaluation.traces import JudgedImage
from sppdet.evaluation.voc import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE, precision_recall
from sppdet.types import Boxes, Flags

SIZES = ("small", "medium", "large")
SHAPES = ("below 1:2", "1:2 to 1:1", "1:1 to 2:1", "2:1 or more")  # width : height
OCCLUSIONS = ("neither", "truncated", "difficult")
CROWDS = ("1 object", "2 to 4 objects", "5 objects or more")
CELLS = ("fewer cells than bins", "as many cells as bins or more")


@dataclass(frozen=True)
class Grouping:
    """Division of a split's objects into groups."""

    name: str
    groups: tuple[str, ...]
    objects: tuple[NDArray[np.int64], ...]  # of each image (G,): the group of each object
    detections: tuple[NDArray[np.int64], ...] | None  # (D,) likewise; None: a box doesn't tell


@dataclass(frozen=True)
class GroupResult:
    """Recall and AP of one group."""

    name: str
    objects: int
    found: int  # by detections at or above the thresholds
    mean_ap: float  # over detections of all scores; NaN without objects

    @property
    def recall(self) -> float:
        """Fraction of the objects that are found; NaN without objects."""
        return self.found / self.objects if self.objects else float("nan")


def groupings(images: Sequence[JudgedImage], scales_px: Sequence[int]) -> list[Grouping]:
    """Divide the objects of a split in every way that docs/method.md lists.

    Args:
        scales_px: the image scales of the settings, in pixels.
    """
    scales = np.array(sorted(scales_px), dtype=np.int64)
    alone = [len(image.gt_boxes) for image in images]
    crowds = [int(np.digitize(count, (2, 5))) for count in alone]
    return [
        Grouping(
            "size",
            SIZES,
            tuple(_sizes(image.gt_boxes) for image in images),
            tuple(_sizes(image.detections.boxes) for image in images),
        ),
        Grouping(
            "image scale of the window",
            tuple(f"{scale} px" for scale in scales.tolist()),
            tuple(np.searchsorted(scales, image.gt_scale_px) for image in images),
            tuple(np.searchsorted(scales, image.scale_px) for image in images),
        ),
        Grouping(
            "cells of the window",
            CELLS,
            tuple((~image.gt_coarse).astype(np.int64) for image in images),
            tuple((~image.coarse).astype(np.int64) for image in images),
        ),
        Grouping(
            "aspect ratio",
            SHAPES,
            tuple(_shapes(image.gt_boxes) for image in images),
            tuple(_shapes(image.detections.boxes) for image in images),
        ),
        Grouping(
            "occlusion",
            OCCLUSIONS,
            tuple(np.where(image.difficult, 2, image.truncated.astype(int)) for image in images),
            None,
        ),
        Grouping(
            "objects in the image",
            CROWDS,
            tuple(np.full(n, c) for n, c in zip(alone, crowds, strict=True)),
            tuple(
                np.full(len(image.detections), crowd if count else -1)
                for image, crowd, count in zip(images, crowds, alone, strict=True)
            ),
        ),
    ]


def by_group(
    images: Sequence[JudgedImage],
    grouping: Grouping,
    thresholds: NDArray[np.float64],
    *,
    metric: VocMetric = "voc07",
) -> list[GroupResult]:
    """Compute recall and AP of every group.

    Only the objects of the group count; detections that take others are ignored, and so are false
    detections whose own box is of another group. Where a box doesn't tell the group, all false
    detections of the class count, and a true one as often as the class has objects for each of the
    group's, so that AP doesn't fall with the size of the group (Hoiem et al. 2012). Difficult objects
    count in the group of difficult ones alone.
    """
    flat = Outcomes.of(images)
    ints = np.zeros(0, dtype=np.int64)
    of_objects = np.concatenate([ints, *grouping.objects])
    own = grouping.detections
    of_detections = None if own is None else np.concatenate([ints, *own])
    found = []
    for group, name in enumerate(grouping.groups):
        rest = ~flat.counted if name == "difficult" else flat.counted
        member = (of_objects == group) & rest
        counts = None if of_detections is None else of_detections == group
        results = [
            _class_result(flat, label, member, counts, threshold, metric)
            for label, threshold in enumerate(thresholds.tolist(), start=1)
        ]
        objects, hits, aps = zip(*results, strict=True)
        found.append(GroupResult(name, sum(objects), sum(hits), mean_of_known(list(aps))))
    return found


def _class_result(
    flat: Outcomes,
    label: int,
    member: Flags,
    counts: Flags | None,
    threshold: float,
    metric: VocMetric,
) -> tuple[int, int, float]:
    """Compute one class's objects in a group, how many are found, and AP, NaN without objects.

    Args:
        member: (G,) objects of the group.
        counts: (N,) detections that count where they take no object; None: all do, and true ones are
            weighed.
    """
    member = member & (flat.gt_labels == label)
    objects = int(member.sum())
    if objects == 0:
        return 0, 0, float("nan")
    own = np.flatnonzero(flat.labels == label)
    order = own[np.argsort(-flat.scores[own], kind="stable")]
    targets = flat.targets[order]
    hit = targets >= 0
    taking = np.flatnonzero(hit)[
        member[targets[hit]]
    ]  # detections that take an object of the group
    outcomes = np.full(len(order), IGNORED, dtype=np.int8)
    outcomes[~hit if counts is None else ~hit & counts[order]] = FALSE_POSITIVE
    outcomes[taking] = FALSE_POSITIVE
    _, first = np.unique(targets[taking], return_index=True)
    outcomes[taking[first]] = TRUE_POSITIVE
    found = int(((outcomes == TRUE_POSITIVE) & (flat.scores[order] >= threshold)).sum())
    recall, precision = precision_recall(outcomes, ground_truths=objects)
    if counts is None:
        in_class = int((flat.counted & (flat.gt_labels == label)).sum())
        true = np.cumsum(outcomes == TRUE_POSITIVE) * max(in_class / objects, 1.0)
        false = np.cumsum(outcomes == FALSE_POSITIVE)
        precision = true / np.maximum(true + false, 1)
    return objects, found, average_precision(recall, precision, metric=metric)


def _sizes(boxes: Boxes) -> NDArray[np.int64]:
    """Classify boxes (N, 4) by area: below 32², below 96² and above, in square pixels."""
    sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]
    return np.digitize(sides[:, 0] * sides[:, 1], (32**2, 96**2)).astype(np.int64)


def _shapes(boxes: Boxes) -> NDArray[np.int64]:
    """Classify boxes (N, 4) by width / height: below 1/2, below 1, below 2 and above."""
    sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]
    return np.digitize(sides[:, 0] / sides[:, 1], (0.5, 1.0, 2.0)).astype(np.int64)

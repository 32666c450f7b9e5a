"""Precision, recall and F1 at a threshold, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sppdet.evaluation.bootstrap import DRAWS
from sppdet.evaluation.intervals import fraction_interval, wilson
from sppdet.evaluation.voc import FALSE_POSITIVE, TRUE_POSITIVE
from sppdet.randomness import rng
from sppdet.types import ClassResult, Interval


@dataclass(frozen=True)
class OperatingPoint:
    """Count what a threshold keeps: fractions with 95 % intervals, NaN where they are of nothing.

    The intervals of precision and recall are Wilson's; that of F1 is a bootstrap over images.
    """

    name: str
    right: int
    wrong: int
    objects: int  # ground truths that count
    precision: float
    precision_interval: Interval
    recall: float
    recall_interval: Interval
    f1: float
    f1_interval: Interval


def operating_points(
    classes: Sequence[ClassResult], least: NDArray[np.float32], *, images: int, seed: int = 0
) -> list[OperatingPoint]:
    """Count detections with a score >= the class's `least` (K,): of each class, and of all together last.

    Args:
        classes: matched by VOC's rules; detections of difficult objects count neither way.
        images: number of images of the set.
    """
    counts = [_counts(one, float(score), images) for one, score in zip(classes, least, strict=True)]
    names = [one.name for one in classes]
    if len(classes) > 1:
        counts.append(np.sum(counts, axis=0))
        names.append("all")
    return [_point(name, own, seed) for name, own in zip(names, counts, strict=True)]


def _counts(one: ClassResult, least: float, images: int) -> NDArray[np.int64]:
    """Count (images, 3): right and wrong detections, and objects, in each image."""
    kept = one.scores >= np.float32(least)
    columns = [
        np.bincount(one.image_index[kept & (one.outcomes == outcome)], minlength=images)
        for outcome in (TRUE_POSITIVE, FALSE_POSITIVE)
    ]
    assert one.matches is not None
    return np.stack([*columns, one.matches.objects], axis=1).astype(np.int64)


def _point(name: str, counts: NDArray[np.int64], seed: int) -> OperatingPoint:
    right, wrong, objects = counts.sum(axis=0).tolist()
    generator = rng(seed, "draws of the images of an operating point")
    chances = np.full(len(counts), 1 / max(1, len(counts)))
    drawn = generator.multinomial(len(counts), chances, size=DRAWS) @ counts
    f1 = _f1(*drawn.T.astype(np.float64))
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = float(np.float64(right) / (right + wrong))
        recall = float(np.float64(right) / objects)
    own = float(_f1(*(np.array([float(v)]) for v in (right, wrong, objects)))[0])
    return OperatingPoint(
        name,
        right,
        wrong,
        objects,
        precision,
        wilson(right, right + wrong),
        recall,
        wilson(right, objects),
        own,
        fraction_interval(own, f1, counts[:, 2]),
    )


def _f1(
    right: NDArray[np.float64], wrong: NDArray[np.float64], objects: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Compute 2·right / (detections + objects); NaN for neither."""
    total = right + wrong + objects
    with np.errstate(invalid="ignore", divide="ignore"):
        result: NDArray[np.float64] = np.where(total > 0, 2 * right / total, np.nan)
    return result

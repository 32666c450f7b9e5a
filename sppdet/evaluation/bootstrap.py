"""Bootstrap intervals of average precision: images drawn with replacement (Efron and Tibshirani 1993).

Detections are matched once. Matching concerns one image at a time, so that an image that is drawn w times
has each of its outcomes and objects w times, and AP follows from the outcomes and these numbers. Copies of
a detection stand beside each other in the order of scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from sppdet.evaluation.intervals import difference_interval, fraction_interval
from sppdet.evaluation.voc import FALSE_POSITIVE, TRUE_POSITIVE
from sppdet.randomness import rng
from sppdet.types import ClassResult, EvalResult, Interval, Intervals, Matches

DRAWS = 1000
"""Number of draws behind every interval."""
Watch = Callable[[Iterator[Any], int], Iterable[Any]]
"""Passes on the steps of a long computation, whose number it is told: to show the progress."""
_CELLS = 2**21  # of the matrices in work: draws are taken in blocks, which bounds the memory


@dataclass(frozen=True)
class Difference:
    """AP of two results and the interval of their difference, second − first; fractions."""

    first: float
    second: float
    interval: Interval

    @property
    def value(self) -> float:
        """The difference, second − first."""
        return self.second - self.first

    @property
    def shows(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval[0] > 0 or self.interval[1] < 0


@dataclass(frozen=True)
class PairedDifferences:
    """Differences of two results of the same images, by class and of the mean."""

    mean: Difference
    classes: tuple[Difference, ...]
    draws: int


def _unwatched(steps: Iterator[Any], _: int) -> Iterable[Any]:
    return steps


def with_intervals(
    result: EvalResult, *, draws: int = DRAWS, watch: Watch = _unwatched
) -> EvalResult:
    """Add the intervals of every AP and of the mean to a result.

    Args:
        result: has the matches of its classes; with fewer than two images it is returned as it is.
    """
    if result.images < 2 or any(one.matches is None for one in result.classes):
        return result
    aps = drawn_aps(result, draws=draws, watch=watch)
    classes = tuple(
        fraction_interval(one.ap, row, objects_by_image([one]))
        for one, row in zip(result.classes, aps, strict=True)
    )
    objects = objects_by_image(result.classes)
    mean = fraction_interval(result.mean_ap, mean_by_draw(aps), objects)
    found = Intervals(mean, classes, draws)
    return replace(result, intervals=found)


def paired_differences(
    first: EvalResult, second: EvalResult, *, draws: int = DRAWS, watch: Watch = _unwatched
) -> PairedDifferences:
    """Bootstrap the differences of two results; both are scored on each draw of images.

    Args:
        first, second: of the same images in the same order, classes and metric.

    Raises:
        ValueError: they aren't.
    """
    for key in ("metric", "image_ids", "min_iou"):
        if getattr(first, key) != getattr(second, key):
            raise ValueError(f"{key}: the two results differ")
    if [one.name for one in first.classes] != [one.name for one in second.classes]:
        raise ValueError("classes: the two results differ")
    a, b = (drawn_aps(result, draws=draws, watch=watch) for result in (first, second))
    classes = tuple(
        difference(one.ap, other.ap, row, objects_by_image([one]))
        for one, other, row in zip(first.classes, second.classes, b - a, strict=True)
    )
    drawn, objects = mean_by_draw(b) - mean_by_draw(a), objects_by_image(first.classes)
    mean = difference(first.mean_ap, second.mean_ap, drawn, objects)
    return PairedDifferences(mean, classes, draws)


def difference(
    first: float, second: float, drawn: NDArray[np.float64], objects: NDArray[np.int64]
) -> Difference:
    """Join two values with the interval of second − first, by its draws and the objects in each image."""
    return Difference(first, second, difference_interval(second - first, drawn, objects))


def objects_by_image(classes: Sequence[ClassResult]) -> NDArray[np.int64]:
    """Count the objects of some classes that count, in each image; (I,).

    Args:
        classes: of one result, one or more, with their matches.
    """
    found = [one.matches.objects for one in classes if one.matches is not None]
    total: NDArray[np.int64] = np.sum(found, axis=0)
    return total


def drawn_aps(
    result: EvalResult, *, draws: int = DRAWS, seed: int = 0, watch: Watch = _unwatched
) -> NDArray[np.float64]:
    """Compute the AP of every class on draws of the images.

    Args:
        result: has the matches of its classes.
        seed: of the draws, which depend on it and on the number of images alone: results of the same
            images are scored on the same draws.

    Returns:
        (K, draws); NaN where a draw has no object of a class that counts.

    Raises:
        ValueError: a class has no matches.
    """
    found = [one.matches for one in result.classes]
    if None in found:
        raise ValueError(f"{result.metric}: the classes have no matches to draw from")
    curves = [_curves(one) for one in found if one is not None]
    aps = np.full((len(curves), draws), np.nan)
    rows = max([result.images, *(len(c.tp_image) for one in curves for c in one.at_iou)])
    block = max(1, _CELLS // rows)
    steps = (
        (start, k, weights)
        for start, weights in _draws(result.images, draws, block, seed)
        for k in range(len(curves))
    )
    for start, k, weights in watch(steps, -(-draws // block) * len(curves)):
        stop = start + weights.shape[1]
        aps[k, start:stop] = curves[k].aps(weights, result.metric)
    return aps


def mean_by_draw(aps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average (K, draws) APs over the classes that have an object in a draw; NaN where none has."""
    known = ~np.isnan(aps)
    counts = known.sum(axis=0)
    sums = np.where(known, aps, 0.0).sum(axis=0)
    mean: NDArray[np.float64] = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return mean


def drawn_mean(
    results: Sequence[EvalResult], *, draws: int = DRAWS, watch: Watch = _unwatched
) -> NDArray[np.float64]:
    """Average the mAP of several results of the same images on each draw; (draws,)."""
    each = [mean_by_draw(drawn_aps(result, draws=draws, watch=watch)) for result in results]
    mean: NDArray[np.float64] = np.mean(each, axis=0)
    return mean


def _draws(
    images: int, draws: int, block: int, seed: int
) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """Yield blocks (images, up to `block`) of how often each draw has each image, with their first draw.

    Each draw has a stream of its own, so that it doesn't depend on the size of the blocks.
    """
    for start in range(0, draws, block):
        numbers = range(start, min(start + block, draws))
        weights = np.empty((images, len(numbers)), np.int32)
        for column, number in enumerate(numbers):
            rows = rng(seed, "images of a bootstrap draw", number).integers(images, size=images)
            weights[:, column] = np.bincount(rows, minlength=images)
        yield start, weights


@dataclass(frozen=True)
class _Curve:
    """The true positives of a class at one IoU, and the false positives before each."""

    tp_image: NDArray[np.int64]  # (T,) in descending score
    fp_counts: csr_matrix  # (T, I): false positives by image since the true positive before


@dataclass(frozen=True)
class _ClassCurves:
    objects: NDArray[np.int64]  # (I,)
    at_iou: Sequence[_Curve]

    def aps(self, weights: NDArray[np.int32], metric: str) -> NDArray[np.float64]:
        """Compute AP on the draws of a block (I, B); (B,), NaN where no object is drawn."""
        holders = np.flatnonzero(self.objects)
        objects = self.objects[holders] @ weights[holders].astype(np.int64)  # [B]
        each = [_average_precision(one, weights, objects, metric) for one in self.at_iou]
        mean: NDArray[np.float64] = np.where(objects > 0, np.mean(each, axis=0), np.nan)
        return mean


def _curves(matches: Matches) -> _ClassCurves:
    images = len(matches.objects)
    found = []
    for outcomes in matches.outcomes:
        hits = np.flatnonzero(outcomes == TRUE_POSITIVE)
        last = (
            hits[-1] + 1 if len(hits) else 0
        )  # what follows the last true positive has no part in AP
        misses = np.flatnonzero(outcomes[:last] == FALSE_POSITIVE)
        gap = np.searchsorted(hits, misses)  # the true positive that comes next
        ones = np.ones(len(misses), np.int32)
        shape = (len(hits), images)
        counts = csr_matrix((ones, (gap, matches.image_index[misses])), shape)  # adds up repeats
        found.append(_Curve(matches.image_index[hits], counts))
    return _ClassCurves(matches.objects, found)


def _average_precision(
    curve: _Curve, weights: NDArray[np.int32], objects: NDArray[np.int64], metric: str
) -> NDArray[np.float64]:
    """Compute (B,) AP as `voc.average_precision` and pycocotools do, from the true positives alone.

    Between two of them precision only falls, so that no other point of a curve is a maximum at or
    after a recall.
    """
    if not len(curve.tp_image):
        return np.zeros(weights.shape[1])
    tp = np.cumsum(weights[curve.tp_image], axis=0, dtype=np.int64)  # [T, B]
    fp = np.cumsum(curve.fp_counts @ weights, axis=0, dtype=np.int64)
    precision = tp / np.maximum(tp + fp, 1)
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall = tp / np.maximum(objects, 1)
    if metric == "voc10":
        reached, whole = recall, 1.0
    else:
        points = np.arange(11) / 10 if metric == "voc07" else np.linspace(0.0, 1.0, 101)
        # number of recalls of the grid up to that of each true positive
        reached, whole = np.searchsorted(points, recall, side="right").astype(float), len(points)
    area: NDArray[np.float64] = (np.diff(reached, axis=0, prepend=0.0) * envelope).sum(axis=0)
    return area / whole

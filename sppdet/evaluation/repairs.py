"""Mean average precision if a cause of errors were repaired, after TIDE (Bolya et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sppdet.evaluation.curves import VocMetric, average_precision, mean_of_known
from sppdet.evaluation.traces import (
    FALSE_CAUSES,
    MISS_CAUSES,
    FalseCause,
    FalseDetection,
    JudgedImage,
    MissCause,
)
from sppdet.evaluation.voc import IGNORED, TRUE_POSITIVE, precision_recall
from sppdet.types import Flags, Labels


class BestThreshold(NamedTuple):
    """One minimum score for all classes, and recall and precision of the detections from it on."""

    score: float
    recall: float
    precision: float


def best_threshold(
    scores: NDArray[np.float64], outcomes: NDArray[np.int8], *, objects: int
) -> BestThreshold | None:
    """Find the score for all classes at which F1 of detections (N,) is highest; see `Outcomes`.

    Args:
        objects: number of those that count.
    """
    counted = outcomes != IGNORED
    order = np.flatnonzero(counted)[np.argsort(-scores[counted], kind="stable")]
    recall, precision = precision_recall(outcomes[order], ground_truths=objects)
    total = recall + precision
    f1 = np.divide(2 * recall * precision, total, out=np.zeros_like(total), where=total > 0)
    # detections of one score are all above a threshold or none is
    last = np.append(np.diff(scores[order]) != 0, True)[: len(order)]
    f1[~last] = 0.0
    if f1.max(initial=0.0) == 0:
        return None
    best = int(f1.argmax())
    return BestThreshold(float(scores[order][best]), float(recall[best]), float(precision[best]))


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of all detections of a split, and its objects."""

    scores: NDArray[np.float64]  # (N,)
    labels: Labels  # (N,)
    outcomes: NDArray[np.int8]  # (N,)
    targets: NDArray[np.int64]  # (N,) objects taken, -1 for none
    gt_labels: Labels  # (G,)
    counted: Flags  # (G,) not difficult

    @classmethod
    def of(cls, images: Sequence[JudgedImage]) -> Outcomes:
        """Join the images of a split in order."""
        starts = np.cumsum([0, *(len(image.gt_labels) for image in images)])
        targets = [
            np.where(image.targets >= 0, image.targets + start, -1)
            for image, start in zip(images, starts, strict=False)
        ]
        none, ints = np.zeros(0), np.zeros(0, dtype=np.int64)
        return cls(
            np.concatenate([none, *(i.detections.scores.astype(np.float64) for i in images)]),
            np.concatenate([ints, *(image.detections.labels for image in images)]),
            np.concatenate([ints.astype(np.int8), *(image.outcomes for image in images)]),
            np.concatenate([ints, *targets]),
            np.concatenate([ints, *(image.gt_labels for image in images)]),
            np.concatenate([ints > 0, *(~image.difficult for image in images)]),
        )

    def best_threshold(self) -> BestThreshold | None:
        """Find the score for all classes at which F1 is highest, of equal ones the highest score.

        Returns:
            None without true detections.
        """
        return best_threshold(self.scores, self.outcomes, objects=int(self.counted.sum()))

    def mean_ap(self, classes: Labels, metric: VocMetric) -> float:
        """Average AP over `classes`; one that has no object left has AP 1."""
        return mean_of_known([self._ap(label, metric) for label in classes.tolist()])

    def _ap(self, label: int, metric: VocMetric) -> float:
        count = int((self.counted & (self.gt_labels == label)).sum())
        if count == 0:
            return 1.0
        own = np.flatnonzero(self.labels == label)
        order = own[np.argsort(-self.scores[own], kind="stable")]
        curve = precision_recall(self.outcomes[order], ground_truths=count)
        return average_precision(*curve, metric=metric)


@dataclass(frozen=True)
class Gains:
    """mAP of a split, and by how much it rises if one cause were repaired and all else stayed."""

    mean_ap: float
    missed: dict[MissCause, float]
    false: dict[FalseCause, float]


def gains(
    images: Sequence[JudgedImage],
    false: Sequence[Sequence[FalseDetection]],
    *,
    min_score: float,
    metric: VocMetric = "voc07",
) -> Gains:
    """Compute the gain in mAP of every cause over detections of all scores.

    A repaired miss gets a true detection at its `repair_score`, in the place of one of a lower score if
    there is one and of the false one that it `replaces`; nothing happens where that score is <
    `min_score`. A miss without such a score counts no more, like a difficult object, and neither do the
    detections that take it. A repaired false detection that is badly localised or of the wrong class
    becomes a true one of its nearest object, at its own score, where that object isn't difficult and no
    detection of any score is counted for it; of several the one of the highest score does. All others
    are removed.

    Args:
        images: judged images of a split.
        false: the false detections of each, of all scores.
        min_score: minimum score of the detector.
    """
    base = Outcomes.of(images)
    classes = np.unique(base.gt_labels[base.counted])
    before = base.mean_ap(classes, metric)

    def gain(repair: Callable[[], Outcomes]) -> float:
        return repair().mean_ap(classes, metric) - before

    return Gains(
        before,
        {c: gain(lambda c=c: _without_misses(base, images, c, min_score)) for c in MISS_CAUSES},  # type: ignore[misc]
        {c: gain(lambda c=c: _without_false(base, images, false, c)) for c in FALSE_CAUSES},  # type: ignore[misc]
    )


def _without_misses(
    base: Outcomes, images: Sequence[JudgedImage], cause: MissCause, min_score: float
) -> Outcomes:
    outcomes, counted = base.outcomes.copy(), base.counted.copy()
    added: list[tuple[float, int]] = []  # score and label
    start = first = 0
    for image in images:
        for miss in image.misses:
            if miss.cause != cause:
                continue
            g, score = start + miss.row, miss.repair_score
            taking = np.flatnonzero(base.targets == g)
            if score is None:
                counted[g] = False
                outcomes[taking] = IGNORED
                continue
            true = taking[base.outcomes[taking] == TRUE_POSITIVE]
            if score >= min_score and not (base.scores[true] >= score).any():
                outcomes[true] = IGNORED
                if miss.replaces is not None:
                    outcomes[first + miss.replaces] = IGNORED
                added.append((score, miss.label))
        start, first = start + len(image.gt_labels), first + len(image.detections)
    repaired = replace(base, outcomes=outcomes, counted=counted)
    return _with_true(repaired, added)


def _without_false(
    base: Outcomes,
    images: Sequence[JudgedImage],
    false: Sequence[Sequence[FalseDetection]],
    cause: FalseCause,
) -> Outcomes:
    outcomes = base.outcomes.copy()
    found = set(base.targets[base.outcomes == TRUE_POSITIVE].tolist())
    best: dict[int, float] = {}  # score of the detection that is repaired for an object
    start = gt_start = 0
    for image, of_image in zip(images, false, strict=True):
        for one in of_image:
            if one.cause != cause:
                continue
            d = start + one.row
            outcomes[d] = IGNORED
            row = {"wrong class": one.other_target, "badly localised": one.target}.get(cause, -1)
            g = gt_start + row
            if row >= 0 and base.counted[g] and g not in found:
                best[g] = max(best.get(g, -np.inf), float(base.scores[d]))
        start, gt_start = start + len(image.detections), gt_start + len(image.gt_labels)
    added = [(score, int(base.gt_labels[g])) for g, score in best.items()]
    return _with_true(replace(base, outcomes=outcomes), added)


def _with_true(base: Outcomes, added: Sequence[tuple[float, int]]) -> Outcomes:
    """Add true detections, each of a score and a label, after those of equal score."""
    count = len(added)
    return replace(
        base,
        scores=np.append(base.scores, [score for score, _ in added]),
        labels=np.append(base.labels, np.array([label for _, label in added], dtype=np.int64)),
        outcomes=np.append(base.outcomes, np.full(count, TRUE_POSITIVE, dtype=np.int8)),
        targets=np.append(base.targets, np.full(count, -1, dtype=np.int64)),
    )

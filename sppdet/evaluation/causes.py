"""Causes of errors: which stage has lost a missed object, and what a false detection is.

A pipeline of separate stages can tell exactly where an object was lost. docs/method.md defines the
causes; every missed object and every false detection has exactly one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sppdet.boxes import box_iou
from sppdet.evaluation.traces import (
    FalseCause,
    FalseDetection,
    ImageTrace,
    JudgedImage,
    Miss,
    MissCause,
    Rival,
)
from sppdet.evaluation.voc import FALSE_POSITIVE, TRUE_POSITIVE, match_image
from sppdet.types import Scores

MIN_IOU = 0.5  # of a proposal, window or detection that is on an object
GOOD_IOU = 0.7  # from which a proposal is good
NEAR_IOU = 0.1  # below which a box has nothing to do with an object
CERTAIN = 0.9  # probability from which a detection at no object looks like one without a label
CERTAIN_SCORE = float(np.log(CERTAIN / (1 - CERTAIN)))  # its log odds


class _Matches(NamedTuple):
    outcomes: NDArray[np.int8]  # (D,)
    targets: NDArray[np.int64]  # (D,) rows of objects, -1 for none


def judge(trace: ImageTrace, thresholds: NDArray[np.float64], *, finest_level: int) -> JudgedImage:
    """Match the detections of an image with its objects and find the cause of every miss.

    Args:
        thresholds: (K,) minimum score of a detection that finds an object; at least the detector's
            own minimum score.
        finest_level: bins per side of the finest SPP level.
    """
    matches = _match(trace)
    outcomes, targets = matches
    found = trace.detections
    enough = found.scores >= thresholds[found.labels - 1]
    taken = np.zeros(len(trace.gt_boxes), dtype=np.bool_)
    taken[targets[enough & (outcomes == TRUE_POSITIVE)]] = True
    bins = finest_level**2
    misses = [
        _miss(trace, g, thresholds, matches, bins=bins)
        for g in np.flatnonzero(~taken & ~trace.difficult).tolist()
    ]
    return JudgedImage(
        gt_boxes=trace.gt_boxes,
        gt_labels=trace.gt_labels,
        difficult=trace.difficult,
        truncated=trace.truncated,
        gt_scale_px=trace.scales_px[trace.gt_cells[:, 0]],
        gt_coarse=_counts(trace.gt_cells) < bins,
        detections=found,
        scale_px=trace.scales_px[trace.cells[trace.rows, 0]],
        coarse=_counts(trace.cells[trace.rows]) < bins,
        outcomes=outcomes,
        targets=targets,
        misses=tuple(misses),
    )


def certain_scores(
    images: Sequence[JudgedImage], thresholds: NDArray[np.float64], *, probabilities: bool
) -> NDArray[np.float64]:
    """Compute for each class the score above which a detection is certain.

    Args:
        probabilities: scores are log odds, and the probability 0.9 is certain; otherwise the median
            score of a class's true detections at or above its threshold.

    Returns:
        (K,) float64; infinite for a class without true detections.
    """
    if probabilities:
        return np.full(len(thresholds), CERTAIN_SCORE)
    scores = np.concatenate([np.zeros(0), *(image.detections.scores for image in images)])
    labels = np.concatenate([np.zeros(0, np.int64), *(image.detections.labels for image in images)])
    outcomes = np.concatenate([np.zeros(0, np.int8), *(image.outcomes for image in images)])
    certain = np.full(len(thresholds), np.inf)
    for k, threshold in enumerate(thresholds):
        own = scores[(labels == k + 1) & (outcomes == TRUE_POSITIVE) & (scores >= threshold)]
        if len(own):
            certain[k] = np.median(own)
    return certain


def false_detections(image: JudgedImage, certain: NDArray[np.float64]) -> list[FalseDetection]:
    """Find the cause of every false detection of an image, whatever its score.

    Args:
        certain: (K,) scores as from `certain_scores`.
    """
    found = image.detections
    iou = box_iou(found.boxes, image.gt_boxes)  # [D, G]
    same = found.labels[:, None] == image.gt_labels[None, :]
    own, target = _largest(np.where(same, iou, -1.0))
    other, other_target = _largest(np.where(same, -1.0, iou))
    causes = []
    for d in np.flatnonzero(image.outcomes == FALSE_POSITIVE).tolist():
        cause: FalseCause = "background"
        if image.targets[d] >= 0:
            cause = "duplicate"
        elif other[d] >= MIN_IOU:
            cause = "wrong class"
        elif own[d] >= NEAR_IOU:
            cause = "badly localised"
        elif other[d] < NEAR_IOU and found.scores[d] > certain[found.labels[d] - 1]:
            cause = "looks unlabelled"
        causes.append(
            FalseDetection(
                d, cause, float(own[d]), int(target[d]), float(other[d]), int(other_target[d])
            )
        )
    return causes


def _match(trace: ImageTrace) -> _Matches:
    """Match class by class."""
    return _Matches(
        *match_image(
            trace.detections,
            gt_boxes=trace.gt_boxes,
            gt_labels=trace.gt_labels,
            gt_difficult=trace.difficult,
            min_iou=MIN_IOU,
        )
    )


def _miss(
    trace: ImageTrace,
    g: int,
    thresholds: NDArray[np.float64],
    matches: _Matches,
    *,
    bins: int,
) -> Miss:
    """Follow one missed object through the stages, to the first that has lost it."""
    box, label = trace.gt_boxes[[g]], int(trace.gt_labels[g])
    proposal_iou = float(box_iou(box, trace.proposals).max(initial=0.0))
    if proposal_iou < MIN_IOU:
        return Miss(g, label, "not proposed", proposal_iou)
    window_iou = box_iou(box, trace.windows)[0]
    on = np.flatnonzero(window_iou >= MIN_IOU)
    if len(on) == 0:
        return Miss(g, label, "not scored", proposal_iou)
    scores = trace.scores[:, label - 1]
    after = box_iou(box, trace.regressed[on, label - 1])[0]
    good = on[after >= MIN_IOU]
    best = _best(on if len(good) == 0 else good, scores)
    cause: MissCause
    other = rival = None
    if len(good) == 0:
        lost = float(window_iou[on].max())
        cause = "proposed badly" if lost < GOOD_IOU else "moved off by regression"
        repair = float(scores[best])
        replaced = np.flatnonzero((trace.rows == best) & (trace.detections.labels == label))
    else:
        other = _other_class(trace, good, label)
        cause, rival, repair, replaced = _cause_by_score(
            trace, g, good, best, thresholds, matches, bins=bins
        )
    replaced = replaced[matches.outcomes[replaced] == FALSE_POSITIVE]
    return Miss(
        row=g,
        label=label,
        cause=cause,
        proposal_iou=proposal_iou,
        regressed_iou=float(after.max()),
        score=float(scores[best]),
        cells=_sides(trace.cells[best]),
        other=other,
        rival=rival,
        repair_score=repair,
        replaces=int(replaced[0]) if len(replaced) else None,
    )


def _cause_by_score(
    trace: ImageTrace,
    g: int,
    good: NDArray[np.int64],
    best: int,
    thresholds: NDArray[np.float64],
    matches: _Matches,
    *,
    bins: int,
) -> tuple[MissCause, Rival | None, float, NDArray[np.int64]]:
    """Find the cause of a miss that has good windows: rows (M,), `best` the one of the highest score.

    Returns:
        The cause; its rival: for "pooled too coarsely" and "scored below the threshold" the detection of
        the highest score with IoU >= 0.1, for "wrong class" the detection of that class, for "suppressed
        by NMS" the suppressor, and else the detection on the object; the score after a repair; and the
        detections, one or none, that a repair replaces if they are false.
    """
    found, k = trace.detections, int(trace.gt_labels[g]) - 1
    score, threshold = float(trace.scores[best, k]), float(thresholds[k])
    iou = box_iou(trace.gt_boxes[[g]], found.boxes)[0]
    enough = found.scores >= thresholds[found.labels - 1]
    none = np.zeros(0, dtype=np.int64)

    def rival(rows: NDArray[np.int64]) -> Rival | None:
        if len(rows) == 0:
            return None
        d = _best(rows, found.scores)
        outcome = int(matches.outcomes[d])
        return Rival(int(found.labels[d]), float(found.scores[d]), float(iou[d]), outcome)

    if score < threshold:
        near = rival(np.flatnonzero(iou >= NEAR_IOU))
        if int(_counts(trace.cells[[best]])[0]) < bins:
            return "pooled too coarsely", near, threshold, none
        on_it = box_iou(trace.gt_boxes[[g]], trace.windows[trace.rows])[0] >= MIN_IOU
        # a duplicate belongs to another object
        stray = (matches.outcomes == FALSE_POSITIVE) & (matches.targets < 0)
        wrong = np.flatnonzero(on_it & enough & stray & (found.labels != k + 1))
        if len(wrong) == 0:
            return "scored below the threshold", near, threshold, none
        taken = _best(wrong, found.scores)
        return "wrong class", rival(wrong), float(found.scores[taken]), np.array([taken])
    above = good[trace.scores[good, k] >= threshold]
    kept = np.flatnonzero(enough & (found.labels == k + 1) & np.isin(trace.rows, above))
    if len(kept) == 0:
        by = int(trace.suppressor[best, k])
        if by < 0:
            return "over max_per_class", None, score, none
        return "suppressed by NMS", _suppressor(trace, best, by, k, matches), score, none
    on_object = kept[iou[kept] >= MIN_IOU]
    if len(on_object) == 0:
        voted = _best(kept, found.scores)
        return "moved off by box voting", rival(kept), float(found.scores[voted]), np.array([voted])
    highest = float(found.scores[on_object].max())
    return "counted for another object", rival(on_object), highest, none


def _suppressor(trace: ImageTrace, window: int, by: int, k: int, matches: _Matches) -> Rival:
    """Describe the window `by` that NMS has preferred to another one for class k + 1."""
    iou = float(box_iou(trace.windows[[window]], trace.windows[[by]])[0, 0])
    own = np.flatnonzero((trace.rows == by) & (trace.detections.labels == k + 1))
    outcome = int(matches.outcomes[own[0]]) if len(own) else None
    return Rival(k + 1, float(trace.scores[by, k]), iou, outcome)


def _best(rows: NDArray[np.int64], scores: Scores) -> int:
    return int(rows[scores[rows].argmax()])


def _other_class(trace: ImageTrace, rows: NDArray[np.int64], label: int) -> Rival | None:
    """Find the class of the highest score on windows but `label`; None if there is one class."""
    scores = trace.scores[rows].astype(np.float64)
    scores[:, label - 1] = -np.inf
    if scores.shape[1] == 1:
        return None
    k = int(scores.max(axis=0).argmax())
    return Rival(k + 1, float(scores[:, k].max()))


def _largest(iou: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Find the largest IoU of each row, at least 0, and its column; -1 where all are negative."""
    if iou.shape[1] == 0:
        return np.zeros(len(iou)), np.full(len(iou), -1, dtype=np.int64)
    value = iou.max(axis=1)
    return np.maximum(value, 0.0), np.where(value >= 0, iou.argmax(axis=1), -1)


def _sides(cells: NDArray[np.int64]) -> tuple[int, int]:
    _, left, top, right, bottom = cells.tolist()
    return right - left + 1, bottom - top + 1


def _counts(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the cells of windows (N, 5)."""
    counts: NDArray[np.int64] = (cells[:, 3] - cells[:, 1] + 1) * (cells[:, 4] - cells[:, 2] + 1)
    return counts

"""Why a window scores as it does, and what becomes of it: exact parts of a linear score, fates in NMS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.detection.detect import ScoredProposals, Selection
from sppdet.features.levels import level_columns
from sppdet.types import Boxes

State = Literal["detected", "scored below the threshold", "suppressed by NMS", "over max_per_class"]
Reason = Literal[
    State, "not proposed", "not scored", "moved off by regression", "moved off by box voting"
]


@dataclass(frozen=True)
class Contributions:
    """The parts of a window's scores: for each class they add up to the score.

    With `detect.flip` they are means over the image and its mirror image, whose bins are mirrored back.
    """

    levels: tuple[int, ...]
    bins: tuple[NDArray[np.float64], ...]  # of each level n: (n, n, K), rows from the top
    bias: NDArray[np.float64]  # (K,)

    @property
    def by_level(self) -> NDArray[np.float64]:
        """Contributions (L, K) of whole levels."""
        return np.stack([one.sum(axis=(0, 1)) for one in self.bins])


def contributions(scored: ScoredProposals, row: int) -> Contributions | None:
    """Split the scores of a window by bins; None where they aren't linear in the pooled vector.

    They are linear for SVMs on pool5. Behind fully connected layers with ReLUs a bin has no share of its
    own in a score, and log odds of a softmax depend on all classes.
    """
    classifiers, levels = scored.parts.classifiers, scored.parts.extractor.levels
    if classifiers.kind != "svm" or classifiers.layer != "pool5":
        return None
    weights = classifiers.weights.double()  # [K, D]
    extractor = scored.parts.extractor
    products = [weights * view.pooled(extractor, row).double() for view in scored.views]
    channels = weights.shape[1] // sum(n * n for n in levels)
    bins = []
    for n in levels:
        columns = level_columns(channels, levels, n)
        views = [one[:, columns].reshape(-1, n, n, channels).sum(dim=3) for one in products]
        if len(views) == 2:
            views[1] = views[1].flip(2)
        bins.append(torch.stack(views).mean(dim=0).permute(1, 2, 0).cpu().numpy())
    return Contributions(levels, tuple(bins), classifiers.biases.double().cpu().numpy())


@dataclass(frozen=True)
class Fate:
    """State how a window ended as a detection of one class."""

    row: int  # of the scored proposals
    label: int
    score: float
    threshold: float
    state: State
    by: int  # window that has suppressed it or lowered its score, -1 for none
    detection: int  # row of the detections of all scores, -1 if it isn't one


@dataclass(frozen=True)
class Scene:
    """An image's scored proposals, what `select` has made of them, and what counts."""

    proposals: Boxes  # (N, 4), all of them
    scored: ScoredProposals
    selection: Selection
    suppressor: NDArray[np.int64]  # (P, K), as from `detection.trace.suppressors`
    thresholds: NDArray[np.float64]  # (K,) minimum scores, the detector's own included

    @property
    def counted(self) -> NDArray[np.int64]:
        """Rows of the detections at or above the thresholds, in descending score."""
        found = self.selection.detections
        return np.flatnonzero(found.scores >= self.thresholds[found.labels - 1])

    def fate(self, row: int, label: int) -> Fate:
        """Follow a window through threshold and NMS."""
        score, threshold = (
            float(self.scored.scores[row, label - 1]),
            float(self.thresholds[label - 1]),
        )
        by = int(self.suppressor[row, label - 1])
        found = self.selection.detections
        own = np.flatnonzero((self.selection.rows == row) & (found.labels == label))
        detection = int(own[0]) if len(own) else -1
        state: State = "over max_per_class"
        if score < threshold:
            state = "scored below the threshold"
        elif detection >= 0 and found.scores[detection] >= threshold:
            state = "detected"
        elif by >= 0:  # by soft-NMS it may still be there, with a lower score
            state = "suppressed by NMS"
        return Fate(row, label, score, threshold, state, by, detection)

    def best(self, rows: NDArray[np.int64], count: int) -> list[Fate]:
        """Follow those of some windows that come nearest to a threshold, each for its best class."""
        margins = self.scored.scores[rows].astype(np.float64) - self.thresholds  # [M, K]
        if len(rows) == 0:
            return []
        order = np.argsort(-margins.max(axis=1), kind="stable")[:count]
        labels = margins.argmax(axis=1) + 1
        return [self.fate(int(rows[i]), int(labels[i])) for i in order]


@dataclass(frozen=True)
class Answer:
    """Why there is no detection at a point, or which one there is.

    `best` are the windows that contain the point, the nearest to its threshold first. The first of them
    is the reason, but where the point is detected: then `detected` is that detection's.
    """

    reason: Reason
    proposals: int  # that contain the point
    best: list[Fate]
    detected: Fate | None = None


def answer(scene: Scene, x: float, y: float, *, count: int = 8) -> Answer:
    """Find why nothing is detected at a point in original pixels.

    A detection at or above the threshold whose final box contains the point is there, the one of the
    highest score. Otherwise the first stage that has left nothing there is named: no proposal contains
    the point; none that does was scored; the best one scored below the threshold; it was suppressed or
    only `max_per_class` has cut it; it became a detection, but regression or votes have moved its box off
    the point.
    """
    found, boxes = scene.selection.detections, scene.scored.boxes
    proposals = int(_contain(scene.proposals, x, y).sum())
    best = scene.best(np.flatnonzero(_contain(boxes, x, y)), count)
    there = scene.counted[_contain(found.boxes[scene.counted], x, y)]
    if len(there):
        own = scene.fate(int(scene.selection.rows[there[0]]), int(found.labels[there[0]]))
        return Answer("detected", proposals, best, own)
    if not best:
        return Answer("not scored" if proposals else "not proposed", proposals, best)
    reason: Reason = best[0].state
    if reason == "detected":
        voting = scene.scored.parts.config.box_voting is not None
        reason = "moved off by box voting" if voting else "moved off by regression"
    return Answer(reason, proposals, best)


def _contain(boxes: Boxes, x: float, y: float) -> NDArray[np.bool_]:
    left, top, right, bottom = boxes.T
    inside: NDArray[np.bool_] = (left <= x) & (x < right) & (top <= y) & (y < bottom)
    return inside

"""From scores to probabilities and thresholds, fitted to detections in images that were held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sppdet.evaluation.voc import IGNORED, TRUE_POSITIVE
from sppdet.types import ClassResult, Labels, Scores

VERSION = 3  # raise it when the same detections give another calibration

Values = NDArray[np.float64]

# The sigmoids are fitted where they matter: to the best detections of each class, this many for each of its
# objects. All others, a hundred an image, are wrong and would bend the sigmoid for the best ones.
_DETECTIONS_PER_OBJECT = 16
_LEAST_OBJECTS = 5
_SHRINKAGE = 0.3  # variance, in units of log odds, of what a class has of its own
_COMMON = 10.0  # scale of the features that all classes share, whose weights are hardly shrunk
_FEW = 10  # right detections below which a class is said to borrow from the others


@dataclass(frozen=True)
class Evidence:
    """Detections of one class whose outcome is known, in descending score."""

    scores: Values  # (n,)
    correct: NDArray[np.bool_]  # (n,) whether each is right at IoU 0.5
    objects: int  # ground truths that count, found or not

    @classmethod
    def of(cls, result: ClassResult) -> Evidence:
        """Take the outcomes of an evaluation; detections of difficult objects are left out."""
        counted = result.outcomes != IGNORED
        correct = result.outcomes[counted] == TRUE_POSITIVE
        return cls(result.scores[counted], correct, result.ground_truths)

    def best(self) -> Evidence:
        """Keep the detections that the sigmoids are fitted to."""
        count = _DETECTIONS_PER_OBJECT * max(_LEAST_OBJECTS, self.objects)
        return Evidence(self.scores[:count], self.correct[:count], self.objects)


@dataclass(frozen=True)
class Calibration:
    """Probability that a detection is right at IoU 0.5, by its class and score, and thresholds of it.

    p = sigmoid(slope · score + intercept), with a slope > 0 and an intercept of each class. `evidence`
    has the detections that precision and recall at a threshold are read from.
    """

    slopes: Values  # (K,)
    intercepts: Values  # (K,)
    evidence: tuple[Evidence, ...]  # of each class

    def probabilities(self, scores: Scores, labels: Labels) -> NDArray[np.float32]:
        """Compute the probabilities (N,) of detections of labels 1..K."""
        return np.exp(-np.logaddexp(0.0, -self.log_odds(scores, labels))).astype(np.float32)

    def log_odds(self, scores: Scores, labels: Labels) -> Values:
        """Compute the logarithms of p / (1 − p), (N,), of detections of labels 1..K."""
        of = labels - 1
        return np.asarray(self.slopes[of] * scores.astype(np.float64) + self.intercepts[of])

    def scores_at(self, probability: float) -> Values:
        """Compute the score (K,) at which each class has a probability in (0, 1)."""
        wanted = np.log(probability) - np.log1p(-probability)
        scores: Values = (wanted - self.intercepts) / self.slopes
        return scores

    def best_f1(self) -> float:
        """Find the probability from which F1 of all classes' detections together is the largest."""
        p, precision, recall = self._curve()
        if not len(p):
            return 0.5
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        return float(p[f1.argmax()])

    def at_precision(self, wanted: float) -> float | None:
        """Find the least probability from which precision is `wanted` or more; None: there is none."""
        p, precision, _ = self._curve()
        enough = np.flatnonzero(precision >= wanted)
        return float(p[enough[-1]]) if len(enough) else None

    def at_recall(self, wanted: float) -> float | None:
        """Find the largest probability from which recall is `wanted` or more; None: there is none."""
        p, _, recall = self._curve()
        enough = np.flatnonzero(recall >= wanted)
        return float(p[enough[0]]) if len(enough) else None

    def borrowing(self) -> list[int]:
        """List the classes, from 0, with so few right detections that they take after the others."""
        return [k for k, e in enumerate(self.evidence) if e.correct.sum() < _FEW]

    def _curve(self) -> tuple[Values, Values, Values]:
        """Compute probability, precision and recall after each detection of all classes, descending."""
        labels = np.repeat(
            np.arange(1, len(self.evidence) + 1), [len(e.scores) for e in self.evidence]
        )
        scores = np.concatenate([e.scores for e in self.evidence])
        correct = np.concatenate([e.correct for e in self.evidence])
        p = self.probabilities(scores.astype(np.float32), labels).astype(np.float64)
        order = np.argsort(-p, kind="stable")
        right = np.cumsum(correct[order])
        # of equal probabilities the last one has them all
        last = np.flatnonzero(np.diff(p[order], append=-1.0))
        objects = max(1, sum(e.objects for e in self.evidence))
        return p[order][last], right[last] / (last + 1), right[last] / objects


def fit_calibration(evidence: Sequence[Evidence]) -> Calibration | None:
    """Fit the sigmoids of all classes at once; None where no detection is right or none is wrong.

    A logistic regression (Platt 1999) of two parts: a slope and an intercept that all classes share, and
    what a class has of its own, shrunk towards 0 (L2). A class with many detections follows them, one
    with few takes after all classes.
    """
    from sklearn.linear_model import LogisticRegression

    best = [e.best() for e in evidence]
    scores = np.concatenate([e.scores for e in best])
    correct = np.concatenate([e.correct for e in best])
    if not correct.any() or correct.all():
        return None
    classes = np.repeat(np.arange(len(best)), [len(e.scores) for e in best])
    mean, spread = float(scores.mean()), max(float(scores.std()), 1e-6)
    z = (scores - mean) / spread
    own = np.eye(len(best))[classes]
    x = np.column_stack([_COMMON * z, np.full(len(z), _COMMON), own * z[:, None], own])
    model = LogisticRegression(C=_SHRINKAGE, fit_intercept=False, tol=1e-8, max_iter=10_000)
    weights = model.fit(x, correct).coef_[0]
    slopes = np.maximum(_COMMON * weights[0] + weights[2 : 2 + len(best)], 1e-3)
    intercepts = _COMMON * weights[1] + weights[2 + len(best) :]
    return Calibration(slopes / spread, intercepts - slopes * mean / spread, tuple(best))

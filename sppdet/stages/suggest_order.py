"""The order of suggested images, and the reasons for it in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sppdet.evaluation.calibration import Calibration
from sppdet.evaluation.selection import (
    Values,
    Worth,
    moderated,
    order_images,
    rarity,
    worth_of,
)
from sppdet.stages.look import Look
from sppdet.stages.suggest_images import Candidate
from sppdet.types import Detections

_NAMED = 3  # classes of a reason
_UNSURE = 0.3  # bits from which on a class is named: probabilities of 5 to 95 %
_RARE = 1.25  # weight from which on a class is called rare
_NEAR = 0.4  # novelty below which the image that is alike is named
_MANY = 2  # images from which on their number is named


@dataclass(frozen=True)
class Suggestion:
    """An image to label.

    Attributes:
        score: value times coverage.
        worth: what it is worth alone.
        coverage: fraction of all images' value that it newly stands for.
        probabilities: (K,) of the detection of each class that is most in doubt; NaN without one.
        novelty: 1 − similarity to the nearest image that has labels or comes before, in [0, 1].
        like: name of the nearest image where it is one that comes before, else None.
        reason: all of this in words.
        detections: all of the image, with probabilities.
    """

    candidate: Candidate
    score: float
    worth: Worth
    coverage: float
    probabilities: Values
    novelty: float
    like: str | None
    reason: str
    detections: Detections


def ordered(
    seen: Sequence[Candidate],
    calibration: Calibration | None,
    *,
    labelled: Sequence[NDArray[np.float32]],
    counts: NDArray[np.int64],
    count: int,
) -> list[Suggestion]:
    """Order images as `order_images` does, by where the detector is unsure of them.

    Args:
        seen: one image or more.
        calibration: None takes the sigmoid of a score for its probability.
        labelled: whole-image vectors of the images to train on.
        counts: (K,) their objects.
        count: number of images that are compared with all before.
    """
    weights = rarity(counts)
    found = [_with_probabilities(one.look.detections, calibration) for one in seen]
    worth = [
        worth_of(
            moderated_probabilities(one.look, calibration), one.look.detections.labels, weights
        )
        for one in seen
    ]
    vectors = np.stack([one.look.vector for one in seen]).astype(np.float64)
    known = np.array(labelled, dtype=np.float64).reshape(-1, vectors.shape[1])
    order = order_images(np.array([one.value for one in worth]), vectors, known, count=count)
    made = []
    for place, row in enumerate(order.rows.tolist()):
        coverage, novelty = float(order.coverage[place]), float(order.novelty[place])
        nearest = int(order.nearest[place])
        like = None if nearest < 0 else seen[nearest].name
        doubtful = worth[row].rows
        probabilities = np.full(len(weights), np.nan)
        probabilities[doubtful >= 0] = _probabilities(found[row])[doubtful[doubtful >= 0]]
        reason = _unsure(found[row].class_names, worth[row], probabilities, weights)
        reason += _place(coverage * len(seen), novelty, like)
        made.append(
            Suggestion(
                candidate=seen[row],
                score=worth[row].value * coverage,
                worth=worth[row],
                coverage=coverage,
                probabilities=probabilities,
                novelty=novelty,
                like=like,
                reason=reason,
                detections=found[row],
            )
        )
    return made


def moderated_probabilities(seen: Look, calibration: Calibration | None) -> Values:
    """Compute the probabilities (N,) of detections, drawn to 0.5 as far as the models of folds disagree."""
    found, errors = seen.detections, seen.errors.astype(np.float64)
    if calibration is None:
        return moderated(found.scores.astype(np.float64), errors)
    odds = calibration.log_odds(found.scores, found.labels)
    return moderated(odds, calibration.slopes[found.labels - 1] * errors)


def _with_probabilities(found: Detections, calibration: Calibration | None) -> Detections:
    if calibration is not None:
        return replace(found, probabilities=calibration.probabilities(found.scores, found.labels))
    scores = found.scores.astype(np.float64)
    return replace(found, probabilities=moderated(scores, 0 * scores).astype(np.float32))


def _probabilities(found: Detections) -> Values:
    assert found.probabilities is not None
    return found.probabilities.astype(np.float64)


def _unsure(names: Sequence[str], worth: Worth, probabilities: Values, weights: Values) -> str:
    """Name the classes in doubt, the most doubtful first, each with the probability that it is there."""
    order = np.argsort(-worth.by_class * weights, kind="stable").tolist()
    shown = [k for k in order if worth.by_class[k] >= _UNSURE][:_NAMED]
    if not shown:
        return "sure of all that it finds" if worth.rows.max(initial=-1) >= 0 else "finds nothing"
    parts = [
        f"{names[k]} ({100 * probabilities[k]:.0f} %{', rare' if weights[k] >= _RARE else ''})"
        for k in shown
    ]
    return f"unsure of {', '.join(parts)}"


def _place(images: float, novelty: float, like: str | None) -> str:
    """Say what an image stands for; `images`: the value of so many average ones."""
    if novelty < _NEAR:
        return f"; like {like}" if like is not None else "; like an image with labels"
    return f"; stands for {images:.0f} images" if images >= _MANY else ""

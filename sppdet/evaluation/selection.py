"""Which unlabelled images are worth a label: where a detector is unsure, and which images differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sppdet.types import Labels

Values = NDArray[np.float64]


def entropy(probabilities: Values) -> Values:
    """Compute the entropy of yes-or-no questions, in bits: 0 for sure answers, 1 at 0.5."""
    p = np.clip(probabilities.astype(np.float64), 0.0, 1.0)
    q = 1 - p
    return -(p * np.log2(np.where(p > 0, p, 1)) + q * np.log2(np.where(q > 0, q, 1)))


def jackknife_errors(margins: Values) -> Values:
    """Estimate the standard error of scores from models that each lack one of F parts of the data.

    The delete-a-group jackknife: (F − 1) / F times the sum of squared distances from the mean.

    Args:
        margins: (N, F), F >= 2, by the model without part f.

    Returns:
        (N,), in units of the margins.
    """
    count = margins.shape[1]
    apart = margins.astype(np.float64) - margins.mean(axis=1, keepdims=True, dtype=np.float64)
    return np.asarray(np.sqrt((apart**2).sum(axis=1) * ((count - 1) / count)))


def class_uncertainties(values: Values, labels: Labels, *, classes: int) -> Values:
    """Find the largest value of each class; returns (K,), 0 without a detection.

    The hundreds of detections that are surely wrong would outweigh all others in a sum.

    Args:
        values: (N,) >= 0, of the detections of an image.
        labels: (N,) 1..K.
    """
    found = np.zeros(classes)
    np.maximum.at(found, labels - 1, values)
    return found


def rarity(counts: NDArray[np.int64]) -> Values:
    """Weigh classes (K,) by one over the root of their labelled objects; the mean is 1.

    The error of what is estimated from n objects falls as 1 / √n.
    """
    weights = 1 / np.sqrt(np.maximum(counts, 1))
    return np.asarray(weights / weights.mean()) if len(weights) else weights


def moderated(logits: Values, errors: Values) -> Values:
    """Average the probability over what a score might be, which draws it towards 0.5.

    σ(x / √(1 + π e² / 8)) is near to the mean of σ over a normal distribution of mean x and standard
    deviation e (MacKay 1992).

    Args:
        logits: (N,) log odds.
        errors: (N,) their standard errors.
    """
    x = logits / np.sqrt(1 + np.pi / 8 * errors**2)
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)))


@dataclass(frozen=True)
class Worth:
    """Hold what an image is worth alone: `value` is the sum over the classes, weighted.

    `by_class` has the entropy (K,), in bits, of the detection of each class that is most in doubt, whose
    row is in `rows` (K,); −1 without one.
    """

    value: float
    by_class: Values
    rows: NDArray[np.int64]


def worth_of(probabilities: Values, labels: Labels, weights: Values) -> Worth:
    """Add up over the classes how much in doubt a detector is.

    The hundreds of detections that are surely wrong would outweigh all others in a sum over detections,
    so that the one of each class counts that is most in doubt.

    Args:
        probabilities: (N,) of the detections of an image.
        labels: (N,) 1..K.
        weights: (K,) of the classes.
    """
    classes = len(weights)
    doubt = entropy(probabilities)
    rows = np.full(classes, -1)
    for row in np.argsort(doubt, kind="stable").tolist():  # the last one of a class stays
        rows[labels[row] - 1] = row
    by_class = np.where(rows >= 0, np.append(doubt, 0.0)[rows], 0.0)
    return Worth(float(weights @ by_class), by_class, rows)


@dataclass(frozen=True)
class Order:
    """Images in the order in which to label them, the first one first; all arrays are in that order."""

    rows: NDArray[np.int64]  # (I,)
    coverage: Values  # (I,) fraction of all images' value that an image newly stands for
    novelty: (
        Values  # (I,) 1 − its similarity to the nearest image with labels or before it, in [0, 1]
    )
    nearest: NDArray[np.int64]  # (I,) row of that image; −1: it has labels, or there is none


def order_images(values: Values, vectors: Values, labelled: Values, *, count: int) -> Order:
    """Order images by their value times the value of the images that they newly stand for.

    An image stands for another one as far as it is more similar to it than all images are that have
    labels or come before. So the first ones are where there is much value and nothing has been chosen, of
    near-duplicates one comes long before the next, and an image that is like no other stands for itself
    alone. The first `count` are chosen one after another (the greedy solution of facility location,
    Nemhauser, Wolsey and Fisher 1978, times the value); the others follow by what is left for them then.
    Ties go to the larger value, then to the first image.

    Args:
        values: (I,) >= 0, what an image is worth alone.
        vectors: (I, D) whole-image features.
        labelled: (L, D) those of images that have labels.
        count: number of images that are compared with all chosen before; later ones only with these.
    """
    images = len(values)
    own, known = _directions(vectors, labelled)
    covered, nearest = np.zeros(images), np.full(images, -1)
    for start in range(0, len(known), _BLOCK):
        block = similarities(own, known[start : start + _BLOCK])
        covered = np.maximum(covered, block.max(axis=1, initial=0.0))
    # of very many images an evenly spaced sample stands for all others
    columns = np.unique(np.linspace(0, images - 1, max(1, min(images, _CELLS // max(1, images)))))
    sample = columns.astype(np.int64)[:images]
    similar = np.maximum(similarities(own, own[sample]), 0).astype(np.float32)
    similar[sample, np.arange(len(sample))] = 0  # itself is counted apart
    others = max(0, images - 1) / max(1, len(sample) - 1)
    total = max(float(values.sum()), 1e-12)

    def coverages() -> Values:
        new = np.maximum(similar - covered[sample].astype(np.float32), 0)
        of_others = others * (new @ values[sample].astype(np.float32))
        return np.asarray((values * (1 - covered) + of_others) / total)

    chosen: list[int] = []
    found: list[tuple[float, float]] = []
    left = np.ones(images, dtype=np.bool_)
    for _ in range(min(count, images)):
        stands_for = coverages()
        rows = np.flatnonzero(left)
        best = int(rows[_first(values[rows] * stands_for[rows], values[rows])])
        chosen.append(best)
        found.append((float(stands_for[best]), float(1 - covered[best])))
        left[best] = False
        alike = similarities(own, own[best : best + 1])[:, 0]
        nearer = alike > covered
        nearest[nearer & left] = best
        covered = np.where(nearer, alike, covered)
    rest = np.flatnonzero(left)
    stands_for = coverages()
    rest = rest[np.lexsort((-values[rest], -(values[rest] * stands_for[rest])))]
    rows = np.concatenate([np.array(chosen, dtype=np.int64), rest])
    pairs = np.array(found).reshape(-1, 2)
    return Order(
        rows,
        np.concatenate([pairs[:, 0], stands_for[rest]]),
        np.concatenate([pairs[:, 1], 1 - covered[rest]]),
        nearest[rows],
    )


_BLOCK = 1024  # labelled images that are compared at a time
_CELLS = 2**26  # of the matrix of similarities: 256 MB


def _directions(vectors: Values, labelled: Values) -> tuple[Values, Values]:
    """Subtract the mean of all vectors, which says nothing, and scale them to length 1."""
    every = np.concatenate([vectors, labelled]).astype(np.float64)
    if not len(every):
        return vectors.astype(np.float64), labelled.astype(np.float64)
    centred = every - every.mean(axis=0)
    lengths = np.sqrt((centred**2).sum(axis=1, keepdims=True))
    size = np.sqrt((every**2).sum(axis=1)).max()
    rows = np.where(lengths > _SAME * size, centred / np.maximum(lengths, 1e-300), 0)
    return rows[: len(vectors)], rows[len(vectors) :]


_SAME = 1e-6  # distance from the mean, in the longest vector, that is rounding


def similarities(one: Values, other: Values) -> Values:
    """Compute cosines (I, J) of rows of length 1, or 0 at the mean: such rows are the same image."""
    cosines = np.clip(one @ other.T, -1, 1)
    at_mean = np.logical_and.outer(~one.any(axis=1), ~other.any(axis=1))
    return np.asarray(np.where(at_mean, 1.0, cosines))


def _first(scores: Values, values: Values) -> int:
    """Find the row of the largest score; of ties the one of the largest value, then the first."""
    ties = np.flatnonzero(scores == scores.max())
    return int(ties[values[ties].argmax()])

"""Average precision by a curve of precision and recall."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

VocMetric = Literal["voc07", "voc10"]


def average_precision(
    recall: NDArray[np.float64], precision: NDArray[np.float64], *, metric: VocMetric
) -> float:
    """Compute the average precision of one curve.

    "voc07" is the mean over k = 0..10 of the maximum precision where recall >= k/10. The quotients
    are exact enough to compare: equal fractions round to one float64, so 9/15 reaches 6/10 (steps
    of 0.1 added up would pass it). "voc10" is the area under the curve after each precision is
    raised to the maximum at any higher recall.

    Args:
        recall: (D,) float64, non-decreasing; true positives / ground truths.
        precision: (D,) float64.

    Returns:
        In [0, 1]; 0 if D = 0.

    Raises:
        ValueError: an unknown metric.
    """
    _check_metric(metric)
    envelope = monotone(precision)
    if metric == "voc07":
        at = np.searchsorted(recall, np.arange(11) / 10, side="left")  # first with recall >= k/10
        return float(np.append(envelope, 0.0)[at].sum() / 11)
    steps = np.diff(recall, prepend=0.0)
    return float((steps * envelope).sum())


def monotone(precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Raise each of (D,) precisions to the maximum at or after it."""
    raised: NDArray[np.float64] = np.maximum.accumulate(precision[::-1])[::-1]
    return raised


def curve_corners(recall: NDArray[np.float64]) -> NDArray[np.int64]:
    """Select the points of a curve (D,), D > 0, where recall rises, those just before, and the last.

    Between them precision falls straight down, so that they draw the whole curve.
    """
    rises = np.flatnonzero(np.diff(recall, prepend=-1.0) > 0)
    corners: NDArray[np.int64] = np.union1d(np.append(rises, len(recall) - 1), rises[1:] - 1)
    return corners


def mean_of_known(values: list[float]) -> float:
    """Average the values that are not NaN; NaN if there are none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _check_metric(metric: str) -> None:
    if metric not in ("voc07", "voc10"):
        raise ValueError(f"metric: {metric!r}, expected 'voc07' or 'voc10'")

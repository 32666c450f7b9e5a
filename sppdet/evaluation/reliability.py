"""Reliability of probabilities: how often detections of about one probability are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sppdet.evaluation.intervals import wilson
from sppdet.types import Flags, Interval


@dataclass(frozen=True)
class ReliabilityBin:
    """Detections with a probability in [low, high), 1 included in the last; means are NaN for none."""

    low: float
    high: float
    count: int
    probability: float  # mean
    right: float  # fraction of right detections
    interval: Interval  # Wilson's, 95 %, of that fraction


def reliability_bins(
    probabilities: NDArray[np.float32], right: Flags, *, bins: int = 10
) -> list[ReliabilityBin]:
    """Group detections (N,) into `bins` bins of equal width."""
    edges = np.arange(bins + 1) / bins
    p = probabilities.astype(np.float64)
    index = np.minimum(np.searchsorted(edges, p, side="right") - 1, bins - 1)
    found = []
    for k in range(bins):
        own = index == k
        count, hits = int(own.sum()), int(right[own].sum())
        mean, fraction = (p[own].mean(), hits / count) if count else (np.nan, np.nan)
        interval = wilson(hits, count)
        found.append(
            ReliabilityBin(
                float(edges[k]), float(edges[k + 1]), count, float(mean), fraction, interval
            )
        )
    return found


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Compute the expected calibration error of detections, D-ECE (Küppers et al. 2020), by confidence.

    The mean of |fraction right - mean probability| over the bins, weighted by their counts; NaN
    without detections.
    """
    total = sum(one.count for one in bins)
    gaps = [one.count * abs(one.right - one.probability) for one in bins if one.count]
    return sum(gaps) / total if total else float("nan")

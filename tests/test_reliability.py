"""Reliability bins and the calibration error against loops and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from sppdet.evaluation.intervals import wilson
from sppdet.evaluation.reliability import calibration_error, reliability_bins


def test_against_a_loop_and_scikit_learn(rng: np.random.Generator) -> None:
    p = rng.random(500).astype(np.float32) ** 2
    p[:12] = np.arange(12, dtype=np.float32)[::-1].clip(0, 10) / 10  # the edges themselves
    right = rng.random(500) < 0.7 * p
    bins = reliability_bins(p, right)
    assert sum(one.count for one in bins) == 500
    error = 0.0
    for k, one in enumerate(bins):
        low, high = k / 10, (k + 1) / 10
        own = [i for i in range(500) if low <= float(p[i]) < high or (k == 9 and p[i] == 1)]
        assert (one.low, one.high, one.count) == (low, high, len(own))
        hits = sum(bool(right[i]) for i in own)
        assert one.right == pytest.approx(hits / len(own))
        assert one.probability == pytest.approx(sum(float(p[i]) for i in own) / len(own))
        assert one.interval == wilson(hits, len(own))
        error += len(own) / 500 * abs(one.right - one.probability)
    assert calibration_error(bins) == pytest.approx(error) and error > 0.05
    inside = rng.uniform(0.001, 0.999, 300).astype(np.float32)
    hit = rng.random(300) < inside
    fractions, means = calibration_curve(hit, inside.astype(np.float64), n_bins=10)
    ours = reliability_bins(inside, hit)
    assert [one.right for one in ours] == pytest.approx(fractions.tolist())
    assert [one.probability for one in ours] == pytest.approx(means.tolist())


def test_by_hand() -> None:
    p = np.array([0.25, 0.75, 0.75, 0.75], np.float32)
    bins = reliability_bins(p, np.array([False, True, True, False]), bins=2)
    assert [one.count for one in bins] == [1, 3]
    assert calibration_error(bins) == pytest.approx((0.25 + 3 * abs(2 / 3 - 0.75)) / 4)


def test_nothing() -> None:
    bins = reliability_bins(np.zeros(0, np.float32), np.zeros(0, np.bool_))
    assert [one.count for one in bins] == [0] * 10 and math.isnan(bins[0].right)
    assert math.isnan(calibration_error(bins))

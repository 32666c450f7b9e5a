"""Intervals against hand calculations and SciPy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sppdet.evaluation.intervals import difference_interval, fraction_interval, wilson


def test_a_fraction_by_hand() -> None:
    drawn = np.array([0.5, 0.6, np.nan, 0.8])
    objects = np.array([3, 1, 0, 1])  # worth 25 / 11 images
    odds = [math.log(p / (1 - p)) for p in (0.5, 0.6, 0.8)]
    own = math.log(0.7 / 0.3)
    bias = sum(odds) / 3 - own
    error = np.std(odds, ddof=1) * math.sqrt(4 / 3)
    reach = stats.t.ppf(0.975, 25 / 11 - 1) * error
    ends = [1 / (1 + math.exp(-(own - bias + sign * reach))) for sign in (-1, 1)]
    assert fraction_interval(0.7, drawn, objects) == pytest.approx(tuple(ends))


def test_a_difference_by_hand() -> None:
    drawn = np.array([0.1, -0.2, 0.3, 0.0])
    reach = stats.t.ppf(0.975, 4) * np.std(drawn, ddof=1) * math.sqrt(5 / 4)
    found = difference_interval(0.05, drawn, np.full(5, 2))
    assert found == pytest.approx((0.05 - reach, 0.05 + reach))
    few = difference_interval(0.05, 9 * drawn, np.array([2, 0]))  # one image's worth of objects
    assert few == (-1.0, 1.0)


def test_the_value_is_within_its_interval() -> None:
    """Though all draws are far above it, as they may be with the 11-point metric."""
    low, high = fraction_interval(0.4, np.array([0.8, 0.81, 0.82]), np.full(300, 1))
    assert low <= 0.4 <= high
    low, high = fraction_interval(1.0, np.array([1.0, 0.9, 1.0, 1.0]), np.full(30, 1))
    assert 0 < low < high == 1.0


def test_draws_without_spread_leave_wilsons_interval() -> None:
    objects = np.array([2, 0, 3])
    assert fraction_interval(1.0, np.ones(9), objects) == wilson(5, 5)
    assert fraction_interval(0.0, np.zeros(9), objects) == wilson(0, 5)
    assert wilson(0, 5)[0] == 0.0 and 0.4 < wilson(0, 5)[1] < 0.6


def test_one_image_with_all_objects_says_little() -> None:
    drawn = np.linspace(0.4, 0.6, 21)
    one = fraction_interval(0.5, drawn, np.array([50, 0, 0, 0]))
    many = fraction_interval(0.5, drawn, np.array([13, 12, 13, 12]))
    assert one[1] - one[0] > 2 * (many[1] - many[0])


def test_nothing_known() -> None:
    nothing = np.array([np.nan, np.nan])
    for value, drawn, objects in [
        (0.5, nothing, np.array([1, 2])),
        (math.nan, np.array([0.1, 0.2]), np.array([1, 2])),
        (0.0, np.zeros(2), np.zeros(2, np.int64)),
    ]:
        assert all(map(math.isnan, fraction_interval(value, drawn, objects)))
    assert all(map(math.isnan, difference_interval(0.5, nothing, np.array([1, 2]))))


@pytest.mark.parametrize(("hits", "trials"), [(0, 1), (5, 5), (18, 20), (1, 300), (0, 7)])
def test_wilson_equals_scipys(hits: int, trials: int) -> None:
    found = stats.binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    assert wilson(hits, trials) == pytest.approx((found.low, found.high), abs=1e-12)

"""95 % intervals of fractions and of differences, from bootstrap draws or from counts.

The middle 95 % of the draws is too narrow for AP: of small test sets that were drawn from a large one,
75 to 88 % had an interval with the large one's mAP (`benchmarks/calibration.py --coverage`). So the
draws give the standard error alone, on the scale of log odds, where a fraction near 1 has room above.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, stdtrit

from sppdet.types import Interval

LEVEL = 0.95
"""Fraction of test sets whose interval is meant to contain the true value."""


def fraction_interval(
    value: float, drawn: NDArray[np.float64], objects: NDArray[np.int64]
) -> Interval:
    """Compute the interval of a fraction of a set of images, such as AP, from its bootstrap draws.

    value − bias ± t · standard error in log odds; the draws' mean tells the bias, their standard deviation
    the error. Draws that are all alike say nothing: then it is Wilson's interval of as many trials as
    there are objects.

    Args:
        value: of the set itself; it is always within the interval.
        drawn: (draws,), of sets of as many images, drawn with replacement; NaN is left out.
        objects: (I,) objects in each image.

    Returns:
        (NaN, NaN) where the value is NaN.
    """
    known, count = drawn[~np.isnan(drawn)], int(objects.sum())
    if math.isnan(value) or count == 0 or not len(known):
        return math.nan, math.nan
    if np.ptp(known) < 1e-12:
        return wilson(value * count, count)
    end = 0.5 / count  # log odds of half an object stand for those of none
    odds = logit(np.clip(known, end, 1 - end))
    own = logit(np.clip(value, end, 1 - end))
    centre, reach = own - (odds.mean() - own), _reach(odds, objects)
    return min(value, float(expit(centre - reach))), max(value, float(expit(centre + reach)))


def difference_interval(
    value: float, drawn: NDArray[np.float64], objects: NDArray[np.int64]
) -> Interval:
    """Compute the interval of a difference of two fractions of the same images: value ± t · standard error.

    A difference of fractions lies between -1 and 1, and so does its interval.

    Args:
        value, drawn, objects: as in `fraction_interval`.
    """
    known = drawn[~np.isnan(drawn)]
    if math.isnan(value) or len(known) < 2:
        return math.nan, math.nan
    reach = _reach(known, objects)
    return max(-1.0, value - reach), min(1.0, value + reach)


def wilson(successes: float, trials: int) -> Interval:
    """Compute the interval of a fraction of independent trials (Wilson 1927); NaN for no trial."""
    if trials == 0:
        return math.nan, math.nan
    z, p = stdtrit(math.inf, (1 + LEVEL) / 2), successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    reach = z * math.sqrt(p * (1 - p) / trials + (z / (2 * trials)) ** 2) / (1 + z * z / trials)
    return max(0.0, min(p, centre - reach)), min(1.0, max(p, centre + reach))


def _reach(drawn: NDArray[np.float64], objects: NDArray[np.int64]) -> float:
    """Multiply the standard error by Student's t for as many images as the objects are worth.

    Kish's number of them is that of images with equally many objects each: one image that holds most of a
    class counts for little more than one.
    """
    images = len(objects)
    worth = objects.sum() ** 2 / max(1, int((objects**2).sum()))
    error = drawn.std(ddof=1) * math.sqrt(images / max(1, images - 1))
    return float(stdtrit(max(1.0, worth - 1), (1 + LEVEL) / 2) * error)

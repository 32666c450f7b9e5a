"""From what a user wants of detections to the least score of each class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sppdet.errors import ConfigError
from sppdet.evaluation.calibration import Calibration

Kind = Literal["auto", "score", "probability", "precision", "recall"]
_UNCALIBRATED = 0.0  # the margin of an even decision


class Calibrated(Protocol):
    """Anything with the classes and the calibration of a detector."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names of the scores."""
        ...

    @property
    def calibration(self) -> Calibration | None:
        """Calibration of the scores, if there is one."""
        ...


@dataclass(frozen=True)
class Threshold:
    """State what is wanted of detections.

    auto: the best F1; score: a least score; probability: a least one; precision or recall: the
    threshold that had it on held-out training images. auto and score work without calibration, auto as
    a score of 0 then.
    """

    kind: Kind = "auto"
    value: float = 0.0

    def __post_init__(self) -> None:
        if self.kind in ("probability", "precision", "recall") and not 0 < self.value < 1:
            raise ConfigError(
                f"--{_option(self.kind)} {self.value}: expected a number between 0 and 1"
            )
        if not np.isfinite(self.value):
            raise ConfigError(f"--score {self.value}: expected a number")


def least_scores(detector: Calibrated, wanted: Threshold) -> tuple[NDArray[np.float32], str]:
    """Find the least score (K,) of each class, and say in words what it is.

    Raises:
        ConfigError: what is wanted needs a calibration and there is none, or was never reached.
    """
    classes = len(detector.class_names)
    if wanted.kind == "score":
        return np.full(classes, wanted.value, np.float32), f"scores >= {wanted.value:g}"
    calibration = detector.calibration
    if calibration is None:
        if wanted.kind == "auto":
            scores = np.full(classes, _UNCALIBRATED, np.float32)
            return scores, "scores >= 0: the run has no probabilities"
        raise ConfigError(
            f"--{_option(wanted.kind)}: the run has no probabilities; `sppdet train` with `calibrate` "
            "settings makes them, or choose a --score"
        )
    if wanted.kind == "auto":
        found: float | None = calibration.best_f1()
        words = "the best F1 on held-out training images"
    elif wanted.kind == "probability":
        found, words = wanted.value, ""
    else:
        by = calibration.at_precision if wanted.kind == "precision" else calibration.at_recall
        found = by(wanted.value)
        words = f"{wanted.kind} {wanted.value:g} on held-out training images"
    if found is None:
        raise ConfigError(
            f"--{wanted.kind} {wanted.value:g}: no threshold reached it on training images"
        )
    text = f"probabilities >= {found:.2f}" + (f", {words}" if words else "")
    # a score itself must pass after it went through a probability and back
    least = calibration.scores_at(min(max(found, 1e-6), 1 - 1e-6)).astype(np.float32)
    return np.nextafter(least, np.float32(-np.inf)), text


def _option(kind: Kind) -> str:
    return "min-probability" if kind == "probability" else kind

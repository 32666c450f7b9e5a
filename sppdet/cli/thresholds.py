"""The options that say which detections are wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from sppdet.errors import ConfigError

if TYPE_CHECKING:
    from sppdet.stages.thresholds import Kind, Threshold

ScoreOption = Annotated[
    str,
    typer.Option(
        metavar="<auto|float>",
        help="Minimum score (an SVM margin, or log odds). auto: the best F1 on training images.",
    ),
]
ProbabilityOption = Annotated[
    float | None, typer.Option(help="Minimum probability that a detection is right.")
]
PrecisionOption = Annotated[
    float | None, typer.Option(help="Threshold with this precision on training images.")
]
RecallOption = Annotated[
    float | None, typer.Option(help="Threshold with this recall on training images.")
]


def threshold(
    score: str, min_probability: float | None, precision: float | None, recall: float | None
) -> Threshold:
    """Read the options of what is wanted; at most one of them."""
    from sppdet.stages.thresholds import Threshold

    options: list[tuple[Kind, float | None]] = [
        ("probability", min_probability),
        ("precision", precision),
        ("recall", recall),
    ]
    given = {kind: value for kind, value in options if value is not None}
    if score != "auto":
        try:
            given["score"] = float(score)
        except ValueError:
            raise ConfigError(f"--score {score}: expected a number or auto") from None
    if len(given) > 1:
        raise ConfigError("expected one of --score, --min-probability, --precision and --recall")
    return Threshold(*next(iter(given.items()))) if given else Threshold()


def of_missed(missed: Sequence[tuple[str, float]]) -> str:
    """Say what there was below the threshold, and how to see it."""
    name, best = max(missed, key=lambda one: one[1])
    shown = math.floor(10 * best) / 10 or math.floor(100 * best) / 100
    count = sum(probability >= shown for _, probability in missed)
    return (
        f": the best had probability {best:.2f}, {name}; --min-probability {shown:g} shows {count}"
    )

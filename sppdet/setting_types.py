"""Field types of settings and the base class of their sections."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

# 16320 x 12240, the largest phone sensor, fits; decoded, such an image takes 600 MB
MAX_PIXELS = 200_000_000

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFraction = Annotated[float, Field(gt=0.0, le=1.0)]
# stripped of surrounding spaces, as by the readers of annotations
ClassName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Count = Annotated[int, Field(gt=0, lt=2**31)]
# generous bounds: beyond them memory ends before any message
Workers = Annotated[int, Field(gt=0, le=1024)]
Side = Annotated[int, Field(gt=0, le=2**14)]  # pixels of a resized image
Width = Annotated[int, Field(gt=0, le=2**16)]  # outputs of a layer


def as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def ascending(values: list[int]) -> list[int]:
    if values != sorted(set(values)):
        raise ValueError("expected ascending values without repeats")
    return values


def interval(values: list[float]) -> list[float]:
    if values[0] >= values[1]:
        raise ValueError("expected [low, high] with low < high")
    return values


def none_of(value: Any) -> Any:
    """Map the string "none" to None."""
    return None if value == "none" else value


def _distinct(values: list[int]) -> list[int]:
    if len(values) != len(set(values)):
        raise ValueError("expected every level once")
    return values


SppLevels = Annotated[
    list[Annotated[int, Field(gt=0, le=256)]], Field(min_length=1), AfterValidator(_distinct)
]


class Section(BaseModel):
    """Base class of settings sections: frozen, strictly typed, without unknown keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

"""Records of annotated images, common to all annotation formats."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sppdet.errors import AnnotationError, DataError

FAR_PX = 1e9  # a coordinate that is not nearer to 0 can't be meant
_NUMBER = re.compile(
    r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?(nan|inf)", re.IGNORECASE
)
_FLAG_TEXTS = {"0": False, "false": False, "1": True, "true": True}


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """One annotated object as in its file, not yet clipped to the image.

    `box` is xyxy, 0-based, half-open. Where `problem` is not empty the box can't be used and the
    text says why. `number` is the object's position in a VOC file, from 1, or its id in COCO's.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    truncated: bool
    number: int | str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image and its objects; `where` begins messages: "000012.xml, object".

    `stated` is the (width, height) that the annotation gives the image; None where it gives none.
    """

    id: str
    path: Path
    objects: tuple[ObjectRecord, ...]
    where: str
    stated: tuple[int, int] | None = None

    def error(self, item: ObjectRecord, problem: str) -> AnnotationError:
        """Build the error "000012.xml, object 3: <problem>"."""
        return AnnotationError(f"{self.where} {item.number}: {problem}")


class Skips:
    """Policy for data that can't be used: stop at it, or leave it out and list it.

    `left_out` has what is no mistake and yet isn't used, such as a point where boxes are wanted: examples
    by their kind.
    """

    def __init__(self, *, stop: bool) -> None:
        self.stop = stop
        self.errors: list[DataError] = []
        self.left_out: dict[str, list[str]] = {}

    def report(self, error: DataError) -> None:
        """Raise `error`, or add it to `errors`."""
        if self.stop:
            raise error
        self.errors.append(error)

    @property
    def lines(self) -> list[str]:
        """List the messages of the errors."""
        return [str(error) for error in self.errors]

    def leave_out(self, kind: str, example: str) -> None:
        """Count one thing that isn't used, by its kind."""
        self.left_out.setdefault(kind, []).append(example)


def read_number(text: str) -> float:
    """Read a number in a file: decimal digits, where Python would also take 1_000 and other scripts'.

    Raises:
        ValueError: it is no number.
    """
    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError(f"{text!r:.40} is not a number")
    return float(text)


def is_coordinate(value: object) -> bool:
    """Check for a number that can be a coordinate in pixels; text and NaN are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < FAR_PX


def stated_size(width: object, height: object) -> tuple[int, int] | None:
    """Read a size in an annotation, numbers or text; None unless both are integers > 0."""
    sides = []
    for value in (width, height):
        try:
            if isinstance(value, str):
                side = read_number(value)
            else:
                side = float(value) if isinstance(value, int | float) else 0.0
        except (ValueError, OverflowError):
            return None
        if not 0 < side < FAR_PX or side != int(side):
            return None
        sides.append(int(side))
    return sides[0], sides[1]


def read_flag(value: object, key: str) -> bool:
    """Read a flag: 0, 1, true, false, each also as text, or None for false.

    Raises:
        ValueError: anything else, such as 2, 0.5 or "yes"; `key` begins the message.
    """
    if value is None:
        return False
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _FLAG_TEXTS:
        return _FLAG_TEXTS[value.strip().lower()]
    raise ValueError(f"{key} {value!r:.40}, expected 0 or 1")

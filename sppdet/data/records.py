"""What the readers of annotation formats hand to `load_dataset`: one record a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sppdet.errors import AnnotationError, DataError

FAR_PX = 1e9  # a coordinate that is not nearer to 0 can't be meant
FLAG_TEXTS = {"0": False, "false": False, "1": True, "true": True}


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """One annotated object as its file gives it, not yet clipped to the picture.

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
    """One picture and its objects; `where` begins messages: "000012.xml, object".

    `stated` is the (width, height) that the annotation gives the image; None where it gives none.
    """

    id: str
    path: Path
    objects: tuple[ObjectRecord, ...]
    where: str
    stated: tuple[int, int] | None = None

    def error(self, item: ObjectRecord, problem: str) -> AnnotationError:
        """The error "000012.xml, object 3: <problem>"."""
        return AnnotationError(f"{self.where} {item.number}: {problem}")


class Skips:
    """What to do with data that can't be used: stop at it, or leave it out and list it."""

    def __init__(self, *, stop: bool) -> None:
        self.stop = stop
        self.lines: list[str] = []

    def report(self, error: DataError) -> None:
        """Raise `error`, or add its line to `lines`."""
        if self.stop:
            raise error
        self.lines.append(str(error))


_NUMBER = re.compile(
    r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?(nan|inf)", re.IGNORECASE
)


def read_number(text: str) -> float:
    """Read a number in a file: decimal digits, where Python would also take 1_000 and other scripts'.

    Raises:
        ValueError: it is no number.
    """
    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError(f"{text!r:.40} is not a number")
    return float(text)


def stated_size(width: object, height: object) -> tuple[int, int] | None:
    """A size as it stands in an annotation, numbers or text; None unless both are whole and > 0."""
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


def read_flag(value: object) -> bool:
    """Read a flag of a JSON file: 0, 1, true, false, each also as text, or null for false.

    Raises:
        ValueError: anything else, such as 2, 0.5 or "yes".
    """
    if value is None:
        return False
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in FLAG_TEXTS:
        return FLAG_TEXTS[value.strip().lower()]
    raise ValueError(f"{value!r:.40}, expected 0 or 1")


def safe_id(name: str) -> str:
    """Make `name` a file name on any system and a word of a line.

    '/' becomes '__'; other forbidden characters, white space but for single spaces within the name, and
    line separators become '_'.
    """
    safe = re.sub(r"[/\\]+", "__", name)
    safe = re.sub(r'[\x00-\x1f\x7f:*?"<>|]|[^\S ]|^ | $|(?<= ) ', "_", safe)
    return f"_{safe}" if safe.startswith(".") or not safe else safe


def unique_ids(file_names: Sequence[str]) -> list[str]:
    """Ids for pictures named by relative paths.

    An id is the file's stem; if two are the same, all take the path with '/' made '__', and if
    that doesn't help, the path with its suffix.
    """
    paths = [PurePosixPath(name.replace("\\", "/")) for name in file_names]
    for ids in (
        [safe_id(path.stem) for path in paths],
        [safe_id(str(path.with_suffix(""))) for path in paths],
    ):
        if len(set(ids)) == len(ids):
            return ids
    return number_repeats([safe_id(str(path)) for path in paths])


def number_repeats(ids: Sequence[str]) -> list[str]:
    """The ids, each that occurs again ending in '__2', '__3', ...: unique whatever they were."""
    taken: set[str] = set()
    unique: list[str] = []
    for wanted in ids:
        name, count = wanted, 1
        while name in taken:
            count += 1
            name = f"{wanted}__{count}"
        taken.add(name)
        unique.append(name)
    return unique


def shorten(names: Sequence[str], *, most: int = 20) -> str:
    """The names in one line, no more than `most` of them: "a, b and 7 more"."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest

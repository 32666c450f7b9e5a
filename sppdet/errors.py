"""Errors that sppdet raises on purpose.

    SppdetError
    ├── ConfigError        a setting: unknown, of the wrong type, impossible
    ├── DataError          images and annotations
    │   ├── AnnotationError
    │   └── ImageError
    ├── ArtifactError      a file of a run: missing, damaged, made with other settings
    ├── WeightsError       pre-trained weights: missing, of another network
    └── TrainingError      a stage that cannot continue: no positives of a class, a loss that is not finite

A message says where, what and what was expected. It may contain foreign text (names, paths, file
contents): the command line prints it through `one_line` and exits with status 1.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class SppdetError(Exception):
    """Base of all errors whose message is meant for the user."""


class ConfigError(SppdetError):
    """A setting is unknown, has the wrong type or an impossible value."""


class DataError(SppdetError):
    """Something is wrong with the images or the annotations."""


class AnnotationError(DataError):
    """An annotation can't be read or describes an impossible object."""


class ImageError(DataError):
    """An image is missing or can't be decoded."""


@contextmanager
def image_named(path: object) -> Iterator[None]:
    """Begin the message of an ImageError with the file that an image is from."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None


class ArtifactError(SppdetError):
    """A file of a run is missing, damaged or made with other settings."""


class WeightsError(SppdetError):
    """Pre-trained weights are missing or don't fit the network."""


class TrainingError(SppdetError):
    """A training stage can't continue."""


def printable(text: str) -> str:
    r"""Escape every character that a terminal doesn't print as it is, like `repr`.

    Control characters, line breaks, bidirectional controls and lone surrogates
    become `\n`, `\x1b`, `\u202e`, ...; a backslash stays as it is.
    """
    return "".join(map(_escaped, text))


def one_line(text: str, limit: int = 300) -> str:
    """Format a message as one line of at most `limit` characters, escaped by `printable`.

    In a longer message an ellipsis replaces the middle: the beginning says where the fault is, the
    end what was expected.
    """
    if len(text) > 2 * limit:  # escaping never shortens, so the middle is dropped anyway
        text = text[:limit] + text[-limit:]
    pieces = [_escaped(character) for character in text]
    if sum(map(len, pieces)) <= limit:
        return "".join(pieces)
    head = _leading(pieces, limit // 2)
    tail = _leading(pieces[::-1], (limit - 1) // 2)[::-1]
    return "".join([*head, "…", *tail])


def name_problem(name: str) -> str:
    """Say why `name` can't be the name of a file or a class; "" if it can."""
    if "\0" in name:
        return "has a NUL byte"
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        return "has a lone surrogate"
    return ""


def did_you_mean(
    name: str, known: Iterable[str], *, most: int = 1, prefix: str = "", cutoff: float = 0.6
) -> str:
    """Ask for the names that are nearest to an unknown one, whatever their case.

    Args:
        known: the right names.
        most: number of names to ask for.
        prefix: put before each, such as the section of a setting.
        cutoff: least similarity, 0 to 1, as of `difflib`.

    Returns:
        "; did you mean a or b?" to put at the end of a message, or "" where none is near.
    """
    import difflib  # which most commands never need

    by_lower = {right.lower(): right for right in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=most, cutoff=cutoff)
    return f"; did you mean {' or '.join(prefix + by_lower[n] for n in near)}?" if near else ""


def shorten(names: Sequence[str], *, limit: int = 20) -> str:
    """Join names in one line, at most `limit` of them: "a, b and 7 more"."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def describe_failure(origin: str, error: Exception) -> str:
    """Describe in one line why an image failed; the line begins with `origin`, such as its path."""
    text = str(error) if isinstance(error, SppdetError) else f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError):
        text = "not enough memory"
    return one_line(text if text.startswith(origin) else f"{origin}: {text}")


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


def _leading(pieces: list[str], limit: int) -> list[str]:
    """Take the first pieces that fit into `limit` characters; no escape is cut in two."""
    taken = []
    for piece in pieces:
        limit -= len(piece)
        if limit < 0:
            break
        taken.append(piece)
    return taken

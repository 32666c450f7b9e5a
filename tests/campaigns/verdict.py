"""Judge one case: a reader returns, or raises one clear line; everything else is a failure."""

from __future__ import annotations

import re
import traceback
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path

from sppdet.errors import SppdetError, one_line

MOST = 300  # characters of an error's line


def judge(read: Callable[[], object], name: str = "") -> str | None:
    """What is wrong with a call of a reader, in one line; None if nothing is.

    Args:
        read: may end normally or raise an SppdetError; must not warn through `warnings`.
        name: the error's message must contain it: the file, or whatever else the user can look for.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            read()
        except SppdetError as error:
            if found := problem_with_message(str(error), name):
                return f"{found} [{_place(error)}]"
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # also a panic of a Rust library
            return f"{type(error).__name__} [{_place(error)}]: {one_line(str(error), 120)}"
    for warning in caught:
        if not issubclass(warning.category, (DeprecationWarning, ResourceWarning)):
            return f"{warning.category.__name__}: {one_line(str(warning.message), 120)}"
    return None


def problem_with_message(text: str, name: str = "") -> str | None:
    """Why a message isn't one short line that names its file; None if it is."""
    line = one_line(text)
    if not text.strip():
        return "an error without a message"
    if len(line) > MOST:
        return f"a message of {len(line)} characters"
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in line):
        return f"a message with control characters: {line!r:.80}"
    if name and name not in text:
        return f"a message that doesn't name {name}: {line:.80}"
    return None


def _place(error: BaseException) -> str:
    """The innermost function of sppdet that the error came through, and where it arose."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/sppdet/" in frame.filename.replace("\\", "/")]
    last = (ours or frames)[-1]
    return f"{Path(last.filename).name}:{last.name}"


def kind_of(problem: str) -> str:
    """What failures of one cause share: the beginning of the text, and the place in the code."""
    place = re.search(r"\[[\w.<>]+:[\w<>]+\]", problem)
    beginning = re.split(r": | \[", problem)[0]
    return f"{beginning} {place[0]}" if place else beginning

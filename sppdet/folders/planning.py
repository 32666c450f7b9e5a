"""One image of a call of `detect`, among the others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Item:
    """One image, or one frame of a video.

    `origin` says where it is from: the path of its file, a URL, ... `name` is its name among the results
    (see `escape_name`), `stem` that of its files. `seconds` is the time of a frame. Of frames whose
    results are drawn into a video `drawn` is False.
    """

    origin: str
    name: str
    stem: str
    seconds: float | None = None
    drawn: bool = True

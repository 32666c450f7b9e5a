"""Formats of results, and the names of an image's files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sppdet.errors import ConfigError
from sppdet.io.names import fit_name

Format = Literal["images", "json", "csv", "voc", "coco"]
FORMATS: tuple[Format, ...] = ("images", "json", "csv", "voc", "coco")
# formats with a file for each image: its folder and suffix
IMAGE_FILES: dict[Format, tuple[str, str]] = {
    "images": ("images", ".jpg"),
    "voc": ("Annotations", ".xml"),
}
JOINT_FILES: dict[Format, str] = {
    "json": "detections.json",
    "csv": "detections.csv",
    "coco": "coco_results.json",
}


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

    def kinds(self, formats: Iterable[Format]) -> list[Format]:
        """Pick the formats that have a file about this image."""
        return [k for k in formats if k in IMAGE_FILES and (self.drawn or k != "images")]

    def file(self, kind: Format) -> str:
        """Name a file about the image, by its path below the folder of the results."""
        folder, suffix = IMAGE_FILES[kind]
        *folders, last = self.stem.split("/")
        return "/".join([folder, *map(fit_name, folders), fit_name(last, suffix)])


def parse_formats(text: str) -> tuple[Format, ...]:
    """Parse the formats of `--save`, such as "images,json"."""
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    for part in chosen or [""]:
        if part not in FORMATS:
            raise ConfigError(f"--save{part and ' '}{part}: expected some of {', '.join(FORMATS)}")
    return tuple(name for name in FORMATS if name in chosen)

"""The formats of results, and the names of their files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sppdet.errors import ConfigError
from sppdet.io.names import fit_name

Format = Literal["images", "json", "jsonl", "csv", "voc", "coco", "yolo", "crops"]
FORMATS: tuple[Format, ...] = ("images", "json", "jsonl", "csv", "voc", "coco", "yolo", "crops")


@dataclass(frozen=True)
class ImageFormat:
    """A format with files for each image.

    Attributes:
        folder: that the files are in, below the folder of the results.
        suffix: of a file.
        each: whether there is a file for each detection, in a folder of its class, rather than one.
    """

    folder: str
    suffix: str
    each: bool = False

    def files(self, stem: str, classes: Sequence[str]) -> list[str]:
        """Name the files of an image, by their paths below the folder of the results.

        Args:
            stem: path of the image's files without their suffix.
            classes: the folder of each detection's class.
        """
        if self.each:
            return [
                self._file(f"{self.folder}/{name}", stem, f"-{k}{self.suffix}")
                for k, name in enumerate(classes, start=1)
            ]
        return [self._file(self.folder, stem, self.suffix)]

    def _file(self, folder: str, stem: str, suffix: str) -> str:
        *folders, last = stem.split("/")
        return "/".join([folder, *map(fit_name, folders), fit_name(last, suffix)])

    @property
    def ending(self) -> re.Pattern[str]:
        """The pattern of what a file's name has behind the stem."""
        return re.compile(("-[0-9]+" if self.each else "") + re.escape(self.suffix) + r"\Z")


IMAGE_FORMATS: dict[Format, ImageFormat] = {
    "images": ImageFormat("images", ".jpg"),
    "voc": ImageFormat("Annotations", ".xml"),
    "yolo": ImageFormat("yolo/labels", ".txt"),
    "crops": ImageFormat("crops", ".jpg", each=True),
}
JOINT_FILES: dict[Format, str] = {
    "json": "detections.json",
    "jsonl": "detections.jsonl",
    "csv": "detections.csv",
    "coco": "coco_results.json",
    "yolo": "yolo/data.yaml",
}


def parse_formats(text: str) -> tuple[Format, ...]:
    """Parse the formats of `--save`, such as "images,json"."""
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    for part in chosen or [""]:
        if part not in FORMATS:
            raise ConfigError(f"--save{part and ' '}{part}: expected some of {', '.join(FORMATS)}")
    return tuple(name for name in FORMATS if name in chosen)

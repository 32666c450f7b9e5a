"""A data set on its way from one format into another, and what every writer of one is given."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from sppdet.types import Boxes, Flags, Labels, Scores


@dataclass(frozen=True)
class LabelledImage:
    """An image with its objects.

    Attributes:
        name: path with `/` below a folder of images, that of no other image; see `escape_name`.
        stem: the name without its suffix, or with it where two images would have the same.
        path: of the image.
        width, height: in pixels, as its EXIF orientation shows it.
        boxes: (N, 4) xyxy, 0-based, half-open, inside the image.
        labels: (N,) 1..K.
        difficult, truncated: (N,).
        scores: (N,) of detections, in descending order; None for labels.
        sets: names of the sets that it is in; none where there is no split.
    """

    name: str
    stem: str
    path: Path
    width: int
    height: int
    boxes: Boxes
    labels: Labels
    difficult: Flags
    truncated: Flags
    scores: Scores | None = None
    sets: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """The name that the image has where it is copied to: the stem and its suffix."""
        suffix = PurePosixPath(self.name).suffix
        return self.stem + suffix


@dataclass(frozen=True)
class LabelledSet:
    """The images of a data set, in order, the class of label k at `class_names[k - 1]`, and its sets.

    Attributes:
        sets: names of the sets, those to train on first; none where there is no split.
        folders: folder that the images' names are below, by set; by "" where there is one for all.
    """

    class_names: tuple[str, ...]
    images: tuple[LabelledImage, ...]
    sets: tuple[str, ...] = ()
    folders: dict[str, Path] = field(default_factory=dict)

    @property
    def scored(self) -> bool:
        """Whether these are detections."""
        return any(image.scores is not None for image in self.images)

    def parts(self, name: str) -> Iterator[tuple[str, list[LabelledImage]]]:
        """Yield each set with its images; all as the set `name` where there is no split."""
        for part in self.sets or (name,):
            yield part, [image for image in self.images if not self.sets or part in image.sets]

    def home(self, image: LabelledImage) -> str:
        """Choose the one set of an image for layouts with a folder for each set: its smallest."""
        return min(image.sets, key=lambda name: (self._sizes[name], self.sets.index(name)))

    @cached_property
    def _sizes(self) -> Counter[str]:
        return Counter(name for image in self.images for name in image.sets)


@dataclass(frozen=True)
class Places:
    """Where the images of a converted set are.

    Attributes:
        out: folder of the converted set.
        at: gives the path of an image below `out`; None where images stay where they are.
    """

    out: Path
    at: Callable[[LabelledImage], str] | None = None

    def path(self, image: LabelledImage) -> Path:
        """Return the path of an image."""
        return image.path if self.at is None else self.out / self.at(image)

    def relative(self, image: LabelledImage, folder: str = "") -> str:
        """Return the path of an image as seen from a folder below `out`, with `/`."""
        path, start = os.path.abspath(self.path(image)), os.path.abspath(self.out / folder)
        try:
            return Path(os.path.relpath(path, start)).as_posix()
        except ValueError:  # on another drive of Windows
            return Path(path).as_posix()


def number(value: float) -> float | int:
    """Round to nine digits, which bring float32 back; whole numbers become integers."""
    rounded = float(f"{value:.9g}")
    return int(rounded) if rounded.is_integer() else rounded


def is_whole(boxes: Boxes) -> bool:
    """Check that all sides lie on whole pixels, but for the rounding of a file's fractions."""
    return bool((np.abs(boxes - np.rint(boxes)) < 0.01).all())

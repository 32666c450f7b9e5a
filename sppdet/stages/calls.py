"""Calls of a detector with an image of any kind, or with several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from sppdet.detection.tiles import Tile
from sppdet.errors import ImageError
from sppdet.io.given_images import GivenImage, pixels_of
from sppdet.parallel import detection_threads, ordered_map
from sppdet.runs.environment import available_cores
from sppdet.types import Detections, ImageArray

Views = TypeVar("Views")
Found = TypeVar("Found")


class Prepares(Protocol[Views, Found]):
    """A detector whose work on an image is divided: what threads prepare, and the layers."""

    @property
    def max_pixels(self) -> int: ...
    @property
    def device(self) -> torch.device: ...

    def propose(self, image: ImageArray) -> Found:
        """Search an image for proposals; thread-safe."""

    def prepare(self, image: ImageArray) -> Views:
        """Resize an image; thread-safe."""

    def detect_prepared(
        self, views: Views, proposals: Found, *, width: int, height: int
    ) -> Detections:
        """Detect in what was prepared of an image of known size."""

    def tiles(self, *, width: int, height: int) -> list[Tile]:
        """List the parts of an image to detect in, often the image alone."""

    def merge(self, found: Sequence[Detections], *, width: int, height: int) -> Detections:
        """Merge the detections of an image's tiles, each in pixels of its tile."""


@dataclass(frozen=True)
class _Prepared(Generic[Views, Found]):
    tiles: list[tuple[Tile, Views, Found]]
    width: int
    height: int
    path: str
    again: Callable[[], ImageArray]


def detect_one(
    detector: Prepares[Views, Found], image: GivenImage, *, bgr: bool = False
) -> Detections:
    """Detect in one image; arguments and errors are those of `pixels_of`."""
    return _finish(detector, _prepare(detector, image, bgr))


def detect_several(
    detector: Prepares[Views, Found], images: Sequence[GivenImage], *, bgr: bool = False
) -> list[Detections]:
    """Detect in several images: threads prepare the next ones while the layers run.

    Memory holds a few of the images that are files. Errors begin with the position of the image.
    """

    def prepare(one: tuple[int, GivenImage]) -> _Prepared[Views, Found]:
        position, image = one
        try:
            return _prepare(detector, image, bgr)
        except (ImageError, ValueError) as error:
            raise type(error)(f"images[{position}]: {error}") from None

    workers = min(available_cores(), len(images))
    prepared = ordered_map(prepare, enumerate(images), workers=workers)
    found = ordered_map(
        lambda one: _finish(detector, one), prepared, workers=detection_threads(detector.device)
    )
    return list(found)


def _prepare(
    detector: Prepares[Views, Found], image: GivenImage, bgr: bool
) -> _Prepared[Views, Found]:
    given = pixels_of(image, bgr=bgr, max_pixels=detector.max_pixels)
    height, width = given.array.shape[:2]
    tiles = []
    for tile in detector.tiles(width=width, height=height):
        x1, y1, x2, y2 = tile
        part = np.ascontiguousarray(given.array[y1:y2, x1:x2])
        tiles.append((tile, detector.prepare(part), detector.propose(part)))
    return _Prepared(tiles, width, height, given.path, given.again)


def _finish(detector: Prepares[Views, Found], prepared: _Prepared[Views, Found]) -> Detections:
    found = [
        detector.detect_prepared(views, proposals, width=x2 - x1, height=y2 - y1)
        for (x1, y1, x2, y2), views, proposals in prepared.tiles
    ]
    whole = detector.merge(found, width=prepared.width, height=prepared.height)
    return replace(whole, path=prepared.path, read_image=prepared.again)

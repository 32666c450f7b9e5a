"""Detection in many images at once: reading, proposals and layers overlap, memory holds a few images.

An image is detected in tile by tile, of which most images have one: themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from sppdet.detection.tiles import Tile
from sppdet.errors import describe_failure
from sppdet.features.backbones import ScaledImage
from sppdet.folders.planning import Item
from sppdet.folders.sources import FolderPlan, Load
from sppdet.parallel import detection_threads, ordered_map
from sppdet.runs.artifacts import fingerprint
from sppdet.stages.detector import Detector
from sppdet.types import Detections, ImageArray, Proposals

VERSION = 3  # incremented when the same detections give other files
MISSED = 0.05  # least probability of a detection that counts as missed by the threshold


@dataclass(frozen=True)
class Failed:
    """An image without results."""

    problem: str


@dataclass(frozen=True)
class Kept:
    """An image whose results were there already."""


@dataclass(frozen=True)
class _Opened:
    """A decoded image that is to be detected in."""

    made_by: str
    image: ImageArray


@dataclass(frozen=True)
class _Part:
    """A tile of an image, often all of it; for an image that has come to its end before, that end."""

    item: Item
    opened: _Opened | Kept | Failed
    tile: Tile = (0, 0, 0, 0)
    is_last: bool = True


@dataclass(frozen=True)
class _Prepared:
    proposals: Proposals
    views: tuple[ScaledImage, ...]


@dataclass(frozen=True)
class Found:
    """An image with its detections, and the fingerprint of what they are made of."""

    made_by: str
    image: ImageArray
    detections: Detections


Outcome = Kept | Found | Failed


@dataclass
class Finder:
    """Detects in the images of a plan.

    `is_done` tells from an image and the fingerprint of its inputs whether its results are there.
    Detections with a score >= `least` are kept; `missed` are class and probability of those below.
    """

    detector: Detector
    plan: FolderPlan
    is_done: Callable[[Item, str], bool]
    least: NDArray[np.float32]  # (K,) score of each class
    missed: list[tuple[str, float]] = field(default_factory=list)

    def outcomes(self, workers: int) -> Iterator[tuple[Item, Outcome]]:
        """Yield every image with its outcome, in order; memory holds a few of them."""
        items = self.plan.items(self.detector.max_pixels)
        opened = ordered_map(self._open, items, workers=workers)
        parts = (part for one in opened for part in self._parts(one))
        prepared = ordered_map(self._prepare, parts, workers=workers)
        threads = detection_threads(self.detector.maps.device)
        return self._merged(ordered_map(self._detect, prepared, workers=threads))

    def _open(self, due: tuple[Item, Load]) -> _Part:
        """Read and decode an image, unless its results are there."""
        item, load = due
        try:
            content = load()
            made_by = self._made_by(content.digest)
            if self.detector.made_by and self.is_done(item, made_by):
                return _Part(item, Kept())
            return _Part(item, _Opened(made_by, content.decode()))
        except Exception as error:  # one image's failure must not end the others
            return _Part(item, Failed(describe_failure(item.origin, error)))

    def _made_by(self, digest: str) -> str:
        """Fingerprint the inputs of an image's results: what it is made of, the model, the settings."""
        config = self.detector.config.model_dump()
        config["min_score"] = self.least.tolist()
        tiling = self.detector.tiling
        tiles = [asdict(tiling)] if tiling is not None else []
        return fingerprint("detect", VERSION, self.detector.made_by, config, digest, *tiles)

    def _parts(self, whole: _Part) -> Iterator[_Part]:
        if not isinstance(whole.opened, _Opened):
            yield whole
            return
        height, width = whole.opened.image.shape[:2]
        tiles = self.detector.tiles(width=width, height=height)
        for tile in tiles:
            yield _Part(whole.item, whole.opened, tile, is_last=tile is tiles[-1])

    def _prepare(self, part: _Part) -> tuple[_Part, _Prepared | Failed | None]:
        if not isinstance(part.opened, _Opened):
            return part, None
        try:
            x1, y1, x2, y2 = part.tile
            image = np.ascontiguousarray(part.opened.image[y1:y2, x1:x2])
            proposals = self.detector.proposer.of(image)
            return part, _Prepared(proposals, self.detector.prepare(image))
        except Exception as error:  # as above
            return part, Failed(describe_failure(part.item.origin, error))

    def _detect(
        self, due: tuple[_Part, _Prepared | Failed | None]
    ) -> tuple[_Part, Detections | Failed | None]:
        part, prepared = due
        if not isinstance(prepared, _Prepared):
            return part, prepared
        try:
            x1, y1, x2, y2 = part.tile
            found = self.detector.detect_prepared(
                prepared.views, prepared.proposals, width=x2 - x1, height=y2 - y1
            )
            return part, found
        except Exception as error:  # as above
            return part, Failed(describe_failure(part.item.origin, error))

    def _merged(
        self, parts: Iterator[tuple[_Part, Detections | Failed | None]]
    ) -> Iterator[tuple[Item, Outcome]]:
        """Collect the parts of each image, which come one after another."""
        found: list[Detections] = []
        failed: Failed | None = None
        for part, one in parts:
            if not isinstance(part.opened, _Opened):
                yield part.item, part.opened
                continue
            if isinstance(one, Detections):
                found.append(one)
            elif one is not None:
                failed = failed or one
            if part.is_last:
                yield part.item, failed or self._joined(part.opened, found)
                found, failed = [], None

    def _joined(self, opened: _Opened, found: Sequence[Detections]) -> Found:
        height, width = opened.image.shape[:2]
        whole = self.detector.merge(found, width=width, height=height)
        self._note_missed(whole)
        return Found(opened.made_by, opened.image, whole.above(self.least))

    def _note_missed(self, found: Detections) -> None:
        if found.probabilities is not None:
            below = found.scores < self.least[found.labels - 1]
            names = found.names()
            self.missed.extend(
                (names[row], float(found.probabilities[row]))
                for row in np.flatnonzero(below & (found.probabilities >= MISSED)).tolist()
            )

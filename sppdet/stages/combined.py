"""Several detectors as one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import overload

import torch

from sppdet.detection.detect import suppress, weigh
from sppdet.detection.tiles import Tile
from sppdet.errors import ConfigError
from sppdet.features.backbones import ScaledImage
from sppdet.io.given_images import GivenImage, GivenImages
from sppdet.stages.calls import detect_one, detect_several
from sppdet.stages.detector import Detector
from sppdet.types import Detections, ImageArray, Proposals


@dataclass(frozen=True)
class CombinedDetector:
    """Several detectors as one (He et al. §4.4); made by `of`.

    Each model scores its own proposals. Proposals and feature maps that several models have in common
    are computed once. Scores are compared as they are: the margin of every SVM is 1 on its own support
    vectors, and log odds of several networks mean the same.
    """

    detectors: tuple[Detector, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(
        cls, detectors: Sequence[Detector], weights: Sequence[float] | None = None
    ) -> CombinedDetector:
        """Combine detectors of the same classes: one NMS over the proposals that all have scored.

        Args:
            detectors: two or more. The first one's settings of `detect` but `flip`, `svd` and `max_windows`
                apply, and so do its tiles.
            weights: positive, one for each; see `sppdet.detection.detect.weigh`. None: all 1.

        Raises:
            ConfigError: the class names differ, in more than their order, or one scores by SVMs and
                another by a softmax.
            ValueError: fewer than two, something else than detectors, or weights that don't fit.
        """
        detectors = tuple(detectors) if isinstance(detectors, Iterable) else (detectors,)
        strange = [type(one).__name__ for one in detectors if not isinstance(one, Detector)]
        if strange:
            raise ValueError(f"detectors: {strange[0]}, expected what `Detector.load` returns")
        if len(detectors) < 2:
            raise ValueError(f"detectors: {len(detectors)}, expected two or more")
        given = [1.0] * len(detectors) if weights is None else weights
        given = list(given) if isinstance(given, Iterable) else [given]
        factors = [float(w) for w in given if isinstance(w, Real) and 0 < float(w) < math.inf]
        if not len(factors) == len(given) == len(detectors):
            raise ValueError(f"weights: {weights!r}, expected {len(detectors)} positive numbers")
        if len({one.classifiers.kind for one in detectors}) > 1:
            raise ConfigError(
                "combined models: margins of SVMs can't be compared with the log odds of a softmax; "
                "expected one kind of classifier"
            )
        names = detectors[0].class_names
        return cls(tuple(_in_order(one, names) for one in detectors), tuple(factors))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names, in the first detector's order."""
        return self.detectors[0].class_names

    @property
    def max_pixels(self) -> int:
        """Maximum number of pixels of an image file, the first detector's."""
        return self.detectors[0].max_pixels

    @property
    def device(self) -> torch.device:
        """The device of the first detector's networks."""
        return self.detectors[0].device

    def tiles(self, *, width: int, height: int) -> list[Tile]:
        """List the parts of an image to detect in, the first detector's."""
        return self.detectors[0].tiles(width=width, height=height)

    def merge(self, found: Sequence[Detections], *, width: int, height: int) -> Detections:
        """Merge the detections of an image's `tiles`, as the first detector does."""
        return self.detectors[0].merge(found, width=width, height=height)

    @overload
    def __call__(self, image: GivenImage, *, bgr: bool = False) -> Detections: ...
    @overload
    def __call__(self, image: GivenImages, *, bgr: bool = False) -> list[Detections]: ...
    def __call__(
        self, image: GivenImage | GivenImages, *, bgr: bool = False
    ) -> Detections | list[Detections]:
        """Detect in one image or several; arguments, results and errors are those of `Detector`."""
        if isinstance(image, list | tuple):
            return detect_several(self, image, bgr=bgr)
        return detect_one(self, image, bgr=bgr)

    def propose(self, image: ImageArray) -> list[Proposals]:
        """Search an image (H, W, 3) RGB for each detector's proposals; thread-safe."""
        proposers = {one.proposer.fingerprint: one.proposer for one in self.detectors}
        found = {key: proposer.of(image) for key, proposer in proposers.items()}
        return [found[one.proposer.fingerprint] for one in self.detectors]

    def prepare(self, image: ImageArray) -> dict[tuple[str, bool], ScaledImage]:
        """Resize an image (H, W, 3) RGB for `detect_prepared`; thread-safe.

        Returns:
            The image as each backbone needs it, by the fingerprint of its maps and whether mirrored.
        """
        views: dict[tuple[str, bool], ScaledImage] = {}
        for one in self.detectors:
            missing = (one.maps.fingerprint, one.config.flip) not in views
            if missing:
                made = one.prepare(image)
                views.update(
                    ((one.maps.fingerprint, mirrored), view)
                    for mirrored, view in zip((False, True), made, strict=False)
                )
        return views

    def detect_prepared(
        self,
        views: Mapping[tuple[str, bool], ScaledImage],
        proposals: Sequence[Proposals],
        *,
        width: int,
        height: int,
        path: str = "",
    ) -> Detections:
        """Detect in what `prepare` has made of an image of known size, by each model's proposals."""
        by_maps = {one.maps.fingerprint: one.maps for one in self.detectors}
        maps = {key: by_maps[key[0]].compute(view) for key, view in views.items()}
        config = self.detectors[0].config
        scored = []
        for one, own, weight in zip(self.detectors, proposals, self.weights, strict=True):
            plain = maps[one.maps.fingerprint, False]
            mirrored = maps[one.maps.fingerprint, True] if one.config.flip else None
            made = one.score_in(plain, own, width=width, mirrored=mirrored)
            lowest = config.lowest_score(one.classifiers.kind)
            scored.append(weigh(made, weight, min_score=lowest))
        found = suppress(scored, config, width=width, height=height)
        return replace(found, path=path)


def _in_order(detector: Detector, names: tuple[str, ...]) -> Detector:
    """Return a detector of the same classes in this order."""
    if sorted(names) != sorted(detector.class_names):
        raise ConfigError(
            f"combined models: expected the classes {', '.join(sorted(names))} of the first one, "
            f"not {', '.join(sorted(detector.class_names))}"
        )
    rows = [detector.class_names.index(name) for name in names]
    c, r = detector.classifiers, detector.regressors
    of_c = rows if c.kind == "svm" else [0, *(row + 1 for row in rows)]  # with the background
    return replace(
        detector,
        class_names=names,
        calibration=None,  # scores of several models have none in common
        classifiers=replace(c, weights=c.weights[of_c], biases=c.biases[of_c]),
        regressors=r and replace(r, weights=r.weights[rows], biases=r.biases[rows]),
    )

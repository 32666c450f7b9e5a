"""The trained detector: from image to detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from sppdet.config import Config, DetectConfig
from sppdet.detection.detect import VERSION as DETECTION_VERSION
from sppdet.detection.detect import (
    Classifiers,
    DetectionParts,
    Regressors,
    ScoredProposals,
    score,
    suppress,
)
from sppdet.detection.ranking import Ranking
from sppdet.errors import ArtifactError
from sppdet.evaluation.calibration import Calibration
from sppdet.features.backbones import ScaledImage
from sppdet.features.head import truncated
from sppdet.features.regions import FeatureExtractor
from sppdet.io.image_cache import ImageCache
from sppdet.io.images import read_image
from sppdet.runs.artifacts import fingerprint, fingerprint_of
from sppdet.runs.weights import check_types
from sppdet.setting_types import MAX_PIXELS
from sppdet.stages.map_cache import MapCache
from sppdet.stages.model import (
    choose_device,
    read_backbone,
    read_calibration,
    read_classifiers,
    read_head,
    read_ranking,
    read_regressors,
)
from sppdet.stages.model_files import ModelFiles, read_run_config, signature
from sppdet.stages.proposer import Proposer
from sppdet.tensor_types import TensorType
from sppdet.types import Detections, FeatureMaps, ImageArray, Proposals


@dataclass(frozen=True)
class Detector:
    """SPP-net detection with trained parts.

    `detector(image)` runs everything on a path or on an array (H, W, 3) uint8; `detect` works on
    proposals and maps that are there already. Arrays are RGB, as Pillow, imageio and torchvision
    decode them. OpenCV decodes to BGR, which no check can tell from RGB and in which a detector
    finds nonsense: pass `bgr=True` with such arrays.
    """

    class_names: tuple[str, ...]
    proposer: Proposer
    maps: MapCache
    extractor: FeatureExtractor
    classifiers: Classifiers
    regressors: Regressors | None
    config: DetectConfig
    max_pixels: int = MAX_PIXELS
    ranking: Ranking | None = None  # of windows, for `detect.max_windows`
    calibration: Calibration | None = None  # of its scores
    made_by: str = ""  # fingerprint of all parts and of the device; empty: unknown
    signature: str = ""  # the settings in a line, see `model_files.signature`; empty: unknown

    @property
    def min_score(self) -> float:
        """The minimum score of a detection."""
        return self.config.lowest_score(self.classifiers.kind)

    @property
    def parts(self) -> DetectionParts:
        """The parts after the feature maps."""
        return DetectionParts(
            self.class_names,
            self.extractor,
            self.classifiers,
            self.regressors,
            self.config,
            self.ranking,
        )

    @classmethod
    def load(cls, run: Path | str, *, device: str | torch.device = "auto") -> Detector:
        """Load the detector of a run's folder; no code is run on loading.

        Raises:
            ArtifactError: not a run, or its training isn't finished or was by other settings.
        """
        run = Path(run)
        config = read_run_config(run)
        files = ModelFiles(run)
        target = device if isinstance(device, torch.device) else choose_device(device)
        files.check_sealed(config)
        classifiers, names = read_classifiers(files.svm)
        backbone = read_backbone(files.backbone, config)
        backbone.layers.to(target)
        regressors = None
        if config.bbox is not None:
            regressors = read_regressors(files.bbox, classes=len(names))
        ranking = None
        if config.detect.max_windows is not None:
            ranking = read_ranking(
                files.ranking, levels=config.spp_levels, channels=backbone.channels
            )
        head = None
        if {config.svm_layer(), config.bbox_layer() or "pool5"} != {"pool5"}:
            head = read_head(files.head, backbone, config, classes=len(names)).to(target)
        extractor = FeatureExtractor.by(config.spp_levels, config.features, head, target)
        _check_width(classifiers, extractor, backbone.channels, config, files.svm)
        if regressors is not None:
            _check_width(regressors, extractor, backbone.channels, config, files.bbox)
        if head is not None:
            extractor = replace(extractor, head=truncated(head, config.detect.svd or ()))
        proposer = Proposer(config.proposals)
        maps = MapCache(backbone, config.scales, config.features, ImageCache())
        return cls(
            class_names=names,
            proposer=proposer,
            maps=maps,
            extractor=extractor,
            classifiers=classifiers.to(target),
            regressors=regressors and regressors.to(target),
            config=config.detect,
            max_pixels=config.data.max_pixels,
            ranking=ranking and ranking.to(target),
            calibration=read_calibration(
                files.calibration,
                classes=len(names),
                made_for=files.detection_fingerprint(config),
            ),
            signature=signature(config, train=files.training_data()),
            made_by=fingerprint(
                "detector",
                DETECTION_VERSION,
                files.fingerprint(),
                proposer.fingerprint,
                maps.fingerprint,
                config.spp_levels,
                config.features.canonical_size,
                config.detect.model_dump(),
                target.type,  # a GPU's sums are rounded otherwise
                fingerprint_of(files.calibration),
            ),
        )

    def __call__(self, image: Path | str | ImageArray, *, bgr: bool = False) -> Detections:
        """Detect in one image.

        Args:
            image: path of an image file, or an array (H, W, 3) uint8: RGB, or BGR with `bgr`.
            bgr: the array's channels are blue, green, red, as `cv2.imread` returns them.

        Returns:
            Detections in original pixels, in descending score.

        Raises:
            ValueError: an array of another shape or type, or `bgr` with a path, whose colour order
                the file itself tells.
            ImageError: the file is missing or can't be decoded.
        """
        path, pixels = self.pixels_of(image, bgr=bgr)
        height, width = pixels.shape[:2]
        proposals, views = self.proposer.of(pixels), self.prepare(pixels)
        return self.detect_prepared(views, proposals, width=width, height=height, path=path)

    def pixels_of(self, image: Path | str | ImageArray, *, bgr: bool) -> tuple[str, ImageArray]:
        """Return the path, empty for an array, and the RGB pixels of what is called with."""
        if isinstance(image, np.ndarray):
            pixels = _checked(image)
            return "", np.ascontiguousarray(pixels[:, :, ::-1]) if bgr else pixels
        if bgr:
            raise ValueError(f"bgr with {image}: expected an array; a file is read in its order")
        return str(image), self.read(image)

    def read(self, path: Path | str) -> ImageArray:
        """Read an image file; one of more than `max_pixels` is refused before decoding."""
        return read_image(path, max_pixels=self.max_pixels)

    def prepare(self, image: ImageArray) -> tuple[ScaledImage, ...]:
        """Resize an image (H, W, 3) RGB for `detect_prepared`; thread-safe.

        Returns:
            The image at every scale and, with `detect.flip`, its mirror image at every scale.
        """
        mirrored = (np.ascontiguousarray(image[:, ::-1]),) if self.config.flip else ()
        return tuple(self.maps.scaled(view) for view in (image, *mirrored))

    def detect_prepared(
        self,
        views: Sequence[ScaledImage],
        proposals: Proposals,
        *,
        width: int,
        height: int,
        path: str = "",
    ) -> Detections:
        """Detect in what `prepare` has made of an image of known size in original pixels."""
        maps = [self.maps.compute(view) for view in views]
        mirrored = maps[1] if len(maps) > 1 else None
        return self.detect_in(
            maps[0], proposals, width=width, height=height, path=path, mirrored=mirrored
        )

    def detect(
        self,
        maps: FeatureMaps,
        proposals: Proposals,
        image: ImageArray,
        *,
        path: str = "",
        mirrored: FeatureMaps | None = None,
    ) -> Detections:
        """Score every window for every class, NMS, regress, clip; see `detect_in`."""
        height, width = image.shape[:2]
        return self.detect_in(
            maps, proposals, width=width, height=height, path=path, mirrored=mirrored
        )

    def detect_in(
        self,
        maps: FeatureMaps,
        proposals: Proposals,
        *,
        width: int,
        height: int,
        path: str = "",
        mirrored: FeatureMaps | None = None,
    ) -> Detections:
        """Detect like `detect`, in an image of known size in original pixels.

        Args:
            mirrored: maps of the mirrored image; given with `detect.flip`, and only then.

        Raises:
            ValueError: `detect.flip` without these maps, or these maps without it.
        """
        scored = self.score_in(maps, proposals, width=width, mirrored=mirrored)
        found = suppress([scored], self.config, width=width, height=height)
        probabilities = None
        if self.calibration is not None:
            probabilities = self.calibration.probabilities(found.scores, found.labels)
        return replace(found, path=path, probabilities=probabilities)

    def score_in(
        self,
        maps: FeatureMaps,
        proposals: Proposals,
        *,
        width: int,
        mirrored: FeatureMaps | None = None,
    ) -> ScoredProposals:
        """Score every window for every class; arguments and errors are those of `detect_in`."""
        if self.config.flip != (mirrored is not None):
            expected = "the mirrored image's" if self.config.flip else "None"
            raise ValueError(
                f"mirrored maps with detect.flip {self.config.flip}: expected {expected}"
            )
        maps = maps.to(self.maps.device)
        if mirrored is not None:
            mirrored = mirrored.to(self.maps.device)
        return score(self.parts, maps, proposals, width=width, mirrored=mirrored)


def _checked(image: ImageArray) -> ImageArray:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"image: {image.dtype} {image.shape}, expected uint8 (H, W, 3) RGB")
    return image


def _check_width(
    part: Classifiers | Regressors,
    extractor: FeatureExtractor,
    channels: int,
    config: Config,
    path: Path,
) -> None:
    """Refuse weights for features of another layer or length than the run's."""
    wanted = config.bbox_layer() if isinstance(part, Regressors) else None
    wanted = wanted or config.svm_layer()
    if part.layer != wanted:
        raise ArtifactError(
            f"{path}: doesn't fit the run's settings: it is for {part.layer}, expected {wanted}"
        )
    shape = list(part.weights.shape)
    expected = [shape[0], extractor.width(part.layer, channels), *shape[2:]]
    check_types(
        {"weights": part.weights},
        {"weights": TensorType(torch.float32, tuple(expected))},
        path,
    )

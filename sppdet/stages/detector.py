"""The trained detector: from image to detections."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from sppdet.config import Config, DetectConfig
from sppdet.detection.detect import VERSION as DETECTION_VERSION
from sppdet.detection.detect import Classifiers, DetectionParts, Regressors, detect
from sppdet.errors import ArtifactError
from sppdet.features.head import truncated
from sppdet.features.regions import FeatureExtractor
from sppdet.io.image_cache import ImageCache
from sppdet.io.images import read_image
from sppdet.runs.artifacts import fingerprint
from sppdet.runs.weights import check_types
from sppdet.setting_types import MAX_PIXELS
from sppdet.stages.map_cache import MapCache
from sppdet.stages.model import (
    choose_device,
    read_backbone,
    read_classifiers,
    read_head,
    read_regressors,
)
from sppdet.stages.model_files import ModelFiles, read_run_config
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
    made_by: str = ""  # fingerprint of all parts and of the device; empty: unknown

    @property
    def min_score(self) -> float:
        """The minimum score of a detection."""
        return self.config.lowest_score(self.classifiers.kind)

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
            classifiers=replace(
                classifiers,
                weights=classifiers.weights.to(target),
                biases=classifiers.biases.to(target),
            ),
            regressors=regressors
            and Regressors(
                regressors.layer, regressors.weights.to(target), regressors.biases.to(target)
            ),
            config=config.detect,
            max_pixels=config.data.max_pixels,
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
        if isinstance(image, np.ndarray):
            path, pixels = "", _checked(image)
            if bgr:
                pixels = np.ascontiguousarray(pixels[:, :, ::-1])
        elif bgr:
            raise ValueError(f"bgr with {image}: expected an array; a file is read in its order")
        else:
            path, pixels = str(image), self.read(image)
        maps = self.maps.compute(self.maps.scaled(pixels))
        return self.detect(maps, self.proposer.of(pixels), pixels, path=path)

    def read(self, path: Path | str) -> ImageArray:
        """Read an image file; one of more than `max_pixels` is refused before decoding."""
        return read_image(path, max_pixels=self.max_pixels)

    def detect(
        self, maps: FeatureMaps, proposals: Proposals, image: ImageArray, *, path: str = ""
    ) -> Detections:
        """Score every window for every class, NMS, regress, clip."""
        height, width = image.shape[:2]
        return self.detect_in(maps, proposals, width=width, height=height, path=path)

    def detect_in(
        self, maps: FeatureMaps, proposals: Proposals, *, width: int, height: int, path: str = ""
    ) -> Detections:
        """Detect like `detect`, in an image of known size in original pixels."""
        parts = DetectionParts(
            self.class_names, self.extractor, self.classifiers, self.regressors, self.config
        )
        maps = maps.to(self.maps.device)
        found = detect(parts, maps, proposals, width=width, height=height)
        return replace(found, path=path)


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

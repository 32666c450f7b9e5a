"""The trained detector: from image to detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

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
from sppdet.detection.tiles import Tile, Tiling, merge_tiles
from sppdet.errors import ArtifactError
from sppdet.evaluation.calibration import Calibration
from sppdet.features.backbones import ScaledImage
from sppdet.features.head import truncated
from sppdet.features.regions import FeatureExtractor
from sppdet.io.given_images import GivenImage, GivenImages
from sppdet.io.image_cache import ImageCache
from sppdet.io.images import read_image
from sppdet.runs.artifacts import fingerprint
from sppdet.runs.weights import check_types
from sppdet.setting_types import MAX_PIXELS
from sppdet.stages.calls import detect_one, detect_several
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
from sppdet.stages.proposer import Proposer
from sppdet.stages.trained_model import TrainedModel, needed_parts
from sppdet.tensor_types import TensorType
from sppdet.types import Detections, FeatureMaps, ImageArray, Proposals


@dataclass(frozen=True)
class Detector:
    """SPP-net detection with trained parts.

    `detector(image)` runs everything on a path, bytes, a PIL image, an array or a tensor, and
    `detector([image, ...])` on several; `detect` works on proposals and maps that are there already.
    Arrays are RGB, as Pillow, imageio and torchvision decode them. OpenCV decodes to BGR, which no
    check can tell from RGB and in which a detector finds nonsense: pass `bgr=True` with such arrays.
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
    tiling: Tiling | None = None  # None: images are searched as they are

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
        """Load the detector of a run's folder or of a file of `sppdet export`.

        No code is run on loading, and both give the same detections to the bit.

        Raises:
            ArtifactError: neither of them, damaged, or its training isn't finished or was by other
                settings.
        """
        return cls.of(TrainedModel.open(Path(run)), device=device)

    @classmethod
    def of(cls, model: TrainedModel, *, device: str | torch.device = "auto") -> Detector:
        """Build the detector of a model; errors are those of `load`."""
        config, needed = model.config, needed_parts(model.config)
        target = device if isinstance(device, torch.device) else choose_device(device)
        svm = model.read("svm")
        classifiers, names = read_classifiers(svm)
        backbone = read_backbone(model.read("backbone"), config)
        backbone.layers.to(target)
        regressors, ranking, head = None, None, None
        if "ranking" in needed:
            ranking = read_ranking(
                model.read("ranking"), levels=config.spp_levels, channels=backbone.channels
            )
        if "head" in needed:
            head = read_head(model.read("head"), backbone, config, classes=len(names)).to(target)
        extractor = FeatureExtractor.by(config.spp_levels, config.features, head, target)
        _check_width(classifiers, extractor, backbone.channels, config, svm.where)
        if "bbox" in needed:
            bbox = model.read("bbox")
            regressors = read_regressors(bbox, classes=len(names))
            _check_width(regressors, extractor, backbone.channels, config, bbox.where)
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
                model.find("calibration"),
                classes=len(names),
                made_for=model.detection_fingerprint,
            ),
            signature=model.signature,
            made_by=fingerprint(
                "detector",
                DETECTION_VERSION,
                model.stamps,
                proposer.fingerprint,
                maps.fingerprint,
                config.spp_levels,
                config.features.canonical_size,
                config.detect.model_dump(),
                target.type,  # a GPU's sums are rounded otherwise
                model.fingerprint_of("calibration"),
            ),
        )

    @overload
    def __call__(self, image: GivenImage, *, bgr: bool = False) -> Detections: ...
    @overload
    def __call__(self, image: GivenImages, *, bgr: bool = False) -> list[Detections]: ...
    def __call__(
        self, image: GivenImage | GivenImages, *, bgr: bool = False
    ) -> Detections | list[Detections]:
        """Detect in one image, or in each of a list or tuple of images.

        Args:
            image: path of an image file; the bytes of one; a PIL image of any mode; an array (H, W, 3)
                uint8; a tensor (3, H, W) or (H, W, 3), uint8 or floating-point values in 0..1. See
                `sppdet.io.given_images.pixels_of`.
            bgr: the arrays' or tensors' channels are blue, green, red, as `cv2.imread` returns them.

        Returns:
            Detections in original pixels, in descending score; of a list or tuple a list of them, the
            same as those of a call for each image. They refer to their image, for `plot`: to its path,
            its bytes or its array, which must not be changed in between.

        Raises:
            ValueError: something else, an array or tensor of another shape, type or range, or `bgr` with
                something that has its order of channels itself.
            ImageError: the file is missing, or it or the bytes can't be decoded.
        """
        if isinstance(image, list | tuple):
            return detect_several(self, image, bgr=bgr)
        return detect_one(self, image, bgr=bgr)

    def tiled(self, side_px: int, *, overlap: float = 0.2) -> Detector:
        """Return a detector that searches images by tiles, too; see `sppdet.detection.tiles`.

        Args:
            side_px: of a tile in pixels of the image, 32 or more; it is resized to the detector's scales.
            overlap: fraction of a tile that its neighbours share, 0 to 0.9.
        """
        return replace(self, tiling=Tiling(side_px, overlap))

    def tiles(self, *, width: int, height: int) -> list[Tile]:
        """List the parts of an image to detect in, one after another: tiles and itself."""
        if self.tiling is None:
            return [(0, 0, width, height)]
        return self.tiling.tiles(width=width, height=height)

    def merge(self, found: Sequence[Detections], *, width: int, height: int) -> Detections:
        """Merge the detections of an image's `tiles`, each in pixels of its tile."""
        tiles = self.tiles(width=width, height=height)
        return merge_tiles(found, tiles, max_iou=self.config.nms, width=width, height=height)

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return self.maps.device

    def propose(self, image: ImageArray) -> Proposals:
        """Search an image (H, W, 3) RGB for proposals; thread-safe."""
        return self.proposer.of(image)

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


def _check_width(
    part: Classifiers | Regressors,
    extractor: FeatureExtractor,
    channels: int,
    config: Config,
    where: str,
) -> None:
    """Refuse weights for features of another layer or length than the run's."""
    wanted = config.bbox_layer() if isinstance(part, Regressors) else None
    wanted = wanted or config.svm_layer()
    if part.layer != wanted:
        raise ArtifactError(
            f"{where}: doesn't fit the run's settings: it is for {part.layer}, expected {wanted}"
        )
    shape = list(part.weights.shape)
    expected = [shape[0], extractor.width(part.layer, channels), *shape[2:]]
    check_types(
        {"weights": part.weights},
        {"weights": TensorType(torch.float32, tuple(expected))},
        where,
    )

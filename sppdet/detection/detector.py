"""The trained detector: from an image to detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.boxes import clip_boxes, decode_deltas, empty_boxes, nms
from sppdet.config import DetectConfig, Layer
from sppdet.errors import DataError
from sppdet.features.regions import Extractor
from sppdet.io.headers import MAX_PIXELS
from sppdet.io.images import read_image
from sppdet.stages.maps import MapSource
from sppdet.stages.proposals import Proposer
from sppdet.types import Boxes, Detections, FeatureMaps, ImageArray, Proposals, Scores

VERSION = 1  # raised when the same model gives other detections


@dataclass(frozen=True)
class Classifiers:
    """All classes' SVMs on the features of one layer, for features as they come from it."""

    layer: Layer
    weights: torch.Tensor  # (K, D) float32
    biases: torch.Tensor  # (K,) float32

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """(U, K) SVM margins of features (U, D)."""
        return features @ self.weights.T + self.biases


@dataclass(frozen=True)
class Regressors:
    """All classes' box regressors on the features of one layer, for features as they come from it."""

    layer: Layer
    weights: torch.Tensor  # (K, D, 4) float32
    biases: torch.Tensor  # (K, 4) float32

    def deltas(self, features: torch.Tensor, label: int) -> torch.Tensor:
        """(N, 4) box deltas of class `label` from features (N, D)."""
        return features @ self.weights[label - 1] + self.biases[label - 1]


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
    maps: MapSource
    extractor: Extractor
    classifiers: Classifiers
    regressors: Regressors | None
    config: DetectConfig
    max_pixels: int = MAX_PIXELS
    made_by: str = ""  # fingerprint of all parts and of the device; empty: unknown

    @classmethod
    def load(cls, run: Path | str, *, device: str = "auto") -> Detector:
        """The detector of a run's folder; no code is run on loading.

        Raises:
            ArtifactError: not a run, or its training isn't finished.
        """
        from sppdet.stages.model import load_detector

        return load_detector(Path(run), device=device)

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
        """The image in a file, refused before it is decoded if it has more than `max_pixels`."""
        return read_image(path, max_pixels=self.max_pixels)

    def detect(
        self, maps: FeatureMaps, proposals: Proposals, image: ImageArray, *, path: str = ""
    ) -> Detections:
        """Score every window for every class, NMS, regress, clip."""
        height, width = image.shape[:2]
        return self.detect_in(maps, proposals, width=width, height=height, path=path)

    @torch.inference_mode()
    def detect_in(
        self, maps: FeatureMaps, proposals: Proposals, *, width: int, height: int, path: str = ""
    ) -> Detections:
        """As `detect`, for an image of known size in original pixels."""
        if len(proposals) == 0:
            none = np.zeros(0, dtype=np.int64)
            scores = np.zeros(0, dtype=np.float32)
            return Detections(empty_boxes(), scores, none, self.class_names, path)
        maps = maps.to(self.maps.device)
        windows = self.extractor.windows(maps, proposals.boxes)
        pooled = self.extractor.pool(maps, windows.cells)
        features = self.extractor.layer(pooled, self.classifiers.layer)
        scores = self.classifiers.scores(features).cpu().numpy()[windows.index]  # [P, K]
        if not np.isfinite(scores).all():
            raise DataError("scores that aren't finite: are the model's weights the right ones?")
        chosen = [self._choose(proposals.boxes, scores[:, k]) for k in range(len(self.class_names))]
        counts = [len(rows) for rows in chosen]
        rows = np.concatenate(chosen)
        labels = np.repeat(np.arange(1, len(chosen) + 1), counts)
        kept = proposals.boxes[rows]
        if self.regressors is not None and len(rows):
            used = torch.from_numpy(windows.index[rows]).to(pooled.device)
            deltas = self._deltas(self.regressors, pooled, used.split(counts))
            with np.errstate(over="ignore"):  # a box beyond float32 stays where it was
                moved = decode_deltas(kept, deltas)
            kept = _clip_or_keep(moved, kept, width=width, height=height)
        kept_scores = scores[rows, labels - 1]
        order = np.argsort(-kept_scores, kind="stable")
        return Detections(kept[order], kept_scores[order], labels[order], self.class_names, path)

    def _deltas(
        self, regressors: Regressors, pooled: torch.Tensor, used: Sequence[torch.Tensor]
    ) -> NDArray[np.float32]:
        """(N, 4) box deltas of the rows of `pooled` (U, D) that each class uses, one after another."""
        # class by class, which needs little memory, but fetched at once: a GPU is waited for once
        parts = [
            regressors.deltas(self.extractor.layer(pooled[rows], regressors.layer), label)
            for label, rows in enumerate(used, start=1)
            if len(rows)
        ]
        return torch.cat(parts).cpu().numpy()

    def _choose(self, boxes: Boxes, scores: Scores) -> NDArray[np.int64]:
        """Rows of one class's detections, in descending score."""
        rows = np.flatnonzero(scores >= self.config.min_score)
        most = self.config.max_per_class
        return rows[nms(boxes[rows], scores[rows], max_iou=self.config.nms, most=most)]


def _clip_or_keep(moved: Boxes, before: Boxes, *, width: int, height: int) -> Boxes:
    """The regressed boxes cut to the image; one that leaves it stays where it was."""
    clipped = clip_boxes(moved, width=width, height=height)
    # also one whose deltas aren't finite
    lost = ~((clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1]))
    clipped[lost] = before[lost]
    return clipped


def _checked(image: ImageArray) -> ImageArray:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"image: {image.dtype} {image.shape}, expected uint8 (H, W, 3) RGB")
    return image

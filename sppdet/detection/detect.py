"""Detection in an image from its feature maps and proposals: scores, NMS, box regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.boxes import clip_boxes, decode_deltas, empty_boxes, nms
from sppdet.config import Classifier, DetectConfig, Layer
from sppdet.errors import DataError
from sppdet.features.regions import FeatureExtractor
from sppdet.types import Boxes, Detections, FeatureMaps, Proposals, Scores

VERSION = 1  # raise it when the same model gives other detections


@dataclass(frozen=True)
class Classifiers:
    """Linear classifiers of all classes on the features of one layer, before scaling.

    SVMs score by their margins; a softmax, whose first row is the background, by probabilities.
    """

    layer: Layer
    weights: torch.Tensor  # (K, D) float32; (K + 1, D) of a softmax
    biases: torch.Tensor  # (K,) float32; (K + 1,) of a softmax
    kind: Classifier = "svm"

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Compute the scores (U, K) of features (U, D)."""
        linear = features @ self.weights.T + self.biases
        return linear if self.kind == "svm" else torch.softmax(linear, dim=1)[:, 1:]


@dataclass(frozen=True)
class Regressors:
    """Box regressors of all classes on the features of one layer, before scaling."""

    layer: Layer
    weights: torch.Tensor  # (K, D, 4) float32
    biases: torch.Tensor  # (K, 4) float32

    def deltas(self, features: torch.Tensor, label: int) -> torch.Tensor:
        """Compute box deltas (N, 4) of class `label` from features (N, D)."""
        return features @ self.weights[label - 1] + self.biases[label - 1]


@dataclass(frozen=True)
class DetectionParts:
    """Trained parts of a detector after the feature maps, and its settings."""

    class_names: tuple[str, ...]
    extractor: FeatureExtractor
    classifiers: Classifiers
    regressors: Regressors | None
    config: DetectConfig


@torch.inference_mode()
def detect(
    parts: DetectionParts, maps: FeatureMaps, proposals: Proposals, *, width: int, height: int
) -> Detections:
    """Score every window for every class, apply NMS per class, regress and clip the boxes.

    Args:
        maps: maps of the image, on the device of the parts.
        proposals: boxes in original pixels.
        width, height: size of the image in original pixels.

    Returns:
        Detections in descending score; none for no proposals.

    Raises:
        DataError: a score isn't finite.
    """
    if len(proposals) == 0:
        none = np.zeros(0, dtype=np.int64)
        return Detections(empty_boxes(), none.astype(np.float32), none, parts.class_names)
    windows = parts.extractor.windows(maps, proposals.boxes)
    pooled = parts.extractor.pool(maps, windows.cells)
    features = parts.extractor.layer(pooled, parts.classifiers.layer)
    scores = parts.classifiers.scores(features).cpu().numpy()[windows.index]  # [P, K]
    if not np.isfinite(scores).all():
        raise DataError("scores that aren't finite: are the model's weights the right ones?")
    classes = range(len(parts.class_names))
    lowest = parts.config.lowest_score(parts.classifiers.kind)
    chosen = [_choose(proposals.boxes, scores[:, k], lowest, parts.config) for k in classes]
    counts = [len(rows) for rows in chosen]
    rows = np.concatenate(chosen)
    labels = np.repeat(np.arange(1, len(chosen) + 1), counts)
    kept = proposals.boxes[rows]
    if parts.regressors is not None and len(rows):
        used = torch.from_numpy(windows.index[rows]).to(pooled.device)
        deltas = _deltas(parts.extractor, parts.regressors, pooled, used.split(counts))
        with np.errstate(over="ignore"):  # a box beyond float32 is kept unmoved
            moved = decode_deltas(kept, deltas)
        kept = _clip_or_keep(moved, kept, width=width, height=height)
    kept_scores = scores[rows, labels - 1]
    order = np.argsort(-kept_scores, kind="stable")
    return Detections(kept[order], kept_scores[order], labels[order], parts.class_names)


def _deltas(
    extractor: FeatureExtractor,
    regressors: Regressors,
    pooled: torch.Tensor,
    used: Sequence[torch.Tensor],
) -> NDArray[np.float32]:
    """Compute box deltas (N, 4) of the rows of `pooled` (U, D) that each class uses, concatenated."""
    # class by class to save memory, but copied at once, so that a GPU is waited for once
    parts = [
        regressors.deltas(extractor.layer(pooled[rows], regressors.layer), label)
        for label, rows in enumerate(used, start=1)
        if len(rows)
    ]
    return torch.cat(parts).cpu().numpy()


def _choose(boxes: Boxes, scores: Scores, lowest: float, config: DetectConfig) -> NDArray[np.int64]:
    """Select the rows of one class's detections, in descending score."""
    rows = np.flatnonzero(scores >= lowest)
    kept = nms(boxes[rows], scores[rows], max_iou=config.nms, max_boxes=config.max_per_class)
    return rows[kept]


def _clip_or_keep(moved: Boxes, before: Boxes, *, width: int, height: int) -> Boxes:
    """Clip regressed boxes to the image; one outside reverts to its proposal."""
    clipped = clip_boxes(moved, width=width, height=height)
    # NaN compares false, so this includes boxes whose deltas aren't finite
    outside = ~((clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1]))
    clipped[outside] = before[outside]
    return clipped

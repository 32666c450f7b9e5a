"""Data classes passed between stages: frozen, with shapes checked on construction.

Boxes are float32 `xyxy`, 0-based, half-open, in pixels of the original image, everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Boxes = NDArray[np.float32]  # (N, 4) xyxy, original pixels, half-open
Labels = NDArray[np.int64]  # (N,) 1..K; 0 is background
Scores = NDArray[np.float32]  # (N,) SVM margins, not probabilities
Flags = NDArray[np.bool_]
ImageArray = NDArray[np.uint8]  # (H, W, 3) RGB


def _check(array: NDArray[Any], name: str, shape: tuple[int | None, ...], dtype: type) -> None:
    wrong_shape = array.ndim != len(shape) or any(
        want is not None and have != want for have, want in zip(array.shape, shape, strict=False)
    )
    if wrong_shape or array.dtype != np.dtype(dtype):
        want = tuple("N" if side is None else side for side in shape)
        raise ValueError(f"{name}: {array.dtype} {array.shape}, expected {np.dtype(dtype)} {want}")


def check_boxes(boxes: NDArray[Any], name: str = "boxes") -> None:
    """Raise ValueError unless `boxes` is a float32 (N, 4) array of finite boxes with area."""
    _check(boxes, name, (None, 4), np.float32)
    bad = ~(
        np.isfinite(boxes).all(axis=1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    )
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(f"{name}, row {row}: {boxes[row].tolist()} has no area")


@dataclass(frozen=True)
class AnnotatedImage:
    """One image of a data set with its ground truth.

    `id` is unique in the data set and safe as a file name. `width` and `height` are those of the
    decoded image after EXIF orientation; both are 0 if the annotations were read without images.
    """

    id: str
    path: Path
    width: int
    height: int
    gt_boxes: Boxes  # (G, 4)
    gt_labels: Labels  # (G,) 1..K
    difficult: Flags  # (G,)
    truncated: Flags  # (G,)

    def __post_init__(self) -> None:
        check_boxes(self.gt_boxes, f"{self.id}: gt_boxes")
        count = len(self.gt_boxes)
        _check(self.gt_labels, f"{self.id}: gt_labels", (count,), np.int64)
        _check(self.difficult, f"{self.id}: difficult", (count,), np.bool_)
        _check(self.truncated, f"{self.id}: truncated", (count,), np.bool_)
        if count and self.gt_labels.min() < 1:
            raise ValueError(f"{self.id}: gt_labels: label 0 is background")


@dataclass(frozen=True)
class Dataset:
    """The images of one split in a fixed order, and the class names (label k is class_names[k - 1]).

    `skipped` lists, one line each, the images and boxes that `data.on_error: skip` left out;
    `clipped_boxes` counts boxes that extended beyond their image.
    """

    name: str
    class_names: tuple[str, ...]
    images: tuple[AnnotatedImage, ...]
    skipped: tuple[str, ...] = ()
    clipped_boxes: int = 0

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Proposals:
    """Class-agnostic candidate boxes of one image, ranked."""

    boxes: Boxes  # (P, 4)

    def __post_init__(self) -> None:
        check_boxes(self.boxes, "proposals")

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class FeatureMaps:
    """The conv5 maps of one image at its distinct scales, ascending.

    `scale_factors` are resized / original pixels, in float64: in float32 an edge of a box that lies on
    the centre of a cell would miss it. There are fewer maps than `scales` in the settings if the cap
    on the longer side makes scales coincide. The receptive-field centre of cell (0, 0) is at `offset`
    (c₀) in continuous resized pixels; neighbouring centres are `stride` apart.
    """

    maps: tuple[torch.Tensor, ...]  # S × (C, H, W) float16 or float32
    scale_factors: NDArray[np.float64]  # (S,)
    stride: int
    offset: float

    def __post_init__(self) -> None:
        _check(self.scale_factors, "scale_factors", (len(self.maps),), np.float64)
        if not self.maps or any(m.ndim != 3 or 0 in m.shape for m in self.maps):
            raise ValueError("maps: expected one (C, H, W) map or more, none of them empty")

    def to(self, device: torch.device) -> FeatureMaps:
        """Copy the maps to `device`, with their dtype."""
        non_blocking = device.type == "cuda"  # a copy to the host must be complete on return
        maps = tuple(m.to(device, non_blocking=non_blocking) for m in self.maps)
        return FeatureMaps(maps, self.scale_factors, self.stride, self.offset)


@dataclass(frozen=True)
class RegionFeatures:
    """Pooled features of one image's proposals; proposals with the same window share a row.

    `values[index[p]]` is the feature vector of proposal p.
    """

    values: torch.Tensor  # (U, D) float32
    index: NDArray[np.int64]  # (P,) rows of `values`

    def __post_init__(self) -> None:
        if self.values.ndim != 2:
            raise ValueError(f"values: {tuple(self.values.shape)}, expected (U, D)")
        _check(self.index, "index", (None,), np.int64)


@dataclass(frozen=True)
class Detections:
    """Scored, labelled final boxes of one image, in descending score.

    `class_names[label - 1]` names a label; `path` is empty if the image was passed as an array.
    `probabilities` are those that a detection is right at IoU 0.5; None without calibration.
    """

    boxes: Boxes  # (N, 4)
    scores: Scores  # (N,)
    labels: Labels  # (N,) 1..K
    class_names: tuple[str, ...] = field(default=())
    path: str = ""
    probabilities: NDArray[np.float32] | None = None  # (N,)

    def __post_init__(self) -> None:
        check_boxes(self.boxes)
        _check(self.scores, "scores", (len(self.boxes),), np.float32)
        _check(self.labels, "labels", (len(self.boxes),), np.int64)
        if self.probabilities is not None:
            _check(self.probabilities, "probabilities", (len(self.boxes),), np.float32)

    def __len__(self) -> int:
        return len(self.boxes)

    def names(self) -> list[str]:
        """List the class name of every detection."""
        return [self.class_names[label - 1] for label in self.labels]

    def above(self, score: float | NDArray[np.float32]) -> Detections:
        """Select the detections with score >= `score`, one number or one for each class (K,)."""
        least = score if isinstance(score, float | int) else score[self.labels - 1]
        keep = self.scores >= least
        probabilities = self.probabilities
        return Detections(
            self.boxes[keep],
            self.scores[keep],
            self.labels[keep],
            self.class_names,
            self.path,
            None if probabilities is None else probabilities[keep],
        )


@dataclass(frozen=True)
class Matches:
    """The outcome of every detection of one class, and the objects that count, by image.

    `outcomes` are those of `evaluation.voc`, at the metric's one IoU or at several.
    """

    image_index: NDArray[np.int64]  # (D,) rows of the data set, in descending score
    outcomes: NDArray[np.int8]  # (IoUs, D)
    objects: NDArray[np.int64]  # (I,) without difficult ones


@dataclass(frozen=True)
class ClassResult:
    """Precision-recall curve of one class, a point per detection in descending score.

    `image_index`, `boxes` and `outcomes` describe each detection; they are empty for COCO, which
    matches at several IoUs and whose curve is a grid of recalls.
    """

    name: str
    ap: float  # NaN if the class has no ground truth that counts
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    scores: NDArray[np.float64]
    ground_truths: int  # without difficult ones
    detections: int
    image_index: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    boxes: Boxes = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    outcomes: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, np.int8))
    matches: Matches | None = None  # of the bootstrap


Interval = tuple[float, float]  # low, high; NaN where it isn't known


@dataclass(frozen=True)
class Intervals:
    """Intervals of the mean AP and of each class's by a bootstrap of `draws` draws."""

    mean: Interval
    classes: tuple[Interval, ...]
    draws: int


@dataclass(frozen=True)
class EvalResult:
    """Result of an evaluation; `extra` holds further numbers of the metric (COCO's twelve)."""

    metric: str
    split: str
    mean_ap: float
    classes: tuple[ClassResult, ...]
    images: int
    extra: dict[str, float] = field(default_factory=dict)
    min_iou: float = 0.5
    image_ids: tuple[str, ...] = ()  # indexed by `ClassResult.image_index`
    intervals: Intervals | None = None

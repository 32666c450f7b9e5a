"""Data classes passed between stages: frozen, with shapes checked on construction.

Boxes are float32 `xyxy`, 0-based, half-open, in pixels of the original image, everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.arrays import Boxes as Boxes
from sppdet.arrays import Flags as Flags
from sppdet.arrays import ImageArray as ImageArray
from sppdet.arrays import Labels as Labels
from sppdet.arrays import Scores as Scores
from sppdet.arrays import check_array
from sppdet.arrays import check_boxes as check_boxes
from sppdet.detections import Detections as Detections


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
        check_array(self.gt_labels, f"{self.id}: gt_labels", (count,), np.int64)
        check_array(self.difficult, f"{self.id}: difficult", (count,), np.bool_)
        check_array(self.truncated, f"{self.id}: truncated", (count,), np.bool_)
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
        check_array(self.scale_factors, "scale_factors", (len(self.maps),), np.float64)
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
        check_array(self.index, "index", (None,), np.int64)


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

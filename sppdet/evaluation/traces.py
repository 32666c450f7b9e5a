"""Records of the search for causes of errors: traces of images, missed objects, false detections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sppdet.types import Boxes, Detections, Flags, Labels

MissCause = Literal[
    "not proposed",
    "not scored",
    "proposed badly",
    "moved off by regression",
    "pooled too coarsely",
    "wrong class",
    "scored below the threshold",
    "suppressed by NMS",
    "over max_per_class",
    "moved off by box voting",
    "counted for another object",
]
FalseCause = Literal[
    "duplicate", "wrong class", "badly localised", "looks unlabelled", "background"
]
MISS_CAUSES: tuple[MissCause, ...] = get_args(MissCause)  # in the order in which they are tried
FALSE_CAUSES: tuple[FalseCause, ...] = get_args(FalseCause)


@dataclass(frozen=True)
class ImageTrace:
    """Results of every stage of detection in one image.

    A window is a proposal that was scored. Scores are those before NMS; `detections` have the final boxes
    and scores.
    """

    gt_boxes: Boxes  # (G, 4)
    gt_labels: Labels  # (G,) 1..K
    difficult: Flags  # (G,)
    truncated: Flags  # (G,)
    gt_cells: NDArray[np.int64]  # (G, 5) the window that an object's own box would have
    proposals: Boxes  # (N, 4), all of them
    windows: Boxes  # (P, 4), those that were scored
    cells: NDArray[np.int64]  # (P, 5): scale, left, top, right, bottom; inclusive
    scores: NDArray[np.float32]  # (P, K)
    regressed: NDArray[np.float32]  # (P, K, 4); read where a window is on an object of class k + 1
    suppressor: NDArray[np.int64]  # (P, K) row of the window that NMS has preferred, or -1
    detections: Detections  # D of them
    rows: NDArray[np.int64]  # (D,) window of each detection
    scales_px: NDArray[np.int64]  # (S,) shorter side of the resized image at each scale

    def __post_init__(self) -> None:
        objects, windows, classes = len(self.gt_boxes), *self.scores.shape
        expected: dict[str, tuple[NDArray[Any], tuple[int, ...]]] = {
            "gt_boxes": (self.gt_boxes, (objects, 4)),
            "gt_labels": (self.gt_labels, (objects,)),
            "difficult": (self.difficult, (objects,)),
            "truncated": (self.truncated, (objects,)),
            "gt_cells": (self.gt_cells, (objects, 5)),
            "windows": (self.windows, (windows, 4)),
            "cells": (self.cells, (windows, 5)),
            "regressed": (self.regressed, (windows, classes, 4)),
            "suppressor": (self.suppressor, (windows, classes)),
            "rows": (self.rows, (len(self.detections),)),
        }
        for name, (array, shape) in expected.items():
            if array.shape != shape:
                raise ValueError(f"{name}: {array.shape}, expected {shape}")


@dataclass(frozen=True)
class Rival:
    """A detection or a class that has won where an object was lost."""

    label: int
    score: float
    iou: float | None = None  # with the object; of a suppressor with the window that it suppressed
    outcome: int | None = None  # of a detection, by the VOC matching


@dataclass(frozen=True)
class Miss:
    """An object that no detection at or above the threshold was counted for, and why.

    The window is the one of the best score for the object's class among those that are on the object
    after regression or, where there is none, before it.
    """

    row: int  # of the image's objects
    label: int
    cause: MissCause
    proposal_iou: float  # the largest of all proposals; 0 without any
    regressed_iou: float | None = None  # the largest after regression, of windows that are on it
    score: float | None = None  # of the window, for the object's class
    cells: tuple[int, int] | None = None  # width and height of the window
    other: Rival | None = None  # class of the best score but the object's own, on the same windows
    rival: Rival | None = None  # detection that stands in its place, see `_cause_by_score`
    repair_score: float | None = None  # of a true detection if the cause were repaired
    replaces: int | None = None  # false detection that it would take the place of


@dataclass(frozen=True)
class JudgedImage:
    """Objects and detections of one image with the outcomes of the VOC matching at IoU 0.5."""

    gt_boxes: Boxes  # (G, 4)
    gt_labels: Labels  # (G,)
    difficult: Flags  # (G,)
    truncated: Flags  # (G,)
    gt_scale_px: NDArray[np.int64]  # (G,) image scale that an object's own box would be pooled at
    gt_coarse: Flags  # (G,) its window has fewer cells than the finest level has bins
    detections: Detections
    scale_px: NDArray[np.int64]  # (D,) image scale of each detection's window
    coarse: Flags  # (D,)
    outcomes: NDArray[np.int8]  # (D,)
    targets: NDArray[np.int64]  # (D,) object that a detection takes, -1 for none
    misses: tuple[Miss, ...]


@dataclass(frozen=True)
class FalseDetection:
    """A detection that the VOC matching counts as false, and why."""

    row: int  # of the image's detections
    cause: FalseCause
    iou: float  # the largest with an object of its class
    target: int  # row of that object, -1 without any
    other_iou: float  # the largest with an object of another class
    other_target: int

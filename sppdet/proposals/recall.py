"""Recall of proposals, which limits that of detections, and objects too small to be proposed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sppdet.boxes import box_iou
from sppdet.config import ProposalsConfig
from sppdet.proposals.resized import searched_size
from sppdet.types import AnnotatedImage, Boxes, Proposals


@dataclass(frozen=True)
class Coverage:
    """Recall over all objects that aren't difficult; NaN if there are none."""

    objects: int
    recall_50: float  # fraction of objects with a proposal of IoU >= 0.5
    recall_70: float
    best_overlap: float  # mean over objects of the best IoU ("average best overlap")
    mean_count: float  # proposals per image

    def __str__(self) -> str:
        return (
            f"{self.mean_count:.0f} proposals an image; of {self.objects} objects "
            f"{self.recall_50:.1%} are covered at IoU 0.5, {self.recall_70:.1%} at 0.7; "
            f"average best overlap {self.best_overlap:.3f}"
        )


def coverage(pairs: Iterable[tuple[AnnotatedImage, Proposals]]) -> Coverage:
    """Measure proposals against the ground truth of their images."""
    best: list[float] = []
    counts: list[int] = []
    for image, proposals in pairs:
        counts.append(len(proposals))
        targets = image.gt_boxes[~image.difficult]
        best.extend(best_ious(targets, proposals.boxes).tolist())
    iou = np.array(best or [np.nan])
    missing = np.nan if not best else 1.0
    return Coverage(
        objects=len(best),
        recall_50=float((iou >= 0.5).mean()) * missing,
        recall_70=float((iou >= 0.7).mean()) * missing,
        best_overlap=float(iou.mean()),
        mean_count=float(np.mean(counts)) if counts else 0.0,
    )


def best_ious(objects: Boxes, proposals: Boxes) -> NDArray[np.float64]:
    """Compute the best IoU (N,) of each object with a proposal; 0 without proposals."""
    return np.asarray(box_iou(objects, proposals).max(axis=1, initial=0.0))


@dataclass(frozen=True)
class SmallObjects:
    """Objects that are smaller than every proposal, of all that aren't difficult."""

    objects: int
    small: int  # narrower or lower than `min_size` in the resized image
    min_size: int  # the largest that covers 95 % of the small ones, in pixels; 1 at least
    image_width: int  # the width that covers 95 % of them in its place

    def __str__(self) -> str:
        return (
            f"{self.small:,} of {self.objects:,} ground-truth boxes ({self.small / self.objects:.1%})"
            f" are smaller than all proposals; proposals.min_size: {self.min_size} or"
            f" proposals.image_width: {self.image_width} would cover 95 % of them"
        )


def small_objects(images: Iterable[AnnotatedImage], config: ProposalsConfig) -> SmallObjects | None:
    """Count the objects whose shorter side is below `config.min_size` in the resized image.

    Returns:
        None if there are none.
    """
    found = []
    for image in images:
        boxes = image.gt_boxes[~image.difficult].astype(np.float64)
        width, height = searched_size(image.width, image.height, config.image_width)
        factors = np.array([width / image.width, height / image.height])
        found.append(((boxes[:, 2:] - boxes[:, :2]) * factors).min(axis=1))
    sides = np.concatenate(found)
    small = sides[sides < config.min_size]
    if not len(small):
        return None
    covered = float(np.quantile(small, 0.05, method="lower"))  # 95 % are at least as large
    return SmallObjects(
        objects=len(sides),
        small=len(small),
        min_size=max(1, math.floor(covered)),
        image_width=math.ceil(config.image_width * config.min_size / covered),
    )

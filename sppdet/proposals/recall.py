"""Recall of proposals, which limits that of detections."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sppdet.boxes import box_iou
from sppdet.types import AnnotatedImage, Proposals


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
        if len(targets) and len(proposals):
            best.extend(box_iou(targets, proposals.boxes).max(axis=1).tolist())
        else:
            best.extend([0.0] * len(targets))
    iou = np.array(best or [np.nan])
    missing = np.nan if not best else 1.0
    return Coverage(
        objects=len(best),
        recall_50=float((iou >= 0.5).mean()) * missing,
        recall_70=float((iou >= 0.7).mean()) * missing,
        best_overlap=float(iou.mean()),
        mean_count=float(np.mean(counts)) if counts else 0.0,
    )

"""Inputs of the metrics: detections and ground truth of a data set in flat arrays, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sppdet.boxes import empty_boxes
from sppdet.errors import DataError
from sppdet.types import Boxes, Dataset, Detections, Flags, Labels, Scores


@dataclass(frozen=True)
class FlatDetections:
    """All detections of a split, in the order of its images."""

    image_index: NDArray[np.int64]  # (N,) rows of `Dataset.images`
    boxes: Boxes  # (N, 4)
    scores: Scores  # (N,)
    labels: Labels  # (N,)

    def at(self, rows: NDArray[Any]) -> FlatDetections:
        """Select rows, by number or by a mask."""
        arrays = (self.image_index, self.boxes, self.scores, self.labels)
        return FlatDetections(*(values[rows] for values in arrays))


@dataclass(frozen=True)
class FlatGroundTruth:
    """All annotated objects of a split, in the order of its images."""

    image_index: NDArray[np.int64]  # (G,) rows of `Dataset.images`
    boxes: Boxes  # (G, 4)
    labels: Labels  # (G,)
    difficult: Flags  # (G,)

    def at(self, rows: NDArray[Any]) -> FlatGroundTruth:
        """Select rows, by number or by a mask."""
        arrays = (self.image_index, self.boxes, self.labels, self.difficult)
        return FlatGroundTruth(*(values[rows] for values in arrays))


def flatten_detections(dataset: Dataset, detections: Mapping[str, Detections]) -> FlatDetections:
    """Concatenate the detections of all images.

    Args:
        dataset: the split.
        detections: by image id; an image that is missing has none.

    Raises:
        DataError: an image that is not in the split, a label or a list of class names that is not
            the data set's, a score that is not finite.
    """
    check_detections(dataset, detections)
    present = [
        (row, detections[image.id])
        for row, image in enumerate(dataset.images)
        if image.id in detections
    ]
    rows = np.array([row for row, _ in present], dtype=np.int64)
    counts = np.array([len(found) for _, found in present], dtype=np.int64)
    return FlatDetections(
        np.repeat(rows, counts),
        np.concatenate([empty_boxes(), *(found.boxes for _, found in present)]),
        np.concatenate([np.zeros(0, np.float32), *(found.scores for _, found in present)]),
        np.concatenate([np.zeros(0, np.int64), *(found.labels for _, found in present)]),
    )


def flatten_ground_truth(dataset: Dataset) -> FlatGroundTruth:
    """Concatenate the annotated objects of all images."""
    images = dataset.images
    counts = np.array([len(image.gt_boxes) for image in images], dtype=np.int64)
    return FlatGroundTruth(
        np.repeat(np.arange(len(images), dtype=np.int64), counts),
        np.concatenate([empty_boxes(), *(image.gt_boxes for image in images)]),
        np.concatenate([np.zeros(0, np.int64), *(image.gt_labels for image in images)]),
        np.concatenate([np.zeros(0, np.bool_), *(image.difficult for image in images)]),
    )


def check_detections(dataset: Dataset, detections: Mapping[str, Detections]) -> None:
    """Raise DataError unless every detection is on an image and of a class of `dataset`."""
    known = {image.id for image in dataset.images}
    for image_id, found in detections.items():
        if image_id not in known:
            raise DataError(f"detections on image {image_id!r}, which is not in {dataset.name}")
        if found.class_names and found.class_names != dataset.class_names:
            raise DataError(
                f"detections on image {image_id!r}: their classes are not those of {dataset.name}:"
                f" {_first_difference(found.class_names, dataset.class_names)}"
            )
        if not len(found):
            continue
        if found.labels.min() < 1 or found.labels.max() > len(dataset.class_names):
            raise DataError(
                f"detections on image {image_id!r}: a label is not in 1..{len(dataset.class_names)}"
            )
        if not np.isfinite(found.scores).all():
            raise DataError(f"detections on image {image_id!r}: a score is not finite")


def _first_difference(have: tuple[str, ...], want: tuple[str, ...]) -> str:
    for label, (a, b) in enumerate(zip(have, want, strict=False), start=1):
        if a != b:
            return f"label {label} is {a!r}, expected {b!r}"
    return f"{len(have)} classes, expected {len(want)}"

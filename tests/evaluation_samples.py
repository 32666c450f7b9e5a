"""Small data sets and detections that the tests of the evaluation share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sppdet.types import AnnotatedImage, Dataset, Detections

Box = tuple[float, float, float, float]


def make_image(
    image_id: str, objects: list[tuple[int, Box]], difficult: list[bool] | None = None
) -> AnnotatedImage:
    count = len(objects)
    return AnnotatedImage(
        id=image_id,
        path=Path(f"{image_id}.jpg"),
        width=0,
        height=0,
        gt_boxes=np.array([box for _, box in objects], np.float32).reshape(-1, 4),
        gt_labels=np.array([label for label, _ in objects], np.int64),
        difficult=np.array(difficult or [False] * count, np.bool_),
        truncated=np.zeros(count, np.bool_),
    )


def make_detections(rows: list[tuple[int, float, Box]]) -> Detections:
    return Detections(
        np.array([box for _, _, box in rows], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in rows], np.float32),
        np.array([label for label, _, _ in rows], np.int64),
    )


def random_split(seed: int) -> tuple[Dataset, dict[str, Detections]]:
    """Twelve images, three classes with objects and one without, ties and difficult objects."""
    rng = np.random.default_rng(seed)
    images, detections = [], {}
    for number in range(12):
        corner = rng.integers(0, 12, (rng.integers(0, 7), 2))
        truth = np.hstack([corner, corner + rng.integers(2, 9, corner.shape)]).astype(np.float32)
        labels = rng.integers(1, 4, len(truth))
        flags = (rng.random(len(truth)) < 0.3).tolist()
        image_id = f"im{number}"
        pairs = [(int(k), tuple(b)) for k, b in zip(labels, truth.tolist(), strict=True)]
        images.append(make_image(image_id, pairs, flags))
        near = np.repeat(truth, 2, axis=0) + rng.integers(-1, 2, (2 * len(truth), 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        scores = np.sort(rng.integers(0, 9, len(near)) / 4)[::-1]  # ties
        detections[image_id] = Detections(
            near.astype(np.float32), scores.astype(np.float32), np.repeat(labels, 2)
        )
    return Dataset("random", ("a", "b", "c", "d"), tuple(images)), detections

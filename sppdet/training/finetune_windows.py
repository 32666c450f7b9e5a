"""Training windows of fine-tuning: drawn from images, joined into pools, split into batches.

A pool joins and shuffles the windows of `pool_images` images, and batches are taken from it: every
batch has windows of many images, while the maps of an image are read once per pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.features.regions import FeatureExtractor, find_windows
from sppdet.randomness import rng
from sppdet.training.sampling import IGNORED, draw, label_boxes
from sppdet.training.sgd import Batch
from sppdet.training_config import FinetuneConfig
from sppdet.types import AnnotatedImage, Boxes, FeatureMaps, Labels

_MAX_HELD_OUT = 64  # images, where their maps are computed for every snapshot


@dataclass(frozen=True)
class Pool:
    """Windows of several images; this process has the features of some of them.

    features: (n, D) float32. labels: (N,) of all windows, 0 for background, on the CPU.
    rows: (n,) ascending; the windows, of N, that the features belong to.
    """

    features: torch.Tensor
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]

    def batch(self, chosen: NDArray[np.int64]) -> Batch:
        """Select features and labels of the chosen windows (M,) that this process has."""
        position = np.full(len(self.labels), -1, dtype=np.int64)
        position[self.rows] = np.arange(len(self.rows))
        own = chosen[position[chosen] >= 0]
        # a blocking copy would wait for the queued steps of a GPU
        places, labels = (
            torch.from_numpy(part).to(self.features.device, non_blocking=True)
            for part in (position[own], self.labels[own])
        )
        return self.features[places], labels

    def own_batches(self, size: int) -> Iterator[Batch]:
        """Yield this process's windows in batches, in order."""
        labels = torch.from_numpy(self.labels[self.rows])
        return zip(self.features.split(size), labels.split(size), strict=True)


def join_windows(features: list[torch.Tensor], labels: list[Labels]) -> Pool:
    """Join images' windows into a pool.

    Args:
        features: per image (n, D), or (0, D) if another process has them.
        labels: per image (n,), without `IGNORED`.
    """
    joined = np.concatenate(labels)
    if (joined == IGNORED).any():
        raise ValueError("labels: an ignored window, expected 0 or a class")
    own = [np.full(len(part), len(x) > 0) for x, part in zip(features, labels, strict=True)]
    return Pool(torch.cat(features), joined, np.flatnonzero(np.concatenate(own)))


def split_images(
    count: int, *, fraction: float, seed: int, most: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the positions of training and at most `most` validation images; none if `count` < 5."""
    order = rng(seed, "held-out images").permutation(count)
    held_out = max(1, round(count * fraction)) if fraction > 0 and count >= 5 else 0
    held_out = held_out if most is None else min(held_out, most)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def split_for_tuning(
    config: FinetuneConfig, count: int, *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the positions of the images that are trained on and of those that fine-tuning holds out."""
    most = _MAX_HELD_OUT if config.on_images else None
    return split_images(count, fraction=config.val_fraction, seed=seed, most=most)


def draw_pool_images(
    training: NDArray[np.int64], number: int, *, config: FinetuneConfig, seed: int
) -> list[tuple[int, bool]]:
    """Draw the (image, mirrored) pairs of pool or batch `number`: epochs of all images in random order.

    Depends on its arguments alone, so that training can resume at any pool.
    """
    wanted = config.batch_images if config.on_images else config.pool_images
    size = min(wanted, len(training))
    start = number * size
    chosen: list[tuple[int, bool]] = []
    while len(chosen) < size:
        epoch, within = divmod(start + len(chosen), len(training))
        generator = rng(seed, "fine-tuning epoch", epoch)
        order = generator.permutation(training)
        mirrored = generator.random(len(training)) < (0.5 if config.flip else 0.0)
        take = slice(within, within + size - len(chosen))
        pairs = zip(order[take].tolist(), mirrored[take].tolist(), strict=True)
        chosen.extend((image, bool(flip)) for image, flip in pairs)
    return chosen


def label_windows(
    proposals: Boxes, image: AnnotatedImage, config: FinetuneConfig
) -> tuple[Boxes, Labels]:
    """Label an image's proposals and ground-truth boxes; ignored ones are dropped.

    Returns:
        boxes (n, 4) and labels (n,), 0 for background.
    """
    boxes = np.concatenate([proposals, image.gt_boxes])
    low, high = config.negative_iou
    labels = label_boxes(boxes, image, positive_iou=config.positive_iou, negative_iou=(low, high))
    used = labels != IGNORED
    return boxes[used], labels[used]


def draw_windows(
    labels: Labels, config: FinetuneConfig, *, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw the windows of one image, at most `positive_fraction` of them positives.

    For a batch of images background takes the place of positives that there aren't (Girshick 2015).
    """
    count = config.windows_per_image
    wanted = max(1, round(count * config.positive_fraction))
    positives = draw(np.flatnonzero(labels > 0), wanted, rng=rng)
    rest = count - (len(positives) if config.on_images else wanted)
    negatives = draw(np.flatnonzero(labels == 0), rest, rng=rng)
    return np.concatenate([positives, negatives])


@torch.inference_mode(False)
@torch.no_grad()
def pool_windows(
    maps: FeatureMaps,
    boxes: Boxes,
    extractor: FeatureExtractor,
    *,
    scales: NDArray[np.int64] | None,
) -> torch.Tensor:
    """Pool boxes (n, 4) into pool5 features (n, D) that a network can be trained on.

    Args:
        scales: (n,) indices of the image scales; None chooses the best one for each box.
    """
    windows = find_windows(maps, boxes, canonical_size=extractor.canonical_size, scale_index=scales)
    pooled = extractor.pool(maps, windows.cells)
    return pooled[torch.from_numpy(windows.index).to(pooled.device, non_blocking=True)]


def batches(
    labels: NDArray[np.int64], config: FinetuneConfig, *, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Split a pool's rows into batches with the configured fraction of positives.

    Each row is used at most once, unless the pool is too small for a single batch.
    """
    want_positive = max(1, round(config.batch_size * config.positive_fraction))
    wanted = (want_positive, config.batch_size - want_positive)
    kinds = np.flatnonzero(labels > 0), np.flatnonzero(labels == 0)
    if not all(map(len, kinds)):
        return
    shuffled = [rng.permutation(rows) for rows in kinds]
    count = min(len(rows) // want for rows, want in zip(shuffled, wanted, strict=True))
    if count == 0:
        yield np.concatenate([np.resize(*pair) for pair in zip(shuffled, wanted, strict=True)])
    for i in range(count):
        parts = zip(shuffled, wanted, strict=True)
        yield np.concatenate([rows[i * want : (i + 1) * want] for rows, want in parts])

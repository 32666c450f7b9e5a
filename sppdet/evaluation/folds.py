"""Parts of a data set for cross-validation and learning curves, with the classes dealt out evenly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sppdet.types import Dataset, Flags


def classes_of_images(dataset: Dataset) -> Flags:
    """Tell for each image which classes have an object in it that counts: (I, K)."""
    found = np.zeros((len(dataset), len(dataset.class_names)), dtype=np.bool_)
    for row, image in enumerate(dataset.images):
        found[row, image.gt_labels[~image.difficult] - 1] = True
    return found


def deal(
    classes: Flags,
    sizes: Sequence[int],
    rng: np.random.Generator,
    *,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Deal out images into parts of given sizes so that each part has its share of every class.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011) with exact sizes: the class with the
    fewest images left comes first; each of its images goes to the part that lacks most images of the
    class, of several to the one that lacks most of the image's other classes, then to the one with
    most room. Of every class a part wants one image at least, so that none goes without while others
    have several.

    Args:
        classes: (I, K) the classes that each image has.
        sizes: of the parts; their sum is I.
        rng: decides the order of images and what is still even.
        groups: (I,) the group of each image, from 0; images of a group stay together, large groups are
            dealt first, and sizes may differ by what doesn't fit. None: every image alone.

    Returns:
        (I,) the part of each image.

    Raises:
        ValueError: the sizes don't add up to the number of images.
    """
    count = len(classes)
    if sum(sizes) != count or min(sizes, default=0) < 0:
        raise ValueError(f"sizes: {list(sizes)}, expected numbers that add up to {count}")
    group = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
    weight = np.bincount(group, minlength=0)
    numbers = np.zeros(
        (len(weight), classes.shape[1]), dtype=np.int64
    )  # images of a class in a group
    np.add.at(numbers, group, classes)
    room = np.array(sizes, dtype=np.int64)
    shares = room[:, None] / max(count, 1)  # [P, 1]
    lacking = np.maximum(shares * classes.sum(axis=0), 1.0)  # [P, K]
    part = np.full(len(weight), -1, dtype=np.int64)
    order = rng.permutation(len(weight))
    order = order[np.argsort(-weight[order], kind="stable")]
    while (left := order[part[order] < 0]).size:
        remaining = numbers[left].sum(axis=0)
        if remaining.any():
            rarest = int(np.where(remaining > 0, remaining, count + 1).argmin())
            chosen = left[numbers[left, rarest] > 0]
        else:
            rarest, chosen = None, left  # images without objects fill the parts up
        for unit in chosen.tolist():
            own = numbers[unit] > 0
            first = lacking[:, rarest] if rarest is not None else np.zeros(len(room))
            keys = [
                (first[p], lacking[p, own].sum(), room[p], rng.random()) for p in range(len(room))
            ]
            fitting = [p for p in range(len(room)) if room[p] >= weight[unit]]
            best = max(fitting or [int(room.argmax())], key=lambda p: keys[p])
            part[unit] = best
            room[best] -= weight[unit]
            lacking[best] -= numbers[unit]
    return part[group]


def in_one_part(classes: Flags, part: NDArray[np.int64]) -> Flags:
    """Find the images (I,) that have a class all of whose images are in one part.

    Args:
        classes: (I, K) the classes that each image has.
        part: (I,) of each image.
    """
    alone = [k for k, own in enumerate(classes.T) if len(np.unique(part[own])) == 1]
    return np.asarray(classes[:, alone].any(axis=1), dtype=np.bool_)


def equal_sizes(count: int, parts: int) -> list[int]:
    """Divide a number into parts that differ by one at most, the larger first."""
    return [count // parts + (part < count % parts) for part in range(parts)]


def leave_out_folds(
    classes: Flags, groups: NDArray[np.int64], count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Deal images into folds that are left out in turn; groups (I,) stay together.

    Returns:
        (I,) the fold of each image; −1 where a fold has all images of one of its classes, since the class
        can't be learned without them.
    """
    folds = deal(classes, equal_sizes(len(classes), count), rng, groups=groups)
    return np.where(in_one_part(classes, folds), -1, folds)


def stratified_order(classes: Flags, rng: np.random.Generator) -> NDArray[np.int64]:
    """Order images so that the first n of them, for every n, have the classes in proportion.

    The order begins with an image of every class, the rarest first. Each further one brings the numbers
    of images of each class, and of those without any, nearest to their shares of the images so far:
    Σ (number − share)² / frequency is minimal, ties are random. Subsets of several sizes, each the first
    n, are nested.

    Args:
        classes: (I, K) the classes that each image has.

    Returns:
        (I,) rows in their order.
    """
    count = len(classes)
    kinds = np.column_stack([classes, ~classes.any(axis=1)]).astype(np.float64)
    kinds = kinds[:, kinds.any(axis=0)]
    frequency = kinds.mean(axis=0) if count else np.zeros(kinds.shape[1])
    present = np.flatnonzero(classes.any(axis=0))
    rarity = np.argsort(classes[:, present].sum(axis=0), kind="stable")
    absent: list[int] = present[rarity].tolist()
    left = rng.permutation(count)
    number = np.zeros(kinds.shape[1])
    order = np.empty(count, dtype=np.int64)
    for place in range(count):
        after = number + kinds[left] - (place + 1) * frequency  # [left, kinds]
        distance = (after**2 / frequency).sum(axis=1)
        if absent:
            distance[~classes[left, absent[0]]] = np.inf
        best = int(distance.argmin())
        image = left[best]
        order[place] = image
        number += kinds[image]
        absent = [k for k in absent if not classes[image, k]]
        left = np.delete(left, best)
    return order

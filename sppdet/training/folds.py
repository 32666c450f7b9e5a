"""Folds of a training set: every image in one of them, classes spread evenly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sppdet.randomness import rng
from sppdet.types import Labels


def deal_folds(
    labels: Sequence[Labels], folds: int, *, seed: int, groups: Sequence[int] | None = None
) -> NDArray[np.int64]:
    """Deal images out to folds, so that each has about as many images and objects of every class.

    Groups are dealt in random order, those with objects of rare classes first, each to the fold that
    has the fewest objects of its rarest class, then the fewest images.

    Args:
        labels: of each image's objects.
        folds: number of folds, 2 or more.
        groups: a number for each image; images of one number stay together. None: each by itself.

    Returns:
        (N,) fold of each image, from 0.
    """
    members: dict[int, list[int]] = {}
    for position, group in enumerate(range(len(labels)) if groups is None else groups):
        members.setdefault(int(group), []).append(position)
    objects = {
        group: np.concatenate([labels[position] for position in own])
        for group, own in members.items()
    }
    classes = 1 + max((int(own.max(initial=0)) for own in objects.values()), default=0)
    total = np.bincount(
        np.concatenate([*objects.values(), np.zeros(0, np.int64)]), minlength=classes
    )
    shuffled = rng(seed, "folds").permutation(len(members))
    order = [list(members)[k] for k in shuffled]
    rarest = {
        group: int(min(own, key=lambda label: (total[label], label))) if len(own) else 0
        for group, own in objects.items()
    }
    # images without objects last: they even out the sizes
    order.sort(key=lambda group: total[rarest[group]] if rarest[group] else np.inf)
    counts = np.zeros((folds, classes), dtype=np.int64)
    images = np.zeros(folds, dtype=np.int64)
    result = np.zeros(len(labels), dtype=np.int64)
    for group in order:
        keys = [(counts[f, rarest[group]], images[f], f) for f in range(folds)]
        fold = min(keys)[2]
        result[members[group]] = fold
        counts[fold] += np.bincount(objects[group], minlength=classes)
        images[fold] += len(members[group])
    return result


def always_trained(labels: Sequence[Labels], folds: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Find the images that no fold can do without: all of a class's objects lie in one fold.

    Args:
        labels: of each image's objects that can be learned from.

    Returns:
        (N,) True for images with such objects; they are trained on in every fold.
    """
    where: dict[int, set[int]] = {}
    for own, fold in zip(labels, folds.tolist(), strict=True):
        for label in set(own.tolist()):
            where.setdefault(label, set()).add(fold)
    alone = [label for label, found in where.items() if len(found) == 1]
    return np.array([bool(np.isin(own, alone).any()) for own in labels], dtype=np.bool_)

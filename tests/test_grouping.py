"""Regions and hierarchies: against the definitions, from sets of pixels; cases by hand."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from samples import random_image
from sppdet.proposals.grouping import Hierarchy, group
from sppdet.proposals.regions import Regions, describe_regions, pixel_bins
from sppdet.proposals.segmentation import segment, weigh_edges

Labels = NDArray[np.uint32]
Planes = NDArray[np.uint8]


def segmented(
    seed: int, *, width: int = 40, height: int = 30, channels: int = 3, k: int = 20
) -> tuple[Planes, Labels, int]:
    image = random_image(np.random.default_rng(seed), width=width, height=height)
    planes = np.ascontiguousarray(image[:, :, :channels].transpose(2, 0, 1))
    return planes, *segment(weigh_edges(planes), k)


def regions_of(labels: list[list[int]], planes: Planes | None = None) -> Regions:
    array = np.array(labels, np.uint32)
    if planes is None:
        planes = np.zeros((1, *array.shape), np.uint8)
    return describe_regions(array, int(array.max()) + 1, pixel_bins(planes))


def slow_histograms(planes: Planes, mask: NDArray[np.bool_]) -> tuple[list[int], list[int]]:
    """Colour and texture, counted from the definition."""
    colours: list[int] = []
    textures: list[int] = []
    for plane in planes:
        colours += np.histogram(plane[mask], bins=25, range=(0, 256))[0].tolist()
        padded = cv2.copyMakeBorder(plane, 1, 1, 1, 1, cv2.BORDER_REFLECT_101).astype(np.int64)
        height, width = plane.shape
        window = np.array([[3], [10], [3]])
        x = np.zeros((height, width), np.int64)
        y = np.zeros((height, width), np.int64)
        for i, j in itertools.product(range(3), range(3)):
            part = padded[i : i + height, j : j + width]
            x += part * int(window[i, 0]) * (j - 1)
            y += part * int(window[j, 0]) * (i - 1)
        for derivative, step in ((x, 408), (x + y, 577), (y, 408), (x - y, 577)):
            for half in (np.maximum(derivative, 0), np.maximum(-derivative, 0)):
                bins = np.minimum(half // step, 9)
                textures += np.bincount(bins[mask], minlength=10).tolist()
    return colours, textures


@pytest.mark.parametrize(
    ("width", "height", "channels"), [(60, 45, 3), (30, 50, 1), (1, 40, 3), (40, 1, 3), (1, 1, 1)]
)
def test_regions_are_measured(width: int, height: int, channels: int) -> None:
    planes, labels, count = segmented(3, width=width, height=height, channels=channels, k=8)
    regions = describe_regions(labels, count, pixel_bins(planes))
    touching = set()
    for r in range(count):
        mask = labels == r
        ys, xs = np.nonzero(mask)
        assert regions.sizes[r] == mask.sum()
        assert regions.boxes[r].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        colours, textures = slow_histograms(planes, mask)
        assert regions.colours[r].tolist() == colours
        assert regions.textures[r].tolist() == textures
        grown = np.zeros_like(mask)
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        touching |= {tuple(sorted((r, int(o)))) for o in np.unique(labels[grown & ~mask])}
    pairs = [tuple(pair) for pair in regions.pairs.tolist()]
    assert len(pairs) == len(set(pairs)) and set(pairs) == touching


def test_pairs_of_many_regions() -> None:
    labels = np.arange(30 * 40, dtype=np.uint32).reshape(30, 40)
    pairs = {tuple(p) for p in regions_of(labels.tolist()).pairs.tolist()}
    right = {(i, i + 1) for i in range(1200) if i % 40 != 39}
    assert pairs == right | {(i, i + 40) for i in range(1160)}


def test_histograms_by_hand() -> None:
    planes = np.array([[[0, 0, 255, 255]]], np.uint8)
    regions = regions_of([[0, 0, 1, 1]], planes)
    assert regions.colours[0].tolist() == [2] + [0] * 24
    assert regions.colours[1].tolist() == [0] * 24 + [2]
    textures = regions.textures.reshape(2, 8, 10)
    # along x both pixels at the step have the greatest derivative, 16 · 255, which is 7.07 bins on
    # the diagonals; the outer pixels have none, and nothing falls anywhere
    for direction, bins in enumerate(textures[0].tolist()):
        expected = [2] + [0] * 9
        if direction in (0, 2, 6):
            expected[0] = 1
            expected[9 if direction == 0 else 7] = 1
        assert bins == expected
    assert np.array_equal(textures[0], textures[1])


def slow_similarity(
    planes: Planes, a: NDArray[np.bool_], b: NDArray[np.bool_], grouping: str
) -> float:
    parts = {}
    for letter, which in (("c", 0), ("t", 1)):
        if letter in grouping:
            p = np.array(slow_histograms(planes, a)[which], np.float64)
            q = np.array(slow_histograms(planes, b)[which], np.float64)
            parts[letter] = np.minimum(p / p.sum(), q / q.sum()).sum()
    both = a | b
    ys, xs = np.nonzero(both)
    box = (xs.max() - xs.min() + 1) * (ys.max() - ys.min() + 1)
    parts["s"] = 1 - both.sum() / both.size
    parts["f"] = 1 - (box - both.sum()) / both.size
    return float(np.mean([parts[letter] for letter in grouping]))


def touch(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> bool:
    return bool(
        (a[1:] & b[:-1]).any()
        or (a[:-1] & b[1:]).any()
        or (a[:, 1:] & b[:, :-1]).any()
        or (a[:, :-1] & b[:, 1:]).any()
    )


def check_hierarchy(tree: Hierarchy, planes: Planes, labels: Labels, grouping: str) -> None:
    """Every merge is of the two most similar touching regions of its time."""
    count = int(labels.max()) + 1
    masks = [labels == r for r in range(count)]
    alive = set(range(count))
    known: dict[tuple[int, int], float] = {}

    def add(r: int, others: set[int]) -> None:
        for o in others - {r}:
            if touch(masks[r], masks[o]):
                known[min(r, o), max(r, o)] = slow_similarity(planes, masks[r], masks[o], grouping)

    for r in range(count):
        add(r, set(range(r)))
    for a, b in tree.parts.tolist():
        assert a in alive and b in alive and a != b
        assert known[min(a, b), max(a, b)] >= max(known.values()) - 1e-5
        alive -= {a, b}
        known = {pair: s for pair, s in known.items() if not {a, b} & set(pair)}
        masks.append(masks[a] | masks[b])
        add(len(masks) - 1, alive)
        alive.add(len(masks) - 1)
    assert len(alive) == 1 and masks[-1].all()
    for mask, box in zip(masks, tree.boxes.tolist(), strict=True):
        ys, xs = np.nonzero(mask)
        assert box == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@pytest.mark.parametrize("grouping", ["ctsf", "tsf", "f", "s", "c"])
@pytest.mark.parametrize(("seed", "channels"), [(7, 3), (8, 1)])
def test_the_most_similar_merge_first(grouping: str, seed: int, channels: int) -> None:
    planes, labels, count = segmented(seed, channels=channels)
    assert count > 8
    regions = describe_regions(labels, count, pixel_bins(planes))
    before = regions.colours.copy(), regions.textures.copy()
    tree = group(regions, grouping, labels.size)
    check_hierarchy(tree, planes, labels, grouping)
    assert np.array_equal(regions.colours, before[0])  # the next grouping starts from the same
    assert np.array_equal(regions.textures, before[1])
    again = group(regions, grouping, labels.size)
    assert np.array_equal(again.parts, tree.parts) and np.array_equal(again.boxes, tree.boxes)


def test_sizes_by_hand() -> None:
    labels = [[0, 1, 1, 1, 2, 2, 3, 4, 4, 4]]  # 1, 3, 2, 1 and 3 pixels
    tree = group(regions_of(labels), "s", 10)
    # 2 + 1 pixels, then 1 + 3, then 3 + 3 of the last, then all
    assert [sorted(pair) for pair in tree.parts.tolist()] == [[2, 3], [0, 1], [4, 5], [6, 7]]
    assert tree.boxes[5:].tolist() == [[4, 0, 7, 1], [0, 0, 4, 1], [4, 0, 10, 1], [0, 0, 10, 1]]


def test_colours_by_hand() -> None:
    labels = [[0, 0, 1, 1, 2, 2, 3, 3]]
    planes = np.array([[[0, 0, 250, 250, 250, 0, 0, 0]]], np.uint8)
    # 1 and 2 share half of their colours, 2 and 3 too, 0 and 1 none
    tree = group(regions_of(labels, planes), "c", 8)
    assert sorted(tree.parts[0].tolist()) in ([1, 2], [2, 3])
    tree = group(regions_of([[0, 0, 1, 1, 2, 2, 2, 2]], planes), "c", 8)
    assert [sorted(pair) for pair in tree.parts.tolist()] == [[1, 2], [0, 3]]


def test_one_region_has_no_merges() -> None:
    tree = group(regions_of([[0, 0], [0, 0]]), "ctsf", 4)
    assert tree.boxes.tolist() == [[0, 0, 2, 2]] and tree.parts.shape == (0, 2)


def test_a_ground_with_many_teeth() -> None:
    """Every merge raises all similarities there are: the heap is cleared of stale ones often."""
    count = 120
    labels = np.zeros((count + 1, 2 * count + 1), np.uint32)
    heights = np.random.default_rng(0).permutation(count) + 1
    for tooth, height in enumerate(heights.tolist(), 1):
        labels[:height, 2 * tooth - 1] = tooth
    regions = regions_of(labels.tolist())
    assert len(regions.pairs) == count
    tree = group(regions, "f", labels.size)
    largest_first = (np.argsort(-heights) + 1).tolist()
    ground = [0, *range(count + 1, 2 * count)]
    assert [sorted(p) for p in tree.parts.tolist()] == [
        sorted(p) for p in zip(ground, largest_first, strict=True)
    ]

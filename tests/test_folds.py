"""Folds and nested subsets: exact sizes, every image once, classes in proportion."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation_samples import Box, make_image
from sppdet.evaluation.folds import classes_of_images, deal, equal_sizes, stratified_order
from sppdet.types import Dataset, Flags


def random_classes(rng: np.random.Generator, count: int) -> Flags:
    """Frequent and rare classes, images with several, and images without any."""
    found: Flags = rng.random((count, 5)) < [0.5, 0.3, 0.15, 0.05, 0.02]
    found[:4] = False
    found[4, 4] = True
    return found


def test_classes_of_images_leave_out_difficult_objects() -> None:
    box: Box = (0, 0, 5, 5)
    images = (
        make_image("a", [(1, box), (2, box), (2, box)], [False, True, True]),
        make_image("b", []),
    )
    found = classes_of_images(Dataset("s", ("x", "y"), images))
    assert found.tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize("count", [5, 17, 132, 301])
@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_partition_exactly_and_evenly(
    rng: np.random.Generator, count: int, folds: int
) -> None:
    classes = random_classes(rng, count)
    sizes = equal_sizes(count, folds)
    assert sum(sizes) == count and max(sizes) - min(sizes) <= 1
    part = deal(classes, sizes, rng)
    assert np.bincount(part, minlength=folds).tolist() == sizes
    by_fold = np.array([classes[part == fold].sum(axis=0) for fold in range(folds)])
    total = classes.sum(axis=0)
    assert (by_fold.sum(axis=0) == total).all()
    spread = by_fold.max(axis=0) - by_fold.min(axis=0)
    assert (spread <= np.maximum(2, 0.1 * total)).all(), by_fold
    several = total >= 2
    assert ((by_fold > 0).sum(axis=0)[several] >= 2).all()  # so that each fold can be trained for


def test_stratified_folds_are_more_even_than_random_ones(rng: np.random.Generator) -> None:
    classes = random_classes(rng, 300)
    sizes = equal_sizes(300, 5)

    def unevenness(part: NDArray[np.int64]) -> float:
        found = np.array([classes[part == fold].sum(axis=0) for fold in range(5)])
        return float(found.std(axis=0).sum())

    ours = unevenness(deal(classes, sizes, rng))
    at_random = [unevenness(rng.permutation(np.repeat(np.arange(5), 60))) for _ in range(20)]
    assert ours < 0.5 * min(at_random)


def test_two_rare_classes_that_share_images_are_in_two_folds() -> None:
    # b has three images, two of which are all that a has
    classes = np.array([[1, 1], [1, 1], [0, 1], [0, 0], [0, 0], [0, 0]], dtype=np.bool_)
    for seed in range(20):
        part = deal(classes, [3, 3], np.random.default_rng(seed))
        assert part[0] != part[1]


def test_the_seed_decides() -> None:
    classes = random_classes(np.random.default_rng(3), 60)
    sizes = equal_sizes(60, 3)
    one, same, other = (deal(classes, sizes, np.random.default_rng(s)) for s in (0, 0, 1))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_sizes_that_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="add up to 6"):
        deal(np.zeros((6, 1), np.bool_), [2, 3], np.random.default_rng(0))
    assert deal(np.zeros((0, 1), np.bool_), [0, 0], np.random.default_rng(0)).size == 0


def test_every_beginning_of_the_order_is_stratified(rng: np.random.Generator) -> None:
    classes = random_classes(rng, 200)
    order = stratified_order(classes, rng)
    assert sorted(order.tolist()) == list(range(200))
    frequency = np.column_stack([classes, ~classes.any(axis=1)]).mean(axis=0)
    for count in range(5, 201):
        rows = order[:count]
        own = np.column_stack([classes[rows], ~classes[rows].any(axis=1)]).sum(axis=0)
        assert (own[:5] >= 1).all()
        assert (np.abs(own - frequency * count) <= 2.5).all(), (count, own, frequency * count)


def test_the_order_is_nearer_to_the_shares_than_chance(rng: np.random.Generator) -> None:
    classes = random_classes(rng, 300)
    share = classes.mean(axis=0) * 60

    def distance(rows: NDArray[np.int64]) -> float:
        return float(np.abs(classes[rows[:60]].sum(axis=0) - share).sum())

    chance = [distance(rng.permutation(300)) for _ in range(20)]
    assert distance(stratified_order(classes, rng)) < min(chance)


def test_the_seed_decides_the_order() -> None:
    classes = random_classes(np.random.default_rng(3), 60)
    one, same, other = (stratified_order(classes, np.random.default_rng(s)) for s in (0, 0, 1))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert stratified_order(classes[:0], np.random.default_rng(0)).size == 0


@pytest.mark.parametrize("seed", range(10))
def test_the_rarest_class_comes_first(seed: int) -> None:
    """So no class differs by more than one image between folds; with the commonest first some do by 3."""
    rng = np.random.default_rng(seed)
    classes = random_classes(rng, 132)
    part = deal(classes, equal_sizes(132, 5), rng)
    by_fold = np.array([classes[part == fold].sum(axis=0) for fold in range(5)])
    assert (by_fold.max(axis=0) - by_fold.min(axis=0)).max() <= 1


@pytest.mark.parametrize("seed", range(5))
def test_a_small_part_has_a_rare_class_too(seed: int) -> None:
    classes = np.zeros((50, 1), np.bool_)
    classes[[3, 30]] = True  # the shares of the parts are 1.6 and 0.4 images
    part = deal(classes, [40, 10], np.random.default_rng(seed))
    assert sorted(part[[3, 30]].tolist()) == [0, 1]


def test_groups_stay_together_where_they_fit() -> None:
    classes = np.zeros((9, 1), np.bool_)
    classes[[0, 3]] = True  # one image of two groups of three
    groups = np.array([5, 5, 5, 2, 2, 2, 7, 8, 9])
    for seed in range(10):
        part = deal(classes, [7, 2], np.random.default_rng(seed), groups=groups)
        # the second part lacks the class more, but has no room for three
        assert part[:6].tolist() == [0] * 6 and np.bincount(part).tolist() == [7, 2]


def test_groups_of_one_change_nothing(rng: np.random.Generator) -> None:
    classes = rng.random((40, 3)) < 0.3
    alone = deal(classes, [25, 15], np.random.default_rng(1))
    same = deal(classes, [25, 15], np.random.default_rng(1), groups=np.arange(40) + 7)
    assert np.array_equal(alone, same)

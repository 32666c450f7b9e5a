"""The order of images to label, against slow loops and numbers by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sppdet.evaluation.selection import (
    entropy,
    jackknife_errors,
    moderated,
    order_images,
    rarity,
    worth_of,
)


def test_entropy_in_bits() -> None:
    found = entropy(np.array([0.0, 0.5, 1.0, 0.25, 1.0000001]))
    expected = [0, 1, 0, -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75)), 0]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert entropy(np.zeros(0)).shape == (0,)


def test_jackknife_gives_the_standard_error_of_a_mean(rng: np.random.Generator) -> None:
    values = rng.normal(size=12)
    without = np.array([[np.delete(values, k).mean() for k in range(12)]])
    expected = values.std(ddof=1) / math.sqrt(12)  # which the jackknife has exactly
    assert jackknife_errors(without)[0] == pytest.approx(expected)
    assert jackknife_errors(np.full((2, 5), 3.0)).tolist() == [0, 0]


def test_probabilities_over_what_a_score_might_be(rng: np.random.Generator) -> None:
    x, errors = np.array([-4.0, -1.0, 0.0, 0.5, 3.0]), np.array([2.0, 0.0, 3.0, 1.0, 1.5])
    drawn = x + errors * rng.standard_normal((200_000, 1))
    expected = (1 / (1 + np.exp(-drawn))).mean(axis=0)
    assert moderated(x, errors) == pytest.approx(expected, abs=0.02)
    assert moderated(x, 0 * errors) == pytest.approx(1 / (1 + np.exp(-x)))
    assert np.isfinite(moderated(np.array([1e5, -1e5]), np.zeros(2))).all()


def test_the_most_doubtful_detection_of_each_class_counts() -> None:
    p, labels = np.array([0.9, 0.4, 0.02, 0.98, 0.5]), np.array([1, 1, 2, 2, 4])
    weights = np.array([1.0, 2.0, 5.0, 0.5])
    worth = worth_of(p, labels, weights)
    assert worth.rows[[0, 2, 3]].tolist() == [1, -1, 4] and worth.rows[1] in (2, 3)
    assert worth.by_class == pytest.approx([entropy(p)[1], entropy(p)[2], 0, 1])
    assert worth.value == pytest.approx(entropy(p)[1] + 2 * entropy(p)[2] + 0.5)
    nothing = worth_of(np.zeros(0), np.zeros(0, np.int64), weights)
    assert nothing.value == 0 and nothing.rows.tolist() == [-1] * 4


def test_rare_classes_weigh_more() -> None:
    weights = rarity(np.array([4, 16, 64]))
    assert weights[0] / weights[1] == pytest.approx(2) and weights[1] / weights[2] == 2
    assert weights.mean() == pytest.approx(1)
    assert rarity(np.array([0, 1])).tolist() == [1, 1]
    assert rarity(np.zeros(0, np.int64)).shape == (0,)


def slow_order(
    values: list[float], vectors: list[list[float]], labelled: list[list[float]], count: int
) -> list[tuple[int, float, float, int]]:
    """Choose one after another, everything computed again at every step from its definition."""
    every = vectors + labelled
    mean = [sum(column) / len(every) for column in zip(*every, strict=True)]

    def cosine(a: list[float], b: list[float]) -> float:
        a, b = ([x - m for x, m in zip(one, mean, strict=True)] for one in (a, b))
        product = sum(x * y for x, y in zip(a, b, strict=True))
        return product / math.hypot(*a) / math.hypot(*b)

    chosen: list[int] = []

    def covered(i: int) -> float:
        before = labelled + [vectors[k] for k in chosen]
        return max([0.0, *(cosine(vectors[i], one) for one in before)])

    def coverage(i: int) -> float:
        new = values[i] * (1 - covered(i))
        for j in range(len(values)):
            if j != i:
                new += values[j] * max(0.0, cosine(vectors[i], vectors[j]) - covered(j))
        return new / sum(values)

    def nearest(i: int) -> int:
        best = max(chosen, key=lambda k: cosine(vectors[i], vectors[k]), default=-1)
        of_labelled = max([0.0, *(cosine(vectors[i], one) for one in labelled)])
        return best if best >= 0 and cosine(vectors[i], vectors[best]) > of_labelled else -1

    def row(i: int) -> tuple[int, float, float, int]:
        return i, coverage(i), 1 - covered(i), nearest(i)

    found = []
    while len(chosen) < count:
        left = [i for i in range(len(values)) if i not in chosen]
        best = max(left, key=lambda i: (values[i] * coverage(i), values[i], -i))
        found.append(row(best))
        chosen.append(best)
    rest = [i for i in range(len(values)) if i not in chosen]
    rest.sort(key=lambda i: (-values[i] * coverage(i), -values[i], i))
    return found + [row(i) for i in rest]


@pytest.mark.parametrize(("count", "known"), [(5, 4), (14, 0), (1, 1), (100, 3)])
def test_the_order_is_that_of_a_slow_loop(rng: np.random.Generator, count: int, known: int) -> None:
    values, vectors = rng.uniform(0, 2, 14), rng.normal(size=(14, 4))
    labelled = rng.normal(size=(known, 4))
    found = order_images(values, vectors, labelled, count=count)
    expected = slow_order(values.tolist(), vectors.tolist(), labelled.tolist(), min(count, 14))
    assert found.rows.tolist() == [one[0] for one in expected]
    assert found.coverage == pytest.approx([one[1] for one in expected], abs=1e-6)
    assert found.novelty == pytest.approx([one[2] for one in expected], abs=1e-9)
    assert found.nearest.tolist() == [one[3] for one in expected]


def test_a_sample_stands_for_very_many_images(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    middles = rng.normal(size=(5, 8))
    vectors = np.concatenate([middle + 0.1 * rng.normal(size=(40, 8)) for middle in middles])
    values = rng.uniform(0.9, 1, 200)
    whole = order_images(values, vectors, vectors[:0], count=5)
    monkeypatch.setattr("sppdet.evaluation.selection._CELLS", 200 * 50)
    part = order_images(values, vectors, vectors[:0], count=5)
    for found in (whole, part):
        assert sorted(row // 40 for row in found.rows[:5].tolist()) == [0, 1, 2, 3, 4]
        assert sorted(found.rows.tolist()) == list(range(200))
    assert part.coverage[:5] == pytest.approx(whole.coverage[:5], abs=0.06)


def test_an_outlier_stands_for_itself_alone(rng: np.random.Generator) -> None:
    middle, away = np.array([3.0, 0.2, 0.1, 0.0]), np.array([0.0, 0.0, 0.0, 9.0])
    vectors = np.concatenate([middle + 0.1 * rng.normal(size=(10, 4)), away[None]])
    first = order_images(np.ones(11), vectors, vectors[:0], count=3)
    assert first.rows[0] < 10 and first.coverage[0] > 0.5
    assert first.rows[1] == 10 and first.novelty[1] == 1  # then it is the one that isn't covered


def test_of_near_duplicates_one_comes_before_the_second() -> None:
    rng = np.random.default_rng(4)
    different = rng.uniform(size=(8, 16))
    group = different[[0]] + rng.uniform(0, 1e-3, size=(4, 16))
    vectors = np.concatenate([group, different[1:]])
    values = np.array([2.0, 1.9, 1.8, 1.7, *np.linspace(0.6, 1.4, 7)])  # the group is in most doubt
    rows = order_images(values, vectors, np.zeros((0, 16)), count=11).rows.tolist()
    places = sorted(rows.index(k) for k in range(4))
    assert places == [0, 8, 9, 10]
    labelled = order_images(values, vectors, different[[0]], count=11).rows.tolist()
    assert sorted(labelled[7:]) == [0, 1, 2, 3]  # an image like them has labels


def test_a_certain_image_comes_last() -> None:
    rng = np.random.default_rng(5)
    vectors = rng.uniform(size=(9, 6))
    values = np.array([0.5, 0.2, 0.0, 1.0, 0.7, 0.3, 0.1, 0.9, 0.4])
    for count in (1, 5, 9):
        assert order_images(values, vectors, vectors[:0], count=count).rows[-1] == 2


def test_ties_go_to_the_larger_value_then_to_the_first() -> None:
    vectors = np.tile([1.0, 2.0], (5, 1))  # all the same: no distance is left after the first
    rows = order_images(np.array([1, 2, 3, 2, 3.0]), vectors, vectors[:0], count=5).rows.tolist()
    assert rows == [2, 4, 1, 3, 0]  # nothing is left to stand for after the first
    zeros = order_images(np.zeros(3), np.zeros((3, 2)), np.zeros((1, 2)), count=2)
    assert zeros.rows.tolist() == [0, 1, 2] and np.isfinite(zeros.novelty).all()
    assert not len(order_images(np.zeros(0), np.zeros((0, 2)), np.zeros((0, 2)), count=3).rows)

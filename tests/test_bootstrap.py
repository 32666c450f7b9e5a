"""Bootstrap intervals against a slow loop that copies images and scores them as a data set of its own."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation_samples import Box, make_detections, make_image, random_split
from sppdet.evaluation.bootstrap import (
    drawn_aps,
    mean_by_draw,
    paired_differences,
    with_intervals,
)
from sppdet.evaluation.intervals import difference_interval, fraction_interval, wilson
from sppdet.randomness import rng
from sppdet.stages.evaluate import Metric, compute_metric
from sppdet.types import Dataset, Detections

METRICS: tuple[Metric, ...] = ("voc07", "voc10", "coco")
DRAWS = 25


def distinct_split(seed: int) -> tuple[Dataset, dict[str, Detections]]:
    """A random split whose scores all differ: copies of an image have ties, in which order matters."""
    dataset, detections = random_split(seed)
    generator = np.random.default_rng(seed)
    total = sum(map(len, detections.values()))
    places = iter(
        np.split(generator.permutation(total), np.cumsum([*map(len, detections.values())]))
    )
    return dataset, {
        key: Detections(
            found.boxes, (next(places) + 4 * found.scores * total).astype(np.float32), found.labels
        )
        for key, found in detections.items()
    }


def object_counts(dataset: Dataset) -> NDArray[np.int64]:
    """(K, I) objects of each class in each image that aren't difficult."""
    labels = [image.gt_labels[~image.difficult].tolist() for image in dataset.images]
    rows = range(1, len(dataset.class_names) + 1)
    return np.array([[own.count(k) for own in labels] for k in rows])


def slow_aps(
    dataset: Dataset, detections: dict[str, Detections], metric: Metric, draws: int
) -> NDArray[np.float64]:
    """(K, draws) APs of data sets that have the drawn images as often as they were drawn."""
    columns = []
    for number in range(draws):
        stream = rng(0, "images of a bootstrap draw", number)
        rows = stream.integers(len(dataset), size=len(dataset)).tolist()
        names = [f"copy{place}" for place in range(len(rows))]
        images = [replace(dataset.images[r], id=n) for r, n in zip(rows, names, strict=True)]
        found = {n: detections[dataset.images[r].id] for r, n in zip(rows, names, strict=True)}
        result = compute_metric(replace(dataset, images=tuple(images)), found, metric=metric)
        columns.append([one.ap for one in result.classes])
    stacked: NDArray[np.float64] = np.array(columns).T
    return stacked


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_slow_loop(metric: Metric, seed: int) -> None:
    dataset, detections = distinct_split(seed)
    result = compute_metric(dataset, detections, metric=metric)
    fast = drawn_aps(result, draws=DRAWS)
    slow = slow_aps(dataset, detections, metric, DRAWS)
    assert fast == pytest.approx(slow, abs=1e-12, nan_ok=True)
    assert np.nanstd(fast[:3], axis=1).min() > 0.01 and np.isnan(fast[3]).all()
    means = [np.nanmean(column) for column in slow.T]
    assert mean_by_draw(fast) == pytest.approx(means)


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_are_those_of_the_slow_loop(metric: Metric) -> None:
    dataset, detections = distinct_split(2)
    result = compute_metric(dataset, detections, metric=metric)
    found = with_intervals(result, draws=60).intervals
    assert found is not None and found.draws == 60
    slow = slow_aps(dataset, detections, metric, 60)
    counts = object_counts(dataset)
    for k in range(3):
        wanted = fraction_interval(result.classes[k].ap, slow[k], counts[k])
        assert found.classes[k] == pytest.approx(wanted, abs=1e-9)
    assert math.isnan(found.classes[3][0]) and math.isnan(found.classes[3][1])
    means = np.array([np.nanmean(column) for column in slow.T])
    wanted = fraction_interval(result.mean_ap, means, counts.sum(axis=0))
    assert found.mean == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_every_image_once_is_the_result_itself(
    metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ties and difficult objects included."""

    class Once:
        def integers(self, count: int, *, size: int) -> NDArray[np.int64]:
            return np.arange(size)[::-1]

    monkeypatch.setattr("sppdet.evaluation.bootstrap.rng", lambda *_: Once())
    dataset, detections = random_split(4)
    result = compute_metric(dataset, detections, metric=metric)
    aps = [one.ap for one in result.classes]
    found = drawn_aps(result, draws=2).T
    assert found == pytest.approx(np.array([aps, aps]), nan_ok=True)


def test_blocks_of_draws_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    result = compute_metric(*random_split(5), metric="voc10")
    whole = drawn_aps(result, draws=11)
    for cells in (1, 50, 10**9):
        monkeypatch.setattr("sppdet.evaluation.bootstrap._CELLS", cells)
        assert drawn_aps(result, draws=11) == pytest.approx(whole, abs=1e-12, nan_ok=True)
    few, others = drawn_aps(result, draws=4), drawn_aps(result, draws=11, seed=1)
    assert few == pytest.approx(whole[:, :4], abs=1e-12, nan_ok=True)
    assert np.nanmax(np.abs(others - whole)) > 0.01


def test_a_draw_without_a_class_leaves_it_out() -> None:
    """Class b has one object: a draw without its image has no AP of b, and its mean is that of a."""
    box: Box = (0, 0, 10, 10)
    images = [make_image(f"{n}", [(1, box)]) for n in range(4)] + [make_image("b", [(2, box)])]
    dataset = Dataset("s", ("a", "b"), tuple(images))
    found = {f"{n}": make_detections([(1, 1 + n, box)]) for n in range(4)}
    result = compute_metric(dataset, found, metric="voc10")  # a is found, b isn't
    aps = drawn_aps(result, draws=200)
    missing = np.isnan(aps[1])
    assert 0.2 < missing.mean() < 0.5  # (4/5)⁵ = 0.33
    assert set(aps[0][~np.isnan(aps[0])]) == {1.0} and set(aps[1][~missing]) == {0.0}
    assert set(mean_by_draw(aps)[missing]) == {1.0}
    found_at = with_intervals(result).intervals
    assert found_at is not None and found_at.classes == (wilson(4, 4), wilson(0, 1))


def test_nothing_detected_and_no_object() -> None:
    box: Box = (0, 0, 10, 10)
    one = Dataset("s", ("a",), (make_image("x", [(1, box)]), make_image("y", [])))
    for metric in METRICS:
        found = with_intervals(compute_metric(one, {}, metric=metric)).intervals
        assert found is not None and found.mean == wilson(0, 1)
        bare = Dataset("s", ("a",), (make_image("x", []), make_image("y", [])))
        found = with_intervals(compute_metric(bare, {}, metric=metric)).intervals
        assert found is not None and all(map(math.isnan, found.mean))
        single = replace(one, images=one.images[:1])
        assert with_intervals(compute_metric(single, {}, metric=metric)).intervals is None


def test_the_interval_covers_the_truth() -> None:
    """Of 60 test sets of one population, some 95 % have the population's AP in their interval."""
    box: Box = (0, 0, 10, 10)
    elsewhere: Box = (50, 50, 60, 60)
    generator = np.random.default_rng(0)

    def drawn(count: int) -> tuple[Dataset, dict[str, Detections]]:
        images, found = [], {}
        for n in range(count):
            images.append(make_image(f"{n}", [(1, box)]))
            hit, miss = generator.normal([1, 0])
            rows = [(1, miss, elsewhere)]
            if generator.random() < 0.7:
                rows.append((1, hit, box))
            found[f"{n}"] = make_detections(rows)
        return Dataset("s", ("a",), tuple(images)), found

    truth = compute_metric(*drawn(5000), metric="voc10").mean_ap
    inside, widths = [], []
    for _ in range(60):
        found = with_intervals(compute_metric(*drawn(80), metric="voc10"), draws=300).intervals
        assert found is not None
        inside.append(found.mean[0] <= truth <= found.mean[1])
        widths.append(found.mean[1] - found.mean[0])
    assert 52 <= sum(inside) <= 60, Counter(inside)
    assert 0.1 < np.mean(widths) < 0.3


@pytest.mark.parametrize("metric", METRICS)
def test_paired_differences_equal_the_slow_loop(metric: Metric) -> None:
    dataset, first = distinct_split(3)
    generator = np.random.default_rng(9)
    second = {
        key: found.above(float(generator.choice([-math.inf, found.scores.mean()])))
        if len(found)
        else found
        for key, found in first.items()
    }
    a, b = (compute_metric(dataset, found, metric=metric) for found in (first, second))
    found = paired_differences(a, b, draws=50)
    slow = slow_aps(dataset, second, metric, 50) - slow_aps(dataset, first, metric, 50)
    counts = object_counts(dataset)
    for k in range(3):
        own = found.classes[k]
        wanted = difference_interval(own.value, slow[k], counts[k])
        assert own.interval == pytest.approx(wanted, abs=1e-9)
        assert own.value == pytest.approx(b.classes[k].ap - a.classes[k].ap)
    means = np.array([np.nanmean(column) for column in slow.T])
    wanted = difference_interval(found.mean.value, means, counts.sum(axis=0))
    assert found.mean.interval == pytest.approx(wanted, abs=1e-9)
    assert found.mean.value == pytest.approx(b.mean_ap - a.mean_ap) and found.mean.value != 0
    turned = paired_differences(b, a, draws=50).mean.interval
    assert turned == pytest.approx((-found.mean.interval[1], -found.mean.interval[0]))


def test_a_pair_is_narrower_than_its_parts_and_same_is_zero() -> None:
    result = compute_metric(*random_split(6), metric="voc10")
    same = paired_differences(result, result)
    assert same.mean.interval == (0.0, 0.0) and not same.mean.shows
    assert not same.classes[3].shows and math.isnan(same.classes[3].value)


def test_a_difference_shows_where_the_interval_excludes_zero() -> None:
    result = compute_metric(*random_split(7), metric="voc10")
    worse = compute_metric(random_split(7)[0], {}, metric="voc10")
    found = paired_differences(worse, result)
    assert found.mean.shows and found.mean.interval[0] > 0
    assert paired_differences(result, worse).mean.shows


def test_results_that_are_no_pair_are_refused() -> None:
    dataset, detections = random_split(1)
    result = compute_metric(dataset, detections, metric="voc07")
    with pytest.raises(ValueError, match="metric: "):
        paired_differences(result, compute_metric(dataset, detections, metric="voc10"))
    fewer = replace(dataset, images=dataset.images[1:])
    with pytest.raises(ValueError, match="image_ids: "):
        paired_differences(result, compute_metric(fewer, {}, metric="voc07"))
    with pytest.raises(ValueError, match="classes: "):
        other = replace(dataset, class_names=("a", "b", "c", "e"))
        paired_differences(result, compute_metric(other, {}, metric="voc07"))
    bare = replace(result, classes=(replace(result.classes[0], matches=None),))
    assert with_intervals(bare).intervals is None
    with pytest.raises(ValueError, match="no matches"):
        drawn_aps(bare)

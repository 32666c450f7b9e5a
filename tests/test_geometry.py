"""The choice of scale and cells against the definition, cell by cell."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from samples import random_boxes
from sppdet.features.geometry import (
    choose_scales,
    project,
    scale_factor,
    scale_factors_of,
    unique_windows,
)


def cells_inside(low: float, high: float, stride: int, offset: float) -> list[int]:
    """Cells of an endless map whose receptive-field centres lie strictly inside (low, high)."""
    around = range(int(low // stride) - 3, int(high // stride) + 4)
    return [cell for cell in around if low < offset + stride * cell < high]


def slow_side(low: float, high: float, stride: int, offset: float, limit: int) -> tuple[int, int]:
    """First and last cell of one side."""
    cells = cells_inside(low, high, stride, offset)
    if cells:
        first, last = cells[0], cells[-1]
    else:
        # no centre inside: floor-mean of the formula's two ends, which then are `before` + 1 and
        # `before`, or `before` and `before` - 2 + 1 where a centre lies on both edges
        after = next(c for c in range(-999, 999) if offset + stride * c > low)
        before = next(c for c in range(999, -999, -1) if offset + stride * c < high)
        first = last = (after + before) // 2
    return min(max(first, 0), limit - 1), min(max(last, 0), limit - 1)


@pytest.mark.parametrize(
    ("stride", "offset"), [(16, 0.5), (16, 15.5), (16, 8.0), (8, 0.5), (12, -3.5)]
)
@pytest.mark.parametrize("whole", [False, True])
def test_project_against_the_definition(stride: int, offset: float, whole: bool) -> None:
    rng = np.random.default_rng(stride)
    boxes = random_boxes(rng, 300, width=500, height=375, whole=whole)
    boxes[200:, 2:] = boxes[200:, :2] + rng.integers(1, 12, (100, 2))  # many with no centre inside
    factors = rng.choice(np.array([0.5, 1.0, 1.75]), 300)
    width, height = 31, 23
    windows = project(
        boxes, factors, stride=stride, offset=offset, map_width=width, map_height=height
    )
    for box, factor, window in zip(
        boxes.astype(np.float64), factors.tolist(), windows.tolist(), strict=True
    ):
        x1, y1, x2, y2 = (box * factor).tolist()
        left, right = slow_side(x1, x2, stride, offset, width)
        top, bottom = slow_side(y1, y2, stride, offset, height)
        assert window == [left, top, right, bottom]


def one_window(box: list[float], *, offset: float = 0.5, side: int = 10) -> list[int]:
    windows = project(
        np.array([box], np.float32),
        np.ones(1),
        stride=16,
        offset=offset,
        map_width=side,
        map_height=side,
    )
    assert windows.dtype == np.int64
    row: list[int] = windows[0].tolist()
    return row


def test_a_centre_on_the_edge_is_outside() -> None:
    # centres at 0.5, 16.5, 32.5, 48.5
    assert one_window([0.5, 0, 48.5, 49]) == [1, 0, 2, 3]
    assert one_window([0.49, 0, 48.51, 49]) == [0, 0, 3, 3]


@pytest.mark.parametrize(
    ("low", "high", "cell"),
    [
        (17, 20, 1),  # low 2, high 1: floor-mean 1
        (2, 3, 0),  # low 1, high 0: 0
        (16.5, 32.5, 1),  # a centre on both edges: low 2, high 1
        (16.5, 16.6, 1),  # low 2, high 1
        (16.4, 16.5, 0),  # low 1, high 0
    ],
)
def test_no_centre_inside_gives_the_floor_mean(low: float, high: float, cell: int) -> None:
    assert one_window([low, low, high, high]) == [cell] * 4


def test_floor_mean_comes_before_the_clamp() -> None:
    assert one_window([0, 0, 0.25, 0.25]) == [0] * 4  # low 0, high -1: floor-mean -1
    assert one_window([0, 0, 3, 3], offset=15.5) == [0] * 4


def test_windows_are_clamped_into_the_map() -> None:
    assert one_window([0, 0, 999, 999], side=4) == [0, 0, 3, 3]
    assert one_window([500, 600, 999, 999], side=4) == [3, 3, 3, 3]
    assert one_window([-90, -90, -50, 999], side=4) == [0, 0, 0, 3]


def test_rounding_of_the_product_is_forgiven() -> None:
    # 3.3 as float32 × 5 misses 16.5 by 2e-7: still a centre on the edge, so outside
    windows = project(
        np.array([[3.3, 3.3, 9.7, 9.7]], np.float32),
        np.array([5.0]),
        stride=16,
        offset=0.5,
        map_width=9,
        map_height=9,
    )
    assert windows.tolist() == [[2, 2, 2, 2]]  # 16.5 … 48.5


SIZES = [(side * 4 // 3, side) for side in [*range(240, 640), 320, 375, 1066, 1080, 3000]]
SCALES = [480, 576, 688, 864, 1200]


@pytest.mark.parametrize(
    ("stride", "offset"), [(16, Fraction(1, 2)), (16, Fraction(31, 2)), (8, Fraction(1, 2))]
)
def test_edges_on_centres_are_exact(stride: int, offset: Fraction) -> None:
    """All whole edges that lie exactly on a centre, and those beside them, in rational arithmetic."""
    on_centres = 0
    for (width, height), scale in product(SIZES, SCALES):
        factor = Fraction(scale, height)
        # (x · scale / height − offset) / stride is whole
        left_over = (2 * np.arange(width) * scale - int(2 * offset) * height) % (
            2 * stride * height
        )
        exact = np.flatnonzero(left_over == 0).tolist()
        near = [x + d for x in exact for d in (-1, 0, 1)]
        if not near:
            continue
        on_centres += len(exact)
        boxes = np.array(
            [[x, x, x + 400, x + 400] for x in near] + [[x - 400, x - 400, x, x] for x in near],
            np.float32,
        )
        nominal = scale_factor(width=width, height=height, scale=scale, max_side=10**6)
        windows = project(
            boxes,
            np.full(len(boxes), nominal),
            stride=stride,
            offset=float(offset),
            map_width=10**4,
            map_height=10**4,
        )
        low, high = windows[: len(near), :2], windows[len(near) :, 2:]
        for x, (left, top), (right, bottom) in zip(near, low.tolist(), high.tolist(), strict=True):
            cell = (x * factor - offset) / stride
            first, last = math.floor(cell) + 1, math.ceil(cell) - 1
            assert left == top == max(0, first)
            assert right == bottom == max(0, last)
    assert on_centres > 100


def test_the_edge_of_the_report() -> None:
    """427 × 320 at 688, c₀ 0.5: 350 · 2.15 is 752.5, the centre of cell 47, which is outside."""
    factor = scale_factor(width=427, height=320, scale=688, max_side=2400)
    box = np.array([[0, 0, 350, 320]], np.float32)
    windows = project(box, np.array([factor]), stride=16, offset=0.5, map_width=58, map_height=43)
    assert windows.tolist() == [[0, 0, 46, 42]]


def test_random_edges_are_exact(rng: np.random.Generator) -> None:
    boxes = random_boxes(rng, 300, width=640, height=427)
    factor = Fraction(688, 427)
    windows = project(
        boxes,
        np.full(300, 688 / 427),
        stride=16,
        offset=0.5,
        map_width=100,
        map_height=100,
    )
    for box, window in zip(boxes.tolist(), windows.tolist(), strict=True):
        cells = [(Fraction(x) * factor - Fraction(1, 2)) / 16 for x in box]
        low, high = [math.floor(c) + 1 for c in cells[:2]], [math.ceil(c) - 1 for c in cells[2:]]
        sides = [
            (a, b) if a <= b else ((a + b) // 2, (a + b) // 2)
            for a, b in zip(low, high, strict=True)
        ]
        assert window == [max(0, s[0]) for s in sides] + [max(0, s[1]) for s in sides]


def test_the_nearest_area_is_chosen() -> None:
    factors = np.array([0.5, 1.0, 2.0])
    boxes = np.array([[0, 0, s, s] for s in (500, 250, 200, 112, 20)], np.float32)
    assert choose_scales(boxes, factors).tolist() == [0, 1, 1, 2, 2]


def test_choose_scales_against_a_slow_loop(rng: np.random.Generator) -> None:
    factors = np.array([1.28, 1.536, 1.835, 2.304, 3.2])
    boxes = random_boxes(rng, 200, width=500, height=375)
    for box, chosen in zip(boxes.tolist(), choose_scales(boxes, factors).tolist(), strict=True):
        area = (box[2] - box[0]) * (box[3] - box[1])
        distance = [abs(area * f * f - 224 * 224) for f in factors.tolist()]
        assert chosen == distance.index(min(distance))


def test_ties_take_the_smaller_scale() -> None:
    # areas 4 × 1 and 4 × 4: both 6 from 10
    box, factors = np.array([[0, 0, 2, 2]], np.float32), np.array([1.0, 2.0])
    assert choose_scales(box, factors, canonical_area=10).tolist() == [0]
    assert choose_scales(box, factors, canonical_area=10.1).tolist() == [1]


def test_ties_of_rounded_factors_take_the_smaller_scale() -> None:
    """a(1 − 0.2²) = a(1.4² − 1), but not of the nearest binary numbers."""
    box = np.array([[0, 0, 224, 224]], np.float32)
    for small, large in ((1, 7), (7, 17), (7, 23), (1, 41)):  # a² + b² = 2c²
        side = math.isqrt((small**2 + large**2) // 2)
        assert small**2 + large**2 == 2 * side**2
        assert choose_scales(box, np.array([small / side, large / side])).tolist() == [0]
        assert choose_scales(box, np.array([small / side, large / side - 1e-6])).tolist() == [1]


def test_distinct_factors() -> None:
    def found(width: int, height: int) -> list[float]:
        factors = scale_factors_of(SCALES, width=width, height=height, max_side=2400)
        return [float(factor) for factor in factors]

    assert found(3000, 300) == found(300, 3000) == [0.8]
    assert found(500, 375) == [s / 375 for s in SCALES]
    assert found(1200, 400) == [1.2, 1.44, 1.72, 2.0]


def test_choose_scales_refuses() -> None:
    box = np.array([[0, 0, 2, 2], [3, 3, 3, 9]], np.float32)
    with pytest.raises(ValueError, match="scale_factors: expected one or more"):
        choose_scales(box, np.zeros(0))
    with pytest.raises(ValueError, match="boxes, row 1: no area"):
        choose_scales(box, np.ones(1))


def test_no_boxes() -> None:
    none, factors = np.zeros((0, 4), np.float32), np.ones(2)
    chosen = choose_scales(none, factors)
    assert chosen.shape == (0,) and chosen.dtype == np.int64
    windows = project(none, factors[:0], stride=16, offset=0.5, map_width=3, map_height=3)
    assert windows.shape == (0, 4)
    unique, index = unique_windows(chosen, windows)
    assert unique.shape == (0, 5) and index.shape == (0,)


def test_unique_windows(rng: np.random.Generator) -> None:
    scales: NDArray[np.int64] = rng.integers(0, 2, 100)
    windows: NDArray[np.int64] = rng.integers(0, 3, (100, 4))
    unique, index = unique_windows(scales, windows)
    rows = [(s, *w) for s, w in zip(scales.tolist(), windows.tolist(), strict=True)]
    assert [tuple(row) for row in unique.tolist()] == sorted(set(rows))
    assert [tuple(row) for row in unique[index].tolist()] == rows
    assert index.dtype == np.int64 and len(unique) < 100


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(500, 375, 688 / 375), (375, 500, 688 / 375), (5000, 300, 2400 / 5000), (688, 688, 1.0)],
)
def test_scale_factor(width: int, height: int, expected: float) -> None:
    assert scale_factor(width=width, height=height, scale=688, max_side=2400) == expected

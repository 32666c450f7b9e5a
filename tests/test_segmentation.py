"""Graph segmentation: against the definition, slowly; cases by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from samples import random_image
from sppdet.proposals.colours import in_colour_space
from sppdet.proposals.segmentation import SIGMA, STEPS, Edges, segment, weigh_edges


def random_planes(seed: int, width: int, height: int, channels: int = 3) -> NDArray[np.uint8]:
    image = random_image(np.random.default_rng(seed), width=width, height=height)
    return np.ascontiguousarray(image[:, :, :channels].transpose(2, 0, 1))


def ends_of(edge: int, width: int) -> tuple[int, int]:
    return edge // 2, edge // 2 + (width if edge % 2 else 1)


def slow_segment(edges: Edges, k: int) -> list[list[int]]:
    """The definition, with sets of pixels; labels in the order of first pixels."""
    region = {p: {p} for p in range(edges.height * edges.width)}
    heaviest = dict.fromkeys(region, 0)

    def limit(pixel: int) -> float:
        size = np.float32(len(region[pixel]))
        return float(np.float32(heaviest[pixel]) + np.float32(k * STEPS) / size)

    def join(a: int, b: int, weight: int) -> None:
        both = region[a] | region[b]
        for pixel in both:
            region[pixel], heaviest[pixel] = both, weight

    sorted_edges = list(zip(edges.order.tolist(), edges.weights.tolist(), strict=True))
    for edge, weight in sorted_edges:
        a, b = ends_of(edge, edges.width)
        if region[a] is not region[b] and weight <= limit(a) and weight <= limit(b):
            join(a, b, weight)
    for edge, weight in sorted_edges:
        a, b = ends_of(edge, edges.width)
        if region[a] is not region[b] and min(len(region[a]), len(region[b])) < k:
            join(a, b, weight)
    numbers: dict[int, int] = {}
    labels = [numbers.setdefault(min(region[p]), len(numbers)) for p in range(len(region))]
    return np.array(labels).reshape(edges.height, edges.width).tolist()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 7), (7, 1), (2, 2), (23, 17)])
@pytest.mark.parametrize("channels", [1, 3])
def test_edges_weigh_what_colours_differ(width: int, height: int, channels: int) -> None:
    planes = random_planes(width, width, height, channels)
    edges = weigh_edges(planes)
    smooth = [cv2.GaussianBlur(p.astype(np.float64), (0, 0), SIGMA) for p in planes]
    pixels = np.stack(smooth).reshape(channels, -1)
    expected = {}
    for p in range(width * height):
        if p % width < width - 1:
            expected[2 * p] = np.linalg.norm(pixels[:, p] - pixels[:, p + 1])
        if p + width < width * height:
            expected[2 * p + 1] = np.linalg.norm(pixels[:, p] - pixels[:, p + width])
    assert sorted(edges.order.tolist()) == sorted(expected)
    found = dict(zip(edges.order.tolist(), edges.weights.tolist(), strict=True))
    for edge, weight in expected.items():
        assert found[edge] / STEPS == pytest.approx(weight, abs=0.6 / STEPS)
    rank = list(zip(edges.weights.tolist(), edges.order.tolist(), strict=True))
    assert rank == sorted(rank)


def test_the_greatest_difference_has_a_weight() -> None:
    planes = np.zeros((3, 8, 40), np.uint8)
    planes[:, :, 20:] = 255
    assert int(weigh_edges(planes).weights[-1]) > 0.4 * STEPS * 255
    sharp = Edges(
        np.array([0], np.uint32), np.array([round(3**0.5 * 255 * STEPS)], np.uint16), 1, 2
    )
    assert segment(sharp, 1)[1] == 2


@pytest.mark.parametrize("k", [3, 12, 60, 300])
@pytest.mark.parametrize(("width", "height", "channels"), [(40, 30, 3), (31, 45, 1), (9, 120, 3)])
def test_segments_are_those_of_the_definition(
    k: int, width: int, height: int, channels: int
) -> None:
    edges = weigh_edges(random_planes(k + width, width, height, channels))
    labels, count = segment(edges, k)
    assert labels.tolist() == slow_segment(edges, k)
    assert sorted(np.unique(labels)) == list(range(count))
    if count > 1:
        assert np.bincount(labels.ravel()).min() >= k


def test_noise_too() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (3, 40, 33)).astype(np.uint8)
    edges = weigh_edges(noise)
    for k in (2, 20, 150):
        labels, count = segment(edges, k)
        assert count > 1
        assert labels.tolist() == slow_segment(edges, k)


def edges_in_a_row(*levels: float) -> Edges:
    """Pixels in one row, with these differences between neighbours."""
    weights = (np.array(levels) * STEPS).round().astype(np.uint16)
    order = np.argsort(weights, kind="stable")
    return Edges((2 * order).astype(np.uint32), weights[order], 1, len(levels) + 1)


def test_a_join_by_hand() -> None:
    # k = 2: pixels 0 and 1 join at 1 and may then take 1 + 2/2 = 2; pixel 2 joins them at 2; of
    # then three they may take 2 + 2/3: not 3, but the last pixel is too small to stay alone
    assert segment(edges_in_a_row(1, 2), 2)[0].tolist() == [[0, 0, 0]]
    assert segment(edges_in_a_row(1, 2, 3, 1), 2)[0].tolist() == [[0, 0, 0, 1, 1]]
    assert segment(edges_in_a_row(1, 2, 3), 2)[0].tolist() == [[0, 0, 0, 0]]
    # 2 weighs no more than a single pixel's limit, 1/128 more does
    assert segment(edges_in_a_row(0, 2, 0), 2)[1] == 2
    assert segment(edges_in_a_row(0, 1, 0), 2)[1] == 1
    assert segment(edges_in_a_row(0, 1 + 1 / STEPS, 0), 2)[1] == 2
    flat = [0.0] * (2 * STEPS)  # so large that the least weight keeps two apart
    assert segment(edges_in_a_row(*flat, 1 / STEPS, *flat), 1)[1] == 2


def test_the_lightest_edge_takes_a_small_piece() -> None:
    labels, _ = segment(edges_in_a_row(0, 0, 0, 90, 80, 0, 0, 0), 3)
    assert labels.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 1]]
    labels, _ = segment(edges_in_a_row(0, 0, 0, 80, 90, 0, 0, 0), 3)
    assert labels.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1, 1]]


def test_one_colour_is_one_segment() -> None:
    for shape in ((3, 1, 1), (1, 30, 1), (3, 1, 30), (3, 20, 30)):
        labels, count = segment(weigh_edges(np.full(shape, 77, np.uint8)), 50)
        assert count == 1 and labels.shape == shape[1:] and not labels.any()


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # of red, green, blue and white, as 8 bits: hue is half of the degrees, a and b are 128 more
        ("hsv", [[0, 255, 255], [60, 255, 255], [120, 255, 255], [0, 0, 255]]),
        ("lab", [[136, 208, 195], [224, 42, 211], [82, 207, 20], [255, 128, 128]]),
        ("hue", [[0], [60], [120], [0]]),
        ("rgi", [[255, 0, 76], [0, 255, 150], [0, 0, 29], [85, 85, 255]]),
        ("grey", [[76], [150], [29], [255]]),
    ],
)
def test_colour_spaces_by_hand(name: str, expected: list[list[int]]) -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], np.uint8)
    found = in_colour_space(np.tile(colours[None], (3, 1, 1)), name)
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    assert found.shape == (3, 4, len(expected[0]))
    np.testing.assert_allclose(found[1], expected, atol=1)

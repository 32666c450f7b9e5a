"""Spatial pyramid pooling against its definition, torch's and torchvision's layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torchvision.ops import roi_pool

from sppdet.features import regions
from sppdet.features.head import Head
from sppdet.features.levels import level_columns, spp_width
from sppdet.features.regions import FeatureExtractor, find_windows, pool_windows
from sppdet.features.spp import (
    _by_roi_pool,
    multiply_windows,
    ordered_keys,
    spp_windows,
    square_maxima,
)
from sppdet.types import FeatureMaps

pytestmark = pytest.mark.usefixtures("two_threads")

LEVELS = [(6, 3, 2, 1), (7, 3, 2, 1), (4, 3, 2, 1), (5,), (1, 2, 4, 8), (3, 6)]


def naive(feature_map: torch.Tensor, window: list[int], levels: Sequence[int]) -> torch.Tensor:
    """Bin (i, j), counted from 1, covers [⌊(i−1)·w/n⌋, ⌈i·w/n⌉); level, row, column, channel."""
    left, top, right, bottom = window
    cut = feature_map.float()[:, top : bottom + 1, left : right + 1]
    height, width = cut.shape[1:]
    values = []
    for n in levels:
        for row in range(1, n + 1):
            y0, y1 = math.floor((row - 1) * height / n), math.ceil(row * height / n)
            for column in range(1, n + 1):
                x0, x1 = math.floor((column - 1) * width / n), math.ceil(column * width / n)
                values.append(cut[:, y0:y1, x0:x1].amax(dim=(1, 2)))
    return torch.cat(values)


def random_windows(rng: np.random.Generator, count: int, w: int, h: int) -> NDArray[np.int64]:
    x, y = np.sort(rng.integers(0, w, (count, 2))), np.sort(rng.integers(0, h, (count, 2)))
    windows: NDArray[np.int64] = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)
    windows[: count // 5, 2:] = windows[: count // 5, :2]  # of one cell
    windows[0] = [0, 0, w - 1, h - 1]
    return windows


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_windows_against_the_definition(levels: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    feature_map = torch.randn(5, 17, 23, generator=generator).to(dtype)
    windows = random_windows(np.random.default_rng(1), 40, 23, 17)
    pooled = spp_windows(feature_map, windows, levels)
    assert pooled.dtype == torch.float32 and pooled.shape == (40, spp_width(5, levels))
    expected = torch.stack([naive(feature_map, w, levels) for w in windows.tolist()])
    assert torch.equal(pooled, expected)


@pytest.mark.parametrize("count", [1, 32, 33, 90])
@pytest.mark.parametrize("levels", [(1,), (2, 7), (6, 3, 2, 1)])
def test_wide_bins_and_few_windows_against_the_definition(
    count: int, levels: tuple[int, ...]
) -> None:
    """Bins of up to 61 cells a side, by the maxima of squares and, for few windows, without them."""
    feature_map = torch.randn(3, 61, 40, generator=torch.Generator().manual_seed(8))
    windows = random_windows(np.random.default_rng(8), count, 40, 61)
    expected = torch.stack([naive(feature_map, w, levels) for w in windows.tolist()])
    assert torch.equal(spp_windows(feature_map, windows, levels), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 30), (3, 2), (17, 23)])
def test_maxima_of_squares_against_a_slow_loop(height: int, width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(9)
    feature_map = torch.randn(5, height, width, generator=generator).to(dtype)
    windows = np.array([[0, 0, width - 1, height - 1]] * 40)
    maxima = square_maxima(feature_map, windows, (1,))
    assert maxima.shape[0] == min(4, min(height, width).bit_length())
    for k in range(len(maxima)):
        for y in range(height - 2**k + 1):
            for x in range(width - 2**k + 1):
                square = feature_map[:, y : y + 2**k, x : x + 2**k]
                largest = square.amax(dim=(1, 2))
                expected = ordered_keys(largest) if dtype == torch.float16 else largest
                assert (maxima[k, y, x] == expected.numpy()).all()


def test_vectors_of_another_type_are_refused() -> None:
    feature_map, windows = torch.rand(2, 3, 3).half(), np.array([[0, 0, 2, 2]])
    with pytest.raises(ValueError, match=r"out: torch.float64, expected float32"):
        spp_windows(feature_map, windows, (1,), out=torch.empty(1, 2, dtype=torch.float64))


def every_half() -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16)


def test_keys_are_in_the_order_of_the_values() -> None:
    values = every_half()
    values = values[~values.isnan()]
    by_key = values[ordered_keys(values).argsort()].float()
    assert (by_key.diff()[~by_key.isinf()[1:]] >= 0).all()
    assert by_key[0] == -torch.inf and by_key[-1] == torch.inf
    assert len(torch.unique(ordered_keys(every_half()))) == 2**16


def test_every_value_of_float16_is_pooled_as_it_is() -> None:
    """Subnormal ones, both zeros and infinities among them, to the bit."""
    values = every_half()
    pooled = spp_windows(values[:, None, None], np.zeros((1, 4), np.int64), (1,))[0]
    numbers = ~values.isnan()
    assert torch.equal(pooled.isnan(), ~numbers)
    expected = values.float()[numbers]
    assert torch.equal(pooled[numbers].view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("classes", [1, 5, 40])
@pytest.mark.parametrize("count", [0, 3, 600])
def test_products_equal_those_of_the_pooled_vectors(classes: int, count: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    feature_map = torch.randn(9, 13, 21, generator=generator).half()
    weights = torch.randn(classes, spp_width(9, (6, 3, 2, 1)), generator=generator)
    windows = random_windows(np.random.default_rng(0), max(count, 1), 21, 13)[:count]
    found = multiply_windows(feature_map, windows, (6, 3, 2, 1), weights)
    pooled = spp_windows(feature_map, windows, (6, 3, 2, 1)).double()
    assert found.dtype == torch.float32 and found.shape == (count, classes)
    torch.testing.assert_close(found.double(), pooled @ weights.double().T, rtol=1e-6, atol=1e-4)


def test_products_of_a_heads_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Block by block, over two scales."""
    monkeypatch.setattr(regions, "_BLOCK", 3)
    generator = torch.Generator().manual_seed(3)
    head = Head(20, [7], outputs=3, dropout=0.0).eval()
    extractor = FeatureExtractor((2, 1), 224, head)
    maps = tuple(torch.randn(4, side, side, generator=generator) for side in (5, 9))
    cells = np.array([[0, 0, 0, 2, 2]] * 3 + [[1, 1, 2, 8, 5]] * 4 + [[1, 2, 2, 6, 7]])
    weights = torch.randn(2, 7, generator=generator)
    views = FeatureMaps(maps, np.array([1.0, 2.0]), 16, 0.0)
    found = extractor.products(views, cells, "fc6", weights)
    features = extractor.layer(extractor.pool(views, cells), "fc6")
    torch.testing.assert_close(found, features @ weights.T)
    assert extractor.products(views, cells[:0], "fc6", weights).shape == (0, 2)
    assert extractor.products(views, cells[:0], "pool5", torch.ones(2, 20)).shape == (0, 2)


def test_products_check_their_windows() -> None:
    with pytest.raises(ValueError, match="row 0"):
        multiply_windows(torch.zeros(1, 3, 3), np.array([[0, 0, 3, 2]]), (1,), torch.ones(1, 1))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_changes_nothing(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    feature_map = torch.randn(3, 9, 9, generator=torch.Generator().manual_seed(2))
    windows = random_windows(np.random.default_rng(2), 7, 9, 9)
    expected = torch.stack([naive(feature_map, w, (3, 1)) for w in windows.tolist()])
    assert torch.equal(spp_windows(feature_map, windows, (3, 1)), expected)


@pytest.mark.parametrize(("a", "n"), [(5, 3), (8, 6), (13, 6), (13, 3), (14, 7), (1, 4), (18, 6)])
def test_whole_map_equals_torchs_adaptive_pooling(a: int, n: int) -> None:
    feature_map = torch.randn(4, a, a + 2, generator=torch.Generator().manual_seed(a))
    pooled = spp_windows(feature_map, np.array([[0, 0, a + 1, a - 1]]), (n,))
    theirs = F.adaptive_max_pool2d(feature_map, n)
    assert torch.equal(pooled[0].reshape(n, n, 4).permute(2, 0, 1), theirs)


@pytest.mark.parametrize(("a", "n"), [(5, 3), (8, 6)])
def test_the_papers_sliding_form_fails_there(a: int, n: int) -> None:
    """Kernel ⌈a/n⌉ and stride ⌊a/n⌋ give another number of bins at these sizes."""
    slid = F.max_pool2d(torch.zeros(1, 1, a, a), math.ceil(a / n), math.floor(a / n))
    assert slid.shape[-1] != n


@pytest.mark.parametrize(("a", "n", "kernel", "stride"), [(13, 6, 3, 2), (14, 7, 2, 2)])
def test_whole_map_equals_the_last_pooling_of_a_classifier(
    a: int, n: int, kernel: int, stride: int
) -> None:
    feature_map = torch.randn(8, a, a, generator=torch.Generator().manual_seed(a))
    levels = (n, 3, 2, 1)
    pooled = spp_windows(feature_map, np.array([[0, 0, a - 1, a - 1]]), levels)
    level = pooled[0, level_columns(8, levels, n)].reshape(n, n, 8).permute(2, 0, 1)
    assert torch.equal(level, F.max_pool2d(feature_map, kernel, stride))


def test_windows_equal_torchvisions_roi_pool() -> None:
    feature_map = torch.randn(3, 20, 30, generator=torch.Generator().manual_seed(3))
    windows = random_windows(np.random.default_rng(3), 50, 30, 20)
    rois = torch.zeros(50, 5)
    rois[:, 1:] = torch.from_numpy(windows)
    for n in (6, 3, 1):
        theirs = roi_pool(feature_map[None], rois, n).permute(0, 2, 3, 1).flatten(1)
        assert torch.equal(spp_windows(feature_map, windows, (n,)), theirs)


def exact_bins(cells: int, level: int) -> list[tuple[int, int]]:
    """First and last cell of each bin along an axis, in rational arithmetic."""
    return [
        (math.floor(Fraction(i * cells, level)), math.ceil(Fraction((i + 1) * cells, level)) - 1)
        for i in range(level)
    ]


@pytest.mark.parametrize("level", range(1, 15))
def test_every_length_and_level_is_exact(level: int) -> None:
    """Windows of 1 to 300 cells a side among cells that rise, then fall: first and last show in each bin.

    On a CPU by the compiled loop, elsewhere without Triton by `roi_pool`, where dividing in float32
    gives a cell too many to 7 bins of 57, 114 and 121 cells.
    """
    lengths = np.arange(1, 301)
    start = np.full(300, 3)  # with cells before and behind the windows
    line = torch.arange(306.0)
    rising = torch.stack([line, -line])  # the greatest of a bin are its last and its first cell
    expected = torch.tensor(
        [[[3 + last, -(3 + first)] for first, last in exact_bins(w, level)] for w in range(1, 301)]
    ).float()  # [300, level, 2]
    for across in (True, False):
        feature_map = rising[:, None, :] if across else rising[:, :, None]
        end = start + lengths - 1
        zero = np.zeros_like(start)
        sides = (start, zero, end, zero) if across else (zero, start, zero, end)
        windows = np.stack(sides, axis=1)
        for pool in (spp_windows, _by_roi_pool):
            found = pool(feature_map, windows, (level,)).unflatten(1, (level, level, 2))
            found = found[:, 0] if across else found[:, :, 0]
            assert torch.equal(found, expected), pool


def test_bins_of_the_report() -> None:
    """57, 114 and 121 cells at level 7: the last bin ends with the window, whatever comes behind it."""
    for cells in (57, 114, 121):
        larger = torch.zeros(1, cells + 3, cells + 3)
        larger[0, cells:], larger[0, :, cells:] = 9, 9
        windows = np.array([[0, 0, cells - 1, cells - 1]])
        assert not _by_roi_pool(larger, windows, (7, 3, 2, 1)).any()
        theirs = roi_pool(larger[None], torch.tensor([[0.0, 0, 0, cells - 1, cells - 1]]), 7)
        assert theirs.any()


@pytest.mark.parametrize("levels", LEVELS)
def test_the_fallback_equals_the_loop(levels: tuple[int, ...]) -> None:
    feature_map = torch.randn(5, 17, 23, generator=torch.Generator().manual_seed(1)).round()
    windows = random_windows(np.random.default_rng(1), 40, 23, 17)
    assert torch.equal(
        _by_roi_pool(feature_map, windows, levels), spp_windows(feature_map, windows, levels)
    )
    assert _by_roi_pool(feature_map, windows[:0], levels).shape == (0, spp_width(5, levels))
    a, b = (feature_map.clone().requires_grad_() for _ in range(2))
    gradient = torch.randn(40, spp_width(5, levels), generator=torch.Generator().manual_seed(2))
    _by_roi_pool(a, windows, levels).backward(gradient)
    spp_windows(b, windows, levels).backward(gradient)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "window", [[-1, 0, 2, 2], [0, -1, 2, 2], [0, 0, 6, 2], [0, 0, 2, 4], [3, 0, 2, 2], [0, 3, 2, 2]]
)
def test_a_window_outside_the_map_is_refused(window: list[int]) -> None:
    windows = np.array([[0, 0, 5, 3], window])
    with pytest.raises(ValueError, match=r"windows, row 1: .* isn't inside a map of 6x4"):
        spp_windows(torch.zeros(2, 4, 6), windows, (2, 1))


def test_windows_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"windows: \(1, 5\), expected \(U, 4\)"):
        spp_windows(torch.zeros(2, 4, 6), np.zeros((1, 5), np.int64), (1,))


def test_no_windows() -> None:
    pooled = spp_windows(torch.zeros(2, 4, 6), np.zeros((0, 4), np.int64), (6, 3, 2, 1))
    assert pooled.shape == (0, 100)


def test_width_and_columns() -> None:
    assert spp_width(256, (6, 3, 2, 1)) == 12_800
    assert level_columns(2, (3, 2), 3) == slice(0, 18)
    assert level_columns(2, (3, 2), 2) == slice(18, 26)
    with pytest.raises(ValueError, match="level 4: expected one of"):
        level_columns(2, (3, 2), 4)


def test_windows_of_several_scales() -> None:
    generator = torch.Generator().manual_seed(4)
    maps = FeatureMaps(
        tuple(torch.randn(2, h, 2 * h, generator=generator) for h in (5, 7, 9)),
        np.array([0.5, 0.75, 1.0]),
        16,
        0.5,
    )
    cells = np.array([[0, 0, 0, 5, 4], [0, 1, 1, 1, 1], [2, 0, 0, 10, 8], [2, 2, 3, 4, 5]])
    expected = [naive(maps.maps[row[0]], row[1:], (2, 1)) for row in cells.tolist()]
    assert torch.equal(pool_windows(maps, cells, (2, 1)), torch.stack(expected))
    assert pool_windows(maps, cells[:0], (2, 1)).shape == (0, 10)
    step = np.array([1, 0, 0, 0, 0])
    for wrong in (cells[[0, 2, 1]], cells + step, cells - step):
        with pytest.raises(ValueError, match="ascending scales from 0 to 2"):
            pool_windows(maps, wrong, (2, 1))
    wanted = replace(maps, maps=tuple(m.requires_grad_() for m in maps.maps))
    with pytest.raises(ValueError, match="requires a gradient"):
        pool_windows(wanted, cells, (2, 1))


def test_find_windows_at_given_scales() -> None:
    maps = FeatureMaps(
        (torch.zeros(1, 10, 10), torch.zeros(1, 20, 20)), np.array([1.0, 2.0]), 16, 0.5
    )
    boxes = np.array([[0, 0, 33, 33], [0, 0, 33, 33]], np.float32)
    windows = find_windows(maps, boxes, canonical_size=224, scale_index=np.array([1, 0]))
    assert windows.cells[windows.index].tolist() == [[1, 0, 0, 4, 4], [0, 0, 0, 2, 2]]
    assert find_windows(maps, boxes, canonical_size=33).cells.tolist() == [[0, 0, 0, 2, 2]]


def by_slices(
    feature_map: torch.Tensor, windows: NDArray[np.int64], levels: Sequence[int]
) -> torch.Tensor:
    """The same vectors by torch's adaptive pooling of each window's part of the map."""
    rows = []
    for left, top, right, bottom in windows.tolist():
        cut = feature_map[None, :, top : bottom + 1, left : right + 1]
        bins = [F.adaptive_max_pool2d(cut, n).permute(0, 2, 3, 1).flatten() for n in levels]
        rows.append(torch.cat(bins))
    return torch.stack(rows)


def gradients(
    pool: Callable[..., torch.Tensor],
    feature_map: torch.Tensor,
    windows: NDArray[np.int64],
    levels: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled vectors, and the map's gradient for whole-number weights, whose sums are exact."""
    leaf = feature_map.clone().requires_grad_()
    pooled = pool(leaf, windows, levels)
    generator = torch.Generator().manual_seed(9)
    pooled.backward(torch.randint(-8, 9, pooled.shape, generator=generator).float())
    assert leaf.grad is not None
    return pooled.detach(), leaf.grad


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("values", ["distinct", "ties", "constant"])
def test_gradients_equal_torchs_on_slices(levels: tuple[int, ...], values: str) -> None:
    generator = torch.Generator().manual_seed(5)
    feature_map = torch.randn(5, 12, 15, generator=generator)
    if values == "ties":  # as after a ReLU: a good part is 0
        feature_map = torch.randint(-2, 3, (5, 12, 15), generator=generator).float().relu()
    elif values == "constant":
        feature_map = torch.zeros(5, 12, 15)
    windows = random_windows(np.random.default_rng(5), 25, 15, 12)
    ours, theirs = (
        gradients(pool, feature_map, windows, levels) for pool in (spp_windows, by_slices)
    )
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert theirs[1].any()


def test_gradients_add_up_over_overlapping_windows() -> None:
    feature_map = torch.tensor([[[1.0, 4, 2], [3, 4, 0]]])
    windows = np.array([[0, 0, 2, 1], [0, 0, 2, 1], [2, 0, 2, 1], [0, 1, 1, 1]])
    leaf = feature_map.requires_grad_()
    spp_windows(leaf, windows, (1,)).sum().backward()
    assert leaf.grad is not None
    # both whole windows go to the first 4, that of the last column to its 2
    assert leaf.grad.tolist() == [[[0, 2, 1], [0, 1, 0]]]


def test_the_number_of_threads_changes_no_bit_of_a_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(6)
    feature_map = torch.randn(7, 10, 11, generator=generator)
    windows = random_windows(np.random.default_rng(6), 60, 11, 10)
    weights = torch.randn(60, spp_width(7, (6, 3, 2, 1)), generator=generator)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        leaf = feature_map.clone().requires_grad_()
        (spp_windows(leaf, windows, (6, 3, 2, 1)) * weights).sum().backward()
        assert leaf.grad is not None
        found.append(leaf.grad)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    theirs = feature_map.clone().requires_grad_()
    (by_slices(theirs, windows, (6, 3, 2, 1)) * weights).sum().backward()
    torch.testing.assert_close(found[0], theirs.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_gradients_have_the_maps_type(dtype: torch.dtype) -> None:
    feature_map = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(8)).to(dtype)
    windows = np.array([[0, 0, 4, 5], [1, 2, 3, 3]])
    pooled, gradient = gradients(spp_windows, feature_map, windows, (3, 1))
    assert pooled.dtype == torch.float32 and gradient.dtype == dtype
    _, theirs = gradients(by_slices, feature_map.float(), windows, (3, 1))
    assert torch.equal(gradient.float(), theirs)


def test_a_map_in_another_memory_order() -> None:
    feature_map = torch.randn(1, 4, 8, 7, generator=torch.Generator().manual_seed(9))
    windows = random_windows(np.random.default_rng(9), 10, 7, 8)
    one = gradients(spp_windows, feature_map[0], windows, (2, 1))
    last = feature_map.contiguous(memory_format=torch.channels_last)
    other = gradients(spp_windows, last[0], windows, (2, 1))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_gradients_flow_through_layers_before() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 4, 3, padding=1)
    x = torch.randn(1, 3, 9, 9)
    windows = random_windows(np.random.default_rng(1), 6, 9, 9)
    found = []
    for pool in (spp_windows, by_slices):
        layer.zero_grad()
        pool(layer(x)[0], windows, (3, 1)).square().sum().backward()
        assert layer.weight.grad is not None
        found.append(layer.weight.grad.clone())
    torch.testing.assert_close(found[0], found[1])


def test_without_gradients_nothing_is_remembered() -> None:
    feature_map = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(8))
    windows = random_windows(np.random.default_rng(8), 10, 5, 6)
    plain = spp_windows(feature_map, windows, (3, 2, 1))
    wanted = spp_windows(feature_map.clone().requires_grad_(), windows, (3, 2, 1))
    with torch.no_grad():
        unwanted = spp_windows(feature_map.clone().requires_grad_(), windows, (3, 2, 1))
    assert wanted.requires_grad and wanted.grad_fn is not None
    assert not plain.requires_grad and not unwanted.requires_grad
    assert torch.equal(plain, wanted.detach()) and torch.equal(plain, unwanted)


def test_gradients_of_no_windows() -> None:
    leaf = torch.zeros(2, 4, 6, requires_grad=True)
    pooled = spp_windows(leaf, np.zeros((0, 4), np.int64), (3, 1))
    assert pooled.shape == (0, 20)
    pooled.sum().backward()
    assert leaf.grad is not None and not leaf.grad.any()

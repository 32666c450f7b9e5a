"""Spatial pyramid pooling against its definition, torch's and torchvision's layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torchvision.ops import roi_pool

from sppdet.features.regions import find_windows, pool_windows
from sppdet.features.spp import level_columns, spp_width, spp_windows
from sppdet.types import FeatureMaps

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


@pytest.mark.parametrize("shuffled", [False, True])
def test_windows_of_several_scales_keep_their_order(shuffled: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    maps = FeatureMaps(
        (torch.randn(2, 5, 6, generator=generator), torch.randn(2, 9, 11, generator=generator)),
        np.array([0.5, 1.0], np.float32),
        16,
        0.5,
    )
    cells = np.array([[0, 0, 0, 5, 4], [0, 1, 1, 1, 1], [1, 0, 0, 10, 8], [1, 2, 3, 4, 5]])
    if shuffled:
        cells = cells[[2, 0, 3, 1]]
    expected = [naive(maps.maps[row[0]], row[1:], (2, 1)) for row in cells.tolist()]
    assert torch.equal(pool_windows(maps, cells, (2, 1)), torch.stack(expected))


def test_find_windows_at_given_scales() -> None:
    maps = FeatureMaps(
        (torch.zeros(1, 10, 10), torch.zeros(1, 20, 20)), np.array([1, 2], np.float32), 16, 0.5
    )
    boxes = np.array([[0, 0, 33, 33], [0, 0, 33, 33]], np.float32)
    windows = find_windows(maps, boxes, canonical_size=224, scale_index=np.array([1, 0]))
    assert windows.cells[windows.index].tolist() == [[1, 0, 0, 4, 4], [0, 0, 0, 2, 2]]
    assert find_windows(maps, boxes, canonical_size=33).cells.tolist() == [[0, 0, 0, 2, 2]]

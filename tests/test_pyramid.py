"""Pyramid layers against torch's own pooling, the pooling of windows, and bins counted by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sppdet.features.pyramid import FixedPyramid, Mode, SpatialPyramid, SppBlock
from sppdet.features.spp import spp_windows

SIZES = [(13, 13), (10, 10), (7, 19), (24, 5), (3, 4), (1, 1), (1, 9)]
LEVELS = [(6, 3, 2, 1), (4, 3, 2, 1), (7,), (1, 5), (2, 6)]


def random_maps(height: int, width: int, *, count: int = 2, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * height + width)
    return torch.randn(count, channels, height, width, generator=generator)


def flat(bins: torch.Tensor) -> torch.Tensor:
    """(N, C, n, n) to (N, n·n·C) in the order (row, column, channel)."""
    n, channels, rows, columns = bins.shape
    values = [
        bins[:, :, row, column] for row, column in itertools.product(range(rows), range(columns))
    ]
    return torch.stack(values, dim=1).reshape(n, rows * columns * channels)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_levels_equal_torchs_adaptive_pooling(
    height: int, width: int, levels: tuple[int, ...]
) -> None:
    maps = random_maps(height, width)
    theirs: dict[Mode, list[nn.Module]] = {
        "max": [nn.AdaptiveMaxPool2d(n) for n in levels],
        "average": [nn.AdaptiveAvgPool2d(n) for n in levels],
    }
    for mode, layers in theirs.items():
        pyramid = SpatialPyramid(levels, mode=mode)
        expected = torch.cat([flat(layer(maps)) for layer in layers], dim=1)
        assert torch.equal(pyramid(maps), expected)
        assert expected.shape == (2, pyramid.width(3))


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_it_equals_the_window_of_the_whole_map(
    height: int, width: int, levels: tuple[int, ...]
) -> None:
    maps = random_maps(height, width)
    window = np.array([[0, 0, width - 1, height - 1]])
    expected = torch.cat([spp_windows(one, window, levels) for one in maps])
    assert torch.equal(SpatialPyramid(levels)(maps), expected)


def test_the_width_is_the_same_for_every_size() -> None:
    pyramid = SpatialPyramid()
    assert pyramid.levels == (6, 3, 2, 1) and pyramid.mode == "max"
    assert pyramid.width(256) == 12_800
    lengths = {pyramid(random_maps(*size)).shape[1] for size in SIZES}
    assert lengths == {150} == {pyramid.width(3)}
    assert FixedPyramid(13, (6, 3)).width(2) == 90
    assert repr(pyramid) == "SpatialPyramid(levels=[6, 3, 2, 1], mode=max)"


@pytest.mark.parametrize("mode", ["max", "average"])
def test_gradients(mode: Mode) -> None:
    # distinct values far apart: a small step changes no maximum
    order = torch.randperm(2 * 5 * 4, generator=torch.Generator().manual_seed(0))
    maps = (order.double() / 10).reshape(1, 2, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(SpatialPyramid((3, 1), mode=mode), (maps,))
    square = maps.detach()[..., :4, :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(FixedPyramid(4, (2, 1), mode=mode), (square,))
    if mode == "max":
        assert torch.autograd.gradcheck(SppBlock((3, 5), chained=True), (square,))


def bins_of_max_pooling(side: int, n: int) -> int:
    """What torch's layer really makes with the paper's kernel and stride; 0: it refuses them."""
    try:
        layer = nn.MaxPool2d(math.ceil(side / n), stride=math.floor(side / n))
        return int(layer(torch.zeros(1, 1, side, side)).shape[-1])
    except (RuntimeError, ZeroDivisionError):
        return 0


def test_fixed_bins_are_refused_exactly_where_their_number_is_wrong() -> None:
    good = 0
    for side, n in itertools.product(range(1, 41), range(1, 8)):
        bins = bins_of_max_pooling(side, n)
        if bins == n:
            maps = random_maps(side, side, count=1, channels=2)
            assert FixedPyramid(side, [n])(maps).shape == (1, 2 * n * n)
            good += 1
            continue
        with pytest.raises(ValueError, match=rf"^side {side}, level {n}: .* expected {n}×{n};"):
            FixedPyramid(side, [n])
    assert 100 < good < 280
    assert (bins_of_max_pooling(5, 3), bins_of_max_pooling(8, 6)) == (4, 7)


def test_one_wrong_level_among_several_is_named() -> None:
    with pytest.raises(ValueError, match=r"^side 8, level 6: kernel 2 and stride 1 make 7×7 bins"):
        FixedPyramid(8, (4, 2, 6, 1))
    with pytest.raises(ValueError, match="side 4, level 6: kernel 1 and stride 0 make 0×0"):
        FixedPyramid(4, (6,))


@pytest.mark.parametrize(("side", "levels"), [(13, (6, 3, 2, 1)), (10, (3, 2, 1)), (18, (6, 4))])
def test_fixed_levels_equal_torchs_pooling(side: int, levels: tuple[int, ...]) -> None:
    maps = random_maps(side, side)
    sizes = [(math.ceil(side / n), math.floor(side / n)) for n in levels]
    expected = torch.cat([flat(F.max_pool2d(maps, k, s)) for k, s in sizes], dim=1)
    assert torch.equal(FixedPyramid(side, levels)(maps), expected)
    expected = torch.cat([flat(F.avg_pool2d(maps, k, s)) for k, s in sizes], dim=1)
    assert torch.equal(FixedPyramid(side, levels, mode="average")(maps), expected)


def spans(side: int, n: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The cells [from, to) of every bin along one axis: of the fixed form, of the adaptive one."""
    kernel, stride = math.ceil(side / n), math.floor(side / n)
    fixed = [(i * stride, i * stride + kernel) for i in range(n)]
    adaptive = [(math.floor(i * side / n), math.ceil((i + 1) * side / n)) for i in range(n)]
    return fixed, adaptive


def test_both_forms_agree_exactly_where_their_bins_are_the_same() -> None:
    same = set()
    for side, n in itertools.product(range(1, 19), range(1, 7)):
        if bins_of_max_pooling(side, n) != n:
            continue
        maps = random_maps(side, side, count=4, channels=8)
        fixed, adaptive = spans(side, n)
        agree = torch.equal(FixedPyramid(side, [n])(maps), SpatialPyramid([n])(maps))
        assert agree == (fixed == adaptive), (side, n)
        same |= {(side, n)} if agree else set()
    assert {(13, 6), (13, 3), (13, 2), (13, 1), (10, 3)} <= same
    # four bins of three cells, two apart: the tenth cell is in none
    assert (10, 4) not in same and bins_of_max_pooling(10, 4) == 4


def test_maps_of_another_size_are_refused() -> None:
    pyramid = FixedPyramid(13, (3, 1))
    for height, width in ((13, 12), (12, 13), (10, 10)):
        with pytest.raises(ValueError, match=rf"maps of {width}×{height}, expected 13×13"):
            pyramid(random_maps(height, width))


@pytest.mark.parametrize("levels", [(), (3, 3), (0, 1), (2, -1)])
def test_wrong_levels(levels: tuple[int, ...]) -> None:
    for make in (SpatialPyramid, lambda levels: FixedPyramid(12, levels)):
        with pytest.raises(ValueError, match=r"levels: \[.*\], expected distinct numbers > 0"):
            make(levels)


def test_an_unknown_mode() -> None:
    with pytest.raises(ValueError, match="mode: mean, expected max or average"):
        SpatialPyramid(mode="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode: sum, expected max or average"):
        FixedPyramid(12, mode="sum")  # type: ignore[arg-type]


def slow_block(maps: torch.Tensor, kernels: Sequence[int]) -> torch.Tensor:
    """The greatest value within ⌊k/2⌋ cells of each, as far as the map goes."""
    parts = [maps]
    _, _, height, width = maps.shape
    for kernel in kernels:
        reach, out = kernel // 2, torch.empty_like(maps)
        for i, j in itertools.product(range(height), range(width)):
            rows = slice(max(0, i - reach), i + reach + 1)
            columns = slice(max(0, j - reach), j + reach + 1)
            out[:, :, i, j] = maps[:, :, rows, columns].amax(dim=(2, 3))
        parts.append(out)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("kernels", [(5, 9, 13), (3,), (3, 7), (1, 5)])
@pytest.mark.parametrize(("height", "width"), [(13, 13), (4, 20), (1, 1)])
def test_the_block_against_a_slow_loop(height: int, width: int, kernels: tuple[int, ...]) -> None:
    maps = random_maps(height, width) - 5  # negative: zeros outside would be the maximum
    assert torch.equal(SppBlock(kernels)(maps), slow_block(maps, kernels))


@pytest.mark.parametrize("kernels", [(5, 9, 13), (3, 5, 7, 9), (7,)])
@pytest.mark.parametrize(("height", "width"), [(13, 13), (4, 20), (2, 1)])
def test_chained_pooling_has_the_same_values(
    height: int, width: int, kernels: tuple[int, ...]
) -> None:
    maps = random_maps(height, width) - 5
    chained = SppBlock(kernels, chained=True)(maps)
    assert torch.equal(chained, SppBlock(kernels)(maps))
    assert chained.shape == (2, 3 * (1 + len(kernels)), height, width)


def test_a_block_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 5, 2, 0, 3]]]])
    assert SppBlock((3, 5))(maps).tolist() == [
        [[[1, 5, 2, 0, 3]], [[5, 5, 5, 3, 3]], [[5, 5, 5, 5, 3]]]
    ]


@pytest.mark.parametrize("kernels", [(), (4,), (5, 8), (0,), (-3,)])
def test_kernels_that_are_not_odd(kernels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"kernels: \[.*\], expected odd numbers"):
        SppBlock(kernels)


@pytest.mark.parametrize("kernels", [(5, 9, 15), (3, 5, 9), (9, 5), (5, 13)])
def test_kernels_that_cannot_be_chained(kernels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="for chained pooling"):
        SppBlock(kernels, chained=True)

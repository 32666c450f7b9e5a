"""Maps in eight bits and maps without their zeros, against slow definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sppdet.features.rounding import EightBitMap, to_eight_bits
from sppdet.features.sparse import with_zeros, without_zeros
from sppdet.stages.map_files import RoundedMap, expected_types, from_tensors, to_tensors
from sppdet.tensor_types import misfit, types_of

# all steps that there can be
STEPS = [m * 2.0**e for e, m in itertools.product(range(-24, 16), (4, 5, 6, 7))]


def slow_rounded(values: NDArray[np.float64]) -> tuple[float, int, list[int]]:
    """Step, zero point and the eight bits of one channel."""
    low, high = min(0.0, *values.tolist()), max(0.0, *values.tolist())
    step = min(s for s in STEPS if s * 255 >= high - low)
    zero = round(-low / step)
    return step, zero, [min(max(round(v / step) + zero, 0), 255) for v in values.tolist()]


def channels(seed: int, *, signed: bool) -> torch.Tensor:
    """A map (C, 5, 7) whose channels have ranges from 2^-20 to 2^14; one is constant, one empty."""
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(24, 5, 7)) * 2.0 ** rng.integers(-20, 13, (24, 1, 1))
    made = made if signed else np.maximum(made, 0)
    made[3], made[4], made[5] = 0, 3.7, np.where(rng.random((5, 7)) < 0.5, 0, 255)
    if signed:
        made[6], made[7] = -2.3, -np.abs(made[7])
    return torch.from_numpy(made.astype(np.float32))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_eight_bits_are_those_of_the_definition(seed: int, signed: bool) -> None:
    given = channels(seed, signed=signed)
    found = to_eight_bits(given)
    assert found.values.dtype == found.zeros.dtype == torch.uint8
    assert found.values.shape == (5, 7, 24) and found.values.is_contiguous()
    for c in range(len(given)):
        step, zero, values = slow_rounded(given[c].double().numpy().ravel())
        assert (float(found.steps[c]), int(found.zeros[c])) == (step, zero)
        assert found.values[..., c].flatten().tolist() == values
    assert bool(found.zeros.any()) == signed


@pytest.mark.parametrize("signed", [False, True])
def test_no_value_moves_by_more_than_half_a_step(signed: bool) -> None:
    for seed in range(20):
        given = channels(seed, signed=signed)
        found = to_eight_bits(given)
        half = found.half()
        assert half.dtype == torch.float16 and half.shape == given.shape
        exact = (found.values.double() - found.zeros) * found.steps.double()
        assert torch.equal(half.double(), exact.permute(2, 0, 1))  # float16 has each of them
        moved = (half.double() - given.double()).abs().amax(dim=(1, 2))
        assert bool((moved <= found.steps.double() * (0.5 + 1e-4)).all())
        assert bool((half[given == 0] == 0).all())
        widths = (given.amax((1, 2)).clamp(min=0) - given.amin((1, 2)).clamp(max=0)).double()
        plain = found.steps.double() > 2.0**-22
        assert bool((found.steps.double()[plain] <= 1.2501 * widths[plain] / 255).all())


def test_whole_numbers_are_exact() -> None:
    given = torch.arange(256.0).reshape(1, 16, 16)
    assert to_eight_bits(given).steps.item() == 1
    assert torch.equal(to_eight_bits(given).half().float(), given)
    assert torch.equal(to_eight_bits(given - 100).half().float(), given - 100)


def test_the_zero_point_and_the_largest_value_may_both_be_rounded_up() -> None:
    given = torch.tensor([[[-1.5, 0, 253.5]]])
    found = to_eight_bits(given)
    assert (found.steps.item(), found.zeros.item(), found.values.flatten().tolist()) == (
        1,
        2,
        [0, 2, 255],
    )
    assert found.half().flatten().tolist() == [-2, 0, 253]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, 1e6])
def test_values_beyond_float16_show(broken: float) -> None:
    given = torch.ones(2, 3, 3)
    given[1, 2, 0] = broken
    assert not bool(torch.isfinite(to_eight_bits(given).half()).all())


# -- without zeros ---------------------------------------------------------------------------------


def sparse(height: int, width: int, count: int, dtype: str, *, dense: float) -> NDArray[np.uint8]:
    rng = np.random.default_rng([height, width, count])
    codes = rng.integers(1, np.iinfo(dtype).max, (height, width, count), endpoint=True)
    made: NDArray[np.uint8] = (codes * (rng.random(codes.shape) < dense)).astype(dtype)
    return made


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 24])
@pytest.mark.parametrize("dense", [0.0, 0.2, 1.0])
def test_bits_and_elements(count: int, dtype: str, dense: float) -> None:
    codes = sparse(3, 5, count, dtype, dense=dense)
    bits, found = without_zeros(codes)
    assert bits.dtype == np.uint8 and bits.shape == (3, 5, math.ceil(count / 8))
    assert found.dtype == codes.dtype and found.tolist() == [v for v in codes.ravel() if v != 0]
    for y, x, c in np.ndindex(3, 5, 8 * bits.shape[2]):
        there = c < count and codes[y, x, c] != 0
        assert (bits[y, x, c // 8] >> c % 8) & 1 == there
    again = with_zeros(bits, found, count)
    assert again.dtype == codes.dtype and np.array_equal(again, codes)


def test_bits_that_dont_fit_are_refused() -> None:
    codes = sparse(3, 5, 12, "uint8", dense=0.5)
    bits, found = without_zeros(codes)
    more = np.concatenate([found, found[:1]])
    for elements in (found[:-1], more):
        with pytest.raises(ValueError, match=f"bits and {len(elements)} elements don't fit"):
            with_zeros(bits, elements, 12)
    for count in (8, 17):
        with pytest.raises(ValueError, match=f"bits of 16 channels, expected {count}"):
            with_zeros(bits, found, count)
    bits[0, 0, 1] |= 0x80  # channel 15 of 12
    with pytest.raises(ValueError, match="don't fit each other"):
        with_zeros(bits, more, 12)


# -- files -----------------------------------------------------------------------------------------


def maps_of(kind: str) -> list[torch.Tensor]:
    rng = np.random.default_rng(1)
    made = [rng.normal(size=(12, 6, 9)), rng.normal(size=(12, 8, 11))]
    if kind != "signed":
        made = [np.maximum(m - 0.8, 0) for m in made]
    return [torch.from_numpy(m.astype(np.float32)) for m in made]


@pytest.mark.parametrize("eight_bits", [False, True])
@pytest.mark.parametrize("kind", ["signed", "after a ReLU"])
def test_tensors_of_a_file(kind: str, eight_bits: bool) -> None:
    given = maps_of(kind)
    given[0][0, 0, 0] = -0.0
    rounded: list[RoundedMap] = [to_eight_bits(m) if eight_bits else m.half() for m in given]
    factors = np.array([0.5, 1.25])
    named = to_tensors(rounded, factors)
    extra = {"steps0", "steps1", "zeros0", "zeros1"} if eight_bits else set()
    bits = {"bits0", "bits1"} if kind != "signed" else set()
    assert named.keys() == {"scale_factors", "map0", "map1"} | extra | bits
    found = types_of(named)
    assert (
        misfit(found, expected_types(found, scales=2, channels=12, eight_bits=eight_bits)) is None
    )
    for other in (
        expected_types(found, scales=2, channels=12, eight_bits=not eight_bits),
        expected_types(found, scales=1, channels=12, eight_bits=eight_bits),
        expected_types(found, scales=2, channels=20, eight_bits=eight_bits),
    ):
        assert misfit(found, other) is not None
    again, scale_factors = from_tensors(named, 12)
    assert np.array_equal(scale_factors, factors)
    for ours, theirs in zip(again, rounded, strict=True):
        assert isinstance(ours, EightBitMap) == eight_bits
        a, b = ours.half().contiguous(), theirs.half().contiguous()
        assert a.numpy().tobytes() == b.numpy().tobytes()  # to the sign of -0
    dense = sum(m.numel() * (1 if eight_bits else 2) for m in given)
    stored = sum(t.nbytes for name, t in named.items() if name[:3] in ("map", "bit"))
    nonzero = sum(int((m.half() != 0).sum()) for m in rounded)
    if kind == "signed":
        assert stored == dense
    else:
        cells = 6 * 9 + 8 * 11
        negative_zero = 0 if eight_bits else 1
        assert stored == (nonzero + negative_zero) * (1 if eight_bits else 2) + 2 * cells < dense

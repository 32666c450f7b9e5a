"""Named streams: pinned values, no two names alike, torch's own generators left as they were."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

import sppdet
from sppdet.randomness import rng, torch_stream


def test_values_are_pinned() -> None:
    """Another value would change every trained model: raise the stages' VERSIONs if it must be."""
    assert rng(0, "proposal ranking", 7).integers(10**6, size=4).tolist() == [
        182176,
        852824,
        232334,
        22895,
    ]
    with torch_stream(3, "initial fully connected layers"):
        assert torch.randint(10**6, (4,)).tolist() == [951004, 931566, 669580, 524522]


def test_the_same_in_another_process() -> None:
    code = "from sppdet.randomness import rng; print(rng(5, 'a', 2).integers(2**62))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(said.stdout) == rng(5, "a", 2).integers(2**62)


def test_no_two_names_are_alike() -> None:
    """Neither a shift of seed and number, nor zeros at the end, nor another purpose."""
    names = [
        (seed, purpose, numbers)
        for seed in range(3)
        for purpose in ("a", "b", "a 0")
        for numbers in [(), (0,), (0, 0), (1,), (1, 0), (0, 1), (2,), (-1,), (2**64,)]
    ]
    drawn = [tuple(rng(s, p, *n).integers(2**62, size=2).tolist()) for s, p, n in names]
    assert len(set(drawn)) == len(names)
    for k in range(1, 5):  # class k at seed s, class k - 1 at seed s + 1
        assert rng(8, "classes", k).random() != rng(9, "classes", k - 1).random()


def test_streams_are_independent() -> None:
    """Correlations of 60 streams of 2,000 numbers are those of chance, 1/√2000 in deviation."""
    streams = [rng(seed, purpose, k) for seed in (0, 1) for purpose in "ab" for k in range(15)]
    values = np.stack([stream.standard_normal(2000) for stream in streams])
    found = [float(np.corrcoef(a, b)[0, 1]) for a, b in combinations(values, 2)]
    assert len(found) == 1770
    assert np.std(found) == pytest.approx(2000**-0.5, rel=0.1)
    assert np.abs(found).max() < 5 * 2000**-0.5


def test_numbers_of_numpy_are_numbers() -> None:
    assert rng(np.int64(1), "a", np.int64(2)).random() == rng(1, "a", 2).random()
    with pytest.raises(TypeError):
        rng(0, "a", 1.0)  # type: ignore[arg-type]


def test_torch_streams_leave_no_trace() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    with torch_stream(0, "a"):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with torch_stream(0, "a"):
        assert torch.equal(torch.rand(3), first)
    with torch_stream(0, "b"):
        assert not torch.equal(torch.rand(3), first)


def calls_in_the_package() -> Iterator[tuple[str, ast.Call]]:
    """(file, call) of every call in the package's sources."""
    root = Path(sppdet.__file__).parent
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path.relative_to(root).as_posix(), node


def test_nothing_else_makes_generators() -> None:
    """All of the package's random numbers come from named streams, but for those of the demo set.

    Its images must not change, so that scores on it can be compared.
    """
    makers = {"default_rng", "manual_seed", "RandomState", "SeedSequence", "seed", "fork_rng"}
    found = {
        file
        for file, call in calls_in_the_package()
        if isinstance(call.func, ast.Attribute) and call.func.attr in makers
    }
    assert found == {"randomness.py", "demo/set.py"}


def test_purposes_are_used_once() -> None:
    """Two places with one purpose would draw the same numbers."""
    purposes = [
        ast.unparse(call.args[1])
        for file, call in calls_in_the_package()
        if isinstance(call.func, ast.Name)
        and call.func.id in ("rng", "torch_stream")
        and file != "randomness.py"
    ]
    assert len(purposes) >= 17
    assert len(set(purposes)) == len(purposes)

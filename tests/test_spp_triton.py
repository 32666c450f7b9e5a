"""The GPU kernel, run by Triton's interpreter on the CPU, against the CPU's loop."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from sppdet.features import spp

pytest.importorskip("triton", reason="Triton isn't installed")

# the interpreter has to be on before Triton is first imported, which other tests may have done
PROGRAM = """
import numpy as np
import torch
from interpreter import mend_interpreter
from sppdet.features.spp import spp_windows
from sppdet.features.spp_triton import WindowPooling, pool_into, try_out

mend_interpreter()
try_out(torch.device("cpu"))
rng = np.random.default_rng(0)
for channels, height, width in ((5, 7, 8), (300, 2, 3)):
    corners = rng.integers(0, [width, height], (2, 3, 2))
    windows = np.hstack([corners.min(axis=0), corners.max(axis=0)])
    for levels in ((6, 3), (2, 1)) if channels == 5 else ((2,),):
        for dtype in (torch.float32, torch.float16):
            feature_map = torch.from_numpy(rng.normal(size=(channels, height, width))).to(dtype)
            if channels == 5:
                feature_map = feature_map.round()  # with ties
            expected = spp_windows(feature_map, windows, levels)
            rows = torch.full((5, expected.shape[1]), 7.0)
            pool_into(rows[1:4], feature_map, windows, levels)
            assert torch.equal(rows[1:4], expected)
            pool_into(rows[4:4], feature_map, windows[:0], levels)
            assert (rows[[0, 4]] == 7).all()
        a, b = (feature_map.float().clone().requires_grad_() for _ in range(2))
        gradient = torch.from_numpy(rng.normal(size=tuple(expected.shape))).float()
        WindowPooling.apply(a, windows, levels).backward(gradient)
        spp_windows(b, windows, levels).backward(gradient)
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)
# a length that float32 divides into bins of a cell too many
line = torch.arange(62.0)[None, None] * torch.tensor([1.0, -1.0]).view(2, 1, 1)
windows = np.array([[3, 0, 59, 0]])
rows = torch.empty((1, 98))
pool_into(rows, line, windows, (7,))
assert torch.equal(rows, spp_windows(line, windows, (7,)))
print("same")
"""


def test_the_kernel_equals_the_loop() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "same"


def test_torch_pools_where_triton_does_not_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a machine without a C compiler."""

    def try_out(device: torch.device) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

    monkeypatch.setattr("sppdet.features.spp_triton.try_out", try_out)
    spp._has_triton.cache_clear()
    assert not spp._has_triton(torch.device("cpu"))
    assert not spp._has_triton(torch.device("cpu"))  # is tried once
    spp._has_triton.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "SPP by torch alone, which is slower: Triton can't be used: Failed to find C compiler."
    ]

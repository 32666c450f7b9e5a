"""The first use of a fresh environment: what is compiled, and how often."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SEARCH_IN_THREADS = """
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
import sys, numpy as np, torch
from numba.core import event
from sppdet import selective_search
from sppdet.features.spp import multiply_windows, spp_windows

compiled = Counter()

class Listener(event.Listener):
    def on_start(self, event):
        function = event.data["dispatcher"].py_func
        compiled[f"{function.__module__}.{function.__name__}"] += 1
    def on_end(self, event):
        pass

event.register("numba:compile", Listener())

def use(seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (3, 4, 3 if seed else 1)).astype(np.uint8)
    selective_search(np.tile(image.repeat(40, 0).repeat(40, 1), (1, 1, 1 if seed else 3)))
    features = torch.from_numpy(rng.random((8, 9, 9), np.float32)).to(getattr(torch, sys.argv[1]))
    corners = np.sort(rng.integers(0, 9, (40, 2, 2)), axis=1).reshape(40, 4)[:: 1 + seed % 2]
    multiply_windows(features, corners, (2, 1), torch.ones(2, 40))
    spp_windows(features, corners, (2, 1))

with ThreadPoolExecutor(4) as threads:
    list(threads.map(use, range(4)))
for name, count in sorted(compiled.items()):
    print(name, count)
"""


@pytest.mark.parametrize("maps", ["float16", "float32"])
def test_every_loop_is_compiled_once(maps: str, tmp_path: Path) -> None:
    """Each for one set of types, in one of several threads, and none of numba's own functions."""
    found = subprocess.run(
        [sys.executable, "-c", SEARCH_IN_THREADS, maps],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    counts = dict(line.split() for line in found.splitlines())
    assert {"1"} == set(counts.values()), found
    assert all(name.startswith("sppdet.") for name in counts), found
    assert {"sppdet.proposals.grouping._merge", "sppdet.features.spp_loops._pool"} <= set(counts)

"""The pooling of windows on a GPU, and its gradients, against the CPU's loop."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import before_torch  # noqa: F401
import numpy as np
import torch
from bounds import BeyondBound, Compared, is_small, name_of
from numpy.typing import NDArray
from rows import Outcome

from sppdet.features import spp
from sppdet.features.levels import spp_width
from sppdet.features.spp import spp_windows

LEVELS = (6, 3, 2, 1)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
GRADIENT_BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
CPU = torch.device("cpu")


def engine(device: torch.device) -> str:
    """Say what pools on the side of the GPU; Triton's interpreter stands in for it on a CPU.

    Raises:
        BeyondBound: Triton is installed, but doesn't work on this GPU.
    """
    there = importlib.util.find_spec("triton") is not None
    if device.type == "cpu":
        interpreted = there and os.environ.get("TRITON_INTERPRET") == "1"
        return "Triton's interpreter" if interpreted else "roi_pool"
    if there and not spp._has_triton(device):
        raise BeyondBound("Triton is installed, but can't be used on this GPU")
    return "Triton" if there else "roi_pool"


def pooled_there(
    feature_map: torch.Tensor, windows: NDArray[np.int64], levels: tuple[int, ...]
) -> torch.Tensor:
    """Pool windows by what `engine` says, with a gradient where the map requires one."""
    if feature_map.device.type != "cpu":
        return spp_windows(feature_map, windows, levels)
    if engine(feature_map.device) == "roi_pool":
        return spp._by_roi_pool(feature_map, windows, levels)
    from sppdet.features import spp_triton

    if feature_map.requires_grad:
        result: torch.Tensor = spp_triton.WindowPooling.apply(feature_map, windows, levels)
        return result
    out = torch.full((len(windows), spp_width(feature_map.shape[0], levels)), torch.nan)
    spp_triton.pool_into(out, feature_map, windows, levels)
    return out


def windows_of(width: int, height: int, count: int) -> NDArray[np.int64]:
    """(count, 4) random windows, the whole map and a single cell among them."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, [width, height], (count, 2, 2))
    windows = np.hstack([corners.min(axis=1), corners.max(axis=1)])
    windows[0] = (0, 0, width - 1, height - 1)
    windows[1, 2:] = windows[1, :2]
    return windows.astype(np.int64)


def maps_of(shapes: list[tuple[int, int, int]], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Random maps (C, H, W), with ties."""
    torch.manual_seed(0)
    for shape in shapes:
        yield torch.randn(shape).round(decimals=1).to(dtype)


def check_pooling(device: torch.device) -> Outcome:
    """Pool windows of several maps in three types."""
    small = is_small(device)
    shapes = [(5, 7, 8), (3, 1, 1)] if small else [(256, 43, 65), (300, 121, 7), (3, 1, 1)]
    levels = (3, 2, 1) if small else LEVELS
    compared = Compared()
    for dtype in DTYPES:
        for feature_map in maps_of(shapes, dtype):
            channels, height, width = feature_map.shape
            windows = windows_of(width, height, 5 if small else 200)
            there = pooled_there(feature_map.to(device), windows, levels)
            here = spp_windows(feature_map, windows, levels)
            compared.add(f"{name_of(dtype)}, {channels}×{height}×{width}", there, here, 0.0)
    return compared.outcome(f"; {engine(device)}")


def check_gradients(device: torch.device) -> Outcome:
    """Send gradients back through the pooling, in three types."""
    small = is_small(device)
    shape, levels = ((5, 7, 8), (2, 1)) if small else ((64, 30, 40), LEVELS)
    compared = Compared()
    for dtype in DTYPES:
        (start,) = maps_of([shape], dtype)
        windows = windows_of(shape[2], shape[1], 4 if small else 150)
        given = torch.randn(len(windows), spp_width(shape[0], levels))
        found = []
        for pool, where in ((spp_windows, CPU), (pooled_there, device)):
            leaf = start.to(where).detach().clone().requires_grad_()
            pool(leaf, windows, levels).backward(given.to(where))
            assert leaf.grad is not None
            found.append(leaf.grad)
        compared.add(name_of(dtype), found[1], found[0], GRADIENT_BOUNDS[dtype])
    return compared.outcome(f"; {engine(device)}")

"""A GPU against the CPU: kernels, maps, training and detection. Skipped where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sppdet import Detector, load_config, train
from sppdet.boxes import box_iou
from sppdet.features.spp import spp_windows
from sppdet.io.images import find_images

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

LEVELS = (6, 3, 2, 1)


def windows_of(
    width: int, height: int, count: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """(count, 4) random windows, the whole map and single cells among them."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, [width, height], (count, 2, 2))
    windows = np.hstack([corners.min(axis=1), corners.max(axis=1)])
    windows[0] = (0, 0, width - 1, height - 1)
    windows[1, 2:] = windows[1, :2]
    return windows.astype(np.int64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("channels", "width", "height"), [(256, 65, 43), (300, 7, 121), (3, 1, 1)])
def test_pooling_equals_the_cpus(
    dtype: torch.dtype, channels: int, width: int, height: int
) -> None:
    torch.manual_seed(0)
    feature_map = torch.randn(channels, height, width).to(dtype)
    windows = windows_of(width, height, 200)
    expected = spp_windows(feature_map, windows, LEVELS)
    assert torch.equal(spp_windows(feature_map.cuda(), windows, LEVELS).cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients_equal_the_cpus(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    start = torch.randn(64, 30, 40).round(decimals=1).to(dtype)  # with ties
    windows = windows_of(40, 30, 150)
    found = []
    for device in ("cpu", "cuda"):
        feature_map = start.to(device).detach().clone().requires_grad_()
        pooled = spp_windows(feature_map, windows, LEVELS)
        torch.manual_seed(1)
        pooled.backward(torch.randn(tuple(pooled.shape)).to(device))
        assert feature_map.grad is not None and feature_map.grad.dtype == dtype
        found.append(feature_map.grad.cpu().float())
    bound = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found[1], found[0], rtol=bound, atol=10 * bound)


def train_on(device: str, settings: Path, run: Path, *overrides: str) -> float:
    result = train(load_config(settings, overrides), run, device=device)
    assert result is not None
    return result.mean_ap


def test_training_and_detection_equal_the_cpus_in_float32(
    settings: Path, demo_root: Path, tmp_path: Path
) -> None:
    """Without fine-tuning nothing but rounding differs."""
    exact = ("head=none", "features.precision=float32")
    torch.backends.cudnn.allow_tf32 = False
    try:
        scores = [train_on(d, settings, tmp_path / d, *exact) for d in ("cpu", "cuda")]
        assert scores[1] == pytest.approx(scores[0], abs=0.02)
        detectors = [Detector.load(tmp_path / "cpu", device=d) for d in ("cpu", "cuda")]
        for path in find_images([demo_root / "JPEGImages"])[:4]:
            a, b = (detector(path) for detector in detectors)
            best = min(10, len(a), len(b))
            assert len(a) > 0 and abs(len(a) - len(b)) <= 0.1 * len(a) + 1
            np.testing.assert_allclose(a.scores[:best], b.scores[:best], atol=0.02)
            assert box_iou(a.boxes[:best], b.boxes).max(axis=1).min() > 0.9
    finally:
        torch.backends.cudnn.allow_tf32 = True


def test_fine_tuning_on_a_gpu_learns(settings: Path, tmp_path: Path) -> None:
    """By the defaults of a GPU: half precision, maps in its memory."""
    scores = [train_on(d, settings, tmp_path / d) for d in ("cpu", "cuda")]
    assert scores[1] > scores[0] - 0.15

"""A GPU against the CPU: kernels, maps, training and detection. Skipped where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gpu_checks import CHECKS, Check

from sppdet import Detector, load_config, train
from sppdet.boxes import box_iou
from sppdet.io.finding import find_images

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_parts_equal_the_cpus(check: Check) -> None:
    """Pooling to the bit in three types, and its gradients, maps, fine-tuning, SVMs, regressors, scores."""
    check(torch.device("cuda"))


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

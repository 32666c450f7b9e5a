"""A GPU's arithmetic against the CPU's, part by part, each within a bound.

`tests/test_gpu.py` runs these where there is a GPU, `benchmarks/gpu.py` before it measures. On a CPU the
same code compares the CPU with itself, and Triton's kernels by its interpreter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import before_torch  # noqa: F401
import numpy as np
import torch
from bounds import BeyondBound, Compared, exact, is_small, name_of
from gpu_pooling import CPU, LEVELS, check_gradients, check_pooling
from rows import Outcome

from sppdet.boxes import box_iou, encode_deltas
from sppdet.config import DetectConfig, FeaturesConfig
from sppdet.detection.detect import (
    Classifiers,
    DetectionParts,
    Regressors,
    ScoredProposals,
    score,
    suppress,
)
from sppdet.features.backbones import Backbone
from sppdet.features.head import Head, build_head
from sppdet.features.levels import spp_width
from sppdet.features.regions import FeatureExtractor
from sppdet.io.backbone_weights import load_backbone
from sppdet.parallel import compute_type
from sppdet.training.bbox import BoxRegression
from sppdet.training.descent import Problem
from sppdet.training.dual import solve
from sppdet.training.finetune import FineTuner
from sppdet.training.finetune_images import ImageTuner, TrainingImage
from sppdet.training.finetune_windows import Pool
from sppdet.training.liblinear import svm_objective
from sppdet.training.pool import Pool as Examples
from sppdet.training_config import BboxConfig, FinetuneConfig, HeadConfig, SvmConfig
from sppdet.types import Boxes, ImageArray, Proposals

Check = Callable[[torch.device], Outcome]


def backbone_on(device: torch.device) -> tuple[Backbone, Backbone]:
    """The same random layers on the CPU and on the device."""
    here = load_backbone("tiny" if is_small(device) else "alexnet", "none")
    return here, replace(here, layers=copy.deepcopy(here.layers).to(device))


def noise(width: int, height: int, seed: int = 0) -> ImageArray:
    """(height, width, 3) blocks of random colours."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (height // 10 + 1, width // 10 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(10, axis=0).repeat(10, axis=1)[:height, :width])


def check_maps(device: torch.device) -> Outcome:
    """Compute an image's maps at two scales, in float32 and in the type that a GPU takes by default."""
    here, there = backbone_on(device)
    scales = [96, 160] if is_small(device) else [480, 688]
    scaled = here.scaled(noise(250, 180), scales, FeaturesConfig())
    compared = Compared()
    half = torch.bfloat16 if is_small(device) else compute_type(FeaturesConfig().precision, device)
    with exact(), torch.inference_mode():
        expected = here.feature_maps(scaled, torch.float32)
        for precision, bound in ((torch.float32, 1e-4), (half, 3e-2)):
            found = there.feature_maps(scaled, precision)
            for scale, a, b in zip(scales, found.maps, expected.maps, strict=True):
                compared.add(f"{name_of(precision)}, {scale} px", a, b, bound)
    return compared.outcome()


def made_boxes(count: int, width: int, height: int) -> Boxes:
    """(count, 4) random boxes of 20 pixels a side or more."""
    rng = np.random.default_rng(1)
    low = rng.uniform(0, [width - 21, height - 21], (count, 2))
    high = low + 20 + rng.random((count, 2)) * ([width - 20, height - 20] - low)
    return np.hstack([low, high]).astype(np.float32)


def made_pool(windows: int, width: int, classes: int) -> Pool:
    """Random pooled windows, a quarter of them positives."""
    torch.manual_seed(1)
    labels = np.where(np.arange(windows) % 4 == 0, np.arange(windows) // 4 % classes + 1, 0)
    return Pool(torch.rand(windows, width), labels, np.arange(windows))


def check_fine_tuning(device: torch.device) -> Outcome:
    """Train fc6 and fc7 on the same batches in float32."""
    width, hidden = (60, 12) if is_small(device) else (3200, 512)
    config = FinetuneConfig(batches=1000, batch_size=64, lr=0.01, mixed_precision=False)
    pool = made_pool(512, width, 5)
    torch.manual_seed(2)
    start = Head(width, [hidden, hidden], 6, dropout=0.0)
    tuned = []
    with exact():
        for where in (CPU, device):
            head = copy.deepcopy(start).to(where)
            tuner = FineTuner(head, config, None, seed=0)
            tuner.train_on(replace(pool, features=pool.features.to(where)))
            tuned.append(head)
    compared = Compared()
    _compare_changes(compared, start, *tuned, bound=1e-3)
    return compared.outcome(f"; {tuner.progress.batch} batches")


def made_training_images(count: int, side: int, windows: int, classes: int) -> list[TrainingImage]:
    """Images of 1.5 × `side` by `side` pixels with random windows, a quarter of them positives."""
    images = []
    for seed in range(count):
        pixels = torch.from_numpy(noise(3 * side // 2, side, seed))
        boxes = made_boxes(windows, 3 * side // 2, side)
        labels = np.where(np.arange(windows) % 4 == 0, np.arange(windows) // 4 % classes + 1, 0)
        images.append(TrainingImage(pixels, 1.0, boxes, labels, boxes))
    return images


def check_fine_tuning_on_images(device: torch.device) -> Outcome:
    """Train convolutional layers and head through the pyramid in float32."""
    here, there = backbone_on(device)
    before = copy.deepcopy(here.layers)
    levels = (2, 1)
    images = made_training_images(2, 100 if is_small(device) else 320, 32, 3)
    config = FinetuneConfig(
        sampling="images", layers="all", mixed_precision=False, lr=1e-2, box_loss=0.5
    )
    settings = HeadConfig(widths=[32], dropout=0.0)
    start = build_head(here, levels, settings, outputs=4, seed=0, boxes=True)
    heads = []
    with exact():
        for where, backbone in ((CPU, here), (device, there)):
            heads.append(copy.deepcopy(start).to(where))
            tuner = ImageTuner(backbone, heads[-1], levels, config, seed=0)
            for _ in range(3):
                tuner.step(images, 64)
    compared = Compared()
    # a cell that is a maximum by the last bit may hand its gradient to another
    _compare_changes(compared, before, here.layers, there.layers, bound=2e-2)
    _compare_changes(compared, start, *heads, bound=2e-2)
    return compared.outcome("; 3 batches")


def _compare_changes(
    compared: Compared,
    before: torch.nn.Module,
    here: torch.nn.Module,
    there: torch.nn.Module,
    *,
    bound: float,
) -> None:
    """Compare what training has added to the weights."""
    others = dict(here.named_parameters()), dict(there.named_parameters())
    for name, start in before.named_parameters():
        a, b = (weights[name].detach().cpu() - start.detach() for weights in others)
        compared.add(name, b, a, bound)


def check_svms(device: torch.device) -> Outcome:
    """Solve the SVMs of several classes to a small gap."""
    from svm import made_features

    shape = (300, 60, 3, 40) if is_small(device) else (3000, 1024, 8, 100)
    x, labels = made_features(*shape, nonzero=0.36, seed=0)
    config = SvmConfig(tolerance=1e-4)
    found = []
    for where in (CPU, device):
        pool = Examples(shape[1], device=where)
        rows = pool.add(torch.from_numpy(x), [(i, 0) for i in range(len(x))])
        problems = [Problem.of(rows[labels == k], rows[labels != k]) for k in range(shape[2])]
        found.append([fit.svm for fit in solve(pool, problems, config, seed=0)])
    compared = Compared()
    for k, (here, there) in enumerate(zip(*found, strict=True)):
        p, n = x[labels == k], x[labels != k]
        values = [svm_objective(s.weight, s.bias, p, n, config) for s in (there, here)]
        a, b = torch.tensor(values[:1]), torch.tensor(values[1:])
        compared.add(f"objective of class {k}", a, b, 3e-4)
        a, b = (torch.from_numpy(s.weight) for s in (there, here))
        compared.add(f"weights of class {k}", a, b, 5e-2)
    return compared.outcome()


def check_box_regression(device: torch.device) -> Outcome:
    """Fit box regressors, by rows and by columns of the features."""
    compared = Compared()
    for count, width in ((80, 200), (200, 80)) if is_small(device) else ((900, 3200), (3200, 900)):
        torch.manual_seed(3)
        x = torch.rand(count, width) - 0.5
        boxes = made_boxes(2 * count, 400, 300)
        targets = encode_deltas(boxes[:count], boxes[:count] * 0.9 + boxes[count:] * 0.1)
        fits = []
        for where in (CPU, device):
            pool = Examples(width, device=where)
            rows = pool.add(x, [(i, 0) for i in range(count)])
            fits.append(BoxRegression(pool, rows, targets, BboxConfig(ridge=10.0)).fit())
        a, b = (torch.from_numpy(fit.weight) for fit in fits)
        compared.add(f"{count:,} × {width:,}", b, a, 1e-3)
    return compared.outcome()


def check_detection(device: torch.device) -> Outcome:
    """Score windows and keep the best by NMS, on the same layers in float32."""
    backbones = backbone_on(device)
    image = noise(500, 350)
    proposals = Proposals(made_boxes(400, 500, 350))
    scales = [160] if is_small(device) else [480, 688]
    scaled = backbones[0].scaled(image, scales, FeaturesConfig())
    width = spp_width(backbones[0].channels, LEVELS)
    torch.manual_seed(4)
    weights, moves = torch.randn(4, width), 0.01 * torch.randn(4, width, 4)
    settings = FeaturesConfig(precision="float32")
    scored: list[ScoredProposals] = []
    with exact(), torch.inference_mode():
        for backbone, where in zip(backbones, (CPU, device), strict=True):
            maps = backbone.feature_maps(scaled, torch.float32)
            if not scored:
                unit = 1 / max(float(m.abs().max()) for m in maps.maps) / width**0.5
            parts = DetectionParts(
                ("a", "b", "c", "d"),
                FeatureExtractor.by(LEVELS, settings, None, where),
                Classifiers("pool5", weights.to(where) * unit, torch.zeros(4, device=where)),
                Regressors("pool5", moves.to(where) * unit, torch.zeros(4, 4, device=where)),
                DetectConfig(),
            )
            scored.append(score(parts, maps, proposals, width=500))
    compared = Compared()
    b, a = (torch.from_numpy(s.scores) for s in scored)
    compared.add("scores", a, b, 1e-3)
    here, there = (suppress([s], DetectConfig(), width=500, height=350) for s in scored)
    best = min(20, len(here), len(there))
    if not best or abs(len(here) - len(there)) > 0.02 * len(here) + 1:
        raise BeyondBound(f"NMS: {len(there)} detections, on the CPU {len(here)}")
    b, a = (torch.from_numpy(d.scores[:best]) for d in (here, there))
    compared.add("scores after NMS", a, b, 1e-3)
    same = here.labels[:best, None] == there.labels
    iou = torch.from_numpy((same * box_iou(here.boxes[:best], there.boxes)).max(axis=1))
    compared.add("IoU of boxes after NMS", iou, torch.ones(best, dtype=iou.dtype), 0.05)
    return compared.outcome(f"; {len(here)} detections")


CHECKS: dict[str, Check] = {
    "check: pooling": check_pooling,
    "check: gradients of pooling": check_gradients,
    "check: maps": check_maps,
    "check: fine-tuning of fc": check_fine_tuning,
    "check: fine-tuning through the pyramid": check_fine_tuning_on_images,
    "check: SVMs": check_svms,
    "check: box regression": check_box_regression,
    "check: scores, NMS, box regression": check_detection,
}

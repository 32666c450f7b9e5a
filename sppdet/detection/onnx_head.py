"""Build one ONNX model of what follows pooling: from pooled vectors to scores and box deltas."""

from __future__ import annotations

import torch
from torch import nn

from sppdet.detection.detect import TINY, DetectionParts
from sppdet.features.onnx_export import to_onnx
from sppdet.training_config import Layer

_NEAR = -0.5  # log of a probability from which its complement is computed by the series
_TERMS = 9  # whose error is 1e-9 there


class PooledScores(nn.Module):
    """Fully connected layers, classifiers, box regressors and the ranking as one module.

    Its parts must be on the CPU.
    """

    def __init__(self, parts: DetectionParts) -> None:
        super().__init__()
        self.head = parts.extractor.head
        self.classifiers = parts.classifiers
        self.regressors = parts.regressors
        self.ranking = parts.ranking
        self.levels = parts.extractor.levels

    def _features(self, pooled: torch.Tensor, layer: Layer) -> torch.Tensor:
        if layer == "pool5" or self.head is None:
            return pooled
        return self.head.features(pooled, layer)

    def forward(self, pooled: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute scores (N, K) and box deltas (N, K, 4) of vectors (N, D); deltas 0 without regression.

        With a ranking the third result is the IoU (N,) that it estimates.
        """
        c, r = self.classifiers, self.regressors
        linear = self._features(pooled, c.layer) @ c.weights.T + c.biases
        scores = linear if c.kind == "svm" else _log_odds(linear)
        deltas = torch.zeros_like(scores)[:, :, None].expand(-1, -1, 4)
        if r is not None:
            flat = self._features(pooled, r.layer) @ r.rows.flatten(0, 1).T + r.biases.flatten()
            deltas = flat.view(-1, len(r.biases), 4)
        if self.ranking is None:
            return scores, deltas
        return scores, deltas, self.ranking.of_pooled(pooled, self.levels)


def _log_odds(linear: torch.Tensor) -> torch.Tensor:
    """Compute log p − log(1 − p) of the classes of a softmax, whose first column is the background.

    ONNX has no expm1: where p is large, 1 − p is the series of 1 − exp(x) in x = log p.
    """
    log_p = torch.log_softmax(linear, dim=1)[:, 1:].clamp(max=-TINY)
    near = log_p.clamp(min=_NEAR)
    series = torch.ones_like(near)
    for n in range(_TERMS, 1, -1):  # expm1(x) = x (1 + x/2 (1 + x/3 (...)))
        series = 1 + near * series / n
    rest = torch.where(log_p > _NEAR, -near * series, 1 - torch.exp(log_p))
    return log_p - torch.log(rest)


def head_to_onnx(parts: DetectionParts, *, width: int) -> bytes:
    """Export what follows pooling: `pooled` (N, width) → `scores` (N, K), `deltas` (N, K, 4).

    With a ranking there is a third output, `iou` (N,).

    Raises:
        Exception: torch can't export it; errors of many kinds.
    """
    module = PooledScores(parts).eval()
    outputs = ("scores", "deltas") if module.ranking is None else ("scores", "deltas", "iou")
    return to_onnx(
        module,
        torch.zeros(2, width),
        given={"pooled": {0: "windows"}},
        made={name: {0: "windows"} for name in outputs},
    )

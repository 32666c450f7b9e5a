"""The ranking of windows: ridge regression from coarse features to IoU."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.boxes import box_iou
from sppdet.features.regions import Windows
from sppdet.types import Boxes

VERSION = 1  # raise it when the same settings give other weights

_RIDGE = 1e-2  # of the mean square of a feature


def nearest_iou(windows: Windows, boxes: Boxes, gt_boxes: Boxes) -> NDArray[np.float64]:
    """Compute the largest IoU (U,) that a proposal of each window has with an object of any class."""
    found = np.zeros(len(windows))
    if len(gt_boxes):
        np.maximum.at(found, windows.index, box_iou(boxes, gt_boxes).max(axis=1))
    return found


def fit_ranking(
    parts: Iterable[tuple[torch.Tensor, torch.Tensor]], *, width: int
) -> tuple[torch.Tensor, float]:
    """Fit IoU by ridge regression, with a constant that isn't regularised.

    Only the normal equations are kept in memory, so that any number of windows can pass by.

    Args:
        parts: features (n, width) float32 and IoUs (n,), of one image after another.

    Returns:
        weights (width,) float32 and bias.
    """
    gram = torch.zeros(width + 1, width + 1, dtype=torch.float64)
    target = torch.zeros(width + 1, dtype=torch.float64)
    for features, iou in parts:
        x = torch.cat([features.double(), features.new_ones(len(features), 1).double()], dim=1)
        gram += x.T @ x
        target += x.T @ iou.double()
    gram.diagonal()[:-1] += _RIDGE * float(gram.diagonal()[:-1].mean())
    gram.diagonal()[:] += torch.finfo(torch.float64).tiny  # solvable without a window, too
    solution = torch.linalg.solve(gram, target)
    return solution[:-1].float(), float(solution[-1])

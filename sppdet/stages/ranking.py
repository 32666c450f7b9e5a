"""The ranking stage: learn which windows are worth all levels of the pyramid."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from sppdet.detection.ranking import Ranking, coarse_levels
from sppdet.features.levels import spp_width
from sppdet.features.regions import pool_windows
from sppdet.randomness import rng
from sppdet.stages.context import Context
from sppdet.stages.model import save_ranking
from sppdet.stages.training_data import Sample, TrainingData
from sppdet.training.processes import Tensors
from sppdet.training.ranking import fit_ranking, nearest_iou

RANKING_IMAGES, _WINDOWS = 200, 300  # images, and windows of each, that the ranking is fitted to


def train_ranking(context: Context) -> bool:
    """Fit the ranking of windows where the settings ask for one; returns False if there was none to fit."""
    path = context.files.ranking
    if context.config.detect.max_windows is None:
        if context.ranks.is_first:
            path.unlink(missing_ok=True)
        return False
    if not context.is_due("ranking"):
        return False
    ranking = fitted(context.training_data)
    if context.ranks.is_first:
        save_ranking(path, ranking, made_by=context.plan.made_by["ranking"])
    return True


def fitted(data: TrainingData) -> Ranking:
    """Fit a ranking to windows of training images."""
    levels = coarse_levels(data.extractor.levels)

    def examples(sample: Sample) -> Tensors:
        boxes = sample.proposals.boxes
        windows = data.extractor.windows(sample.maps, boxes)
        iou = nearest_iou(windows, boxes, sample.image.gt_boxes)
        shuffled = rng(data.seed, "windows of the ranking", sample.position)
        rows = np.sort(shuffled.permutation(len(windows))[:_WINDOWS])
        pooled = pool_windows(sample.maps, windows.cells[rows], levels)
        return {"features": pooled.cpu(), "iou": torch.from_numpy(iou[rows])}

    def parts() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = rng(data.seed, "images of the ranking").permutation(len(data.dataset))
        chosen = np.sort(order[:RANKING_IMAGES]).tolist()
        for made in data.gather(chosen, examples, lambda made: made, label="ranking"):
            yield made["features"], made["iou"]

    weights, bias = fit_ranking(parts(), width=spp_width(data.maps.channels, levels))
    return Ranking(levels, weights, bias)

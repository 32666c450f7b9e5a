"""The windows that fine-tuning learns from: drawn from images, pooled, joined into pools."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sppdet.boxes import flip_boxes
from sppdet.config import FinetuneConfig
from sppdet.features.regions import find_windows
from sppdet.randomness import rng
from sppdet.stages.material import Material
from sppdet.training.finetune import Pool, draw_windows, pool_of
from sppdet.training.sampling import IGNORED, label_boxes
from sppdet.types import Boxes, Labels


class PoolMaker:
    """Pools of the material's windows; not for several threads at once.

    What may be drawn from an image is found out once and kept, 24 bytes a box, some 10 KB an image.
    """

    def __init__(self, material: Material, config: FinetuneConfig) -> None:
        self._material = material
        self._config = config
        self._candidates: dict[int, tuple[Boxes, Labels]] = {}

    def make(self, pairs: Sequence[tuple[int, bool]], *, salt: int) -> Pool:
        """The pool of images (position, mirrored).

        Args:
            salt: of the drawing, another for every pool.
        """
        material = self._material
        ranks, maps = material.ranks, material.maps
        width = material.extractor.width("pool5", maps.channels)
        features, labels = [], []
        for place, (position, mirrored) in enumerate(pairs):
            drawn = rng(material.seed, "fine-tuning windows", salt, place)
            boxes, of_all = self._candidates_of(position)
            rows = draw_windows(of_all, self._config, rng=drawn)
            # here an image is always the same process's, whose memory may have its maps
            if position % ranks.count == ranks.rank:
                pooled = self._pooled(position, boxes[rows], mirrored, rng=drawn)
            else:
                pooled = torch.empty((0, width), device=maps.device)
            features.append(pooled)
            labels.append(of_all[rows])
        return pool_of(features, labels)

    def _candidates_of(self, position: int) -> tuple[Boxes, Labels]:
        """An image's positives and negatives, the ground truth's own boxes among them."""
        found = self._candidates.get(position)
        if found is None:
            image = self._material.dataset.images[position]
            boxes = np.concatenate([self._material.proposals(position).boxes, image.gt_boxes])
            low, high = self._config.negative_iou
            labels = label_boxes(
                boxes, image, positive_iou=self._config.positive_iou, negative_iou=(low, high)
            )
            used = labels != IGNORED
            found = self._candidates[position] = boxes[used], labels[used]
        return found

    @torch.inference_mode(False)
    @torch.no_grad()
    def _pooled(
        self, position: int, boxes: Boxes, mirrored: bool, *, rng: np.random.Generator
    ) -> torch.Tensor:
        """(n, D) pool5 features of boxes (n, 4) of one image, or of its mirror image."""
        material = self._material
        image = material.dataset.images[position]
        maps = material.maps.of_image(image, mirrored=mirrored)
        if mirrored:
            boxes = flip_boxes(boxes, width=image.width)
        scales = None
        if self._config.scale == "random":
            scales = rng.integers(len(maps.maps), size=len(boxes))
        windows = find_windows(
            maps, boxes, canonical_size=material.extractor.canonical_size, scale_index=scales
        )
        pooled = material.extractor.pool(maps, windows.cells)
        return pooled[torch.from_numpy(windows.index).to(pooled.device, non_blocking=True)]

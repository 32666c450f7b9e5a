"""Fine-tuning on whole images: reads them, draws their windows, keeps checkpoints."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch

from sppdet.boxes import box_iou, flip_boxes
from sppdet.errors import ConfigError, TrainingError
from sppdet.features.geometry import scale_factor
from sppdet.features.head import Head, pretrained_fc, standardise
from sppdet.parallel import ordered_map
from sppdet.randomness import rng
from sppdet.resizing import Interpolation, resized
from sppdet.runs.progress import track
from sppdet.stages.context import Context
from sppdet.stages.training_data import TrainingData
from sppdet.stages.tuner_checkpoints import TunerCheckpoints
from sppdet.training.finetune import mean_square_of
from sppdet.training.finetune_images import ImageTuner, TrainingImage, WindowNetwork
from sppdet.training.finetune_windows import (
    draw_pool_images,
    draw_windows,
    label_windows,
    split_for_tuning,
)
from sppdet.training_config import FinetuneConfig
from sppdet.types import AnnotatedImage, Boxes, Labels

_START_IMAGES = 16  # whose windows a random head is fitted to


def finetune_images(context: Context, head: Head, config: FinetuneConfig, *, made_by: str) -> Head:
    """Fine-tune the backbone's layers and `head` in place; returns the head of the best snapshot.

    Args:
        made_by: fingerprint of the stage; a checkpoint of another one is ignored.
    """
    data, ranks, backbone = context.training_data, context.ranks, context.backbone
    training, held_out = split_for_tuning(config, len(data.dataset), seed=data.seed)
    size = min(config.batch_images, len(training))
    if ranks.count > size:
        raise ConfigError(
            f"finetune.batch_images: {size} for {ranks.count} processes; expected one image or more "
            "for each"
        )
    draw = WindowDrawer(
        data,
        config,
        scales=context.config.scales,
        max_side=context.config.features.max_side,
        interpolation=backbone.preprocessing.interpolation,
    )
    head.to(ranks.device)
    levels = context.config.spp_levels
    mean_square = 1.0
    assert context.config.head is not None
    if pretrained_fc(backbone, context.config.head) is None:
        # names often go by class: the first images would be of one
        order = rng(data.seed, "images that the head starts from").permutation(training)
        drawn = (draw.image(p, 0, -1, flip=False) for p in order.tolist())
        # images without objects may have no windows at all
        start = list(islice((image for image in drawn if len(image.labels)), _START_IMAGES))
        if not start:
            raise TrainingError(
                "finetune: no training image has a window; expected objects in some"
            )
        with torch.no_grad():
            pooled = WindowNetwork(backbone, head, levels).eval().pooled(start)
        standardise(head, pooled)
        mean_square = mean_square_of(pooled, ranks)
    tuner = ImageTuner(
        backbone,
        head,
        levels,
        config,
        seed=data.seed,
        processes=ranks,
        mean_square=mean_square,
    )
    checkpoints = TunerCheckpoints(data, tuner, made_by=made_by)
    own = ranks.share(held_out.tolist())

    def batch(number: int) -> list[TrainingImage]:
        pairs = draw_pool_images(training, number, config=config, seed=data.seed)
        return [draw.image(p, number, place, flip=f) for place, (p, f) in enumerate(pairs)]

    done = tuner.progress.batch
    numbers = range(done, config.batches)
    made = ordered_map(batch, numbers, workers=1, ahead=2)
    for images in track(made, total=config.batches, label="fine-tuning, batches", done=done):
        count = max(1, sum(len(image.labels) for image in images))
        share = images[ranks.rank :: ranks.count]
        held = (draw.image(p, 0, -1, flip=False) for p in own) if len(held_out) else None
        tuner.step(share, count, held)
        checkpoints.update()
    checkpoints.log_choice()
    tuner.take_best()
    return head


class WindowDrawer:
    """Reads training images, resizes them and draws their windows."""

    def __init__(
        self,
        data: TrainingData,
        config: FinetuneConfig,
        *,
        scales: list[int],
        max_side: int,
        interpolation: Interpolation,
    ) -> None:
        self._data = data
        self._config = config
        self._scales = scales
        self._max_side = max_side
        self._interpolation = interpolation
        self._labelled: dict[int, tuple[Boxes, Labels]] = {}

    def image(self, position: int, number: int, place: int, *, flip: bool) -> TrainingImage:
        """Draw the windows of an image of the training set.

        Args:
            number, place: of the batch and in it; they seed the draw. A `place` of -1 is that of
                images whose size isn't drawn.
        """
        data, config = self._data, self._config
        image = data.dataset.images[position]
        drawn = rng(data.seed, "windows of training images", number, place, position)
        if position not in self._labelled:
            proposals = data.proposals(position).boxes
            self._labelled[position] = label_windows(proposals, image, config)
        boxes, labels = self._labelled[position]
        rows = draw_windows(labels, config, rng=drawn)
        boxes, labels = boxes[rows], labels[rows]
        targets = _nearest_objects(boxes, labels, image)
        pixels = data.images.read(image.path)
        if flip:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
            boxes, targets = (flip_boxes(b, width=image.width) for b in (boxes, targets))
        factor = scale_factor(
            width=image.width,
            height=image.height,
            scale=self._side(drawn if place >= 0 else None),
            max_side=self._max_side,
        )
        small = torch.from_numpy(resized(pixels, factor, self._interpolation))
        return TrainingImage(small, factor, boxes, labels, targets)

    def _side(self, drawn: np.random.Generator | None) -> int:
        """Draw a shorter side; without a generator the middle one."""
        scales, interval = self._scales, self._config.image_scales
        if interval is not None:
            low, high = interval
            return int(drawn.integers(low, high, endpoint=True)) if drawn else (low + high) // 2
        return int(drawn.choice(scales)) if drawn else scales[len(scales) // 2]


def _nearest_objects(boxes: Boxes, labels: Labels, image: AnnotatedImage) -> Boxes:
    """Return for each positive its nearest object (n, 4), for background the box itself."""
    targets: Boxes = boxes.copy()
    positive = labels > 0
    if positive.any():
        nearest = box_iou(boxes[positive], image.gt_boxes).argmax(axis=1)
        targets[positive] = image.gt_boxes[nearest]
    return targets

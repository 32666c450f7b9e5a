"""The fine-tuning stage: from proposals and maps to a trained head, with checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count, takewhile

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.boxes import flip_boxes
from sppdet.features.head import Head, pretrained_fc, standardise
from sppdet.parallel import ordered_map
from sppdet.randomness import rng
from sppdet.runs.distributed import Ranks
from sppdet.runs.progress import track
from sppdet.stages.context import Context
from sppdet.stages.features import fill
from sppdet.stages.finetune_images import finetune_images
from sppdet.stages.map_cache import MapCache
from sppdet.stages.model import read_backbone, read_head, save_backbone, save_head
from sppdet.stages.training_data import TrainingData
from sppdet.stages.tuner_checkpoints import TunerCheckpoints
from sppdet.training.finetune import FineTuner, mean_square_of
from sppdet.training.finetune_windows import (
    Pool,
    draw_pool_images,
    draw_windows,
    join_windows,
    label_windows,
    pool_windows,
    split_for_tuning,
)
from sppdet.training_config import FinetuneConfig
from sppdet.types import Boxes, Labels

_MAX_VALIDATION_WINDOWS = 8192


def train_head(context: Context) -> bool:
    """Fine-tune the fully connected layers where that is asked for; returns False if they were there."""
    config, ranks, files = context.config, context.ranks, context.files
    initial, context.initial_head = context.initial_head, None  # freed once it is tuned in place
    if config.head is None or initial is None:
        if ranks.is_first:
            files.head.unlink(missing_ok=True)
        return True
    made_by, trained = context.plan.made_by["head"], True
    if config.finetune is None:
        if ranks.is_first and "head" in context.plan.due:
            save_head(files.head, initial.eval().requires_grad_(False), made_by=made_by)
    elif config.finetune.on_images:
        trained = context.is_due("head")
        if trained:
            tuned = finetune_images(context, initial, config.finetune, made_by=made_by)
            if ranks.is_first:
                if config.tunes_conv():
                    save_backbone(files.backbone, context.backbone, made_by=made_by)
                save_head(files.head, tuned, made_by=made_by)
    elif trained := context.is_due("head"):
        pretrained = pretrained_fc(context.backbone, config.head) is not None
        tuned = finetune(
            context.training_data, initial, config.finetune, pretrained=pretrained, made_by=made_by
        )
        if ranks.is_first:
            save_head(files.head, tuned, made_by=made_by)
    ranks.wait()  # the others read it
    if config.tunes_conv():
        _take_tuned_maps(context)
    classes = len(context.training_set.class_names)
    head = read_head(files.read("head"), context.backbone, config, classes=classes).to(ranks.device)
    context.training_data = context.training_data.with_head(head)
    return trained


def _take_tuned_maps(context: Context) -> None:
    """Read the tuned backbone, and compute its maps for the stages that are due."""
    config = context.config
    context.backbone = read_backbone(context.files.read("backbone"), config)
    context.backbone.layers.to(context.ranks.device)
    maps = MapCache(context.backbone, config.scales, config.features, context.images, context.store)
    context.training_data = replace(context.training_data, maps=maps)
    if context.reaches("svm"):
        fill(context, maps)


def finetune(
    data: TrainingData, head: Head, config: FinetuneConfig, *, pretrained: bool, made_by: str
) -> Head:
    """Fine-tune `head` on the training set's windows and return its best snapshot.

    Args:
        pretrained: whether fc6 and fc7 are; random ones are fitted to the first pool's windows.
        made_by: fingerprint of the stage; a checkpoint of another one is ignored.
    """
    training, held_out = split_for_tuning(config, len(data.dataset), seed=data.seed)
    head.to(data.maps.device)
    ranks = data.ranks
    tuner = FineTuner(
        head,
        config,
        _validation_pool(data, held_out, config),
        seed=data.seed,
        processes=ranks,
        mean_square=1.0 if pretrained else _fit_start(data, head, training, config),
    )
    checkpoints = TunerCheckpoints(data, tuner, made_by=made_by)
    ended, done = _train(data, tuner, training, config), tuner.progress.batch
    for pool_ended in track(ended, total=config.batches, label="fine-tuning, batches", done=done):
        if pool_ended:
            checkpoints.update()
    checkpoints.log_choice()
    return tuner.best_head()


def _train(
    data: TrainingData, tuner: FineTuner, training: NDArray[np.int64], config: FinetuneConfig
) -> Iterator[bool]:
    """Train pool by pool; yield once a batch, for a progress bar, and True where a pool ends."""
    pools = PoolMaker(data, config)

    def make(number: int) -> Pool:
        pairs = draw_pool_images(training, number, config=config, seed=data.seed)
        return pools.make(pairs, number=number)

    numbers = takewhile(lambda _: not tuner.finished, count(tuner.progress.pool))
    for pool in ordered_map(make, numbers, workers=1, ahead=1):
        if tuner.finished:
            break
        before = tuner.progress.batch
        tuner.train_on(pool)
        yield from [False] * (tuner.progress.batch - before - 1)
        yield True


class PoolMaker:
    """Builds pools of the training set's windows; not thread-safe.

    An image's candidate windows are cached: 24 bytes each, some 10 KB an image.
    """

    def __init__(self, data: TrainingData, config: FinetuneConfig) -> None:
        self._data = data
        self._config = config
        self._candidates: dict[int, tuple[Boxes, Labels]] = {}

    def make(self, pairs: Iterable[tuple[int, bool]], *, number: int) -> Pool:
        """Pool windows of images, given as (position, mirrored); `number` seeds the draw."""
        data, ranks = self._data, self._data.ranks
        width = data.extractor.width("pool5", data.maps.channels)
        features, labels = [], []
        for place, (position, mirrored) in enumerate(pairs):
            drawn = rng(data.seed, "fine-tuning windows", number, place)
            boxes, candidate_labels = self._candidates_of(position)
            rows = draw_windows(candidate_labels, self._config, rng=drawn)
            # an image is always the same process's, whose memory may have its maps
            if position % ranks.count == ranks.rank:
                pooled = self._pool(position, boxes[rows], mirrored, rng=drawn)
            else:
                pooled = torch.empty((0, width), device=data.maps.device)
            features.append(pooled)
            labels.append(candidate_labels[rows])
        return join_windows(features, labels)

    def _candidates_of(self, position: int) -> tuple[Boxes, Labels]:
        if position not in self._candidates:
            self._candidates[position] = label_windows(
                self._data.proposals(position).boxes,
                self._data.dataset.images[position],
                self._config,
            )
        return self._candidates[position]

    def _pool(
        self, position: int, boxes: Boxes, mirrored: bool, *, rng: np.random.Generator
    ) -> torch.Tensor:
        data = self._data
        image = data.dataset.images[position]
        maps = data.maps.of_image(image, mirrored=mirrored)
        if mirrored:
            boxes = flip_boxes(boxes, width=image.width)
        scales = None
        if self._config.scale == "random":
            scales = rng.integers(len(maps.maps), size=len(boxes))
        return pool_windows(maps, boxes, data.extractor, scales=scales)


def _fit_start(
    data: TrainingData, head: Head, training: NDArray[np.int64], config: FinetuneConfig
) -> float:
    """Standardise a random head on the first pool; return the mean square of its features."""
    pairs = draw_pool_images(training, 0, config=config, seed=data.seed)
    shown = track(pairs, total=len(pairs), label="first windows")
    alone = replace(data, ranks=Ranks())  # every process fits to all of these windows
    features = PoolMaker(alone, config).make(shown, number=0).features
    standardise(head, features)
    return mean_square_of(features, data.ranks)


def _validation_pool(
    data: TrainingData, held_out: NDArray[np.int64], config: FinetuneConfig
) -> Pool | None:
    if len(held_out) == 0:
        return None
    limit = max(4, _MAX_VALIDATION_WINDOWS // len(held_out))
    fewer = config.model_copy(update={"pool_windows": min(config.pool_windows, limit)})
    positions = track(held_out.tolist(), total=len(held_out), label="held-out windows")
    pairs = ((position, False) for position in positions)
    pool = PoolMaker(data, fewer).make(pairs, number=-1)
    return pool if len(pool.labels) else None

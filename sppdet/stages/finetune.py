"""The fine-tuning stage: pools of windows from the images, validation, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, replace

import numpy as np
from numpy.typing import NDArray

from sppdet.config import FinetuneConfig
from sppdet.features.head import Head, pretrained_fc, standardise
from sppdet.parallel import ordered_map
from sppdet.runs.artifacts import read_checkpoint, write_tensors
from sppdet.runs.distributed import Ranks
from sppdet.runs.log import LOGGER, event, track
from sppdet.stages.context import Context
from sppdet.stages.material import Material
from sppdet.stages.model import read_head, save_head
from sppdet.training.finetune import (
    FineTuner,
    Pool,
    Progress,
    draw_pool_images,
    split_images,
)
from sppdet.training.finetune_pools import PoolMaker

_MOST_VALIDATION_WINDOWS = 8192


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
    elif trained := context.is_due("head"):
        pretrained = pretrained_fc(context.backbone, config.head) is not None
        tuned = finetune(
            context.material, initial, config.finetune, pretrained=pretrained, made_by=made_by
        )
        if ranks.is_first:
            save_head(files.head, tuned, made_by=made_by)
    ranks.wait()  # the others read it
    classes = len(context.training_set.class_names)
    head = read_head(files.head, context.backbone, config, classes=classes).to(ranks.device)
    context.material = context.material.with_head(head)
    return trained


def finetune(
    material: Material, head: Head, config: FinetuneConfig, *, pretrained: bool, made_by: str
) -> Head:
    """Fine-tune `head` on the material's windows and return its best snapshot.

    Args:
        pretrained: whether fc6 and fc7 are; random ones are fitted to the first pool's windows.
        made_by: fingerprint under which the unfinished stage's checkpoint is kept and found.
    """
    training, held_out = split_images(
        len(material.dataset), fraction=config.val_fraction, seed=material.seed
    )
    head.to(material.maps.device)
    validation = _validation_pool(material, held_out, config)
    ranks = material.ranks
    mean_square = 1.0 if pretrained else _fit_start(material, head, training, config)
    tuner = FineTuner(
        head, config, validation, seed=material.seed, ranks=ranks, mean_square=mean_square
    )
    path = material.state_path("finetune")
    if checkpoint := read_checkpoint(path, made_by):
        state, about = checkpoint
        tuner.restore(state, Progress(**about))
        text = "finetune: going on after batch %d of %d"
        LOGGER.info(text, tuner.progress.batch, config.batches)
    ranks.wait()  # all have read the checkpoint before the first writes the next
    saved = time.monotonic()
    ticks = track(
        _ticks(material, tuner, training, config), total=config.batches, label="fine-tuning"
    )
    said = 0
    for pool_done in ticks:
        if not pool_done:
            continue
        for record in tuner.history[said:]:
            text = ", ".join(f"{key} {value:.4g}" for key, value in record.items())
            LOGGER.info("finetune: %s", text, extra=event("finetune", **record))
        said = len(tuner.history)
        if ranks.is_first and time.monotonic() - saved >= material.checkpoint_seconds:
            write_tensors(path, tuner.state(), made_by=made_by, about=asdict(tuner.progress))
            saved = time.monotonic()
    LOGGER.info("finetune: kept the snapshot after batch %d", tuner.progress.best_batch)
    return tuner.best_head()


def _fit_start(
    material: Material, head: Head, training: NDArray[np.int64], config: FinetuneConfig
) -> float:
    """Standardise a random head on the first pool's windows; the mean square of their features."""
    pairs = draw_pool_images(training, 0, config=config, seed=material.seed)
    alone = replace(material, ranks=Ranks())  # every process fits to all of these windows
    features = PoolMaker(alone, config).make(pairs, salt=0).features
    standardise(head, features)
    mean_square = features.double().square().mean()
    # one value for all: it sets the learning rate
    agreed = material.ranks.broadcast({"mean_square": mean_square}, owner=0)
    return float(agreed["mean_square"]) or 1.0


def _ticks(
    material: Material, tuner: FineTuner, training: NDArray[np.int64], config: FinetuneConfig
) -> Iterator[bool]:
    """Train pool by pool; one item a batch, True where a pool ends, so that a bar can count."""

    def numbers() -> Iterator[int]:
        number = tuner.progress.pool
        while not tuner.finished:
            yield number
            number += 1

    pools = PoolMaker(material, config)

    def make(number: int) -> Pool:
        pairs = draw_pool_images(training, number, config=config, seed=material.seed)
        return pools.make(pairs, salt=number)

    yield from (False for _ in range(tuner.progress.batch))
    for pool in ordered_map(make, numbers(), workers=1, ahead=1):
        if tuner.finished:
            break
        before = tuner.progress.batch
        tuner.train_on(pool)
        yield from (False for _ in range(tuner.progress.batch - before - 1))
        yield True


def _validation_pool(
    material: Material, held_out: NDArray[np.int64], config: FinetuneConfig
) -> Pool | None:
    if len(held_out) == 0:
        return None
    most = max(4, _MOST_VALIDATION_WINDOWS // len(held_out))
    fewer = config.model_copy(update={"pool_windows": min(config.pool_windows, most)})
    pairs = [(position, False) for position in held_out.tolist()]
    pool = PoolMaker(material, fewer).make(pairs, salt=-1)
    return pool if len(pool.labels) else None

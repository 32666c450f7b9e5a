"""Fine-tuning: the schedule, the best snapshot, and the head on pools of windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sppdet.errors import TrainingError
from sppdet.features.head import Head
from sppdet.randomness import rng
from sppdet.training.finetune_windows import Pool, batches
from sppdet.training.processes import OneProcess, Processes
from sppdet.training.sgd import (
    DROP_FACTOR,
    Sgd,
    check_finite,
    with_prefix,
)
from sppdet.training_config import FinetuneConfig

VERSION = 8  # raise it when the same settings give other weights
_MAX_EMPTY_POOLS = 100
_WARM_UP = 50  # batches at most
_COSINE_SNAPSHOTS = 0.8  # fraction of the batches at which a cosine has fallen to about a tenth


@dataclass
class Progress:
    """Position of fine-tuning; with the tensors of `Tuner.state` it is a checkpoint."""

    batch: int = 0
    pool: int = 0
    best_error: float = math.inf
    best_batch: int = 0
    empty_pools: int = 0


class Tuner:
    """SGD on a network, by a schedule; keeps the snapshot of minimum validation error.

    Args:
        groups: parameter groups, as of `Sgd`.
    """

    def __init__(
        self,
        net: nn.Module,
        groups: Sequence[dict[str, Any]],
        config: FinetuneConfig,
        *,
        seed: int,
        processes: Processes | None,
    ) -> None:
        self.net = net
        self.config = config
        self.progress = Progress()
        self.history: list[dict[str, float]] = []
        self._seed = seed
        self._snapshots = snapshot_batches(config)
        self._sgd = Sgd(
            net,
            groups,
            momentum=config.momentum,
            mixed_precision=config.mixed_precision,
            processes=processes or OneProcess(),
            optimizer=config.optimizer,
        )
        self._best = self._snapshot()

    @property
    def finished(self) -> bool:
        """True after the last batch."""
        return self.progress.batch >= self.config.batches

    def _update(self) -> None:
        """Take a step along the gradient."""
        self._sgd.update(rate_factor=rate_factor(self.progress.batch, self.config))
        self.progress.batch += 1

    def _is_snapshot_due(self) -> bool:
        return self.progress.batch in self._snapshots

    def _consider_snapshot(self, train_loss: float, validated: tuple[float, float] | None) -> None:
        """Keep the weights if no earlier ones misclassify fewer held-out windows.

        Not the loss: it rises with the certainty of the few windows that are wrong, while the network
        still learns. Of equal errors the later snapshot is kept, and without validation the last one.

        Args:
            validated: mean cross-entropy and fraction of misclassified windows.
        """
        p = self.progress
        record = {"batch": float(p.batch), "train_loss": train_loss}
        error = 0.0
        if validated is not None:
            loss, error = validated
            record |= {"val_loss": loss, "val_error": error}
        if error <= p.best_error:
            p.best_error, p.best_batch = error, p.batch
            self._best = self._snapshot()
        self.history.append(record)

    def _snapshot(self) -> dict[str, torch.Tensor]:
        return {k: v.clone() for k, v in self.net.state_dict().items()}

    def take_best(self) -> None:
        """Give the network the best snapshot's weights, ready for inference."""
        self.net.load_state_dict(self._best)
        self.net.eval().requires_grad_(False)

    def state(self) -> dict[str, torch.Tensor]:
        """Return weights, moments and the best snapshot, for a checkpoint."""
        return self._sgd.state("net.") | {f"best.{k}": v for k, v in self._best.items()}

    def restore(self, state: dict[str, torch.Tensor], progress: Progress) -> None:
        """Resume from a checkpoint."""
        self._sgd.restore(state, "net.")
        best = with_prefix(state, "best.")
        self._best = {k: v.to(self._sgd.device) for k, v in best.items()}
        self.progress = progress


def rate_factor(batch: int, config: FinetuneConfig) -> float:
    """Compute the factor on the learning rate at a batch, counted from 0."""
    if config.schedule == "step":
        return DROP_FACTOR if batch >= round(config.drop_after * config.batches) else 1.0
    warm_up = min(_WARM_UP, max(1, config.batches // 10))
    rise = min(1.0, (batch + 1) / warm_up)
    return rise * (1 + math.cos(math.pi * batch / config.batches)) / 2


def snapshot_batches(config: FinetuneConfig) -> frozenset[int]:
    """Choose the numbers of done batches at which weights are compared; that of all is one of them.

    With a cosine they are near its end: a network whose rate is still high gets much better in the
    batches that are left, and a few held-out windows may not tell.
    """
    count, first = config.batches, 0.0
    if config.schedule == "cosine":
        first = _COSINE_SNAPSHOTS * count
    parts = range(1, config.snapshots + 1)
    chosen = (round(first + (count - first) * part / config.snapshots) for part in parts)
    return frozenset(max(1, batch) for batch in chosen)


class FineTuner(Tuner):
    """Fine-tuning of the head on pools of windows.

    All processes draw the same batches; each has the features of some of their windows.

    Args:
        validation: windows of held-out images; None keeps the last snapshot.
        mean_square: mean square of the pool5 features. fc6 learns as if the features were divided by
            its root, so that a learning rate suits every backbone; 1 has no effect.
    """

    def __init__(
        self,
        head: Head,
        config: FinetuneConfig,
        validation: Pool | None,
        *,
        seed: int,
        processes: Processes | None = None,
        mean_square: float = 1.0,
    ) -> None:
        self.head = head
        self._validation = validation
        groups = head_groups(head, config, mean_square)
        super().__init__(head, groups, config, seed=seed, processes=processes)

    def train_on(self, pool: Pool) -> None:
        """Train on one pool's batches, up to the last of the schedule.

        Raises:
            TrainingError: the loss isn't finite, or no pool has both positives and negatives.
        """
        p = self.progress
        before, losses = p.batch, []
        generator = rng(self._seed, "fine-tuning batches", p.pool)
        with self._sgd.dropout_stream(self._seed, "fine-tuning dropout", p.pool):
            for rows in batches(pool.labels, self.config, rng=generator):
                if self.finished:
                    break
                losses.append(self._step(pool, rows))
        # checked together, so that no step waits for the GPU
        for i, loss in enumerate(torch.stack(losses).tolist() if losses else ()):
            check_finite(loss, f"at batch {before + i}", setting="finetune.lr")
        p.pool += 1
        p.empty_pools = 0 if losses else p.empty_pools + 1
        if p.empty_pools >= _MAX_EMPTY_POOLS:
            raise TrainingError("finetune: 100 pools in a row had no positive or no negative")

    def _step(self, pool: Pool, rows: NDArray[np.int64]) -> torch.Tensor:
        """Take one step; returns the loss, summed over this process's windows."""
        loss, _ = self._sgd.backward(pool.batch(rows), len(rows))
        self._update()
        if self._is_snapshot_due():
            mean = self._sgd.processes.sums([float(loss)])[0] / len(rows)
            validated = self.validate(self._validation) if self._validation is not None else None
            self._consider_snapshot(mean, validated)
        return loss

    def validate(self, pool: Pool) -> tuple[float, float]:
        """Compute mean cross-entropy and fraction of misclassified windows, without dropout."""
        return self._sgd.validate(pool.own_batches(256))

    def best_head(self) -> Head:
        """Return the head with the best snapshot's weights, ready for inference."""
        self.take_best()
        return self.head


def mean_square_of(features: torch.Tensor, processes: Processes) -> float:
    """Compute the mean square of features (n, D) over all processes; 1 where it is 0 or there are none.

    It sets the rate of `head_groups`, so that no process may have a rounding of its own.
    """
    own = float(features.double().square().mean()) if len(features) else 0.0
    return processes.sums([own])[0] / processes.count or 1.0


def head_groups(head: Head, config: FinetuneConfig, mean_square: float) -> list[dict[str, Any]]:
    """Build the parameter groups of a head whose input has the mean square `mean_square`.

    fc6 learns as if its input were divided by the root mean square s, since w·x = (w·s)·(x/s). A step
    of SGD grows with the gradient: one of w·s by the rate r is one of w by r/s². A step of AdamW is of
    the size of the rate, whatever the gradient: one of w·s by r is one of w by r/s. The product of rate and
    decay stays the same in both.
    """
    unit_of_fc6 = mean_square if config.optimizer == "sgd" else mean_square**0.5
    others = [p for p in head.parameters() if p is not head.fc6.weight]
    return [
        {"params": p, "lr": config.lr / unit, "weight_decay": config.weight_decay * unit}
        for p, unit in (([head.fc6.weight], unit_of_fc6), (others, 1.0))
    ]

"""Training of a classifier: epochs of crops at one size or several."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.classification.classifier import SppClassifier
from sppdet.classification.config import TrainConfig
from sppdet.randomness import rng
from sppdet.runs.distributed import Ranks
from sppdet.training.sgd import DROP_FACTOR, Batch, Sgd, check_finite

VERSION = 4  # raised when the same settings give other weights


@dataclass
class Progress:
    """Position of training; with the tensors of `Trainer.state` it is a checkpoint."""

    epoch: int = 0  # number of finished epochs
    batch: int = 0  # of the current epoch
    loss_sum: float = 0.0  # of the current epoch
    correct: float = 0.0
    seen: float = 0.0
    drops: int = 0  # of the learning rate, with schedule: plateau
    best_error: float = math.inf  # minimum validation error
    best_epoch: int = 0
    waited: int = 0  # epochs without improvement


def size_of_epoch(config: TrainConfig, epoch: int, *, seed: int) -> int:
    """Choose the side that the crops of an epoch are resized to, in pixels."""
    if config.size_choice == "turns":
        return config.sizes[epoch % len(config.sizes)]
    drawn = rng(seed, "crop size", epoch)
    return int(drawn.integers(min(config.sizes), max(config.sizes) + 1))


def batches_of_epoch(
    count: int, config: TrainConfig, epoch: int, *, seed: int
) -> list[NDArray[np.int64]]:
    """Shuffle the positions of images into batches whose sizes differ by at most one."""
    order = rng(seed, "classifier epoch", epoch).permutation(count)
    return np.array_split(order, max(1, round(count / config.batch_size)))


class Trainer:
    """SGD on a classifier, epoch by epoch; each process takes its share of every batch.

    BatchNorm's statistics are joined over GPUs; on CPUs each process has those of its own share.
    """

    def __init__(
        self, classifier: SppClassifier, config: TrainConfig, *, seed: int, ranks: Ranks
    ) -> None:
        self.config = config
        self.progress = Progress()
        self.classifier = classifier.to(ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._seed = seed
        parameters = list(self.classifier.parameters())
        self._sgd = Sgd(
            self.classifier,
            [{"params": parameters, "lr": config.lr, "weight_decay": config.weight_decay}],
            momentum=config.momentum,
            mixed_precision=config.mixed_precision,
            processes=ranks,
        )

    def lr(self) -> float:
        """Learning rate of the current epoch."""
        return self.config.lr * self._rate_factor()

    def _rate_factor(self) -> float:
        p, config = self.progress, self.config
        drops = p.drops
        if config.schedule == "step":
            drops = sum(p.epoch >= fraction * config.epochs for fraction in config.steps)
        return float(DROP_FACTOR**drops)

    def step(self, share: Batch, batch_size: int) -> None:
        """Take one step on this process's share of a batch of `batch_size` images.

        Raises:
            TrainingError: the loss isn't finite; the weights are as before.
        """
        p = self.progress
        with self._sgd.dropout_stream(self._seed, "classifier dropout", p.epoch, p.batch):
            loss, scores = self._sgd.backward(share, batch_size)
        right = (scores.argmax(dim=1) == share[1].to(scores.device)).sum()
        value, correct = self._sgd.processes.sums([float(loss), float(right)])
        where = f"in epoch {p.epoch + 1}, batch {p.batch + 1}"
        check_finite(value, where, setting="train.lr")
        self._sgd.update(rate_factor=self._rate_factor())
        p.batch += 1
        p.loss_sum, p.correct, p.seen = p.loss_sum + value, p.correct + correct, p.seen + batch_size

    def validate(self, shares: Iterable[Batch]) -> dict[str, float]:
        """Mean loss and top-1 error over all processes' images."""
        loss, error = self._sgd.validate(shares)
        return {"val_loss": loss, "val_error": error}

    def end_epoch(self, validation: dict[str, float] | None) -> tuple[dict[str, float], bool]:
        """Close the epoch; returns its record and whether to keep its weights."""
        p, config = self.progress, self.config
        record = {
            "lr": self.lr(),
            "train_loss": p.loss_sum / max(1, p.seen),
            "train_error": 1 - p.correct / max(1, p.seen),
            **(validation or {}),
        }
        p.epoch += 1
        p.batch, p.loss_sum, p.correct, p.seen = 0, 0.0, 0.0, 0.0
        error = record.get("val_error", record["train_error"])
        improved = error < p.best_error
        if improved:
            p.best_error, p.best_epoch, p.waited = error, p.epoch, 0
        else:
            p.waited += 1
            if config.schedule == "plateau" and p.waited >= config.patience:
                p.drops, p.waited = min(p.drops + 1, config.drops), 0
        return {"epoch": float(p.epoch), **record}, improved or validation is None

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Weights and momentum, and the progress as plain numbers, for a checkpoint."""
        about = asdict(self.progress)
        # JSON has no infinity
        return self._sgd.state("net."), {k: v for k, v in about.items() if math.isfinite(v)}

    def restore(self, state: dict[str, torch.Tensor], about: dict[str, float]) -> None:
        """Resume from a checkpoint."""
        self._sgd.restore(state, "net.")
        known = {k: v for k, v in about.items() if k in asdict(self.progress)}
        self.progress = Progress(**known)  # type: ignore[arg-type]

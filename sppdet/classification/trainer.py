"""Training of a classifier: epochs of crops at one size or several, by one process or many."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from sppdet.classification.classifier import SppClassifier
from sppdet.classification.config import TrainConfig
from sppdet.classification.data import Batch
from sppdet.errors import TrainingError
from sppdet.features.head import share_batch
from sppdet.parallel import has_bfloat16
from sppdet.randomness import rng, torch_stream
from sppdet.runs.distributed import Ranks

VERSION = 4  # raised when the same settings give other weights
_DROP_FACTOR = 0.1


@dataclass
class Progress:
    """Where training stands; with `Trainer.state` all that is needed to go on."""

    epoch: int = 0  # finished ones
    batch: int = 0  # of the epoch at work
    loss_sum: float = 0.0  # of the epoch at work
    correct: float = 0.0
    seen: float = 0.0
    drops: int = 0  # of the learning rate, by schedule plateau
    best_error: float = math.inf  # of an epoch's validation
    best_epoch: int = 0
    waited: int = 0  # epochs without improvement


def size_of_epoch(config: TrainConfig, epoch: int, *, seed: int) -> int:
    """The side that the crops of an epoch are resized to, in pixels."""
    if config.size_choice == "turns":
        return config.sizes[epoch % len(config.sizes)]
    drawn = rng(seed, "crop size", epoch)
    return int(drawn.integers(min(config.sizes), max(config.sizes) + 1))


def batches_of_epoch(
    count: int, config: TrainConfig, epoch: int, *, seed: int
) -> list[NDArray[np.int64]]:
    """An epoch's batches of positions: every image once, all batches alike in size within one."""
    order = rng(seed, "classifier epoch", epoch).permutation(count)
    return np.array_split(order, max(1, round(count / config.batch_size)))


class Trainer:
    """SGD on a classifier; each process takes its share of every batch.

    The gradient is that of the mean over the whole batch, however it is shared out, and the order
    of images and the dropout are functions of the seed and the step. So several processes give the
    result of one within rounding (but for BatchNorm on CPUs, where each has the statistics of its own
    share).
    """

    def __init__(
        self, classifier: SppClassifier, config: TrainConfig, *, seed: int, ranks: Ranks
    ) -> None:
        self.config = config
        self.progress = Progress()
        self.classifier = classifier.to(ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._seed = seed
        self._ranks = ranks
        self._net: nn.Module = self.classifier
        if ranks.count > 1:
            if ranks.device.type == "cuda":
                self._net = nn.SyncBatchNorm.convert_sync_batchnorm(self._net)
            self._net = nn.parallel.DistributedDataParallel(self._net)
        self._parameters = list(self.classifier.parameters())
        self._optimizer = torch.optim.SGD(
            self._parameters,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self._halved = config.mixed_precision and has_bfloat16(ranks.device)

    def lr(self) -> float:
        """The learning rate of the epoch at work."""
        p, config = self.progress, self.config
        if config.schedule == "step":
            drops = sum(p.epoch >= part * config.epochs for part in config.steps)
        else:
            drops = p.drops
        return config.lr * _DROP_FACTOR**drops

    def step(self, share: Batch, batch_size: int) -> None:
        """One step on this process's share (may be empty) of a batch of `batch_size`.

        Raises:
            TrainingError: the loss isn't finite.
        """
        p = self.progress
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr()
        x, labels = (part.to(self._ranks.device, non_blocking=True) for part in share)
        self._net.train()
        device = self._ranks.device
        with torch_stream(self._seed, "classifier dropout", p.epoch, p.batch, device=device):
            rows = torch.arange(batch_size)[self._ranks.rank :: self._ranks.count]
            share_batch(self.classifier, rows.to(self._ranks.device), batch_size)
            with torch.autocast(self._ranks.device.type, torch.bfloat16, enabled=self._halved):
                scores = self._net(x)
            summed = F.cross_entropy(scores.float(), labels, reduction="sum")
            # the processes' gradients are averaged, which this makes a sum over the batch
            loss = summed * (self._ranks.count / batch_size)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
        value, correct = self._ranks.sums(
            [float(summed.detach()), float((scores.argmax(dim=1) == labels).sum())]
        )
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} in epoch {p.epoch + 1}, batch {p.batch + 1}; expected a "
                "finite one, try a smaller train.lr"
            )
        self._optimizer.step()
        p.batch += 1
        p.loss_sum, p.correct, p.seen = p.loss_sum + value, p.correct + correct, p.seen + batch_size

    @torch.inference_mode()
    def validate(self, shares: Iterator[Batch]) -> dict[str, float]:
        """Mean loss and top-1 error over this and the other processes' images."""
        self.classifier.eval()
        sums = [0.0, 0.0, 0.0]
        for x, labels in shares:
            labels = labels.to(self._ranks.device)
            scores = self.classifier(x.to(self._ranks.device)).float()
            sums[0] += float(F.cross_entropy(scores, labels, reduction="sum"))
            sums[1] += float((scores.argmax(dim=1) != labels).sum())
            sums[2] += len(labels)
        loss, wrong, count = self._ranks.sums(sums)
        return {"val_loss": loss / max(1, count), "val_error": wrong / max(1, count)}

    def end_epoch(self, validation: dict[str, float] | None) -> tuple[dict[str, float], bool]:
        """Close the epoch: its record, and whether its weights are the best so far."""
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

    # -- going on after an interruption ------------------------------------------------------------

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Weights and momentum, and the progress as plain numbers."""
        state = {f"net.{k}": v for k, v in self.classifier.state_dict().items()}
        for i, parameter in enumerate(self._parameters):
            buffer = self._optimizer.state.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                state[f"momentum.{i}"] = buffer
        about = asdict(self.progress)
        # JSON has no infinity
        return state, {k: v for k, v in about.items() if math.isfinite(v)}

    def restore(self, state: dict[str, torch.Tensor], about: dict[str, float]) -> None:
        """Put back what `state` held."""
        net = {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
        self.classifier.load_state_dict(net)
        for i, parameter in enumerate(self._parameters):
            if f"momentum.{i}" in state:
                buffer = state[f"momentum.{i}"].to(parameter)
                if parameter.ndim == 4:  # as the optimizer would have made it, for the same sums
                    buffer = buffer.contiguous(memory_format=torch.channels_last)
                self._optimizer.state[parameter]["momentum_buffer"] = buffer
        known = {k: v for k, v in about.items() if k in asdict(self.progress)}
        self.progress = Progress(**known)  # type: ignore[arg-type]

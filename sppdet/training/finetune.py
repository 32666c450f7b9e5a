"""Fine-tuning of the fully connected layers on pooled windows.

Windows of `pool_images` images are pooled and shuffled together, and batches are cut from that
pool: every batch has windows of many images, while each image's maps are read once a pool.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from sppdet.config import FinetuneConfig
from sppdet.errors import TrainingError
from sppdet.features.head import Head, share_batch
from sppdet.parallel import has_bfloat16
from sppdet.randomness import rng, torch_stream
from sppdet.runs.distributed import Ranks
from sppdet.training.sampling import IGNORED, draw
from sppdet.types import Labels

VERSION = 3  # raised when the same settings give other weights
_DROP_FACTOR = 0.1


@dataclass(frozen=True)
class Pool:
    """Windows of several images, some of which this process has the features of.

    features: (n, D) float32. labels: (N,), 0 for background, on the CPU. rows: (n,) of the N
    windows, ascending, that the features belong to.
    """

    features: torch.Tensor
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]

    def places(self, chosen: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of the chosen windows (M,) are here: their places in `chosen`, and in `features`."""
        place = np.full(len(self.labels), -1, dtype=np.int64)
        place[self.rows] = np.arange(len(self.rows))
        found = place[chosen]
        device = self.features.device
        here = np.flatnonzero(found >= 0)
        # a copy that blocks would wait for the steps that a GPU has yet to do
        return (
            torch.from_numpy(here).to(device, non_blocking=True),
            torch.from_numpy(found[here]).to(device, non_blocking=True),
        )


def split_images(
    count: int, *, fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(training, validation) images' positions, drawn once; none for validation if there are < 5."""
    order = rng(seed, "held-out images").permutation(count)
    held_out = max(1, round(count * fraction)) if fraction > 0 and count >= 5 else 0
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def draw_pool_images(
    training: NDArray[np.int64], number: int, *, config: FinetuneConfig, seed: int
) -> list[tuple[int, bool]]:
    """The (image, mirrored) of pool `number`: epochs of all images in random order.

    A function of its arguments alone, so that training can go on anywhere.
    """
    size = min(config.pool_images, len(training))
    start = number * size
    chosen: list[tuple[int, bool]] = []
    while len(chosen) < size:
        epoch, within = divmod(start + len(chosen), len(training))
        drawn = rng(seed, "fine-tuning epoch", epoch)
        order = drawn.permutation(training)
        mirrored = drawn.random(len(training)) < (0.5 if config.flip else 0.0)
        take = slice(within, within + size - len(chosen))
        pairs = zip(order[take].tolist(), mirrored[take].tolist(), strict=True)
        chosen.extend((image, bool(flip)) for image, flip in pairs)
    return chosen


def draw_windows(
    labels: Labels, config: FinetuneConfig, *, rng: np.random.Generator
) -> NDArray[np.int64]:
    """The windows of one image that join a pool: at most `positive_fraction` are positives."""
    wanted = max(1, round(config.pool_windows * config.positive_fraction))
    positives = draw(np.flatnonzero(labels > 0), wanted, rng=rng)
    negatives = draw(np.flatnonzero(labels == 0), config.pool_windows - wanted, rng=rng)
    return np.concatenate([positives, negatives])


def batches(
    labels: NDArray[np.int64], config: FinetuneConfig, *, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Rows of a pool, batch by batch: positives and negatives in the ratio of the settings.

    Each row is used at most once, except where the pool is too small for a single batch.
    """
    want_positive = max(1, round(config.batch_size * config.positive_fraction))
    want_negative = config.batch_size - want_positive
    positive, negative = np.flatnonzero(labels > 0), np.flatnonzero(labels == 0)
    if len(positive) == 0 or len(negative) == 0:
        return
    count = min(len(positive) // want_positive, len(negative) // want_negative)
    if count == 0:
        rows = [
            np.resize(rng.permutation(part), want)
            for part, want in ((positive, want_positive), (negative, want_negative))
        ]
        yield np.concatenate(rows)
        return
    positive, negative = rng.permutation(positive), rng.permutation(negative)
    for i in range(count):
        yield np.concatenate(
            [
                positive[i * want_positive : (i + 1) * want_positive],
                negative[i * want_negative : (i + 1) * want_negative],
            ]
        )


@dataclass
class Progress:
    """Where fine-tuning stands; with the tensors of `FineTuner.state` all that is needed to go on."""

    batch: int = 0
    pool: int = 0
    best_loss: float = math.inf
    best_batch: int = 0
    empty_pools: int = 0


class FineTuner:
    """SGD on the head; keeps the snapshot of least validation loss.

    Each process has the features of some of a pool's windows. The gradient is that of the mean over
    the whole batch, and the same windows and units drop out, however the windows are shared out; so
    several processes give the result of one within rounding.

    Args:
        validation: windows of held-out images; None keeps the last snapshot.
        mean_square: of the pool5 features. fc6's weights learn as if the features were divided by
            its root, so that a learning rate means the same whatever the backbone's unit; 1 leaves
            the features as they are.
    """

    def __init__(
        self,
        head: Head,
        config: FinetuneConfig,
        validation: Pool | None,
        *,
        seed: int,
        ranks: Ranks | None = None,
        mean_square: float = 1.0,
    ) -> None:
        self.head = head
        self.config = config
        self.progress = Progress()
        self._validation = validation
        self._seed = seed
        self._device = next(head.parameters()).device
        self._ranks = ranks or Ranks()
        self._net: nn.Module = head
        if self._ranks.count > 1:
            self._net = nn.parallel.DistributedDataParallel(head, gradient_as_bucket_view=True)
        self._halved = config.mixed_precision and has_bfloat16(self._device)
        # w·x = (w·s)·(x/s): a step of w·s by the rate r is one of w by r/s², its decay r/s² · s²
        others = [p for p in head.parameters() if p is not head.fc6.weight]
        groups = [
            {"params": params, "lr": config.lr / unit, "weight_decay": config.weight_decay * unit}
            for params, unit in (([head.fc6.weight], mean_square), (others, 1.0))
        ]
        fused = self._device.type == "cuda"  # one pass over the weights instead of several
        self._optimizer = torch.optim.SGD(groups, momentum=config.momentum, fused=fused)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self._best = {k: v.clone() for k, v in head.state_dict().items()}
        self.history: list[dict[str, float]] = []

    @property
    def finished(self) -> bool:
        """Whether all batches are done."""
        return self.progress.batch >= self.config.batches

    def train_on(self, pool: Pool) -> None:
        """Train on one pool's batches, up to the last of the schedule.

        Raises:
            TrainingError: the loss isn't finite, or no pool has both positives and negatives.
        """
        p = self.progress
        before, losses = p.batch, []
        drawn = rng(self._seed, "fine-tuning batches", p.pool)
        with torch_stream(self._seed, "fine-tuning dropout", p.pool, device=self._device):
            for rows in batches(pool.labels, self.config, rng=drawn):
                if self.finished:
                    break
                losses.append(self._step(pool, rows))
        _check(losses, before)
        p.pool += 1
        p.empty_pools = p.empty_pools + 1 if p.batch == before else 0
        if p.empty_pools >= 100:
            raise TrainingError("finetune: 100 pools in a row had no positive or no negative")

    def _step(self, pool: Pool, rows: NDArray[np.int64]) -> torch.Tensor:
        """One step on a batch; the loss, summed over the windows that are here."""
        p, config = self.progress, self.config
        dropped = p.batch >= round(config.drop_after * config.batches)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * (_DROP_FACTOR if dropped else 1.0)
        here, places = pool.places(rows)
        labels = torch.from_numpy(pool.labels[rows]).to(self._device, non_blocking=True)[here]
        self.head.train()
        share_batch(self.head, here, len(rows))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._halved):
            scores = self._net(pool.features[places])
        summed = F.cross_entropy(scores.float(), labels, reduction="sum")
        self._optimizer.zero_grad(set_to_none=True)
        # the processes' gradients are averaged, which this makes a sum over the batch
        (summed * (self._ranks.count / len(rows))).backward()
        self._optimizer.step()
        p.batch += 1
        every = max(1, config.batches // config.snapshots)
        if p.batch % every == 0 or self.finished:
            self._consider_snapshot(self._ranks.sums([float(summed.item())])[0] / len(rows))
        return summed.detach()

    def _consider_snapshot(self, train_loss: float) -> None:
        p = self.progress
        record = {"batch": float(p.batch), "train_loss": train_loss}
        if self._validation is not None:
            loss, error = self.validate(self._validation)
            record |= {"val_loss": loss, "val_error": error}
        else:
            loss = -float(p.batch)  # the last one wins
        if loss < p.best_loss:
            p.best_loss, p.best_batch = loss, p.batch
            self._best = {k: v.clone() for k, v in self.head.state_dict().items()}
        self.history.append(record)

    @torch.inference_mode()
    def validate(self, pool: Pool) -> tuple[float, float]:
        """(cross-entropy, part of windows whose class is wrong) without dropout."""
        self.head.eval()
        loss, wrong = 0.0, 0.0
        labels = torch.from_numpy(pool.labels[pool.rows]).to(self._device)
        for x, right in zip(pool.features.split(256), labels.split(256), strict=True):
            scores = self.head(x)
            loss += float(F.cross_entropy(scores, right, reduction="sum").item())
            wrong += float((scores.argmax(dim=1) != right).sum().item())
        loss, wrong = self._ranks.sums([loss, wrong])
        return loss / len(pool.labels), wrong / len(pool.labels)

    def best_head(self) -> Head:
        """The head with the best snapshot's weights, ready for inference."""
        self.head.load_state_dict(self._best)
        return self.head.eval().requires_grad_(False)

    # -- going on after an interruption ------------------------------------------------------------

    def state(self) -> dict[str, torch.Tensor]:
        """Weights, momentum and the best snapshot (which is only kept once)."""
        state = {f"head.{k}": v for k, v in self.head.state_dict().items()}
        state |= {f"best.{k}": v for k, v in self._best.items()}
        for i, parameter in enumerate(self.head.parameters()):
            buffer = self._optimizer.state.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                state[f"momentum.{i}"] = buffer
        return state

    def restore(self, state: dict[str, torch.Tensor], progress: Progress) -> None:
        """Put back what `state` and `progress` held."""

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

        self.head.load_state_dict(part("head."))
        self._best = {k: v.to(self._device) for k, v in part("best.").items()}
        for i, parameter in enumerate(self.head.parameters()):
            if f"momentum.{i}" in state:
                buffer = state[f"momentum.{i}"].to(self._device)
                self._optimizer.state[parameter]["momentum_buffer"] = buffer
        self.progress = progress


def _check(losses: list[torch.Tensor], before: int) -> None:
    """Refuse losses that aren't finite; looked at together, so that no step waits for a GPU."""
    if not losses:
        return
    values = torch.stack(losses).cpu()
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        i = int(bad[0])
        raise TrainingError(
            f"finetune: the loss is {values[i].item()} at batch {before + i}; expected a finite one, "
            "try a smaller finetune.lr"
        )


def pool_of(features: list[torch.Tensor], labels: list[Labels]) -> Pool:
    """Join images' windows into a pool.

    Args:
        features: per image (n, D), or (0, D) where another process has them.
        labels: per image (n,), none of them `IGNORED`.
    """
    joined = np.concatenate(labels)
    if (joined == IGNORED).any():
        raise ValueError("labels: an ignored window has no place in a pool")
    here = [np.full(len(part), len(x) > 0) for x, part in zip(features, labels, strict=True)]
    return Pool(torch.cat(features), joined, np.flatnonzero(np.concatenate(here)))

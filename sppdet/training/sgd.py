"""Stochastic gradient descent on cross-entropy, for fine-tuning and for classifiers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from sppdet.errors import TrainingError
from sppdet.parallel import has_bfloat16
from sppdet.randomness import torch_stream
from sppdet.training.processes import Processes

DROP_FACTOR = 0.1  # on the learning rate at each drop
# names in checkpoints of what SGD and AdamW keep of each parameter
_MOMENTS = {
    "momentum": "momentum_buffer",
    "step": "step",
    "exp_avg": "exp_avg",
    "exp_avg_sq": "exp_avg_sq",
}
Batch = tuple[torch.Tensor, torch.Tensor]  # (N, ...) inputs, (N,) labels


class Sgd:
    """SGD with momentum on a network; every process has a share of each batch.

    The gradient is that of the mean cross-entropy over the whole batch, however it is split. Dropout
    masks differ between processes.

    Args:
        net: (N, ...) inputs to (N, K) scores, on the device to train on.
        groups: parameter groups of the optimizer, each with its `lr` and `weight_decay`.
        optimizer: sgd, with `momentum`, or adamw, where `momentum` is β₁.
        mixed_precision: compute in bfloat16 on GPUs that support it.
    """

    def __init__(
        self,
        net: nn.Module,
        groups: Sequence[dict[str, Any]],
        *,
        momentum: float,
        mixed_precision: bool,
        processes: Processes,
        optimizer: Literal["sgd", "adamw"] = "sgd",
    ) -> None:
        self.net = net
        self.device = next(net.parameters()).device
        self.processes = processes
        self._shared = net
        if processes.count > 1:
            if self.device.type == "cuda":
                net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
            self._shared = nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=True)
        self._autocast = mixed_precision and has_bfloat16(self.device)
        fused = self.device.type == "cuda"  # one pass over the weights instead of several
        self._optimizer: torch.optim.Optimizer
        if optimizer == "sgd":
            self._optimizer = torch.optim.SGD(groups, momentum=momentum, fused=fused)
        else:
            self._optimizer = torch.optim.AdamW(groups, betas=(momentum, 0.999), fused=True)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]

    def dropout_stream(
        self, seed: int, purpose: str, *numbers: int
    ) -> contextlib.AbstractContextManager[None]:
        """Draw dropout masks from a named random stream, a different one in each process."""
        rank = self.processes.rank
        return torch_stream(seed, purpose, *numbers, *((rank,) if rank else ()), device=self.device)

    def backward(self, batch: Batch, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the gradient of this process's share of a batch; the share may be empty.

        Args:
            batch_size: examples of the whole batch.

        Returns:
            the summed loss () and the scores (n, K) of the share.
        """
        x, labels = (part.to(self.device, non_blocking=True) for part in batch)
        scores = self.outputs(x)
        loss = F.cross_entropy(scores.float(), labels, reduction="sum")
        self.descend(loss, batch_size)
        return loss.detach(), scores.detach()

    def outputs(self, inputs: Any) -> Any:
        """Run the network on this process's share of a batch, for training."""
        self._shared.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            return self._shared(inputs)

    def descend(self, loss: torch.Tensor, batch_size: int) -> None:
        """Compute the gradient of a loss () that is summed over this process's share of a batch."""
        self._optimizer.zero_grad(set_to_none=True)
        # DistributedDataParallel averages the processes' gradients; this makes it a batch mean
        (loss * (self.processes.count / batch_size)).backward()

    def update(self, *, rate_factor: float) -> None:
        """Take a step along the gradient, with every group's learning rate times `rate_factor`."""
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * rate_factor
        self._optimizer.step()

    def validate(self, batches: Iterable[Batch]) -> tuple[float, float]:
        """Compute mean cross-entropy and fraction of errors over all processes' batches."""
        return self.validate_scored((self.net(x.to(self.device)), labels) for x, labels in batches)

    @torch.inference_mode()
    def validate_scored(self, batches: Iterable[Batch]) -> tuple[float, float]:
        """Validate like `validate`; the batches are scores (N, K), computed as they are asked for."""
        self.net.eval()
        totals = [0.0, 0.0, 0.0]
        for scores, labels in batches:
            scores, labels = scores.float(), labels.to(self.device)
            totals[0] += float(F.cross_entropy(scores, labels, reduction="sum"))
            totals[1] += float((scores.argmax(dim=1) != labels).sum())
            totals[2] += len(labels)
        loss, wrong, count = self.processes.sums(totals)
        return loss / max(1, count), wrong / max(1, count)

    def state(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return weights, named with `prefix`, and the optimizer's moments, for a checkpoint."""
        state = {f"{prefix}{k}": v for k, v in self.net.state_dict().items()}
        for i, parameter in enumerate(self.net.parameters()):
            kept = self._optimizer.state.get(parameter, {})
            for name, key in _MOMENTS.items():
                if isinstance(kept.get(key), torch.Tensor):
                    state[f"{name}.{i}"] = kept[key]
        return state

    def restore(self, state: Mapping[str, torch.Tensor], prefix: str) -> None:
        """Resume from a checkpoint."""
        self.net.load_state_dict(with_prefix(state, prefix))
        for i, parameter in enumerate(self.net.parameters()):
            for name, key in _MOMENTS.items():
                found = state.get(f"{name}.{i}")
                if found is None:
                    continue
                if found.shape == parameter.shape:
                    # with the parameter's strides, as the optimizer allocates it, for the same bits
                    found = torch.empty_like(parameter).copy_(found)
                found = found.to(parameter.device)
                self._optimizer.state[parameter][key] = found


def with_prefix(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Select the tensors whose names start with `prefix`, and strip it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def check_finite(loss: float, where: str, *, setting: str) -> None:
    """Raise TrainingError if the loss isn't finite."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss} {where}; expected a finite one, try a smaller {setting}"
        )

"""Several processes that train one network, as `torchrun` starts them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from sppdet.errors import TrainingError


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; one alone without `torchrun`."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and says what happens."""
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes, the same in each."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        result: list[float] = total.tolist()
        return result

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            dist.barrier()


@contextlib.contextmanager
def joined_ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that `torchrun` started; on several GPUs each takes its own.

    Raises:
        TrainingError: the others can't be reached, or one of them has ended, or torch failed here.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks(device=device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        yield Ranks(dist.get_rank(), count, device)
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        rank = os.environ.get("RANK", "?")
        raise TrainingError(f"process {rank} of {count} can't go on: {first}") from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()

"""Several processes that train together, as `torchrun` starts them."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from sppdet.errors import TrainingError
from sppdet.training.processes import Tensors

T = TypeVar("T")
# a process that has died is noticed at once; this is for one that is at work while others wait
_PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; one alone without `torchrun`."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and the messages."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's share of the items: every `count`-th."""
        return items[self.rank :: self.count]

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.count > 1:
            dist.barrier()

    @contextlib.contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """Run a block in the first process, then in the others, which find its files."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def sums(self, values: Sequence[float]) -> list[float]:
        """Sum values over all processes; every process gets the sums."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        result: list[float] = total.tolist()
        return result

    def broadcast(self, tensors: Tensors | None, *, owner: int) -> Tensors:
        """Return the owner's tensors in every process; those of the others are ignored."""
        if self.count == 1:
            assert tensors is not None
            return tensors
        kept = {k: t.to(self.device).contiguous() for k, t in (tensors or {}).items()}
        described = [[(k, t.shape, t.dtype) for k, t in kept.items()]]
        dist.broadcast_object_list(described, owner, device=self.device)
        if owner != self.rank:
            kept = {
                k: torch.empty(shape, dtype=dtype, device=self.device)
                for k, shape, dtype in described[0]
            }
        for tensor in kept.values():
            if tensor.numel():
                dist.broadcast(tensor, owner)
        return kept

    def in_turn(
        self, own: Iterator[T], total: int, pick: Callable[[T], Tensors]
    ) -> Iterator[Tensors]:
        """Yield `pick(item)` of all items, in their order and in every process.

        The processes take the next of their own items at the same time; then one after another
        picks from its item. What a process does between two results it has done before its `pick`.

        Args:
            own: this process's `share` of the items. total: the number of all processes' items.
        """
        for start in range(0, total, self.count):
            item = next(own) if start + self.rank < total else None
            for owner in range(min(self.count, total - start)):
                picked = pick(item) if owner == self.rank and item is not None else None
                yield self.broadcast(picked, owner=owner)


def process_count() -> int:
    """Return the number of processes that `torchrun` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def joined_ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that `torchrun` started; on several GPUs each takes its own.

    A process that has failed here is to end: it isn't taken out of the group.

    Raises:
        TrainingError: the others can't be reached, or one of them has ended, or torch failed here.
    """
    count = process_count()
    if count == 1:
        yield Ranks(device=device)
        return
    who = f"process {os.environ.get('RANK', '?')} of {count}"
    try:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", timeout=_PATIENCE, device_id=device)
        else:
            dist.init_process_group("gloo", timeout=_PATIENCE)
        ranks = Ranks(dist.get_rank(), count, device)
        if not ranks.is_first:
            logging.getLogger("sppdet").setLevel(logging.ERROR)  # the first one warns for all
        with _told_to_end(who):
            yield ranks
        # after an error NCCL would wait here for the others, which wait for this process
        dist.destroy_process_group()
    except (RuntimeError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "Connection closed" in first or "Connection reset" in first:
            first = "the connection to another process has ended; see what that one says"
        raise TrainingError(f"{who} can't go on: {first}") from error


@contextlib.contextmanager
def _told_to_end(who: str) -> Iterator[None]:
    """Raise TrainingError when `torchrun` ends this process, as it does when another has failed.

    A process that fails here is ending: from then on it ignores that signal, which would come
    between its error and its last words (`torchrun` kills what hasn't ended after 30 seconds).
    """

    def end(*_: object) -> None:
        raise TrainingError(
            f"{who} was told to end, by a signal or because another has failed; the same command goes on"
        )

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except BaseException:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    signal.signal(signal.SIGTERM, before)

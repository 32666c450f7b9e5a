"""Numeric types by device, and an ordered map over threads with a bounded look-ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
_POLL_S = 0.5
_GRACE_S = 2.0  # for running tasks to finish; most take less


def has_bfloat16(device: torch.device) -> bool:
    """Check whether a device is a GPU that supports bfloat16."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def compute_type(precision: str, device: torch.device) -> torch.dtype:
    """Resolve the dtype of matrix products on a device; auto: float16 on a GPU, else float32."""
    if precision == "auto":
        precision = "float16" if device.type == "cuda" else "float32"
    found = getattr(torch, precision)
    assert isinstance(found, torch.dtype)
    return found


def arithmetic(precision: str, device: torch.device) -> str:
    """Name the arithmetic of a network's products, on which its results depend besides its weights.

    `auto` is resolved. float32 on a GPU whose convolutions round their input is named "tf32".
    """
    found = compute_type(precision, device)
    tf32 = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return "tf32" if found == torch.float32 and tf32 else str(found).removeprefix("torch.")


def multiplying_in(precision: torch.dtype, device: torch.device) -> torch.autocast:
    """Return an autocast context for a dtype; disabled for float32."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def detection_threads(device: torch.device) -> int:
    """Return the number of detection threads: NMS of one image overlaps a GPU's layers of the next.

    0 on a CPU: detection runs in the caller's thread.
    """
    return 3 if device.type == "cuda" else 0


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], *, workers: int, ahead: int | None = None
) -> Iterator[R]:
    """Map a function over items in threads, in order; 0 workers: in the caller's thread.

    At most `ahead` results (2 × `workers` if None) are pending, which bounds the memory. The first
    error, of `function` or of the items, is raised at its position, and no further task is started.
    After an error, a signal or an early exit of the caller, running tasks are waited for briefly,
    then their threads are left to finish alone.
    """
    if workers == 0:
        yield from map(function, items)
        return
    pending: deque[Future[R]] = deque()
    limit = ahead if ahead is not None else 2 * workers
    pool = ThreadPoolExecutor(workers)

    def first() -> R:
        while not pending[0].done():  # polling: a signal just before a wait wouldn't interrupt it
            wait([pending[0]], timeout=_POLL_S)
        return pending.popleft().result()

    try:
        source, failed = iter(items), None
        while True:
            try:
                item = next(source)
            except StopIteration:
                break
            except Exception as error:  # raised after the pending results
                failed = error
                break
            pending.append(pool.submit(function, item))
            if len(pending) > limit:
                yield first()
        while pending:
            yield first()
        if failed is not None:
            raise failed
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        wait([future for future in pending if not future.cancelled()], timeout=_GRACE_S)


def shares(count: int) -> list[slice]:
    """Split `count` items evenly into one slice per thread of torch; none is empty if `count` > 0."""
    parts = max(1, min(torch.get_num_threads(), count))
    ends = [count * part // parts for part in range(parts + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


def by_shares(count: int, run: Callable[[slice], None]) -> None:
    """Run compiled loops, which release the GIL, on shares of `count` items, one for each thread."""
    parts = shares(count) if count else []
    if len(parts) < 2:
        for part in parts:
            run(part)
        return
    with ThreadPoolExecutor(len(parts)) as threads:
        list(threads.map(run, parts))

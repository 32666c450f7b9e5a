"""Numeric types by device, and an ordered map in threads with a bounded look-ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
_STEP_S = 0.5
_GRACE_S = 2.0  # for tasks at work to end in order; most take less


def has_bfloat16(device: torch.device) -> bool:
    """Whether it is a GPU that computes in bfloat16."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def compute_type(precision: str, device: torch.device) -> torch.dtype:
    """Resolve the type that networks multiply in on a device; auto: float16 on a GPU, else float32."""
    if precision == "auto":
        precision = "float16" if device.type == "cuda" else "float32"
    found = getattr(torch, precision)
    assert isinstance(found, torch.dtype)
    return found


def arithmetic(precision: str, device: torch.device) -> str:
    """Name the type that a network multiplies in, which decides its results beyond its weights.

    `auto` is named as the type that it comes to. A GPU's float32 has a name of its own where its
    convolutions round their input to TF32.
    """
    found = compute_type(precision, device)
    tf32 = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return "tf32" if found == torch.float32 and tf32 else str(found).removeprefix("torch.")


def multiplying_in(precision: torch.dtype, device: torch.device) -> torch.autocast:
    """Return an autocast context in which networks multiply in this type; float32 is left as it is."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def detection_threads(device: torch.device) -> int:
    """Return the number of threads to detect in: on a GPU NMS of one image overlaps the layers of the next.

    0 on a CPU: the caller's thread detects.
    """
    return 3 if device.type == "cuda" else 0


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], *, workers: int, ahead: int | None = None
) -> Iterator[R]:
    """Map a function over items with threads, in the items' order; 0 workers: in the caller's thread.

    At most `ahead` results (2 × `workers` if None) wait to be taken, so that memory stays bounded.
    The first error, of `function` or of the items, is raised in its place, after which nothing
    further is started. Whatever ends it early, an error, a signal or its user, waits no more than a
    moment for tasks at work; their threads go on alone.
    """
    if workers == 0:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    limit = ahead if ahead is not None else 2 * workers
    pool = ThreadPoolExecutor(workers)

    def first() -> R:
        while not waiting[0].done():  # in steps: a signal just before a wait doesn't end it
            wait([waiting[0]], timeout=_STEP_S)
        return waiting.popleft().result()

    try:
        source, failed = iter(items), None
        while True:
            try:
                item = next(source)
            except StopIteration:
                break
            except Exception as error:  # its place is behind what waits
                failed = error
                break
            waiting.append(pool.submit(function, item))
            if len(waiting) > limit:
                yield first()
        while waiting:
            yield first()
        if failed is not None:
            raise failed
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        wait([future for future in waiting if not future.cancelled()], timeout=_GRACE_S)


def shares(count: int) -> list[slice]:
    """`count` items dealt out evenly to as many threads as torch uses, none of them idle."""
    parts = max(1, min(torch.get_num_threads(), count))
    ends = [count * part // parts for part in range(parts + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]

"""The cores of this process, and its state, which programs set and the library leaves alone.

The command line and the benchmarks set it; so may a program of the user's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Literal

_VARIABLES = {
    # torch's threads and those that search for proposals share the cores: one that waits must sleep,
    # not spin
    "OMP_WAIT_POLICY": "PASSIVE",
    # large pages for torch's tensors on Linux: without them fresh memory costs as much as the work in it
    "THP_MEM_ALLOC_ENABLE": "1",
    # of videos FFmpeg would report on its own, in several lines
    "OPENCV_FFMPEG_LOGLEVEL": "-8",
}


def set_variables() -> None:
    """Set environment variables that torch and OpenCV read when they are imported, which must be later.

    A value of the user's stands.
    """
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)


def set_threads(count: int) -> None:
    """Let torch use `count` threads, and OpenCV one a call, since its callers run in parallel."""
    import cv2
    import torch

    torch.set_num_threads(count)
    cv2.setNumThreads(1)


def release_memory() -> None:
    """Return freed memory to the system, which glibc keeps for later; elsewhere nothing happens."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def worker_count(workers: Literal["auto"] | int) -> int:
    """Resolve the setting `workers`; auto: one per core."""
    return available_cores() if workers == "auto" else workers


def available_cores() -> int:
    """Count the cores this process may use; processes that `torchrun` starts on a machine share them."""
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

"""Named streams of random numbers: everything random in sppdet comes from one of them.

A stream is named by a seed, a purpose and numbers (a class, an epoch, an image's position). Streams
of different names have nothing in common, and neither the order in which they are drawn from nor the
number of processes changes them; training that goes on after an interruption draws what it would
have drawn.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import operator
from collections.abc import Iterator

import numpy as np
import torch

_CPU = torch.device("cpu")


def rng(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Open a stream at its beginning.

    The generator is seeded by a digest of the name. Lists of numbers wouldn't do: `default_rng([4])`
    equals `default_rng([4, 0])`, and class k at seed s would equal class k - 1 at seed s + 1
    wherever the two are added.

    Args:
        seed: the user's. purpose: what the numbers are for; a phrase that nothing else uses.
        numbers: tell the streams of one purpose apart; any integers.

    Returns:
        a new generator; the same name gives the same numbers on every machine.

    Raises:
        TypeError: a seed or number that is no integer.
    """
    name = json.dumps([operator.index(seed), purpose, *map(operator.index, numbers)])
    digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def keeping_torch_state() -> contextlib.AbstractContextManager[None]:
    """Leave torch's generator of the CPU as it was: layers draw when they are made, even to be filled."""
    return torch.random.fork_rng(devices=[])


@contextlib.contextmanager
def torch_stream(
    seed: int, purpose: str, *numbers: int, device: torch.device = _CPU
) -> Iterator[None]:
    """Let torch's own generators, which initialisation and dropout draw from, follow a stream.

    Those of the CPU and of `device` are as before afterwards; other devices' aren't touched.
    """
    value = int(rng(seed, purpose, *numbers).integers(2**63))
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(value)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(value)
        yield

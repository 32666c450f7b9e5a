"""Named streams of random numbers: everything random in sppdet comes from one of them.

A stream is named by a seed, a purpose and numbers (a class, an epoch, an image's position). Streams
of different names are independent and don't depend on the order in which they are drawn from nor on
the number of processes, so that training that resumes draws the same numbers.
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
    """Create the generator of a named stream, at its beginning.

    It is seeded by a digest of the name. Plain numbers would collide: `default_rng([4])` equals
    `default_rng([4, 0])`, and class k at seed s would equal class k - 1 at seed s + 1 where the two
    are added.

    Args:
        seed: the user's.
        purpose: unique phrase that says what the numbers are for.
        numbers: integers that distinguish the streams of one purpose.

    Returns:
        a new generator; the same name gives the same numbers on every machine.

    Raises:
        TypeError: a seed or number that is not an integer.
    """
    name = json.dumps([operator.index(seed), purpose, *map(operator.index, numbers)])
    digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def keeping_torch_state() -> contextlib.AbstractContextManager[None]:
    """Return a context that restores torch's CPU generator, from which every new layer draws."""
    return torch.random.fork_rng(devices=[])


@contextlib.contextmanager
def torch_stream(
    seed: int, purpose: str, *numbers: int, device: torch.device = _CPU
) -> Iterator[None]:
    """Seed torch's generators, from which initialisation and dropout draw, by a named stream.

    Afterwards those of the CPU and of `device` are restored; those of other devices aren't touched.
    """
    value = int(rng(seed, purpose, *numbers).integers(2**63))
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(value)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(value)
        yield

"""Comparisons of two devices' arithmetic, each of which keeps within a bound."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import before_torch  # noqa: F401
import torch
from rows import Outcome


class BeyondBound(Exception):
    """A value of the GPU's that is too far from the CPU's."""


class Compared:
    """The comparisons of a check, each of which stays within its bound."""

    def __init__(self) -> None:
        self._worst: dict[str, tuple[float, float]] = {}

    def add(self, what: str, found: torch.Tensor, expected: torch.Tensor, bound: float) -> None:
        """Compare tensors on any device; the bound is relative to the largest expected value.

        Raises:
            BeyondBound: the bound is broken, or a value isn't a number.
        """
        if found.shape != expected.shape:
            raise BeyondBound(
                f"{what}: {tuple(found.shape)}, on the CPU {tuple(expected.shape)}, expected equal"
            )
        a, b = (t.detach().cpu().double() for t in (found, expected))
        largest = float(b.abs().max()) if b.numel() else 0.0
        off = float((a - b).abs().max()) / (largest or 1.0) if b.numel() else 0.0
        if not off <= bound:
            raise BeyondBound(f"{what}: {off:.2g} off, beyond the bound of {bound:g}")
        self._worst[what] = off, bound

    def outcome(self, remark: str = "") -> Outcome:
        """Name the worst of them."""
        nearest = max(self._worst, key=lambda w: self._worst[w][0] / (self._worst[w][1] or 1e-300))
        off, bound = self._worst[nearest]
        said = f"{nearest}: {off:.1g} off" if bound else "equal to the bit"
        within = f"bound {bound:g}" if bound else "bound 0"
        facts = {what: {"off": off, "bound": b} for what, (off, b) in self._worst.items()}
        return Outcome(said, f"{within}{remark}", facts=facts)


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Let convolutions on a GPU multiply in float32, not in TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def is_small(device: torch.device) -> bool:
    """Check whether sizes are those of a dry run: Triton's interpreter is slow."""
    return device.type == "cpu"


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a type without torch's."""
    return str(dtype).removeprefix("torch.")

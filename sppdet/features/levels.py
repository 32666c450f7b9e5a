"""Layout of the SPP levels in a pooled vector."""

from __future__ import annotations

from collections.abc import Sequence


def spp_width(channels: int, levels: Sequence[int]) -> int:
    """Compute the length of the pooled vector: channels × bins of all levels."""
    return channels * sum(n * n for n in levels)


def level_columns(channels: int, levels: Sequence[int], level: int) -> slice:
    """Return the columns of a level in the pooled vector; their order is (row, column, channel)."""
    if level not in levels:
        raise ValueError(f"level {level}: expected one of {list(levels)}")
    before = list(levels)[: list(levels).index(level)]
    return slice(spp_width(channels, before), spp_width(channels, [*before, level]))

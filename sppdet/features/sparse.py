"""Arrays without their zeros: after a ReLU most values of a feature map are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sppdet.compiled import compiled

Bytes = NDArray[np.uint8]
Codes = (
    NDArray[np.uint8] | NDArray[np.uint16]
)  # bits of values; only those that are all 0 are left out


def without_zeros(codes: Codes) -> tuple[Bytes, Codes]:
    """Split an array into a bit for each element and the elements that aren't zero.

    Args:
        codes: (H, W, C).

    Returns:
        bits (H, W, ⌈C / 8⌉), the first channel in the lowest bit; elements (N,), in order.
    """
    height, width, channels = codes.shape
    bits = np.empty((height * width, -(-channels // 8)), np.uint8)
    found = np.empty(np.count_nonzero(codes), codes.dtype)
    _split(codes.reshape(height * width, channels), bits, found)
    return bits.reshape(height, width, -1), found


def with_zeros(bits: Bytes, elements: Codes, channels: int) -> Codes:
    """Join what `without_zeros` has split; returns (H, W, `channels`).

    Raises:
        ValueError: the bits count other elements than there are, or channels that there aren't.
    """
    height, width, count = bits.shape
    codes = np.zeros((height * width, channels), elements.dtype)
    if count != -(-channels // 8):
        raise ValueError(f"bits of {8 * count} channels, expected {channels}")
    if not _join(bits.reshape(height * width, count), elements, codes):
        raise ValueError(f"bits and {len(elements)} elements don't fit each other")
    return codes.reshape(height, width, channels)


@compiled
def _split(codes: Codes, bits: Bytes, found: Codes) -> None:
    """Fill bits (P, ⌈C / 8⌉) and the elements found (N,) of codes (P, C)."""
    at = 0
    for p in range(codes.shape[0]):
        for k in range(bits.shape[1]):
            byte = 0
            for c in range(8 * k, min(8 * k + 8, codes.shape[1])):
                if codes[p, c] != 0:
                    byte |= 1 << (c - 8 * k)
                    found[at] = codes[p, c]
                    at += 1
            bits[p, k] = byte


@compiled
def _join(bits: Bytes, elements: Codes, codes: Codes) -> bool:
    """Put the elements (N,) into codes (P, C), which are 0; False if they don't fit the bits."""
    at = 0
    for p in range(bits.shape[0]):
        for k in range(bits.shape[1]):
            byte = bits[p, k]
            c = 8 * k
            while byte != 0:
                if byte & 1:
                    if c >= codes.shape[1] or at >= elements.shape[0]:
                        return False
                    codes[p, c] = elements[at]
                    at += 1
                byte >>= 1
                c += 1
    return bool(at == elements.shape[0])

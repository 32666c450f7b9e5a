"""Properties of a segmentation's regions: sizes, boxes, histograms and adjacency.

A region has a colour histogram of 25 bins a channel and a texture histogram of 10 bins for each of
8 directions of each channel: the derivatives along 0°, 45°, 90° and 135°, half-wave rectified (positive and
negative values apart). The bins are the same for every image and cover the derivative at an edge
between black and white.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sppdet.compiled import ONE, ZERO, compiled

COLOUR_BINS = 25
TEXTURE_BINS = 10
AXES = 4  # of derivatives, two directions each
TEXTURE_STEP = 408  # width of a bin: Scharr's derivatives reach 16 · 255
DIAGONAL_STEP = 577  # √2 times that, for the sum of both
DIRECTIONS = 2 * AXES
LAST = np.int32(TEXTURE_BINS - 1)
PRIMES = np.uint64(73856093), np.uint64(19349663)  # of the hash of a pair


@dataclass(frozen=True)
class Regions:
    """The R regions of one segmentation, before merging.

    Histograms count pixels: those of a channel's colours and of a direction's derivatives each sum
    to the region's size.
    """

    sizes: NDArray[np.int32]  # (R,) pixels
    boxes: NDArray[np.int32]  # (R, 4) xyxy, half-open
    histograms: NDArray[np.float32]  # (R, C * 25 + C * 80): of all colours, then of all textures
    pairs: NDArray[np.int32]  # (E, 2) distinct 4-connected neighbours, first < second

    @property
    def colours(self) -> NDArray[np.float32]:
        """(R, C * 25)."""
        return self.histograms[:, : self._channels * COLOUR_BINS]

    @property
    def textures(self) -> NDArray[np.float32]:
        """(R, C * 80)."""
        return self.histograms[:, self._channels * COLOUR_BINS :]

    @property
    def _channels(self) -> int:
        width: int = self.histograms.shape[1]
        return width // (COLOUR_BINS + DIRECTIONS * TEXTURE_BINS)


def pixel_bins(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Compute the histogram bins of every pixel.

    Args:
        planes: (C, H, W).

    Returns:
        (C, 5, H, W) uint8: the bin of the colour, 0..24, and of four derivatives: 0..9 if it is
        positive, 10..19 if it is negative.
    """
    bins = np.empty((planes.shape[0], 1 + AXES, planes[0].size), np.uint8)
    for plane, out in zip(planes, bins, strict=True):
        # 16 bits suffice: Scharr's weights sum to 16
        across = cv2.Scharr(plane, cv2.CV_16S, 1, 0)
        down = cv2.Scharr(plane, cv2.CV_16S, 0, 1)
        _bin(plane.reshape(-1), across.reshape(-1), down.reshape(-1), out)
    return bins.reshape(planes.shape[0], 1 + AXES, *planes.shape[1:])


def describe_regions(labels: NDArray[np.uint32], count: int, bins: NDArray[np.uint8]) -> Regions:
    """Measure the regions of a segmentation.

    Args:
        labels: (H, W) in [0, count), each of which occurs.
        bins: `pixel_bins` of the image.
    """
    height, width = labels.shape
    channels = bins.shape[0]
    sizes = np.zeros(count, np.int32)
    boxes = np.empty((count, 4), np.int32)
    boxes[:] = width, height, 0, 0
    pairs = np.empty((3 * count, 2), np.int32)  # a planar graph has fewer
    table = np.full(1 << (max(12 * count, 64) - 1).bit_length(), -1, np.int32)
    found: int = _outline(labels, sizes, boxes, pairs, table)
    colours = channels * COLOUR_BINS
    counts = np.zeros((count, colours + channels * DIRECTIONS * TEXTURE_BINS), np.uint32)
    _count(labels.reshape(-1), bins.reshape(channels, 1 + AXES, -1), counts)
    # pixels in none of a direction's upper bins are in its lowest
    upper = counts[:, colours:].reshape(count, -1, TEXTURE_BINS)
    upper[:, :, 0] = sizes[:, None] - sum(upper[:, :, b] for b in range(1, TEXTURE_BINS))
    return Regions(sizes, boxes, counts.astype(np.float32), pairs[:found].copy())


@compiled
def _bin(
    plane: NDArray[np.uint8],
    across: NDArray[np.int16],
    down: NDArray[np.int16],
    out: NDArray[np.uint8],
) -> None:
    """Fill out (5, pixels) with a plane's bins."""
    for i in range(plane.shape[0]):
        out[0, i] = np.uint8((np.int32(plane[i]) * COLOUR_BINS) >> 8)
    for axis in range(AXES):
        p = np.int32(axis != 2)
        q = np.int32(axis != 0) - np.int32(2 * (axis == 3))
        # slightly larger, so that rounding puts no value into a lower bin
        scale = np.float32((1 + 1e-6) / (DIAGONAL_STEP if axis & 1 else TEXTURE_STEP))
        for i in range(plane.shape[0]):
            value = np.float32(p * np.int32(across[i]) + q * np.int32(down[i]))
            step = np.int32(abs(value) * scale)
            step = step if step < LAST else LAST
            out[1 + axis, i] = np.uint8(step if value >= 0 else step + TEXTURE_BINS)


@compiled
def _outline(
    labels: NDArray[np.uint32],
    sizes: NDArray[np.int32],
    boxes: NDArray[np.int32],
    pairs: NDArray[np.int32],
    table: NDArray[np.int32],
) -> int:
    """Fill sizes, boxes and pairs; returns the number of pairs.

    `boxes` has (W, H, 0, 0) in its rows. `table` has -1 in every entry, whose number is a power of two:
    it finds rows of `pairs` by open addressing.
    """
    height, width = labels.shape
    mask = np.uint64(table.shape[0] - 1)
    found = 0
    for y in range(height):
        above, x = y - 1 if y else 0, 0
        while x < width:
            label, begin = labels[y, x], x
            while x < width and labels[y, x] == label:
                x += 1
            sizes[label] += x - begin
            if boxes[label, 0] > begin:
                boxes[label, 0] = begin
            if boxes[label, 1] > y:
                boxes[label, 1] = y
            if boxes[label, 2] < x:
                boxes[label, 2] = x
            boxes[label, 3] = y + 1
            last = label
            for at in range(begin, x + (x < width)):  # the pixels above, then the one to the right
                other = labels[above, at] if at < x else labels[y, at]
                if other == last:
                    continue
                last = other
                if other == label:
                    continue
                a = label if label < other else other
                b = other if label < other else label
                slot = (np.uint64(a) * PRIMES[0] ^ np.uint64(b) * PRIMES[1]) & mask
                pair = table[slot]
                while pair >= 0 and (pairs[pair, 0] != a or pairs[pair, 1] != b):
                    slot = (slot + ONE) & mask
                    pair = table[slot]
                if pair < 0:
                    table[slot] = found
                    pairs[found, 0], pairs[found, 1] = a, b
                    found += 1
    return found


@compiled
def _count(labels: NDArray[np.uint32], bins: NDArray[np.uint8], counts: NDArray[np.uint32]) -> None:
    """Count every pixel in each of its bins (C, 5, pixels): counts (R, C * 25 + C * 80)."""
    channels = np.uint64(bins.shape[0])
    for c in range(channels):
        colour = c * np.uint64(COLOUR_BINS)
        texture = channels * np.uint64(COLOUR_BINS) + c * np.uint64(DIRECTIONS * TEXTURE_BINS)
        for i in range(np.uint64(labels.shape[0])):
            region = labels[i]
            counts[region, colour + np.uint64(bins[c, ZERO, i])] += 1
            for axis in range(np.uint64(AXES)):
                at = texture + axis * np.uint64(2 * TEXTURE_BINS)
                counts[region, at + np.uint64(bins[c, axis + ONE, i])] += 1

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

from sppdet.compiled import compiled

COLOUR_BINS = 25
TEXTURE_BINS = 10
AXES = 4  # of derivatives, two directions each
TEXTURE_STEP = 408  # width of a bin: Scharr's derivatives reach 16 · 255
DIAGONAL_STEP = 577  # √2 times that, for the sum of both
SIGNED_BINS = 2 * TEXTURE_BINS - 1  # the directions of an axis share their lowest bin


@dataclass(frozen=True)
class Regions:
    """The R regions of one segmentation, before merging.

    Histograms count pixels: those of a channel's colours and of a direction's derivatives each sum
    to the region's size.
    """

    sizes: NDArray[np.int32]  # (R,) pixels
    boxes: NDArray[np.int32]  # (R, 4) xyxy, half-open
    colours: NDArray[np.float32]  # (R, C * 25)
    textures: NDArray[np.float32]  # (R, C * 80)
    pairs: NDArray[np.int32]  # (E, 2) distinct 4-connected neighbours, first < second


def pixel_bins(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Compute the histogram bins of every pixel.

    Args:
        planes: (C, H, W).

    Returns:
        (C, 5, H, W) uint8: the bin of the colour, 0..24, and of four signed derivatives, 0..18,
        where 9 is the lowest of both directions.
    """
    bins = np.empty((planes.shape[0], 1 + AXES, *planes.shape[1:]), np.uint8)
    for plane, out in zip(planes, bins, strict=True):
        # 16 bits suffice: Scharr's weights sum to 16
        across = cv2.Scharr(plane, cv2.CV_16S, 1, 0).reshape(plane.shape)
        down = cv2.Scharr(plane, cv2.CV_16S, 0, 1).reshape(plane.shape)
        _bin(plane, across, down, out)
    return bins


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
    pairs = np.empty((3 * count, 2), np.int32)  # a planar graph has fewer
    found = _outline(labels, sizes, boxes, pairs)
    counts = np.zeros((count, channels, COLOUR_BINS + AXES * SIGNED_BINS), np.uint32)
    _count(labels.reshape(-1), bins.reshape(channels * (1 + AXES), height * width), counts)
    colours = np.empty((count, channels * COLOUR_BINS), np.float32)
    textures = np.empty((count, channels * AXES * 2 * TEXTURE_BINS), np.float32)
    _unfold(counts, sizes, colours, textures)
    return Regions(sizes, boxes, colours, textures, pairs[:found].copy())


@compiled
def _bin(
    plane: NDArray[np.uint8],
    across: NDArray[np.int16],
    down: NDArray[np.int16],
    out: NDArray[np.uint8],
) -> None:
    height, width = plane.shape
    last = np.int32(TEXTURE_BINS - 1)
    for y in range(height):
        for x in range(width):
            out[0, y, x] = np.uint8((np.int32(plane[y, x]) * COLOUR_BINS) >> 8)
    for axis in range(AXES):
        p = np.int32(axis != 2)
        q = np.int32(axis != 0) * np.int32(-1 if axis == 3 else 1)
        # slightly larger, so that rounding puts no value into a lower bin
        scale = np.float32((1 + 1e-6) / (DIAGONAL_STEP if axis & 1 else TEXTURE_STEP))
        for y in range(height):
            for x in range(width):
                value = np.float32(p * np.int32(across[y, x]) + q * np.int32(down[y, x]))
                step = min(max(np.int32(value * scale), -last), last)
                out[1 + axis, y, x] = np.uint8(step + last)


@compiled
def _outline(
    labels: NDArray[np.uint32],
    sizes: NDArray[np.int32],
    boxes: NDArray[np.int32],
    pairs: NDArray[np.int32],
) -> int:
    """Fill sizes, boxes and pairs; returns the number of pairs."""
    height, width = labels.shape
    for r in range(sizes.shape[0]):
        boxes[r, 0], boxes[r, 1], boxes[r, 2], boxes[r, 3] = width, height, 0, 0
    capacity = 64
    while capacity < 4 * pairs.shape[0]:
        capacity *= 2
    table = np.full(capacity, -1, np.int32)  # open addressing; rows of `pairs`
    found = 0
    for y in range(height):
        above = labels[y - 1 if y else 0]
        row = labels[y]
        x = 0
        while x < width:
            label, begin = row[x], x
            while x < width and row[x] == label:
                x += 1
            sizes[label] += x - begin
            boxes[label, 0] = min(boxes[label, 0], begin)
            boxes[label, 1] = min(boxes[label, 1], y)
            boxes[label, 2] = max(boxes[label, 2], x)
            boxes[label, 3] = y + 1
            last = label
            for at in range(begin, x + 1 if x < width else x):
                other = above[at] if at < x else row[at]
                if other == last:
                    continue
                last = other
                if other == label:
                    continue
                a, b = min(label, other), max(label, other)
                slot = (a * 73856093 ^ b * 19349663) & (capacity - 1)
                while table[slot] >= 0 and (
                    pairs[table[slot], 0] != a or pairs[table[slot], 1] != b
                ):
                    slot = (slot + 1) & (capacity - 1)
                if table[slot] < 0:
                    table[slot] = found
                    pairs[found, 0], pairs[found, 1] = a, b
                    found += 1
    return found


@compiled
def _count(labels: NDArray[np.uint32], bins: NDArray[np.uint8], counts: NDArray[np.uint32]) -> None:
    """Count every pixel in each of its bins: counts (R, C, 25 + 4 * 19)."""
    channels = counts.shape[1]
    flat = counts.reshape(-1)
    one = np.uint32(1)
    # unsigned indices save the check for negative ones
    step, next_axis = np.uint64(counts.shape[2]), np.uint64(SIGNED_BINS)
    row = np.uint64(channels) * step
    for c in range(channels):
        colour, first, second = bins[5 * c], bins[5 * c + 1], bins[5 * c + 2]
        third, fourth = bins[5 * c + 3], bins[5 * c + 4]
        start = np.uint64(c) * step
        for i in range(labels.shape[0]):
            at = start + np.uint64(labels[i]) * row
            flat[at + np.uint64(colour[i])] += one
            at += np.uint64(COLOUR_BINS)
            flat[at + np.uint64(first[i])] += one
            at += next_axis
            flat[at + np.uint64(second[i])] += one
            at += next_axis
            flat[at + np.uint64(third[i])] += one
            at += next_axis
            flat[at + np.uint64(fourth[i])] += one


@compiled
def _unfold(
    counts: NDArray[np.uint32],
    sizes: NDArray[np.int32],
    colours: NDArray[np.float32],
    textures: NDArray[np.float32],
) -> None:
    """Fill both histograms of every axis; pixels not in a direction's upper bins are in its lowest."""
    regions, channels, _ = counts.shape
    for r in range(regions):
        for c in range(channels):
            for b in range(COLOUR_BINS):
                colours[r, c * COLOUR_BINS + b] = counts[r, c, b]
            for axis in range(AXES):
                middle = COLOUR_BINS + axis * SIGNED_BINS + TEXTURE_BINS - 1
                rising = (c * AXES + axis) * 2 * TEXTURE_BINS
                falling = rising + TEXTURE_BINS
                up = down = 0
                for b in range(1, TEXTURE_BINS):
                    textures[r, rising + b] = counts[r, c, middle + b]
                    textures[r, falling + b] = counts[r, c, middle - b]
                    up += counts[r, c, middle + b]
                    down += counts[r, c, middle - b]
                textures[r, rising] = sizes[r] - up
                textures[r, falling] = sizes[r] - down

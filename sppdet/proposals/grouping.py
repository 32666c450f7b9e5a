"""Hierarchical grouping (Uijlings et al., IJCV 2013): the most similar touching regions merge first.

The similarity of two regions is the mean of up to four measures, each at most 1. Colour and texture:
the intersection of their histograms; size: the fraction of the image outside both; fill: the fraction
of the image outside the gaps between them and their bounding box. Ties are broken by a fixed rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sppdet.compiled import compiled, compiled_part, compiled_part_sum
from sppdet.proposals.regions import COLOUR_BINS, TEXTURE_BINS, Regions

MEASURES = "ctsf"  # colour, texture, size, fill
LOW_BITS = 0xFFFFFFFF


@dataclass(frozen=True)
class Hierarchy:
    """All regions of a grouping: the R initial ones, then the merged ones in order."""

    boxes: NDArray[np.int32]  # (2R - 1, 4) xyxy, half-open
    parts: NDArray[np.int32]  # (R - 1, 2) the two regions merged into region R + i


def group(regions: Regions, grouping: str, pixels: int) -> Hierarchy:
    """Merge a segmentation's regions until one is left.

    Args:
        regions: regions of a whole image, which are connected.
        grouping: letters of `MEASURES`, with equal weights.
        pixels: number of pixels of the image.
    """
    count, links = len(regions.sizes), 2 * len(regions.pairs)
    total = 2 * count - 1
    weights = np.array([(letter in grouping) / len(grouping) for letter in MEASURES], np.float32)
    boxes, size = np.empty((total, 4), np.int32), np.empty(total, np.int64)
    boxes[:count], size[:count] = regions.boxes, regions.sizes
    # merged in place; histograms without weight are dropped
    colours, width = regions.colours.shape[1], regions.histograms.shape[1]
    begin, end = 0 if "c" in grouping else colours, width if "t" in grouping else colours
    histograms = regions.histograms[:, begin:end].copy()
    spans = np.array([0, colours - begin, end - begin], np.uint64)
    # every channel's histogram sums to the size
    bins = COLOUR_BINS / colours, TEXTURE_BINS / (width - colours)
    weights[:2] *= np.array(bins, np.float32)
    ends = np.empty((links, 2), np.int32)
    ends[::2], ends[1::2] = regions.pairs, regions.pairs[:, ::-1]
    parent, row = np.arange(total, dtype=np.int32), np.arange(total, dtype=np.int32)
    head, tail, met_by = (np.full(total, -1, np.int32) for _ in range(3))
    follower, current = np.full(links, -1, np.int32), np.full(links, -1, np.int32)
    met = np.zeros(max(links // 2, count), np.int32)
    met[: links // 2] = np.arange(0, links, 2)
    heap = np.full(4 * links + count + 64, -1, np.int64)
    value = np.empty(1, np.float32)
    bits = value.view(np.int32)  # bits of non-negative floats sort like the floats
    parts = np.empty((count - 1, 2), np.int32)
    at, length = count - 1, 0
    while at < total:
        at = _merge(
            *(boxes, size, histograms, spans, weights, pixels, ends, parent, row, head, tail),
            *(met_by, follower, current, met, heap, value, bits, parts, length, at),
        )
        if at < total:
            length = _drop_stale(heap, current, ends, parent)
    return Hierarchy(boxes, parts)


def _drop_stale(
    heap: NDArray[np.int64],
    current: NDArray[np.int32],
    ends: NDArray[np.int32],
    parent: NDArray[np.int32],
) -> int:
    """Drop the heap's stale entries; returns the number left, at most one per link."""
    keys = np.unique(heap[heap >= 0])[::-1]  # descending numbers are a heap
    link = keys & LOW_BITS
    is_latest = (parent[ends[link]] == ends[link]).all(axis=1)
    kept = keys[is_latest & (current[link] == keys >> 32)]
    heap[: len(kept)] = kept
    heap[len(kept) :] = -1
    return len(kept)


@compiled_part_sum
def _intersection(
    histograms: NDArray[np.float32],
    row_a: np.uint64,
    row_b: np.uint64,
    begin: np.uint64,
    end: np.uint64,
    scale_a: np.float32,
    scale_b: np.float32,
) -> np.float32:
    """Compute the intersection of two histograms, each times its scale."""
    total: np.float32 = np.float32(0)
    for i in range(begin, end):
        x, y = histograms[row_a, i] * scale_a, histograms[row_b, i] * scale_b
        total += x if x < y else y
    return total


@compiled_part
def _latest(parent: NDArray[np.int32], region: int) -> int:
    """Find the current region that contains `region`; compresses the path."""
    while parent[region] != region:
        parent[region] = parent[parent[region]]
        region = parent[region]
    return region


@compiled_part
def _sink(heap: NDArray[np.int64], length: int) -> None:
    """Move heap[length] to the top of the max-heap of `length` entries, and restore the order."""
    key = heap[length]
    at, child = 0, 1
    while child < length:
        if child + 1 < length and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= key:
            break
        heap[at] = heap[child]
        at = child
        child = 2 * at + 1
    heap[at] = key


@compiled_part
def _rise(heap: NDArray[np.int64], key: int, at: int) -> None:
    """Add an entry to the max-heap of `at` entries."""
    while at > 0:
        above = (at - 1) >> 1
        if heap[above] >= key:
            break
        heap[at] = heap[above]
        at = above
    heap[at] = key


@compiled_part
def _outermost(boxes: NDArray[np.int32], a: int, b: int, side: int) -> np.int32:
    """Find a side of the bounding box of two boxes."""
    p, q = boxes[a, side], boxes[b, side]
    found: np.int32 = p if (p < q) == (side < 2) else q
    return found


@compiled
def _merge(
    boxes: NDArray[np.int32],
    size: NDArray[np.int64],
    histograms: NDArray[np.float32],
    spans: NDArray[np.uint64],
    weights: NDArray[np.float32],
    pixels: int,
    ends: NDArray[np.int32],
    parent: NDArray[np.int32],
    row: NDArray[np.int32],
    head: NDArray[np.int32],
    tail: NDArray[np.int32],
    met_by: NDArray[np.int32],
    follower: NDArray[np.int32],
    current: NDArray[np.int32],
    met: NDArray[np.int32],
    heap: NDArray[np.int64],
    value: NDArray[np.float32],
    bits: NDArray[np.int32],
    parts: NDArray[np.int32],
    length: int,
    start: int,
) -> int:
    """Fill boxes[R:], size[R:] and parts from region `start` on; the histograms are overwritten.

    Pair e of regions is two links, 2e from the first and 2e + 1 from the second, each in the list of
    its region. A merged region takes over both lists; the target of a link is resolved when the list
    is traversed. A heap entry has the bits of a similarity above the number of its link; it is stale
    once one of its regions is merged or the link has another similarity.
    """
    total: int = boxes.shape[0]
    count = (total + 1) // 2
    meetings = 0
    for new in range(start, total):
        if new < count:
            meetings = ends.shape[0] >> 1
            for link in range(ends.shape[0] - 1, -1, -1):
                own = ends[link, 0]
                follower[link] = head[own]
                head[own] = link
                if tail[own] < 0:
                    tail[own] = link
        else:
            if length + count > heap.shape[0]:
                return new
            a = b = link = 0
            fresh = False
            while not fresh:
                key = heap[0]
                length -= 1
                _sink(heap, length)
                link = key & LOW_BITS
                a, b = ends[link, 0], ends[link, 1]
                fresh = current[link] == key >> 32 and parent[a] == a and parent[b] == b
            parts[new - count, 0], parts[new - count, 1] = a, b
            parent[a] = parent[b] = new
            size[new] = size[a] + size[b]
            for d in range(4):
                boxes[new, d] = _outermost(boxes, a, b, d)
            into, other_row = row[a], row[b]
            row[new] = into
            for i in range(histograms.shape[1]):
                histograms[into, i] += histograms[other_row, i]
            follower[tail[a]] = head[b]
            link, before = head[a], -1
            meetings = 0
            while link >= 0:
                other = _latest(parent, ends[link, 1])
                current[link] = current[link ^ 1] = -1
                if other != new and met_by[other] != new:
                    met_by[other] = new
                    ends[link, 0], ends[link, 1] = new, other
                    met[meetings] = link
                    meetings += 1
                    if before < 0:
                        head[new] = link
                    else:
                        follower[before] = link
                    before = link
                link = follower[link]
            if before >= 0:
                follower[before] = -1
            tail[new] = before
        for at in range(meetings):
            link = met[at]
            a, b = ends[link, 0], ends[link, 1]
            both, box = size[a] + size[b], 1
            for d in range(2):
                box *= _outermost(boxes, a, b, d + 2) - _outermost(boxes, a, b, d)
            similarity = weights[2] * np.float32(1 - both / pixels)
            similarity += weights[3] * np.float32(1 - (box - both) / pixels)
            p, q = np.float32(1 / size[a]), np.float32(1 / size[b])
            for i in range(2):
                similarity += weights[i] * _intersection(
                    histograms, np.uint64(row[a]), np.uint64(row[b]), spans[i], spans[i + 1], p, q
                )
            value[0] = similarity
            current[link] = bits[0]
            _rise(heap, np.int64(bits[0]) << 32 | np.int64(link), length)
            length += 1
    return total

"""Hierarchical grouping (Uijlings et al., IJCV 2013): the most similar touching regions merge first.

The similarity of two regions is the mean of up to four measures, each at most 1. Colour and texture:
the intersection of their histograms; size: the fraction of the image outside both; fill: the fraction
of the image outside the gaps between them and their bounding box. Ties are broken by a fixed rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sppdet.compiled import compiled, compiled_sum
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
    count = len(regions.sizes)
    weights = np.array([(letter in grouping) / len(grouping) for letter in MEASURES], np.float32)
    boxes = np.empty((2 * count - 1, 4), np.int32)
    boxes[:count] = regions.boxes
    size = np.zeros(2 * count - 1, np.int64)
    size[:count] = regions.sizes
    parts = np.empty((count - 1, 2), np.int32)
    # merged in place; histograms without weight are dropped
    colours = regions.colours[:, : None if "c" in grouping else 0].copy()
    textures = regions.textures[:, : None if "t" in grouping else 0].copy()
    _merge_all(boxes, size, colours, textures, regions.pairs, weights, pixels, parts)
    return Hierarchy(boxes, parts)


@compiled_sum
def _intersection(
    a: NDArray[np.float32], b: NDArray[np.float32], scale_a: np.float32, scale_b: np.float32
) -> float:
    """Compute the intersection of two histograms, each times its scale."""
    total = np.float32(0)
    for i in range(a.shape[0]):
        x, y = a[i] * scale_a, b[i] * scale_b
        total += x if x < y else y
    return float(total)


@compiled
def _similarity(
    colours: NDArray[np.float32],
    textures: NDArray[np.float32],
    rows: tuple[int, int],
    sizes: tuple[int, int],
    gaps: int,
    weights: NDArray[np.float32],
    pixels: int,
) -> float:
    """Compute the similarity of two regions, whose histograms are in `rows`; in [0, 1]."""
    p, q = np.float32(1 / sizes[0]), np.float32(1 / sizes[1])
    both = sizes[0] + sizes[1]
    total = weights[2] * np.float32(1 - both / pixels)
    total += weights[3] * np.float32(1 - gaps / pixels)
    if colours.shape[1]:
        # every channel's histogram sums to the size
        share = weights[0] * np.float32(COLOUR_BINS / colours.shape[1])
        total += share * np.float32(_intersection(colours[rows[0]], colours[rows[1]], p, q))
    if textures.shape[1]:
        share = weights[1] * np.float32(TEXTURE_BINS / textures.shape[1])
        total += share * np.float32(_intersection(textures[rows[0]], textures[rows[1]], p, q))
    return float(max(total, np.float32(0)))


@compiled
def _gaps(a: NDArray[np.int32], b: NDArray[np.int32], size: int) -> int:
    """Count the pixels of the bounding box of boxes a and b outside their regions of `size` pixels."""
    width = max(a[2], b[2]) - min(a[0], b[0])
    height = max(a[3], b[3]) - min(a[1], b[1])
    return int(width * height - size)


@compiled
def _latest(parent: NDArray[np.int32], region: int) -> int:
    """Find the current region that contains `region`; compresses the path."""
    while parent[region] != region:
        parent[region] = parent[parent[region]]
        region = parent[region]
    return region


@compiled
def _sink(heap: NDArray[np.int64], length: int, at: int) -> None:
    """Restore the max-heap if heap[at] may be too small."""
    key = heap[at]
    child = 2 * at + 1
    while child < length:
        if child + 1 < length and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= key:
            break
        heap[at] = heap[child]
        at = child
        child = 2 * at + 1
    heap[at] = key


@compiled
def _rise(heap: NDArray[np.int64], at: int) -> None:
    """Restore the max-heap if heap[at] may be too large."""
    key = heap[at]
    while at > 0:
        above = (at - 1) >> 1
        if heap[above] >= key:
            break
        heap[at] = heap[above]
        at = above
    heap[at] = key


@compiled
def _is_fresh(
    key: int, current: NDArray[np.int32], ends: NDArray[np.int32], parent: NDArray[np.int32]
) -> bool:
    """Check that a heap entry is of two current regions with their current similarity."""
    link = key & LOW_BITS
    a, b = ends[link]
    return bool(current[link] == key >> 32 and parent[a] == a and parent[b] == b)


@compiled
def _merge_all(
    boxes: NDArray[np.int32],
    size: NDArray[np.int64],
    colours: NDArray[np.float32],
    textures: NDArray[np.float32],
    pairs: NDArray[np.int32],
    weights: NDArray[np.float32],
    pixels: int,
    parts: NDArray[np.int32],
) -> None:
    """Fill boxes[R:], size[R:] and parts; the histograms are overwritten.

    Pair e of regions is two links, 2e from the first and 2e + 1 from the second, each in the list of
    its region. A merged region takes over both lists; the target of a link is resolved when the list
    is traversed. A heap entry has the bits of a similarity above the number of its link; it is stale
    once one of its regions is merged or the link has another similarity.
    """
    total = boxes.shape[0]
    count = (total + 1) // 2
    parent = np.arange(total).astype(np.int32)
    row = np.arange(total).astype(
        np.int32
    )  # of the histograms; a merged region reuses that of its first part
    head, tail = np.full(total, -1, np.int32), np.full(total, -1, np.int32)
    met_by = np.full(total, -1, np.int32)
    links = 2 * pairs.shape[0]
    follower = np.full(links, -1, np.int32)
    ends = np.empty((links, 2), np.int32)  # the link's own region and the other
    current = np.full(links, -1, np.int32)  # bits of the similarity, -1 for none
    heap = np.empty(4 * links + 64, np.int64)
    length = 0
    value = np.empty(1, np.float32)
    bits = value.view(np.int32)  # bits of non-negative floats sort like the floats
    for e in range(pairs.shape[0]):
        a, b = pairs[e]
        for link, own, other in ((2 * e, a, b), (2 * e + 1, b, a)):
            ends[link, 0], ends[link, 1] = own, other
            if head[own] < 0:
                head[own] = link
            else:
                follower[tail[own]] = link
            tail[own] = link
        gaps = _gaps(boxes[a], boxes[b], size[a] + size[b])
        value[0] = _similarity(colours, textures, (a, b), (size[a], size[b]), gaps, weights, pixels)
        current[2 * e] = bits[0]
        heap[length] = np.int64(bits[0]) << 32 | np.int64(2 * e)
        _rise(heap, length)
        length += 1
    for new in range(count, total):
        key = heap[0]
        while True:
            length -= 1
            heap[0] = heap[length]
            _sink(heap, length, 0)
            if _is_fresh(key, current, ends, parent):
                break
            key = heap[0]
        a, b = ends[key & LOW_BITS]
        parts[new - count, 0], parts[new - count, 1] = a, b
        parent[a] = parent[b] = new
        size[new] = size[a] + size[b]
        box = boxes[new]
        box[0], box[1] = min(boxes[a, 0], boxes[b, 0]), min(boxes[a, 1], boxes[b, 1])
        box[2], box[3] = max(boxes[a, 2], boxes[b, 2]), max(boxes[a, 3], boxes[b, 3])
        row[new] = row[a]
        into, other_row = row[a], row[b]
        for i in range(colours.shape[1]):
            colours[into, i] += colours[other_row, i]
        for i in range(textures.shape[1]):
            textures[into, i] += textures[other_row, i]
        follower[tail[a]] = head[b]
        link, before = head[a], -1
        while link >= 0:
            other = _latest(parent, ends[link, 1])
            current[link] = current[link ^ 1] = -1
            if other != new and met_by[other] != new:
                met_by[other] = new
                ends[link, 0], ends[link, 1] = new, other
                gaps = _gaps(box, boxes[other], size[new] + size[other])
                rows, sizes = (row[new], row[other]), (size[new], size[other])
                value[0] = _similarity(colours, textures, rows, sizes, gaps, weights, pixels)
                current[link] = bits[0]
                if length == heap.shape[0]:
                    length = _drop_stale(heap, current, ends, parent)
                heap[length] = np.int64(bits[0]) << 32 | np.int64(link)
                _rise(heap, length)
                length += 1
                if before < 0:
                    head[new] = link
                else:
                    follower[before] = link
                before = link
            link = follower[link]
        if before >= 0:
            follower[before] = -1
        tail[new] = before


@compiled
def _drop_stale(
    heap: NDArray[np.int64],
    current: NDArray[np.int32],
    ends: NDArray[np.int32],
    parent: NDArray[np.int32],
) -> int:
    """Drop the heap's stale entries; returns the number left, at most one per pair."""
    kept = 0
    for at in range(heap.shape[0]):
        if _is_fresh(heap[at], current, ends, parent):
            heap[kept] = heap[at]
            kept += 1
    for at in range(kept // 2 - 1, -1, -1):
        _sink(heap, kept, at)
    return kept

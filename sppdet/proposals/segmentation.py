"""Graph segmentation (Felzenszwalb and Huttenlocher, IJCV 2004) of an image into small regions.

Edges between neighbouring pixels of the smoothed image weigh as much as the colours differ. They are
processed in ascending weight; an edge joins two regions if for both its weight is at most that of their
heaviest edge so far + k / size. Then regions below the minimum size are joined to a neighbour, again
in ascending weight.

Weights are integers in units of 1/128 of a colour level, so that one counting sort serves every k.
Ties are in the order of the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sppdet.compiled import ONE, ZERO, compiled, compiled_part

SIGMA = 0.8  # smoothing before the edges are weighed
STEPS = 128  # of weight per colour level; √3 · 255 levels are below 2¹⁶
BLOCK = np.uint64(64)  # edges looked up together
NONE = 0xFFFF  # weight without a neighbour
NO_LABEL = 0xFFFFFFFF


@dataclass(frozen=True)
class Edges:
    """Edges of an image in ascending weight.

    Edge e joins pixel p = e // 2 (row-major) to p + 1 if e is even, else to the one below it.
    """

    order: NDArray[np.uint32]  # (E,) edges
    weights: NDArray[np.uint16]  # (E,) of each, ascending
    height: int
    width: int


def weigh_edges(planes: NDArray[np.uint8]) -> Edges:
    """Compute and sort the edges between neighbouring pixels.

    Args:
        planes: (C, H, W), C at most 3.
    """
    channels, height, width = planes.shape
    # a row more, so that in memory every pixel has one to its right and one below
    smooth = np.empty((channels, height + 1, width), np.float32)
    smooth[:, height] = 0
    for plane, out in zip(planes.astype(np.float32), smooth[:, :height], strict=True):
        cv2.GaussianBlur(plane, (0, 0), SIGMA, dst=out)
    weights = np.empty((2, height, width), np.uint16)
    total = np.empty(width, np.float32)
    for far, out in zip((1, width), weights.reshape(2, -1), strict=True):
        _weigh(smooth.reshape(channels, -1), np.uint64(far), total, out)
    weights[0, :, -1] = weights[1, -1] = NONE
    order, sorted_weights = np.empty(weights.size, np.uint32), np.empty(weights.size, np.uint16)
    _sort(weights.reshape(2, -1), np.zeros(NONE + 1, np.uint32), order, sorted_weights)
    count = height * (width - 1) + (height - 1) * width
    return Edges(order[:count], sorted_weights[:count], height, width)


def segment(edges: Edges, k: int) -> tuple[NDArray[np.uint32], int]:
    """Segment an image with threshold `k` and minimum size `k`.

    Returns:
        (H, W) labels from 0, numbered in the order of their first pixels, and their count.
    """
    pixels = edges.height * edges.width
    parent, labels = np.arange(pixels, dtype=np.uint32), np.empty(pixels, np.uint32)
    size = np.ones(pixels, np.uint32)
    limit = np.full(pixels, k * STEPS, np.float32)
    block = np.empty((3, BLOCK), np.uint32)
    graph = edges.order, edges.weights, np.uint64(edges.width - 1)
    _join(*graph, parent, size, limit, block, np.float32(k * STEPS), pixels, 0)
    _number(parent, labels)
    # a small region then takes any neighbour
    limit = np.where(size < k, np.float32(np.inf), np.float32(-1))
    _join(*graph, parent, size, limit, block, np.float32(np.inf), k, 1)
    count: int = _number(parent, labels)
    return labels.reshape(edges.height, edges.width), count


@compiled
def _weigh(
    smooth: NDArray[np.float32],
    far: np.uint64,
    total: NDArray[np.float32],
    weights: NDArray[np.uint16],
) -> None:
    """Weigh the edges of pixels to those `far` further on in each plane of smooth (C, ...)."""
    for begin in range(0, weights.shape[0], total.shape[0]):
        start = np.uint64(begin)
        for x in range(total.shape[0]):
            total[x] = 0
        for c in range(smooth.shape[0]):
            for x in range(np.uint64(total.shape[0])):
                step = smooth[c, start + x + far] - smooth[c, start + x]
                total[x] += step * step
        for x in range(np.uint64(total.shape[0])):
            weight = np.sqrt(total[x]) * np.float32(STEPS) + np.float32(0.5)
            weights[start + x] = np.uint16(weight)


@compiled
def _sort(
    weights: NDArray[np.uint16],
    places: NDArray[np.uint32],
    order: NDArray[np.uint32],
    sorted_weights: NDArray[np.uint16],
) -> None:
    """Sort edges by weight (2, pixels) with a stable counting sort; `places` are zeros."""
    one = np.uint32(1)
    for d in range(2):
        for i in range(weights.shape[1]):
            places[weights[d, i]] += one
    begin = np.uint32(0)
    for w in range(places.shape[0]):
        end = begin + places[w]
        for at in range(begin, end):
            sorted_weights[at] = w
        places[w] = begin
        begin = end
    for i in range(np.uint64(weights.shape[1])):
        right, below = weights[0, i], weights[1, i]
        at = places[right]
        places[right] = at + one
        order[at] = i + i
        at = places[below]
        places[below] = at + one
        order[at] = i + i + ONE


@compiled_part
def _root(parent: NDArray[np.uint32], i: np.uint32) -> np.uint32:
    """Find the root of i's tree, which is its own parent."""
    while parent[i] != i:
        i = parent[i]
    return i


@compiled
def _join(
    order: NDArray[np.uint32],
    weights: NDArray[np.uint16],
    down: np.uint64,
    parent: NDArray[np.uint32],
    size: NDArray[np.uint32],
    limit: NDArray[np.float32],
    block: NDArray[np.uint32],
    scaled: np.float32,
    full: int,
    refusals: int,
) -> None:
    """Join the trees of pixels at both ends of an edge if at most `refusals` of them refuse its weight.

    A tree refuses what is above its root's limit. That of a joined tree is its heaviest edge +
    scaled / size, or, from `full` pixels on, below every weight.
    """
    begin, count = ZERO, np.uint64(order.shape[0])
    while begin < count:
        # look up a block of edges before deciding on any, so that no branch waits for memory
        open_edges, end = ZERO, begin + BLOCK
        for at in range(begin, end if end < count else count):
            edge = np.uint64(order[at])
            a = edge >> ONE
            b = a + ONE + down * (edge & ONE)
            root_a, root_b = parent[parent[a]], parent[parent[b]]
            parent[a], parent[b] = root_a, root_b
            block[0, open_edges], block[1, open_edges] = root_a, root_b
            block[2, open_edges] = weights[at]
            open_edges += np.uint64(root_a != root_b)
        for at in range(open_edges):
            r, s = _root(parent, block[0, at]), _root(parent, block[1, at])
            weight = np.float32(block[2, at])
            if r == s or (limit[r] < weight) + (limit[s] < weight) > refusals:
                continue
            if size[r] < size[s]:
                r, s = s, r
            parent[s] = r
            size[r] += size[s]
            limit[r] = weight + scaled / np.float32(size[r]) if size[r] < full else np.float32(-1)
        begin += BLOCK


@compiled
def _number(parent: NDArray[np.uint32], labels: NDArray[np.uint32]) -> int:
    """Number trees as labels, in the order of their first pixels; returns their count."""
    count = 0
    for i in range(labels.shape[0]):
        labels[i] = NO_LABEL
    for i in range(np.uint64(labels.shape[0])):
        root = _root(parent, parent[i])
        parent[i] = root
        if labels[root] == NO_LABEL:
            labels[root] = count
            count += 1
        labels[i] = labels[root]
    return count

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

from sppdet.compiled import compiled

SIGMA = 0.8  # smoothing before the edges are weighed
STEPS = 128  # of weight per colour level; √3 · 255 levels are below 2¹⁶
BLOCK = 64  # edges looked up together


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
    _, height, width = planes.shape
    smooth = np.stack(
        [cv2.GaussianBlur(p, (0, 0), SIGMA) for p in planes.astype(np.float32)]
    ).reshape(planes.shape)
    weights = np.empty((height, 2, width), np.uint16)
    _weigh(smooth, weights)
    count = height * (width - 1) + (height - 1) * width
    order, sorted_weights = np.empty(count, np.uint32), np.empty(count, np.uint16)
    _sort(weights, order, sorted_weights)
    return Edges(order, sorted_weights, height, width)


def segment(edges: Edges, k: int) -> tuple[NDArray[np.uint32], int]:
    """Segment an image with threshold `k` and minimum size `k`.

    Returns:
        (H, W) labels from 0, numbered in the order of their first pixels, and their count.
    """
    parent = np.empty(edges.height * edges.width, np.uint32)
    labels = np.empty_like(parent)
    _join(edges.order, edges.weights, edges.width, k, parent)
    count = _number(parent, labels)
    count = _absorb(edges.order, edges.width, k, labels, count)
    return labels.reshape(edges.height, edges.width), count


@compiled
def _weigh(smooth: NDArray[np.float32], weights: NDArray[np.uint16]) -> None:
    """Fill weights[y, 0, x] of edges to the right and weights[y, 1, x] down; 0 without a neighbour."""
    channels, height, width = smooth.shape
    total = np.empty(width, np.float32)
    for y in range(height):
        for d in range(2):
            total[:] = 0
            if d == 0:
                for c in range(channels):
                    row = smooth[c, y]
                    for x in range(width - 1):
                        step = row[x + 1] - row[x]
                        total[x] += step * step
            elif y + 1 < height:
                for c in range(channels):
                    row, below = smooth[c, y], smooth[c, y + 1]
                    for x in range(width):
                        step = below[x] - row[x]
                        total[x] += step * step
            for x in range(width):
                weights[y, d, x] = np.uint16(
                    np.sqrt(total[x]) * np.float32(STEPS) + np.float32(0.5)
                )


@compiled
def _sort(
    weights: NDArray[np.uint16], order: NDArray[np.uint32], sorted_weights: NDArray[np.uint16]
) -> None:
    """Sort edges by weight with a stable counting sort."""
    height, _, width = weights.shape
    places = np.zeros(1 << 16, np.uint32)
    for y in range(height):
        for x in range(width - 1):
            places[weights[y, 0, x]] += np.uint32(1)
        if y + 1 < height:
            for x in range(width):
                places[weights[y, 1, x]] += np.uint32(1)
    begin = np.uint32(0)
    for w in range(places.shape[0]):
        end = begin + places[w]
        for at in range(begin, end):
            sorted_weights[at] = w
        places[w] = begin
        begin = end
    for y in range(height):
        for x in range(width):
            edge = np.uint32(2 * (y * width + x))
            if x + 1 < width:
                w = weights[y, 0, x]
                order[places[w]] = edge
                places[w] += np.uint32(1)
            if y + 1 < height:
                w = weights[y, 1, x]
                order[places[w]] = edge + np.uint32(1)
                places[w] += np.uint32(1)


@compiled
def _root(parent: NDArray[np.uint32], i: np.uint32) -> np.uint32:
    """Find the root of i's tree, which is its own parent."""
    while parent[i] != i:
        i = parent[i]
    return i


@compiled
def _join(
    order: NDArray[np.uint32],
    weights: NDArray[np.uint16],
    width: int,
    k: int,
    parent: NDArray[np.uint32],
) -> None:
    """Join pixels into trees, one per region, in `parent`."""
    pixels = parent.shape[0]
    scaled = np.float32(k * STEPS)
    size = np.ones(pixels, np.uint32)
    limit = np.full(pixels, scaled, np.float32)  # per root, the maximum weight to accept
    for i in range(pixels):
        parent[i] = i
    one, down = np.uint64(1), np.uint64(width - 1)
    count, block = np.uint64(order.shape[0]), np.uint64(BLOCK)
    roots = np.empty((2, BLOCK), np.uint32)
    weight_at = np.empty(BLOCK, np.float32)
    begin = np.uint64(0)
    while begin < count:
        # look up a block of edges before deciding on any, so that no branch waits for memory
        open_edges = np.uint64(0)
        for at in range(begin, min(begin + block, count)):
            edge = np.uint64(order[at])
            a = edge >> one
            b = a + one + down * (edge & one)
            root_a, root_b = parent[parent[a]], parent[parent[b]]
            parent[a], parent[b] = root_a, root_b
            roots[0, open_edges], roots[1, open_edges] = root_a, root_b
            weight_at[open_edges] = weights[at]
            open_edges += np.uint64(root_a != root_b)
        for at in range(open_edges):
            r, s = _root(parent, roots[0, at]), _root(parent, roots[1, at])
            weight = weight_at[at]
            if r == s or limit[r] < weight or limit[s] < weight:
                continue
            if size[r] < size[s]:
                r, s = s, r
            parent[s] = r
            size[r] += size[s]
            limit[r] = weight + scaled / np.float32(size[r])
        begin += block


@compiled
def _number(parent: NDArray[np.uint32], labels: NDArray[np.uint32]) -> int:
    """Number trees as labels, in the order of their first pixels; returns their count."""
    count = np.uint32(0)
    none = np.uint32(0xFFFFFFFF)
    number = np.full(parent.shape[0], none, np.uint32)
    for i in range(np.uint64(parent.shape[0])):
        root = _root(parent, parent[i])
        parent[i] = root
        if number[root] == none:
            number[root] = count
            count += np.uint32(1)
        labels[i] = number[root]
    return int(count)


@compiled
def _absorb(
    order: NDArray[np.uint32], width: int, min_size: int, labels: NDArray[np.uint32], count: int
) -> int:
    """Join regions below `min_size` to a neighbour and relabel; returns the number left."""
    parent = np.arange(count).astype(np.uint32)
    size = np.zeros(count, np.uint32)
    for i in range(labels.shape[0]):
        size[labels[i]] += np.uint32(1)
    one, down, minimum = np.uint64(1), np.uint64(width - 1), np.uint32(min_size)
    edges, block = np.uint64(order.shape[0]), np.uint64(BLOCK)
    sides = np.empty((2, BLOCK), np.uint32)
    begin = np.uint64(0)
    while begin < edges:
        open_edges = np.uint64(0)
        for at in range(begin, min(begin + block, edges)):
            edge = np.uint64(order[at])
            pixel = edge >> one
            a, b = labels[pixel], labels[pixel + one + down * (edge & one)]
            sides[0, open_edges], sides[1, open_edges] = a, b
            open_edges += np.uint64(a != b)
        for at in range(open_edges):
            a, b = _root(parent, sides[0, at]), _root(parent, sides[1, at])
            if a == b or (size[a] >= minimum and size[b] >= minimum):
                continue
            if size[a] < size[b]:
                a, b = b, a
            parent[b] = a
            size[a] += size[b]
        begin += block
    final = np.empty(count, np.uint32)
    left = _number(parent, final)
    for i in range(labels.shape[0]):
        labels[i] = final[labels[i]]
    return left

"""Selective search (Uijlings et al., IJCV 2013): candidate boxes from hierarchies of regions.

The boxes of each hierarchy are ranked by position × a random number from a generator seeded by the
image: the same image gives the same boxes in the same order, in any process and with any number of
workers.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sppdet.config import ProposalsConfig
from sppdet.proposals import opencv_engine, sppdet_engine
from sppdet.proposals.modes import MODES
from sppdet.proposals.resized import in_original, resized_for_search
from sppdet.randomness import rng
from sppdet.types import Boxes, ImageArray, Proposals

MEASURES = {"c": "colour", "t": "texture", "s": "size", "f": "fill"}
VERSION = 4  # raise it when the same settings give other boxes


def selective_search(image: ImageArray, config: ProposalsConfig) -> Proposals:
    """Compute the proposals of one image.

    Args:
        image: (H, W, 3) RGB uint8.
        config: its `seed` and the image's pixels determine the ranking. With engine: stored, which
            has boxes for images of data sets only, sppdet's engine is used.

    Returns:
        At most `config.max_boxes` distinct boxes in original pixels, at least `config.min_size`
        resized pixels wide and high. An image of one colour gives one box, the whole image.
    """
    resized = resized_for_search(image, config.image_width)
    engine = opencv_engine if config.engine == "opencv" else sppdet_engine
    groups = engine.hierarchies(resized, MODES[config.mode])
    generator = rng(config.seed, "proposal ranking", _digest(resized))
    boxes = _order(groups, generator, min_size=config.min_size)[: config.max_boxes]
    return Proposals(in_original(boxes, resized, image))


@dataclass(frozen=True)
class Merges:
    """The first merges of a hierarchy: the boxes (M, 4) of the regions made, in original pixels."""

    name: str
    regions: int  # before the first merge
    boxes: Boxes


def first_merges(
    image: ImageArray, config: ProposalsConfig, *, count: int, most: int
) -> list[Merges]:
    """Find the first `count` merges of the first `most` hierarchies of sppdet's engine."""
    resized = resized_for_search(image, config.image_width)
    found = []
    for tree in itertools.islice(sppdet_engine.grow(resized, MODES[config.mode]), most):
        regions = len(tree.hierarchy.parts) + 1
        boxes = in_original(tree.hierarchy.boxes[regions : regions + count], resized, image)
        measures = " + ".join(MEASURES[letter] for letter in tree.grouping)
        found.append(Merges(f"{tree.colour}, k = {tree.k}, by {measures}", regions, boxes))
    return found


def _digest(image: ImageArray) -> int:
    return int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=8).digest(), "little")


def _order(
    groups: list[NDArray[np.int32]], rng: np.random.Generator, *, min_size: int
) -> NDArray[np.int32]:
    """Rank the distinct boxes of all groups by position in the group × a random number."""
    rank = np.concatenate([np.arange(1, len(g) + 1) * rng.random(len(g)) for g in groups])
    boxes = np.concatenate(groups)
    large = np.flatnonzero((boxes[:, 2:] - boxes[:, :2] >= min_size).all(axis=1))
    boxes = boxes[large[np.argsort(rank[large], kind="stable")]]
    sides = boxes[:, 2:].max(axis=0, initial=0).astype(np.int64) + 1
    corners = boxes[:, 1::2] * sides[0] + boxes[:, ::2]  # both corners as row-major numbers
    _, first = np.unique(corners[:, 0] * sides.prod() + corners[:, 1], return_index=True)
    return boxes[np.sort(first)]

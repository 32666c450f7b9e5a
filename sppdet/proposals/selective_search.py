"""Selective search (Uijlings et al., IJCV 2013) by OpenCV, with an order of our own.

OpenCV ranks boxes with C `rand()`, so its order depends on what ran before in the process. Here
the boxes of each segmentation are ranked by position in the hierarchy × a number from a generator
seeded by the picture itself: the same picture gives the same boxes in the same order, in any
process and at any worker count.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sppdet.boxes import box_area, clip_boxes, empty_boxes
from sppdet.config import ProposalsConfig
from sppdet.types import Boxes, Picture, Proposals

SIGMA = 0.8  # smoothing before the graph segmentation
MAX_ASPECT = 4  # a picture taller than this × its width is shrunk to fit, or it would not end
VERSION = 1  # raised when the same settings give other boxes


@dataclass(frozen=True)
class Mode:
    """What the hierarchies differ in: colour spaces, segmentation thresholds k, groupings."""

    colours: tuple[str, ...]
    ks: tuple[int, ...]
    groupings: tuple[str, ...]  # c colour, t texture, s size, f fill; equal weights


MODES = {
    "fast": Mode(("hsv", "lab"), (50, 100), ("ctsf", "tsf")),
    "quality": Mode(
        ("hsv", "lab", "rgi", "hue", "grey"), (50, 100, 150, 300), ("ctsf", "tsf", "f", "s")
    ),
}


def selective_search(picture: Picture, config: ProposalsConfig) -> Proposals:
    """Propose boxes for one picture.

    Args:
        picture: (H, W, 3) RGB uint8.
        config: its `seed` and the picture's pixels fix the pseudo-random order.

    Returns:
        At most `config.max_boxes` distinct boxes in original pixels, none of them less than
        `config.min_size` resized pixels wide or high. A picture of one colour has just the whole.
    """
    height, width = picture.shape[:2]
    factor = min(config.image_width / width, MAX_ASPECT * config.image_width / height)
    resized_size = (max(1, round(width * factor)), max(1, round(height * factor)))
    resized = np.asarray(
        cv2.resize(picture, resized_size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8
    )
    mode = MODES[config.mode]
    groups = [
        _hierarchies(resized, _in_colour_space(resized, colour), k, mode.groupings)
        for colour in mode.colours
        for k in mode.ks
    ]
    boxes = _order(groups, np.random.default_rng([config.seed, _digest(resized)]))
    sides = boxes[:, 2:] - boxes[:, :2]
    boxes = boxes[(sides >= config.min_size).all(axis=1)][: config.max_boxes]
    scale = np.array([width / resized_size[0], height / resized_size[1]] * 2, dtype=np.float64)
    original = (boxes * scale).astype(np.float32)
    return Proposals(clip_boxes(original, width=width, height=height))


def _digest(picture: Picture) -> int:
    return int.from_bytes(hashlib.blake2b(picture.tobytes(), digest_size=8).digest(), "little")


def _in_colour_space(picture: Picture, name: str) -> NDArray[np.uint8]:
    if name in ("hsv", "lab", "hue"):
        code = cv2.COLOR_RGB2LAB if name == "lab" else cv2.COLOR_RGB2HSV
        converted = np.asarray(cv2.cvtColor(picture, code), dtype=np.uint8)
        return np.ascontiguousarray(converted[:, :, :1]) if name == "hue" else converted
    grey = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    if name == "grey":
        return grey[:, :, None]
    # rgI: normalised red and green beside the intensity
    total = np.maximum(picture.sum(axis=2, keepdims=True, dtype=np.float32), 1.0)
    chroma = (picture[:, :, :2] / total * 255).astype(np.uint8)
    return np.dstack([chroma, grey])


def _hierarchies(
    picture: Picture, converted: NDArray[np.uint8], k: int, groupings: tuple[str, ...]
) -> Boxes:
    """All regions' boxes of one segmentation under several groupings, (N, 4), distinct."""
    segmentation = cv2.ximgproc.segmentation
    search = segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(picture)
    search.addImage(converted)
    search.addGraphSegmentation(segmentation.createGraphSegmentation(SIGMA, float(k), k))
    for grouping in groupings:
        search.addStrategy(_strategy(grouping))
    xywh = np.asarray(search.process(), dtype=np.float32).reshape(-1, 4)
    return np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])


def _strategy(grouping: str) -> Any:
    segmentation = cv2.ximgproc.segmentation
    makers = {
        "c": segmentation.createSelectiveSearchSegmentationStrategyColor,
        "t": segmentation.createSelectiveSearchSegmentationStrategyTexture,
        "s": segmentation.createSelectiveSearchSegmentationStrategySize,
        "f": segmentation.createSelectiveSearchSegmentationStrategyFill,
    }
    combined = segmentation.createSelectiveSearchSegmentationStrategyMultiple()
    for letter in grouping:
        combined.addStrategy(makers[letter](), 1.0 / len(grouping))
    return combined


def _order(groups: list[Boxes], rng: np.random.Generator) -> Boxes:
    """The distinct boxes of all groups, by position in the hierarchy × a random number.

    OpenCV keeps the merge order to itself; within a group the boxes are counted from the largest
    to the smallest, which puts every region after those it is part of.
    """
    ranked = []
    for boxes in groups:
        by_size = np.lexsort((*boxes.T[::-1], -box_area(boxes)))
        position = np.arange(1, len(boxes) + 1, dtype=np.float64)
        ranked.append((boxes[by_size], position * rng.random(len(boxes))))
    if not ranked:
        return empty_boxes()
    boxes = np.concatenate([b for b, _ in ranked])
    boxes = boxes[np.argsort(np.concatenate([r for _, r in ranked]), kind="stable")]
    _, first = np.unique(boxes, axis=0, return_index=True)
    return np.ascontiguousarray(boxes[np.sort(first)])

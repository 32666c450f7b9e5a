"""Crops of a detection set's objects and background, in folders named by class.

A backbone without other weights is trained on them as a classifier (`sppdet pretrain`). A crop shows a
window and its surroundings, unwarped, at the image scale that the detector would choose for the window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sppdet.boxes import box_iou, clip_boxes
from sppdet.errors import DataError
from sppdet.features.geometry import choose_scales, scale_factors_of
from sppdet.features.preprocessing import IMAGENET
from sppdet.io.images import read_image
from sppdet.randomness import rng
from sppdet.resizing import resized
from sppdet.runs.artifacts import atomic_path
from sppdet.runs.progress import track
from sppdet.types import AnnotatedImage, Boxes, Dataset, ImageArray

VERSION = 3  # raised when the same arguments give other crops
BACKGROUND = "background"  # folder of crops without an object

_OBJECTS, _BACKGROUNDS = 3, 1  # maximum number of crops per image and round
_POSITIVE_IOU = 0.6  # minimum IoU of a jittered box with its object
_BACKGROUND_IOU = 0.3  # the IoU of a background box with every object is less
_TRIES = 20
_ZOOM = 0.15  # maximum change of a crop's scale, logarithmic


@dataclass(frozen=True)
class CropConfig:
    """Scale and size of crops; `scales` and `canonical_size` are the detector's."""

    scales: tuple[int, ...]
    """Shorter sides of the resized images, in pixels, ascending."""
    canonical_size: int
    """The scale is chosen at which a window's area is nearest to the square of this side."""
    side: int
    """Width and height of a crop, in resized pixels."""
    max_side: int
    """Maximum longer side of a resized image, in pixels."""


def write_crops(
    dataset: Dataset, folder: Path, config: CropConfig, *, rounds: int, seed: int
) -> int:
    """Cut crops of every image into `folder/CLASS/*.png`; returns their number.

    A round takes up to three crops around objects of an image (jittered, IoU >= 0.6, difficult ones
    left out) and one of background (IoU < 0.3 with every object).

    Raises:
        DataError: a class is called background.
        ImageError: an image can't be read.
    """
    names = (BACKGROUND, *dataset.class_names)
    if len(set(names)) < len(names):
        raise DataError(f"{dataset.name}: a class is called {BACKGROUND}")
    count = 0
    images = track(enumerate(dataset.images), total=len(dataset), label="cutting crops")
    for position, image in images:
        pixels = read_image(image.path)
        drawn = rng(seed, "crops", position)
        for number, (crop, label) in enumerate(
            pair for _ in range(rounds) for pair in draw_crops(image, pixels, config, rng=drawn)
        ):
            path = folder / names[label] / f"{image.id}-{number:03}.png"
            _, encoded = cv2.imencode(".png", np.ascontiguousarray(crop[:, :, ::-1]))
            with atomic_path(path) as temporary:
                temporary.write_bytes(encoded.tobytes())
            count += 1
    return count


def draw_crops(
    image: AnnotatedImage, pixels: ImageArray, config: CropConfig, *, rng: np.random.Generator
) -> Iterator[tuple[ImageArray, int]]:
    """Yield (crop, label) for up to three objects of `image` and up to one place of background.

    Args:
        image: (H, W, 3) RGB.
    """
    size = pixels.shape[1], pixels.shape[0]
    usable = np.flatnonzero(~image.difficult)
    for row in rng.permutation(usable)[:_OBJECTS].tolist():
        box = _near_object(image.gt_boxes[row : row + 1], size, rng)
        yield cut_crop(pixels, box, config, rng=rng), int(image.gt_labels[row])
    for _ in range(_BACKGROUNDS):
        background = _background(image.gt_boxes, size, rng)
        if background is not None:
            yield cut_crop(pixels, background, config, rng=rng), 0


def _jitter(box: Boxes, rng: np.random.Generator, *, shift: float, zoom: float) -> Boxes:
    """Move a box (1, 4) by up to `shift` of its size and scale each side by up to exp(±`zoom`)."""
    sides = box[:, 2:] - box[:, :2]
    centre = (box[:, :2] + box[:, 2:]) / 2 + sides * rng.uniform(-shift, shift, (1, 2))
    half = sides / 2 * np.exp(rng.uniform(-zoom, zoom, (1, 2)))
    return np.hstack([centre - half, centre + half]).astype(np.float32)


def _near_object(target: Boxes, size: tuple[int, int], rng: np.random.Generator) -> Boxes:
    """Draw a box near `target`, clipped to the image; `target` itself if no try is near enough."""
    for _ in range(_TRIES):
        box = clip_boxes(_jitter(target, rng, shift=0.2, zoom=0.25), width=size[0], height=size[1])
        if box_iou(box, target)[0, 0] >= _POSITIVE_IOU:
            return box
    return target


def _background(objects: Boxes, size: tuple[int, int], rng: np.random.Generator) -> Boxes | None:
    """Draw a box anywhere, or next to an object; None if no try is far enough from all objects."""
    shorter = min(size)
    for _ in range(_TRIES):
        if len(objects) and rng.random() < 0.3:
            row = int(rng.integers(len(objects)))
            box = _jitter(objects[row : row + 1], rng, shift=0.8, zoom=1.0)
        else:
            sides = shorter * np.exp(rng.uniform(np.log(0.1), np.log(0.8))) * np.ones((1, 2))
            sides *= np.exp(rng.uniform(-0.4, 0.4, (1, 2)))
            corner = rng.random((1, 2)) * np.maximum(np.array([size]) - sides, 0)
            box = np.hstack([corner, corner + sides]).astype(np.float32)
        box = clip_boxes(box, width=size[0], height=size[1])
        big_enough = (box[:, 2:] - box[:, :2]).min() >= 0.06 * shorter
        if big_enough and not (box_iou(box, objects) >= _BACKGROUND_IOU).any():
            return box
    return None


def cut_crop(
    image: ImageArray, box: Boxes, config: CropConfig, *, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Cut (side, side, 3) around `box` at the scale that the detector would choose, ± `_ZOOM`.

    Args:
        image: (H, W, 3) RGB.
        box: (1, 4) original pixels, with area.

    Returns:
        the crop; outside of the image it has the mean colour, which the networks see as 0.
    """
    height, width = image.shape[:2]
    factors = scale_factors_of(config.scales, width=width, height=height, max_side=config.max_side)
    chosen = choose_scales(box, factors, canonical_area=config.canonical_size**2)
    factor = float(factors[chosen[0]]) * math.exp(rng.uniform(-_ZOOM, _ZOOM))
    # warpAffine doesn't smooth where it shrinks
    smaller, larger_by = (resized(image, factor), 1.0) if factor < 1 else (image, factor)
    centre = (box[0, :2] + box[0, 2:]).astype(np.float64) / 2 * factor
    origin = centre - config.side / 2  # resized pixels
    # pixel i spans [i, i + 1), but warpAffine counts from pixel centres
    offset = 0.5 * larger_by - origin - 0.5
    matrix = np.array([[larger_by, 0, offset[0]], [0, larger_by, offset[1]]])
    mean = tuple(255 * value for value in IMAGENET.mean)
    pixels = cv2.warpAffine(smaller, matrix, (config.side, config.side), borderValue=mean)
    return np.asarray(pixels, dtype=np.uint8)

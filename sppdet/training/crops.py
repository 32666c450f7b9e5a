"""Training of convolutional layers from scratch, as a classifier of crops of the training pictures.

A crop shows a window and what is around it at the image scale at which the detector would see it,
unwarped, and only the cells of the window are pooled.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torchvision.ops import roi_pool

from sppdet.boxes import box_iou, clip_boxes
from sppdet.data.images import read_image
from sppdet.errors import TrainingError
from sppdet.features.backbones import PIXEL_MEAN, PIXEL_STD
from sppdet.features.geometry import choose_scales, scale_factor
from sppdet.types import AnnotatedImage, Boxes, Dataset, Picture

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # crops, windows, labels

VERSION = 1  # raised when the same arguments give other weights

_BINS = (3, 1)  # a side, of the classifier's pooling
_OBJECTS, _BACKGROUNDS = 3, 1  # crops a picture and step
_PICTURES = 10  # a step
_POSITIVE_IOU = 0.6  # of a jittered box with its object, at least
_BACKGROUND_IOU = 0.3  # of a background box with every object, less than this
_TRIES = 20
_SHIFT_PX = 4.0  # of a window in its crop, so that it meets the cell grid in every way
_ZOOM = 0.15  # greatest change of a crop's scale, logarithmic
_WARM_UP = 0.1  # part of the steps in which the learning rate rises
_WEIGHT_DECAY = 1e-3


@dataclass(frozen=True)
class CropConfig:
    """How windows are seen: as by the detector with the same `scales` and `canonical_size`."""

    scales: tuple[int, ...] = (144, 224, 320, 480)
    """Shorter sides of the resized pictures, in pixels, ascending."""
    canonical_size: int = 80
    """The scale is chosen at which a window's area is nearest to the square of this."""
    crop_side: int = 104
    """Width and height of a crop, in resized pixels; a multiple of the network's stride."""
    max_side: int = 2400
    """Cap on the longer side of a resized picture."""


@dataclass(frozen=True)
class Crop:
    """A piece of a resized picture around a window."""

    pixels: (
        Picture  # (side, side, 3) RGB; beyond the picture the mean colour, which the net sees as 0
    )
    window: NDArray[np.float32]  # (4,) xyxy, half-open, pixels of the crop
    label: int  # 1..K, 0 for background


def train_on_crops(
    network: nn.Module,
    channels: int,
    dataset: Dataset,
    *,
    seed: int,
    steps: int = 700,
    lr: float = 3e-3,
    config: CropConfig | None = None,
    device: torch.device | None = None,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> nn.Module:
    """Train `network` from scratch to tell the classes and background apart.

    Each step takes up to three crops around objects (jittered, IoU >= 0.6, difficult ones left
    out) and one of background (IoU < 0.3 with every object) of each of 10 pictures, mirrored and
    with changed colours; a linear classifier on the maxima of 3×3 and 1×1 bins, dropped at the
    end, gives the cross-entropy that AdamW minimises under a cosine schedule. All chance comes
    from `seed` and torch's global generator is left as it was; on the CPU the same arguments give
    the same weights at any number of threads, since torch is held to one meanwhile.

    Args:
        network: (N, 3, H, W) normalised RGB to (N, `channels`, h, w); its parameters are drawn
            anew. Changed in place.
        channels: of the last map.
        dataset: pictures with ground truth; those without objects give background alone.
        steps: > 0.
        lr: the greatest learning rate.
        config: how windows are seen; the demo's by default.
        device: where to train; the CPU if None.
        on_progress: called after each step with (steps done, steps in all, loss).

    Returns:
        `network`, on `device`, in evaluation mode.

    Raises:
        TrainingError: the set has no object that is not difficult; the loss is not finite.
        ImageError: a picture can't be read.
        ValueError: `steps` < 1.
    """
    if steps < 1:
        raise ValueError(f"steps: {steps}, expected > 0")
    if all(image.difficult.all() for image in dataset.images):
        raise TrainingError(
            f"{dataset.name}: {len(dataset)} pictures without an object to train on"
        )
    where = device or torch.device("cpu")
    classifier = _fresh(network, channels, len(dataset.class_names), seed).to(where)
    network.to(where, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    batches = crop_batches(dataset, config or CropConfig(), rng=np.random.default_rng([seed, 1]))
    with _one_thread():
        losses = _fit(network, classifier, batches, steps=steps, lr=lr)
        for step, loss in enumerate(losses, start=1):
            if on_progress is not None:
                on_progress(step, steps, loss)
    return network.eval()


def _fit(
    network: nn.Module, classifier: nn.Linear, batches: Iterator[Batch], *, steps: int, lr: float
) -> Iterator[float]:
    """Train both in place; yields the loss of each step."""
    parameters = [*network.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_share(step, steps))
    for step in range(1, steps + 1):
        x, windows, labels = (part.to(classifier.weight.device) for part in next(batches))
        logits = classifier(pool_crops(network(x), windows, crop_side=x.shape[-1]))
        loss = F.cross_entropy(logits, labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"crops: step {step} of {steps}: loss {value}; try a smaller lr")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield value


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread: sums come out alike on every machine's number of cores.

    Steps this small also gain little from more, and on a busy machine lose much by waiting.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fresh(network: nn.Module, channels: int, classes: int, seed: int) -> nn.Linear:
    """Draw the parameters of `network` anew and make a classifier, without global effects."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in network.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        network.requires_grad_(True)
        return nn.Linear(channels * sum(n * n for n in _BINS), classes + 1)


def _lr_share(step: int, steps: int) -> float:
    """Share of the greatest learning rate: a linear rise, then half a cosine down to 0."""
    rise = max(1, round(steps * _WARM_UP))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def pool_crops(maps: torch.Tensor, windows: torch.Tensor, *, crop_side: int) -> torch.Tensor:
    """Maxima of 3×3 and 1×1 bins over each crop's window.

    Args:
        maps: (N, C, h, w), windows: (N, 4) pixels of the crop.

    Returns:
        (N, 10 C).
    """
    index = torch.arange(len(windows), device=windows.device, dtype=windows.dtype)
    rois = torch.cat([index[:, None], windows], dim=1)  # [N, 5]
    scale = maps.shape[-1] / crop_side
    return torch.cat([roi_pool(maps, rois, n, scale).flatten(1) for n in _BINS], dim=1)


def crop_batches(
    dataset: Dataset, config: CropConfig, *, rng: np.random.Generator
) -> Iterator[Batch]:
    """Endless batches: epochs of all pictures in random order, `_PICTURES` a step.

    Yields:
        (N, 3, side, side) float32 normalised crops, (N, 4) float32 windows, (N,) int64 labels.
    """
    queue: list[int] = []
    while True:
        crops: list[Crop] = []
        for _ in range(_PICTURES):
            queue = queue or rng.permutation(len(dataset)).tolist()
            image = dataset.images[queue.pop()]
            crops += draw_crops(image, read_image(image.path), config, rng=rng)
        if len(crops) > 1:  # BatchNorm needs more than one
            yield _collate(crops, rng)


def draw_crops(
    image: AnnotatedImage, picture: Picture, config: CropConfig, *, rng: np.random.Generator
) -> list[Crop]:
    """Up to three crops around objects of `image` and up to one of background."""
    size = picture.shape[1], picture.shape[0]
    usable = np.flatnonzero(~image.difficult)
    boxes: list[tuple[Boxes, int]] = []
    for row in rng.permutation(usable)[:_OBJECTS]:
        target = image.gt_boxes[row : row + 1]
        boxes.append((_near_object(target, size, rng), int(image.gt_labels[row])))
    for _ in range(_BACKGROUNDS):
        background = _background(image.gt_boxes, size, rng)
        if background is not None:
            boxes.append((background, 0))
    return [cut_crop(picture, box, label, config, rng=rng) for box, label in boxes]


def _jitter(box: Boxes, rng: np.random.Generator, *, shift: float, zoom: float) -> Boxes:
    """(1, 4) moved by up to `shift` of its size, each side changed by up to exp(±`zoom`)."""
    sides = box[:, 2:] - box[:, :2]
    centre = (box[:, :2] + box[:, 2:]) / 2 + sides * rng.uniform(-shift, shift, (1, 2))
    half = sides / 2 * np.exp(rng.uniform(-zoom, zoom, (1, 2)))
    return np.hstack([centre - half, centre + half]).astype(np.float32)


def _near_object(target: Boxes, size: tuple[int, int], rng: np.random.Generator) -> Boxes:
    """A box near `target`, clipped to the picture; `target` itself if no try comes near enough."""
    for _ in range(_TRIES):
        box = clip_boxes(_jitter(target, rng, shift=0.2, zoom=0.25), width=size[0], height=size[1])
        if box_iou(box, target)[0, 0] >= _POSITIVE_IOU:
            return box
    return target


def _background(objects: Boxes, size: tuple[int, int], rng: np.random.Generator) -> Boxes | None:
    """A box anywhere, or beside, inside or around an object; None if no try is far enough."""
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
    picture: Picture, box: Boxes, label: int, config: CropConfig, *, rng: np.random.Generator
) -> Crop:
    """The crop around `box` at the scale that the detector would choose, give or take `_ZOOM`.

    Args:
        picture: (H, W, 3) RGB.
        box: (1, 4) original pixels, with area.
    """
    height, width = picture.shape[:2]
    factors = [
        scale_factor(width=width, height=height, scale=scale, max_side=config.max_side)
        for scale in config.scales
    ]
    chosen = choose_scales(
        box, np.array(factors, dtype=np.float32), canonical_area=config.canonical_size**2
    )
    factor = factors[int(chosen[0])] * math.exp(rng.uniform(-_ZOOM, _ZOOM))
    side = config.crop_side
    centre = (box[0, :2] + box[0, 2:]).astype(np.float64) / 2
    origin = centre - (side / 2 + rng.uniform(-_SHIFT_PX, _SHIFT_PX, 2)) / factor
    # pixel i spans [i, i + 1), but warpAffine counts from pixel centres
    offset = (0.5 - origin) * factor - 0.5
    matrix = np.array([[factor, 0, offset[0]], [0, factor, offset[1]]])
    mean = tuple(255 * value for value in PIXEL_MEAN)
    pixels = cv2.warpAffine(picture, matrix, (side, side), borderValue=mean)
    window = np.clip((box[0].reshape(2, 2) - origin) * factor, 0, side).reshape(4)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
        window[[0, 2]] = side - window[[2, 0]]
    return Crop(np.ascontiguousarray(pixels, dtype=np.uint8), window.astype(np.float32), label)


def _collate(crops: Sequence[Crop], rng: np.random.Generator) -> Batch:
    """Stack crops, change each one's brightness, contrast and colours a little, normalise."""
    count = len(crops)
    x = np.stack([crop.pixels for crop in crops]).astype(np.float32) / 255  # [N, side, side, 3]
    gain = rng.uniform(0.8, 1.2, (count, 1, 1, 1)) * rng.uniform(0.9, 1.1, (count, 1, 1, 3))
    x -= np.array(PIXEL_MEAN, dtype=np.float32)
    x = x * gain.astype(np.float32) + rng.uniform(-0.1, 0.1, (count, 1, 1, 1)).astype(np.float32)
    x /= np.array(PIXEL_STD, dtype=np.float32)
    windows = np.stack([crop.window for crop in crops])
    labels = torch.tensor([crop.label for crop in crops])
    return torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(windows), labels

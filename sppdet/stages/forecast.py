"""Forecast the seconds of each stage of a training from speeds that are measured on a few images."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.config import Config
from sppdet.detection.ranking import Ranking, coarse_levels
from sppdet.errors import SppdetError
from sppdet.features.backbones import Backbone
from sppdet.features.geometry import scale_factor, scale_factors_of
from sppdet.features.head import Head
from sppdet.features.levels import spp_width
from sppdet.features.regions import FeatureExtractor
from sppdet.resizing import resized
from sppdet.runs.environment import available_cores, worker_count
from sppdet.runs.log import LOGGER, event
from sppdet.runs.progress import duration
from sppdet.stages.backbone import load_unfitted, untrained_head
from sppdet.stages.context import Context, Stage
from sppdet.stages.crossfit import fold_count
from sppdet.stages.map_cache import MapCache
from sppdet.stages.proposer import Proposer
from sppdet.stages.ranking import RANKING_IMAGES
from sppdet.training.finetune import FineTuner
from sppdet.training.finetune_images import ImageTuner, TrainingImage
from sppdet.training.finetune_windows import Pool, split_for_tuning
from sppdet.training_config import FinetuneConfig, Layer
from sppdet.types import Boxes, Dataset, FeatureMaps, ImageArray

T = TypeVar("T")
# What stages take by the clock, on a machine with nothing else to do; fitted to three networks and 20 to
# 530 images (benchmarks/costs.py, laptop.py). In times that an image's windows take to be scored:
_SVM, _BBOX, _RANKING = 1.0, 0.35, 0.9  # for each image
# In times that they take on pool5, for vectors as long as those of pool5:
_CLASS, _CLASS_IMAGE = 50.0, 0.55  # an SVM, and as much more for each image
_FOLD = 6.5  # an SVM without the images of a fold
_EXAMPLE, _PAIR = 0.055, 2e-6  # each example of box regression, and each pair of them
_NEAR = 24  # windows around an object that are its examples
_SELECT = 0.02  # seconds of NMS, of moved boxes and of what is between, an image
_CALIBRATION, _REPORTS = 1.0, 4.0  # seconds of fits; of intervals, curves and the report


@dataclass(frozen=True)
class Speed:
    """Seconds on this machine."""

    search: float  # an image's proposals, with all workers at once
    layers: float  # a megapixel's feature maps
    windows: Mapping[Layer, float]  # an image's windows on a layer, scored for all classes
    detected: float  # the same in detection, where `detect.max_windows` may leave fewer
    step: float  # a megapixel in fine-tuning on images, or a batch of pooled windows
    width: int  # values of a pooled vector


def announce(context: Context) -> None:
    """Say what each stage of a new run will take; runs that go on know it better by their progress."""
    store = Proposer(context.config.proposals, context.store).store
    if store is None or store.folder.exists() or not context.reaches("evaluate"):
        return
    try:
        speed = measure(context, context.config, context.backbone)
    except SppdetError:  # of an image or a setting that its stage will name
        return
    tests = len(context.test_set) if context.test_set is not None else 0
    expected = forecast(context.config, speed, context.training_set, tests=tests)
    parts = ", ".join(f"{stage} {duration(s)}" for stage, s in expected.items() if s >= 1)
    text = "expected: about %s in all (%s), measured on %d images"
    extra = event("forecast", seconds={k: round(v, 1) for k, v in expected.items()})
    measured = len(_places(len(context.training_set)))
    LOGGER.info(text, duration(sum(expected.values())), parts, measured, extra=extra)


def forecast(config: Config, speed: Speed, dataset: Dataset, *, tests: int) -> dict[Stage, float]:
    """Compute the seconds of every stage from the speeds and the numbers of images.

    Args:
        dataset: to train on.
        tests: images to test on.
    """
    images = len(dataset)
    layers = speed.layers * megapixels(config, dataset)
    expected: dict[Stage, float] = {"proposals": speed.search * (images + tests)}
    tuning = config.tuning()
    mirrored = tuning is not None and tuning.flip and not tuning.on_images
    expected["features"] = 0.0 if config.tunes_conv() else layers * images * (2 if mirrored else 1)
    if tuning is not None:
        expected["finetune"] = _tuning(config, tuning, speed, dataset)
        if config.tunes_conv():
            expected["finetune"] += layers * images
    pool, score = speed.windows["pool5"], speed.windows[config.svm_layer()]
    if config.detect.max_windows is not None:
        expected["ranking"] = pool * _RANKING * min(images, RANKING_IMAGES)
    if config.classifier == "svm":
        calibration = config.calibrate
        solved = fold_count(calibration.folds, images) if calibration is not None else 0
        length = _width(config, speed, config.svm_layer()) / speed.width
        solving = length * (_CLASS + _CLASS_IMAGE * images + _FOLD * solved)
        solving *= len(dataset.class_names)
        expected["svm"] = score * _SVM * images + pool * solving
    if config.bbox is not None and config.bbox.source == "ridge":
        examples = np.minimum(_NEAR * _objects(dataset), config.bbox.max_examples)
        length = _width(config, speed, config.bbox.layer) / speed.width
        solving = length * float((_EXAMPLE * examples + _PAIR * examples**2).sum())
        each = speed.windows[config.bbox.layer]
        expected["bbox"] = each * _BBOX * images + pool * solving
    views = 2 if config.detect.flip else 1
    if config.calibrate is not None:
        # maps of the images themselves are there, and of mirrored ones after tuning with them
        missing = layers if config.detect.flip and not mirrored else 0.0
        looked_at = _held_out(config, images) if config.classifier == "softmax" else images
        seen = missing + views * speed.detected + _SELECT
        expected["calibrate"] = seen * looked_at + _CALIBRATION
    if tests:
        expected["evaluate"] = (views * (layers + speed.detected) + _SELECT) * tests + _REPORTS
    return expected


def _held_out(config: Config, images: int) -> int:
    """Return the number of training images that fine-tuning holds out."""
    tuning = config.tuning()
    return 0 if tuning is None else len(split_for_tuning(tuning, images, seed=config.seed)[1])


def _width(config: Config, speed: Speed, layer: Layer) -> int:
    """Return the number of values of a layer's vectors."""
    widths: list[int] = [speed.width, *(config.head.widths if config.head else ())]
    return widths[config.layers().index(layer)]


def _objects(dataset: Dataset) -> NDArray[np.float64]:
    """Count the objects of each class (K,), difficult ones left out."""
    labels = [image.gt_labels[~image.difficult] for image in dataset.images]
    count = len(dataset.class_names)
    counts = np.bincount(np.concatenate([*labels, []]).astype(int), minlength=count + 1)
    objects: NDArray[np.float64] = counts[1:].astype(np.float64)
    return objects


def _tuning(config: Config, tuning: FinetuneConfig, speed: Speed, dataset: Dataset) -> float:
    if not tuning.on_images:
        pooling = tuning.batch_size / 2000 * speed.windows["pool5"]
        return tuning.batches * (speed.step + pooling)
    area = megapixels(config, dataset, tuning.image_scales) / (
        1 if tuning.image_scales else len(config.scales)
    )
    return tuning.batches * tuning.batch_images * speed.step * area


def megapixels(config: Config, dataset: Dataset, interval: list[int] | None = None) -> float:
    """Compute the mean area of an image at all scales together, or at one scale of an interval."""
    total, limit = 0.0, config.features.max_side
    for image in dataset.images:
        size = {"width": image.width, "height": image.height}
        if interval is None:
            grown = float((scale_factors_of(config.scales, max_side=limit, **size) ** 2).sum())
        else:
            sides = np.linspace(interval[0], interval[1], 9).round().astype(int).tolist()
            each = [scale_factor(scale=side, max_side=limit, **size) ** 2 for side in sides]
            grown = float(np.mean(each))
        total += grown * image.width * image.height / 1e6
    return total / max(1, len(dataset))


def loaded_and_measured(context: Context, config: Config) -> Speed:
    """Load the network of the settings, unfitted, and measure with it."""
    backbone = load_unfitted(config)
    backbone.layers.to(context.ranks.device)
    return measure(context, config, backbone)


def measure(context: Context, config: Config, backbone: Backbone) -> Speed:
    """Measure the speeds on a few images of the training set; the first is run twice, once to compile.

    Raises:
        SppdetError: an image can't be read, or a network can't be built by the settings.
    """
    images = context.training_set.images
    places = _places(len(images))
    proposer = Proposer(config.proposals)
    maps = MapCache(backbone, config.scales, config.features, context.images)
    device = context.ranks.device
    classes = len(context.training_set.class_names)
    head = untrained_head(backbone, config, classes=classes)
    head = head.to(device).eval() if head is not None else None
    step = _stepper(backbone, head, config) if head is not None else None
    extractor = FeatureExtractor.by(config.spp_levels, config.features, head, device)

    def score(made: FeatureMaps, boxes: Boxes, layer: Layer) -> torch.Tensor:
        width = extractor.width(layer, maps.channels)
        weights = torch.zeros((max(1, classes), width), device=device)
        return extractor.products(made, extractor.windows(made, boxes).cells, layer, weights)

    def detect(made: FeatureMaps, boxes: Boxes, layer: Layer) -> torch.Tensor:
        assert config.detect.max_windows is not None
        first = ranking.first(extractor, made, boxes, config.detect.max_windows)
        return score(made, first, layer)

    coarse = coarse_levels(config.spp_levels)
    ranking = Ranking(coarse, torch.zeros(spp_width(maps.channels, coarse), device=device), 0.0)
    layers_of_windows = {"pool5", config.svm_layer(), config.bbox_layer() or "pool5"}
    seconds: dict[str, list[float]] = defaultdict(list)
    for place in [places[0], *places]:
        image = images[place]
        pixels = context.images.read(image.path)
        proposals, search = _timed(partial(proposer.of_image, image, context.images), device)
        seconds["search"].append(search)
        scaled = maps.scaled(pixels)
        made, layers = _timed(partial(maps.compute, scaled), device)
        area = float((made.scale_factors**2).sum()) * image.width * image.height / 1e6
        seconds["layers"].append(layers / area)
        for layer in layers_of_windows:
            _, scored = _timed(partial(score, made, proposals.boxes, layer), device)
            seconds[layer].append(scored)
        if config.detect.max_windows is not None:
            fewer = partial(detect, made, proposals.boxes, config.svm_layer())
            seconds["detected"].append(_timed(fewer, device)[1])
        seconds["step"].append(step(pixels, proposals.boxes, device) if step else 0.0)
    # one image that waits for memory or another process counts for no more than any other
    median = {name: float(np.median(values[1:])) for name, values in seconds.items()}
    together = max(1, min(worker_count(config.workers), available_cores()))
    return Speed(
        search=median["search"] / together,
        layers=median["layers"],
        windows={layer: median[layer] for layer in layers_of_windows},
        detected=median.get("detected", median[config.svm_layer()]),
        step=median["step"],
        width=extractor.width("pool5", maps.channels),
    )


def _places(count: int) -> list[int]:
    """Choose up to three images to measure with."""
    return sorted({count // 6, count // 2, 5 * count // 6})


def _stepper(
    backbone: Backbone, head: Head, config: Config
) -> Callable[[ImageArray, Boxes, torch.device], float] | None:
    """Build what times a training step, see `Speed.step`, on a copy of the network."""
    tuning, levels = config.tuning(), config.spp_levels
    if tuning is None:
        return None
    head = copy.deepcopy(head)
    if not tuning.on_images:
        of_pools = FineTuner(head, tuning, None, seed=0)
        pool = _made_pool(spp_width(backbone.channels, levels), tuning)

        def batch(pixels: ImageArray, boxes: Boxes, device: torch.device) -> float:
            features = pool.features.to(device)
            return _timed(lambda: of_pools.train_on(replace(pool, features=features)), device)[1]

        return batch
    own = replace(backbone, layers=copy.deepcopy(backbone.layers))
    tuner = ImageTuner(own, head, levels, tuning, seed=0)
    scale = int(np.mean(tuning.image_scales or config.scales))

    def step(pixels: ImageArray, boxes: Boxes, device: torch.device) -> float:
        height, width = pixels.shape[:2]
        limit = config.features.max_side
        factor = scale_factor(width=width, height=height, scale=scale, max_side=limit)
        small = torch.from_numpy(resized(pixels, factor, own.preprocessing.interpolation))
        chosen = boxes[: tuning.windows_per_image]
        labels = (np.arange(len(chosen)) % 4 == 0).astype(np.int64)
        image = TrainingImage(small, factor, chosen, labels, chosen)
        _, seconds = _timed(lambda: tuner.step([image], max(1, len(chosen))), device)
        return seconds / (small.shape[0] * small.shape[1] / 1e6)

    return step


def _made_pool(width: int, tuning: FinetuneConfig) -> Pool:
    """Make a pool of one batch."""
    labels = np.zeros(tuning.batch_size, np.int64)
    labels[: max(1, round(tuning.positive_fraction * tuning.batch_size))] = 1
    features = torch.linspace(0, 1, width).expand(tuning.batch_size, width).contiguous()
    return Pool(features, labels, np.arange(tuning.batch_size))


def _timed(function: Callable[[], T], device: torch.device) -> tuple[T, float]:
    start = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - start

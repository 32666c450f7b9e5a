"""A few small images with proposals by hand, and slow loops of the method for the tests of the stages.

The loops are written from the definitions and share no code with the package. All image sides and
scales are such that scale factors are exact, so that the loops need no tolerance for rounding.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from images import SHAPES, save_image
from runs import log_of
from sppdet.config import FeaturesConfig, ProposalsConfig
from sppdet.features.backbones import Backbone
from sppdet.features.head import Head, build_head
from sppdet.features.regions import FeatureExtractor
from sppdet.io.image_cache import ImageCache
from sppdet.runs.log import JsonLinesHandler, handler_added
from sppdet.stages.map_cache import MapCache
from sppdet.stages.proposer import Proposer
from sppdet.stages.training_data import TrainingData
from sppdet.training_config import FinetuneConfig, HeadConfig, Layer
from sppdet.types import AnnotatedImage, Dataset, FeatureMaps, ImageArray

NAMES = tuple(SHAPES)
SIDES = ((128, 96), (96, 128), (128, 96), (112, 96))  # the shorter one is 96 everywhere
SCALES = [96, 144]  # scale factors 1 and 1.5
LEVELS = (2, 1)
CANONICAL = 40  # boxes below 985 square pixels are pooled at the second scale

Box = tuple[float, float, float, float]
Window = tuple[int, int, int, int, int]  # scale, left, top, right, bottom
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """One image with its objects and proposals, before it is written."""

    image: ImageArray
    boxes: list[Box]
    labels: list[int]
    difficult: list[bool]
    proposals: list[Box]

    def mirrored(self) -> Scene:
        """The same scene seen in a mirror."""
        width = self.image.shape[1]

        def flipped(boxes: list[Box]) -> list[Box]:
            return [(width - x2, y1, width - x1, y2) for x1, y1, x2, y2 in boxes]

        return replace(
            self,
            image=np.ascontiguousarray(self.image[:, ::-1]),
            boxes=flipped(self.boxes),
            proposals=flipped(self.proposals),
        )


def scenes(*, seed: int = 0, proposals: int = 40) -> list[Scene]:
    """Four images with two or three objects each; the last object of each is difficult."""
    return [_scene(np.random.default_rng([seed, i]), i, proposals) for i in range(len(SIDES))]


def _scene(rng: np.random.Generator, index: int, count: int) -> Scene:
    width, height = SIDES[index]
    image = np.full((height, width, 3), rng.integers(90, 160), dtype=np.int64)
    objects, labels = [], []
    for i in range(2 + index % 2 + 1):
        w, h = rng.integers(24, 44, 2).tolist()
        x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        label = (index + i) % len(NAMES) + 1
        inside = image[y : y + h, x : x + w]
        inside[:] = SHAPES[NAMES[label - 1]]
        inside[:: 2 + label] = 0  # stripes, so that one side of an object isn't like another
        inside[: h // 3, : w // 3] = 255
        objects.append((float(x), float(y), float(x + w), float(y + h)))
        labels.append(label)
    noisy = image + rng.integers(-12, 13, image.shape)
    boxes = [_near(rng, objects, width, height) for _ in range(count * 2 // 3)]
    boxes += [_anywhere(rng, width, height) for _ in range(count // 3)]
    order = rng.permutation(len(boxes)).tolist()
    return Scene(
        np.clip(noisy, 0, 255).astype(np.uint8),
        objects,
        labels,
        [i == len(objects) - 1 for i in range(len(objects))],
        list(dict.fromkeys(boxes[i] for i in order)),
    )


def _near(rng: np.random.Generator, objects: Sequence[Box], width: int, height: int) -> Box:
    """An object's box with every side moved by up to a third of the object, on whole pixels."""
    x1, y1, x2, y2 = objects[int(rng.integers(len(objects)))]
    reach = rng.choice([0.1, 0.35])
    moves = rng.uniform(-reach, reach, 4) * [x2 - x1, y2 - y1, x2 - x1, y2 - y1]
    a, b, c, d = np.rint(np.array([x1, y1, x2, y2]) + moves).tolist()
    return max(a, 0.0), max(b, 0.0), min(c, float(width)), min(d, float(height))


def _anywhere(rng: np.random.Generator, width: int, height: int) -> Box:
    w, h = (int(rng.integers(16, side)) for side in (width, height))
    x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    return float(x), float(y), float(x + w), float(y + h)


class Interrupted(Exception):
    """What ends a stage in the middle."""


class WatchedMaps(MapCache):
    """Maps that note who asked for them, and that may end a stage at the nth request."""

    asked: list[tuple[str, bool]]
    stop_at: int | None = None

    def of_image(self, image: AnnotatedImage, *, mirrored: bool = False) -> FeatureMaps:
        """The maps of `MapCache`."""
        if self.stop_at is not None and len(self.asked) >= self.stop_at:
            raise Interrupted
        self.asked.append((image.id, mirrored))
        return super().of_image(image, mirrored=mirrored)


@dataclass
class World:
    """Scenes as files with the data that the training stages read."""

    scenes: list[Scene]
    data: TrainingData
    folder: Path
    _maps: dict[int, FeatureMaps] = field(default_factory=dict)

    @property
    def maps(self) -> WatchedMaps:
        """The source of the maps."""
        assert isinstance(self.data.maps, WatchedMaps)
        return self.data.maps

    def map_of(self, position: int) -> FeatureMaps:
        """An image's maps, for the slow loops."""
        if position not in self._maps:
            maps = self.maps
            before, stop = list(maps.asked), maps.stop_at
            maps.stop_at = None
            self._maps[position] = maps.of_image(self.data.dataset.images[position])
            maps.asked[:], maps.stop_at = before, stop
        return self._maps[position]

    def feature(self, position: int, box: Box, layer: Layer = "pool5") -> Vector:
        """The raw features of a box."""
        return slow_feature(self.map_of(position), box, layer, self.data.extractor.head)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The log's records of one kind."""
        return [record for record in log_of(self.folder) if record["event"] == kind]


LOGS = contextlib.ExitStack()  # of the world that was made last


def make_world(
    folder: Path,
    backbone: Backbone,
    given: Sequence[Scene],
    *,
    store: bool = False,
    features: Mapping[str, Any] | None = None,
    head: Head | None = None,
    checkpoint_seconds: float = 3600.0,
    seed: int = 0,
) -> World:
    """Write the scenes as PNG files and stored proposals, and put the data together.

    What is logged from here on goes to the log of this world, till the next one or the test's end.
    """
    LOGS.close()
    LOGS.enter_context(handler_added(JsonLinesHandler(folder / "log.jsonl")))
    images = []
    for i, scene in enumerate(given):
        path = save_image(folder / "images" / f"im{i}.png", scene.image)
        boxes = np.array(scene.proposals, dtype=np.float32).reshape(-1, 4)
        (folder / "proposals").mkdir(exist_ok=True)
        np.savez(folder / "proposals" / f"im{i}.npz", boxes=boxes)
        height, width = scene.image.shape[:2]
        images.append(
            AnnotatedImage(
                f"im{i}",
                path,
                width,
                height,
                np.array(scene.boxes, dtype=np.float32).reshape(-1, 4),
                np.array(scene.labels, dtype=np.int64),
                np.array(scene.difficult, dtype=np.bool_),
                np.zeros(len(scene.labels), dtype=np.bool_),
            )
        )
    cache = ImageCache()
    config = FeaturesConfig.model_validate({"canonical_size": CANONICAL, **(features or {})})
    maps = WatchedMaps(backbone, SCALES, config, cache, folder / "store" if store else None)
    maps.asked = []
    data = TrainingData(
        dataset=Dataset("scenes", NAMES, tuple(images)),
        images=cache,
        proposer=Proposer(ProposalsConfig(engine="stored", path=[folder / "proposals"])),
        maps=maps,
        extractor=FeatureExtractor(LEVELS, CANONICAL, head),
        folder=folder,
        seed=seed,
        checkpoint_seconds=checkpoint_seconds,
    )
    return World(list(given), data, folder)


def small_head(backbone: Backbone, *, seed: int = 3) -> Head:
    """fc6, fc7 and fc8 with random weights and some dropout."""
    config = HeadConfig(widths=[24, 16], dropout=0.25)
    head = build_head(backbone, LEVELS, config, outputs=len(NAMES) + 1, seed=seed)
    return head.eval().requires_grad_(False)


# -- slow loops ------------------------------------------------------------------------------------


def slow_iou(a: Box, b: Box) -> float:
    """Intersection over union of two half-open boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inter = width * height
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def slow_labels(scene: Scene, config: FinetuneConfig) -> list[tuple[Box, int, Box]]:
    """The windows to learn from, objects among them, with label and object; background is 0 and itself."""
    found = []
    for box in scene.proposals + scene.boxes:
        ious = [slow_iou(box, target) for target in scene.boxes]
        best = max(range(len(ious)), key=lambda i: ious[i])
        if scene.difficult[best] and ious[best] >= config.negative_iou[0]:
            continue
        if ious[best] >= config.positive_iou:
            found.append((box, scene.labels[best], scene.boxes[best]))
        elif config.negative_iou[0] <= ious[best] < config.negative_iou[1]:
            found.append((box, 0, box))
    return found


def slow_window(maps: FeatureMaps, box: Box) -> Window:
    """The scale at which the box's area is nearest to `CANONICAL`², and its cells there."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    factors = [float(f) for f in maps.scale_factors]
    scale = min(range(len(factors)), key=lambda s: abs(area * factors[s] ** 2 - CANONICAL**2))
    return (scale, *slow_cells(maps, box, scale))


def slow_cells(maps: FeatureMaps, box: Box, scale: int) -> tuple[int, int, int, int]:
    """The cells of a scale whose receptive-field centres lie strictly inside the box."""
    factor = float(maps.scale_factors[scale])
    height, width = maps.maps[scale].shape[1:]
    sides = []
    for low, high, count in ((box[0], box[2], width), (box[1], box[3], height)):
        first = math.floor((low * factor - maps.offset) / maps.stride) + 1
        last = math.ceil((high * factor - maps.offset) / maps.stride) - 1
        if first > last:
            first = last = math.floor((first + last) / 2)
        sides.append([min(max(cell, 0), count - 1) for cell in (first, last)])
    return sides[0][0], sides[1][0], sides[0][1], sides[1][1]


def slow_pool(maps: FeatureMaps, window: Window) -> Vector:
    """Spatial pyramid pooling of one window: level by level, in the order (row, column, channel)."""
    scale, left, top, right, bottom = window
    values = maps.maps[scale].float().numpy().astype(np.float64)
    width, height = right - left + 1, bottom - top + 1
    found = []
    for n in LEVELS:
        for j in range(n):
            rows = slice(top + math.floor(j * height / n), top + math.ceil((j + 1) * height / n))
            for i in range(n):
                columns = slice(
                    left + math.floor(i * width / n), left + math.ceil((i + 1) * width / n)
                )
                found.append(values[:, rows, columns].max(axis=(1, 2)))
    return np.concatenate(found)


def slow_feature(maps: FeatureMaps, box: Box, layer: Layer, head: Head | None) -> Vector:
    """The features of one box, alone."""
    return slow_layer(slow_pool(maps, slow_window(maps, box)), layer, head)


def slow_layer(pooled: Vector, layer: Layer, head: Head | None) -> Vector:
    """fc6 or fc7 on one pooled vector."""
    x = pooled
    for name in ("fc6", "fc7")[: {"pool5": 0, "fc6": 1, "fc7": 2}[layer]]:
        fc = getattr(head, name)
        weight, bias = (t.detach().numpy().astype(np.float64) for t in (fc.weight, fc.bias))
        x = np.maximum(weight @ x + bias, 0)
    return x


def slow_scale(world: World, layer: Layer, *, target: float = 20.0) -> float:
    """What makes the mean norm over all distinct windows of all images `target`."""
    norms = []
    for position, scene in enumerate(world.scenes):
        boxes = {slow_window(world.map_of(position), box): box for box in scene.proposals}
        norms += [np.linalg.norm(world.feature(position, box, layer)) for box in boxes.values()]
    return target / float(np.mean(norms))


def slow_deltas(box: Box, target: Box) -> list[float]:
    """(dx, dy, dw, dh) from a box to its target."""
    w, h = box[2] - box[0], box[3] - box[1]
    dx = ((target[0] + target[2]) - (box[0] + box[2])) / 2 / w
    dy = ((target[1] + target[3]) - (box[1] + box[3])) / 2 / h
    return [dx, dy, math.log((target[2] - target[0]) / w), math.log((target[3] - target[1]) / h)]


def slow_moved(box: Box, deltas: Sequence[float]) -> Box:
    """The box that deltas make of a box."""
    w, h = box[2] - box[0], box[3] - box[1]
    x, y = (box[0] + box[2]) / 2 + deltas[0] * w, (box[1] + box[3]) / 2 + deltas[1] * h
    w, h = w * math.exp(deltas[2]), h * math.exp(deltas[3])
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def slow_nms(boxes: Sequence[Box], max_iou: float) -> list[int]:
    """Positions of the boxes, in their order, without those of IoU > `max_iou` with a kept one."""
    kept: list[int] = []
    for i, box in enumerate(boxes):
        if all(slow_iou(box, boxes[j]) <= max_iou for j in kept):
            kept.append(i)
    return kept


def until_done(run: Callable[[TrainingData], Any], world: World, stops: Sequence[int]) -> Any:
    """`run`, ended at the nth request for maps, and again after each, till it comes through.

    Each time it has the data anew, as another process would.
    """
    for stop in stops:
        world.maps.asked.clear()
        world.maps.stop_at = stop
        try:
            return run(replace(world.data))
        except Interrupted:
            continue
    world.maps.asked.clear()
    world.maps.stop_at = None
    return run(replace(world.data))


def close(found: torch.Tensor | NDArray[Any], expected: Any, *, tolerance: float = 1e-3) -> None:
    """Equal within a fraction of the greatest expected value."""
    wanted = np.asarray(expected, dtype=np.float64)
    scale = float(np.abs(wanted).max())
    given = found.numpy() if isinstance(found, torch.Tensor) else found
    np.testing.assert_allclose(given, wanted, rtol=0, atol=tolerance * scale)


# -- a set of images for whole runs ----------------------------------------------------------------


def easy_scenes(count: int) -> list[Scene]:
    """Images of one or two objects of plain colours, apart from each other, on a grey ground."""
    found = []
    for i in range(count):
        rng = np.random.default_rng([7, i])
        width, height = SIDES[i % len(SIDES)]
        image = np.full((height, width, 3), rng.integers(100, 150), dtype=np.int64)
        boxes, labels = [], []
        for part in range(1 + i % 2):
            half = width // 2
            w, h = rng.integers(26, 40, 2).tolist()
            x = part * half + int(rng.integers(4, half - w - 2))
            y = int(rng.integers(4, height - h - 4))
            if i % 3 == 1:  # at the border, where boxes are clipped
                x, y = (x, height - h) if part else (0, y)
            label = (i + part) % len(NAMES) + 1
            image[y : y + h, x : x + w] = SHAPES[NAMES[label - 1]]
            boxes.append((float(x), float(y), float(x + w), float(y + h)))
            labels.append(label)
        noisy = np.clip(image + rng.integers(-6, 7, image.shape), 0, 255).astype(np.uint8)
        found.append(Scene(noisy, boxes, labels, [False] * len(boxes), []))
    return found


def write_voc(root: Path, given: Sequence[Scene]) -> Path:
    """The scenes in the layout of VOC, as the set `all`."""
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for i, scene in enumerate(given):
        save_image(root / "JPEGImages" / f"im{i}.png", scene.image)
        objects = ""
        for box, k, difficult in zip(scene.boxes, scene.labels, scene.difficult, strict=True):
            x1, y1, x2, y2 = (int(side) for side in box)
            objects += (
                f"<object><name>{NAMES[k - 1]}</name><difficult>{int(difficult)}</difficult>"
                f"<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
                f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            )
        text = f"<annotation><filename>im{i}.png</filename>{objects}</annotation>"
        (root / "Annotations" / f"im{i}.xml").write_text(text)
    names = "".join(f"im{i}\n" for i in range(len(given)))
    (root / "ImageSets" / "Main" / "all.txt").write_text(names)
    return root

"""Scenes of the demo set: objects of five classes among clutter.

Each class is a shape with its own pattern; colours say nothing about the class. Around the objects
and over them lies clutter: the shapes without the pattern, the patterns on other shapes, lines.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sppdet.boxes import box_iou
from sppdet.demo import textures
from sppdet.demo.textures import SHAPES, Pattern, Plane, Rgb, Shape
from sppdet.types import ImageArray

CLASSES: dict[str, tuple[Shape, Pattern]] = {
    "disc": (SHAPES["disc"], textures.stripes),
    "ring": (SHAPES["ring"], textures.spokes),
    "square": (SHAPES["square"], textures.dots),
    "star": (SHAPES["star"], textures.checks),
    "triangle": (SHAPES["triangle"], textures.nested),
}
CLASS_NAMES = tuple(CLASSES)
_PLAIN: list[Pattern] = [textures.plain, textures.mottled]
_OTHER_SHAPES = [SHAPES["bar"], SHAPES["hexagon"], SHAPES["cross"]]

MIN_SIDE_PX, MAX_SIDE_PX = 40.0, 190.0  # the longer side, before the squeeze
TRUNCATED_BELOW = 0.8  # visible fraction of the object
DIFFICULT_BELOW = 0.5
MIN_VISIBLE = 0.3  # what would hide more of an object is not painted
MAX_IOU = 0.2  # of two objects' boxes
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class DemoObject:
    """One object of an image, with VOC's flags.

    `box` is (x1, y1, x2, y2) in whole pixels, half-open: the full shape, hidden parts included, cut
    at the image's border. `visible` is the fraction of the full shape that can be seen.
    """

    name: str
    box: Box
    visible: float

    @property
    def truncated(self) -> bool:
        """Whether a large fraction is hidden or outside of the image."""
        return self.visible < TRUNCATED_BELOW

    @property
    def difficult(self) -> bool:
        """Whether more than half is hidden: ignored by an evaluation."""
        return self.visible < DIFFICULT_BELOW


@dataclass(frozen=True)
class _Piece:
    """A painted shape: opacity (0..1) and colours of one patch."""

    alpha: Plane
    colours: Rgb


@dataclass
class _Scene:
    """An image being painted, and which object owns each pixel (-1: none)."""

    canvas: Rgb
    owner: NDArray[np.int16]
    names: list[str] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)  # pixels of the full shape

    def visible(self, owner: NDArray[np.int16]) -> NDArray[np.float64]:
        """(objects,) fraction of each object's full shape that `owner` still gives it."""
        counts = np.bincount(owner.ravel() + 1, minlength=len(self.areas) + 1)[1:]
        visible: NDArray[np.float64] = counts[: len(self.areas)] / np.array(self.areas)
        return visible


def draw_scene(rng: np.random.Generator) -> tuple[ImageArray, tuple[DemoObject, ...]]:
    """Paint one image.

    Args:
        rng: the only source of randomness; the same state gives the same image.

    Returns:
        the RGB image, 320 by 240 to 400 by 300 or the same upright, and its 1 to 4 objects, back
        to front.
    """
    width = int(rng.integers(320, 401))
    height = int(width * rng.uniform(0.7, 0.8))
    if rng.random() < 0.3:
        width, height = height, width
    size = height, width
    scene = _Scene(textures.background(size, rng), np.full(size, -1, dtype=np.int16))
    _add_clutter(scene, int(rng.integers(0, 4)), rng)
    wanted = int(rng.integers(1, 5))
    while len(scene.names) < wanted:
        _add_object(scene, rng)
    _add_clutter(scene, int(rng.integers(0, 4)), rng)
    visible = scene.visible(scene.owner).tolist()
    return _photograph(scene.canvas, rng), tuple(map(DemoObject, scene.names, scene.boxes, visible))


def _add_object(scene: _Scene, rng: np.random.Generator) -> None:
    """Try once to place an object of a random class."""
    name = CLASS_NAMES[int(rng.integers(len(CLASS_NAMES)))]
    max_side = min(MAX_SIDE_PX, 0.75 * min(scene.owner.shape))
    side = float(np.exp(rng.uniform(np.log(MIN_SIDE_PX), np.log(max_side))))
    outside = 0.25 if rng.random() < 0.15 else 0.0
    x, y, mean = _draw_place(scene, side, outside, rng)
    _paste(scene, _render(*CLASSES[name], side, _two_colours(mean, rng), rng), x, y, name)


def _add_clutter(scene: _Scene, count: int, rng: np.random.Generator) -> None:
    """Paint up to `count` things that aren't objects and don't hide one too much."""
    own_shapes = [shape for shape, _ in CLASSES.values()]
    own_patterns = [pattern for _, pattern in CLASSES.values()]
    for _ in range(count):
        kind = rng.random()
        if kind < 0.2:
            _add_line(scene, rng)
            continue
        shapes = own_shapes if kind < 0.5 else _OTHER_SHAPES
        # a class's pattern only on other shapes: shape and pattern together make the class
        patterns = own_patterns if kind > 0.8 else _PLAIN
        side = float(np.exp(rng.uniform(np.log(25), np.log(120))))
        x, y, mean = _draw_place(scene, side, 0.4, rng)
        if scene.boxes and rng.random() < 0.5:
            x, y = _on_border(scene.boxes[int(rng.integers(len(scene.boxes)))], rng)
        shape = shapes[int(rng.integers(len(shapes)))]
        pattern = patterns[int(rng.integers(len(patterns)))]
        _paste(scene, _render(shape, pattern, side, _two_colours(mean, rng), rng), x, y, None)


def _add_line(scene: _Scene, rng: np.random.Generator) -> None:
    """Paint a straight line from border to border, 1 to 4 px wide."""
    height, width = scene.owner.shape
    ends = [(0, int(rng.integers(height))), (width - 1, int(rng.integers(height)))]
    if rng.random() < 0.5:
        ends = [(int(rng.integers(width)), 0), (int(rng.integers(width)), height - 1)]
    mask = np.zeros((height, width), dtype=np.uint8)
    cv2.line(mask, ends[0], ends[1], 255, int(rng.integers(1, 5)), cv2.LINE_AA)
    alpha = mask.astype(np.float32) / np.float32(255)
    colours = np.empty_like(scene.canvas)
    colours[:] = rng.uniform(10, 245, 3)
    _paste(scene, _Piece(alpha, colours), width // 2, height // 2, None)


def _draw_place(
    scene: _Scene, side: float, outside: float, rng: np.random.Generator
) -> tuple[int, int, Rgb]:
    """Draw a centre at which at most `outside` of `side` is outside the image; and its mean colour."""
    height, width = scene.owner.shape
    margin = side * (0.5 - outside) + 1
    x = int(rng.uniform(min(margin, width / 2), max(width - margin, width / 2)))
    y = int(rng.uniform(min(margin, height / 2), max(height - margin, height / 2)))
    half = max(8, int(side * 0.6))
    around = scene.canvas[max(0, y - half) : y + half, max(0, x - half) : x + half]
    mean: Rgb = around.mean(axis=(0, 1), dtype=np.float32)
    return x, y, mean


def _on_border(box: Box, rng: np.random.Generator) -> tuple[int, int]:
    """Draw a point on the ellipse in `box`, where clutter hides a part of the object."""
    angle = rng.uniform(0, 2 * np.pi)
    x = (box[0] + box[2]) / 2 + np.cos(angle) * (box[2] - box[0]) / 2
    y = (box[1] + box[3]) / 2 + np.sin(angle) * (box[3] - box[1]) / 2
    return int(x), int(y)


def _two_colours(mean: Rgb, rng: np.random.Generator) -> tuple[Rgb, Rgb]:
    """Draw two colours of any hue that stand out from each other and from `mean`."""
    first = second = mean
    for _ in range(30):
        first = rng.uniform(15, 240, 3).astype(np.float32)
        step = rng.choice([-1, 1]) * rng.uniform(55, 110) + rng.uniform(-35, 35, 3)
        second = np.clip(first + step, 5, 250).astype(np.float32)
        apart = np.abs(np.stack([first, second, (first + second) / 2]) - mean).sum(axis=1)
        if apart.min() > 80 and np.abs(first - second).sum() > 130:
            break
    return first, second


def _render(
    shape: Shape,
    pattern: Pattern,
    side_px: float,
    colours: tuple[Rgb, Rgb],
    rng: np.random.Generator,
) -> _Piece:
    """Paint a shape turned and squeezed at random, its longer side about `side_px`."""
    squeeze = np.diag([1.0, np.exp(rng.uniform(0, 0.3))])
    turn = _rotation(rng.uniform(0, 2 * np.pi))
    tilt = _rotation(rng.uniform(0, np.pi))  # direction of the squeeze, independent of the turn
    radius = side_px / 2
    half = int(radius) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    frame = (turn @ tilt.T @ squeeze @ tilt / radius).astype(np.float32)
    u, v = frame[0, 0] * x + frame[0, 1] * y, frame[1, 0] * x + frame[1, 1] * y
    alpha = textures.step(-shape(u, v) * np.float32(radius), 1.5)
    return _Piece(alpha, textures.paint(pattern(u, v, rng), *colours))


def _rotation(angle: float) -> NDArray[np.float64]:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _paste(scene: _Scene, piece: _Piece, x: int, y: int, name: str | None) -> None:
    """Paint `piece` centred on (x, y), as an object if it has a name, unless it hides another."""
    height, width = scene.owner.shape
    rows, columns = piece.alpha.shape
    left, top = x - columns // 2, y - rows // 2
    x1, y1 = max(left, 0), max(top, 0)
    x2, y2 = min(left + columns, width), min(top + rows, height)
    part = np.s_[y1 - top : y2 - top, x1 - left : x2 - left]
    alpha = piece.alpha[part]
    solid = alpha > 0.5
    if not solid.any():
        return
    owner = scene.owner.copy()
    owner[y1:y2, x1:x2][solid] = len(scene.names) if name else -1
    if scene.areas and scene.visible(owner).min() < MIN_VISIBLE:
        return
    if name:
        box = _tight_box(solid, x1, y1)
        others = np.array(scene.boxes, dtype=np.float32).reshape(-1, 4)
        crowded = box_iou(np.array([box], dtype=np.float32), others) > MAX_IOU
        if min(box[2] - box[0], box[3] - box[1]) < 20 or crowded.any():
            return
        scene.names.append(name)
        scene.boxes.append(box)
        scene.areas.append(int((piece.alpha > 0.5).sum()))
    scene.owner = owner
    under = scene.canvas[y1:y2, x1:x2]
    under += alpha[:, :, None] * (piece.colours[part] - under)


def _tight_box(solid: NDArray[np.bool_], x1: int, y1: int) -> Box:
    y, x = np.nonzero(solid)
    return x1 + int(x.min()), y1 + int(y.min()), x1 + int(x.max()) + 1, y1 + int(y.max()) + 1


def _photograph(canvas: Rgb, rng: np.random.Generator) -> ImageArray:
    """Add uneven light, a little blur and noise."""
    height, width = canvas.shape[:2]
    corners = rng.uniform(0.7, 1.2, (2, 2)).astype(np.float32)
    light = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)
    lit: NDArray[Any] = canvas * light[:, :, None]
    if rng.random() < 0.7:
        lit = cv2.GaussianBlur(lit, (0, 0), rng.uniform(0.4, 1.1))
    grain = rng.standard_normal(lit.shape, dtype=np.float32)
    noisy = lit + grain * np.float32(rng.uniform(1, 7))
    image: ImageArray = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    return image

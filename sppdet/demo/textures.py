"""Shapes, patterns and backgrounds of the demo images, as pure functions.

Shapes and patterns live in an object's own frame (u, v): the shape about fills the unit circle,
v points down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]  # (H, W)
Rgb = NDArray[np.float32]  # (H, W, 3) or (3,), 0..255
Shape = Callable[[Plane, Plane], Plane]  # (u, v) -> signed distance in radii, negative inside
Pattern = Callable[[Plane, Plane, np.random.Generator], Plane]  # (u, v) -> mix in [0, 1]


def step(x: NDArray[Any], width: float) -> Plane:
    """Ramp from 0 at -width / 2 to 1 at width / 2."""
    ramp: Plane = np.clip(x.astype(np.float32) / np.float32(width) + np.float32(0.5), 0, 1)
    return ramp


# shapes ---------------------------------------------------------------------------------------


def _bar(u: Plane, v: Plane) -> Any:
    return np.maximum(np.abs(u) - np.float32(1), np.abs(v) - np.float32(0.25))


def _fold(u: Plane, v: Plane, corners: int) -> tuple[Plane, Plane]:
    """Turn (u, v) into the half sector around the nearest corner: (towards it, across)."""
    sector = 2 * np.pi / corners
    angle = np.arctan2(u, -v)  # 0 straight up
    angle = np.abs((angle + sector / 2) % sector - sector / 2).astype(np.float32)
    radius = np.hypot(u, v)
    return radius * np.cos(angle), radius * np.sin(angle)


def _star(u: Plane, v: Plane) -> Any:
    """Five points at radius 1 and notches at radius 0.5."""
    along, across = _fold(u, v, 5)
    edge = 0.5 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)]) - np.array([1.0, 0.0])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return ((along - 1) * normal[0] + across * normal[1]).astype(np.float32)


def _polygon(corners: int) -> Shape:
    """Regular polygon with its corners at radius 1, one of them at the top."""
    cos, sin = np.float32(np.cos(np.pi / corners)), np.float32(np.sin(np.pi / corners))

    def distance(u: Plane, v: Plane) -> Any:
        along, across = _fold(u, v, corners)
        return (along - 1) * cos + across * sin

    return distance


SHAPES: dict[str, Shape] = {
    "disc": lambda u, v: np.hypot(u, v) - np.float32(1),
    "ring": lambda u, v: np.abs(np.hypot(u, v) - np.float32(0.71)) - np.float32(0.29),
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - np.float32(0.8),
    "star": _star,
    "triangle": _polygon(3),
    "hexagon": _polygon(6),
    "bar": _bar,
    "cross": lambda u, v: np.minimum(_bar(u, v), _bar(v, u)),
}


# patterns -------------------------------------------------------------------------------------


def stripes(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """Parallel stripes, 5 to 7 across the shape."""
    wave = np.sin(u * np.float32(np.pi * rng.uniform(2.5, 3.5)) + rng.uniform(0, 6.3))
    return step(wave, 0.7)


def checks(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """A chessboard."""
    rate = np.float32(np.pi * rng.uniform(2.4, 3.2))
    wave = np.sin(u * rate + rng.uniform(0, 6.3)) * np.sin(v * rate + rng.uniform(0, 6.3))
    return step(wave, 0.35)


def dots(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """Round dots on a square grid."""
    rate, shift = rng.uniform(2.0, 2.6), rng.uniform(0, 1, 2)
    du, dv = (u * rate + shift[0]) % 1 - 0.5, (v * rate + shift[1]) % 1 - 0.5
    return step(0.31 - np.hypot(du, dv), 0.14)


def spokes(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """Sectors around the centre, 7 to 10 pairs."""
    wave = np.sin(np.arctan2(v, u) * int(rng.integers(7, 11)) + rng.uniform(0, 6.3))
    return step(wave, 0.8)


def nested(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """Triangles within triangles."""
    wave = np.sin(SHAPES["triangle"](u, v) * np.float32(np.pi * rng.uniform(4.5, 6.0)))
    return step(wave, 0.8)


def plain(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """One colour fading into the other."""
    return step(u + np.float32(0.3) * v, 3.0)


def mottled(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """Irregular spots."""
    return noise(u.shape, rng, cells=3, octaves=2)


# backgrounds ----------------------------------------------------------------------------------


def noise(size: tuple[int, ...], rng: np.random.Generator, *, cells: int, octaves: int) -> Plane:
    """Smooth noise (H, W) in [0, 1], from `cells` cells along the longer side in the first octave."""
    height, width = size
    total = np.zeros((height, width), dtype=np.float32)
    for octave in range(octaves):
        grid = [max(2, cells * 2**octave * side // max(size) + 1) for side in size]
        values = rng.random(grid, dtype=np.float32)
        total += cv2.resize(values, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(high - low, 1e-6)


def _axes(size: tuple[int, int], angle: float) -> tuple[Plane, Plane]:
    """Pixel coordinates turned by `angle` radians."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def _cloud(size: tuple[int, int], rng: np.random.Generator) -> Any:
    return noise(size, rng, cells=int(rng.integers(2, 6)), octaves=6)


def _wavy_stripes(size: tuple[int, int], rng: np.random.Generator) -> Any:
    across, _ = _axes(size, rng.uniform(0, np.pi))
    warp = noise(size, rng, cells=3, octaves=2) * rng.uniform(0, 40)
    wave = np.sin((across + warp) * np.float32(2 * np.pi / rng.uniform(24, 70)))
    return step(wave, rng.uniform(0.5, 2))


def _gradient(size: tuple[int, int], rng: np.random.Generator) -> Any:
    across, _ = _axes(size, rng.uniform(0, 2 * np.pi))
    ramp = (across - across.min()) / np.float32(np.ptp(across))
    return ramp * np.float32(0.85) + 0.15 * noise(size, rng, cells=24, octaves=3)


def _blobs(size: tuple[int, int], rng: np.random.Generator) -> Any:
    levels = int(rng.integers(3, 6))
    cloud = noise(size, rng, cells=int(rng.integers(4, 9)), octaves=2)
    steps = np.floor(cloud * levels * np.float32(0.999)) / max(levels - 1, 1)
    return steps * 0.85 + noise(size, rng, cells=40, octaves=2) * 0.15


def _bricks(size: tuple[int, int], rng: np.random.Generator) -> Any:
    along, across = _axes(size, rng.uniform(-0.15, 0.15))
    tall = rng.uniform(14, 30)
    long = tall * rng.uniform(1.8, 2.6)
    row = np.floor(across / tall)
    column = np.floor(along / long + row % 2 / 2)
    shade = np.sin(row * 12.9898 + column * 78.233) * 43758.5453 % 1  # a fixed hash of the brick
    joint = np.minimum(across % tall, (along + row % 2 * long / 2) % long) < rng.uniform(1.5, 3)
    grain = noise(size, rng, cells=60, octaves=2)
    return np.where(joint, 0.15 * grain, 0.55 + 0.3 * shade + 0.15 * grain)


def _wood(size: tuple[int, int], rng: np.random.Generator) -> Any:
    across, _ = _axes(size, rng.uniform(0, np.pi))
    warp = noise(size, rng, cells=2, octaves=2) * rng.uniform(20, 60)
    rings = np.sin((across + warp) / rng.uniform(2.5, 5)) * 0.3 + 0.5
    fibre = rng.random((size[0], 1), dtype=np.float32)
    return rings * 0.7 + fibre[np.abs(across).astype(np.int64) % size[0], 0] * 0.3


_BACKGROUNDS = (_cloud, _wavy_stripes, _gradient, _blobs, _bricks, _wood)


def paint(mix: Plane, first: Rgb, second: Rgb) -> Rgb:
    """Mix two colours (3,) by (H, W) in [0, 1] into (H, W, 3): `first` where 0, `second` where 1."""
    colours: Rgb = first + mix[:, :, None] * (second - first)
    return colours


def background(size: tuple[int, int], rng: np.random.Generator) -> Rgb:
    """Paint a texture (H, W, 3) of one of six kinds in two random, similar colours."""
    kind = _BACKGROUNDS[int(rng.integers(len(_BACKGROUNDS)))]
    base = rng.uniform(40, 215, 3)
    shift = rng.choice([-1, 1]) * rng.uniform(15, 65) + rng.uniform(-30, 30, 3)
    other = np.clip(base + shift, 10, 245)
    mix = kind(size, rng).astype(np.float32)
    return paint(mix, base.astype(np.float32), other.astype(np.float32))

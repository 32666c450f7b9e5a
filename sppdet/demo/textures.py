"""What the demo images are painted with: shapes, patterns and backgrounds, as pure functions.

Shapes and patterns live in an object's own frame (u, v): the shape about fills the unit circle,
v points down. Shapes are signed distances (negative inside), patterns and backgrounds float32.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]  # (H, W)
Rgb = NDArray[np.float32]  # (H, W, 3) or (3,), 0..255
Shape = Callable[[Plane, Plane], Plane]  # (u, v) -> signed distance in units of the radius
Pattern = Callable[[Plane, Plane, np.random.Generator], Plane]  # (u, v) -> mix in [0, 1]


def soft_step(x: Plane, *, width: float) -> Plane:
    """0 below -width / 2, 1 above width / 2, linear between."""
    step: Plane = np.clip(x / np.float32(width) + np.float32(0.5), 0, 1).astype(np.float32)
    return step


# shapes ---------------------------------------------------------------------------------------


def disc(u: Plane, v: Plane) -> Plane:
    """A disc of radius 1."""
    distance: Plane = np.hypot(u, v) - np.float32(1)
    return distance


def ring(u: Plane, v: Plane) -> Plane:
    """A ring between the radii 0.42 and 1; its hole is outside."""
    distance: Plane = np.abs(np.hypot(u, v) - np.float32(0.71)) - np.float32(0.29)
    return distance


def square(u: Plane, v: Plane) -> Plane:
    """A square with sides 1.6 long."""
    distance: Plane = np.maximum(np.abs(u), np.abs(v)) - np.float32(0.8)
    return distance


def bar(u: Plane, v: Plane) -> Plane:
    """A bar 2 long and 0.5 wide."""
    distance: Plane = np.maximum(np.abs(u) - np.float32(1), np.abs(v) - np.float32(0.25))
    return distance


def cross(u: Plane, v: Plane) -> Plane:
    """Two bars across each other."""
    distance: Plane = np.minimum(bar(u, v), bar(v, u))
    return distance


def _folded(u: Plane, v: Plane, *, corners: int) -> tuple[Plane, Plane]:
    """(u, v) turned into the half sector around the nearest corner: first axis to the corner."""
    sector = 2 * np.pi / corners
    angle = np.arctan2(u, -v)  # 0 straight up
    angle = np.abs((angle + sector / 2) % sector - sector / 2).astype(np.float32)
    radius = np.hypot(u, v)
    return radius * np.cos(angle), radius * np.sin(angle)


def star(u: Plane, v: Plane) -> Plane:
    """A star with five points at radius 1 and notches at radius 0.5."""
    along, across = _folded(u, v, corners=5)
    notch = 0.5 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    edge = notch - np.array([1.0, 0.0])  # from the point to the notch
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    distance: Plane = ((along - 1) * normal[0] + across * normal[1]).astype(np.float32)
    return distance


def polygon(corners: int) -> Shape:
    """The regular polygon with its corners at radius 1, one of them up."""
    inner = np.pi / corners

    def distance(u: Plane, v: Plane) -> Plane:
        along, across = _folded(u, v, corners=corners)
        edge: Plane = (along - 1) * np.float32(np.cos(inner)) + across * np.float32(np.sin(inner))
        return edge

    return distance


# patterns -------------------------------------------------------------------------------------


def stripes(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """Parallel stripes, 5 to 7 across the shape."""
    wave = np.sin(u * np.float32(np.pi * rng.uniform(2.5, 3.5)) + rng.uniform(0, 6.3))
    return soft_step(wave.astype(np.float32), width=0.7)


def checks(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """A chessboard."""
    rate = np.float32(np.pi * rng.uniform(2.4, 3.2))
    wave = np.sin(u * rate + rng.uniform(0, 6.3)) * np.sin(v * rate + rng.uniform(0, 6.3))
    return soft_step(wave.astype(np.float32), width=0.35)


def dots(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """Round dots on a square grid."""
    rate, shift = rng.uniform(2.0, 2.6), rng.uniform(0, 1, 2)
    du, dv = (u * rate + shift[0]) % 1 - 0.5, (v * rate + shift[1]) % 1 - 0.5
    return soft_step((0.31 - np.hypot(du, dv)).astype(np.float32), width=0.14)


def spokes(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """Sectors around the centre, 7 to 10 pairs."""
    wave = np.sin(np.arctan2(v, u) * int(rng.integers(7, 11)) + rng.uniform(0, 6.3))
    return soft_step(wave.astype(np.float32), width=0.8)


def nested(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """Triangles within triangles."""
    wave = np.sin(polygon(3)(u, v) * np.float32(np.pi * rng.uniform(4.5, 6.0)))
    return soft_step(wave.astype(np.float32), width=0.8)


def plain(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """One colour running into the other."""
    return soft_step(u + np.float32(0.3) * v, width=3.0)


def mottled(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """Irregular spots."""
    height, width = u.shape
    return octaves(height, width, rng, coarsest=3, count=2)


# backgrounds ----------------------------------------------------------------------------------


def octaves(
    height: int, width: int, rng: np.random.Generator, *, coarsest: int, count: int
) -> Plane:
    """Smooth noise in [0, 1]: `count` octaves from `coarsest` cells on the longer side on."""
    total = np.zeros((height, width), dtype=np.float32)
    for octave in range(count):
        cells = coarsest * 2**octave
        rows = max(2, cells * height // max(height, width) + 1)
        columns = max(2, cells * width // max(height, width) + 1)
        grid = rng.random((rows, columns), dtype=np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(high - low, 1e-6)


def _axes(height: int, width: int, angle: float) -> tuple[Plane, Plane]:
    """Pixel coordinates turned by `angle` radians."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def _cloud(height: int, width: int, rng: np.random.Generator) -> Plane:
    return octaves(height, width, rng, coarsest=int(rng.integers(2, 6)), count=6)


def _wavy_stripes(height: int, width: int, rng: np.random.Generator) -> Plane:
    across, _ = _axes(height, width, rng.uniform(0, np.pi))
    warp = octaves(height, width, rng, coarsest=3, count=2) * rng.uniform(0, 40)
    wave = np.sin((across + warp) * np.float32(2 * np.pi / rng.uniform(24, 70)))
    return soft_step(wave.astype(np.float32), width=rng.uniform(0.5, 2))


def _gradient(height: int, width: int, rng: np.random.Generator) -> Plane:
    across, _ = _axes(height, width, rng.uniform(0, 2 * np.pi))
    ramp = (across - across.min()) / np.float32(np.ptp(across))
    mix: Plane = ramp * np.float32(0.85) + 0.15 * octaves(height, width, rng, coarsest=24, count=3)
    return mix


def _blobs(height: int, width: int, rng: np.random.Generator) -> Plane:
    levels = int(rng.integers(3, 6))
    cloud = octaves(height, width, rng, coarsest=int(rng.integers(4, 9)), count=2)
    steps = np.floor(cloud * levels * np.float32(0.999)) / max(levels - 1, 1)
    grain = octaves(height, width, rng, coarsest=40, count=2)
    mix: Plane = (steps * 0.85 + grain * 0.15).astype(np.float32)
    return mix


def _bricks(height: int, width: int, rng: np.random.Generator) -> Plane:
    along, across = _axes(height, width, rng.uniform(-0.15, 0.15))
    tall = rng.uniform(14, 30)
    long = tall * rng.uniform(1.8, 2.6)
    row = np.floor(across / tall)
    column = np.floor(along / long + row % 2 / 2)
    shade = np.sin(row * 12.9898 + column * 78.233) * 43758.5453 % 1  # a fixed hash of the brick
    joint = np.minimum(across % tall, (along + row % 2 * long / 2) % long) < rng.uniform(1.5, 3)
    grain = octaves(height, width, rng, coarsest=60, count=2)
    wall: Plane = np.where(joint, 0.15 * grain, 0.55 + 0.3 * shade + 0.15 * grain).astype(
        np.float32
    )
    return wall


def _wood(height: int, width: int, rng: np.random.Generator) -> Plane:
    across, _ = _axes(height, width, rng.uniform(0, np.pi))
    warp = octaves(height, width, rng, coarsest=2, count=2) * rng.uniform(20, 60)
    rings = np.sin((across + warp) / rng.uniform(2.5, 5)) * 0.3 + 0.5
    fibre = rng.random((height, 1), dtype=np.float32)
    fibre = fibre[np.abs(across).astype(np.int64) % height, 0]
    mix: Plane = (rings * 0.7 + fibre * 0.3).astype(np.float32)
    return mix


BACKGROUNDS = (_cloud, _wavy_stripes, _gradient, _blobs, _bricks, _wood)


def paint(mix: Plane, first: Rgb, second: Rgb) -> Rgb:
    """(H, W) in [0, 1] -> (H, W, 3): `first` where 0, `second` where 1."""
    colours: Rgb = first + mix[:, :, None] * (second - first)
    return colours


def background(height: int, width: int, rng: np.random.Generator) -> Rgb:
    """A textured image of one of six kinds in two random, not too distant colours."""
    kind = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
    base = rng.uniform(40, 215, 3)
    other = np.clip(
        base + rng.choice([-1, 1]) * rng.uniform(15, 65) + rng.uniform(-30, 30, 3), 10, 245
    )
    mix = kind(height, width, rng)
    return paint(mix, base.astype(np.float32), other.astype(np.float32))

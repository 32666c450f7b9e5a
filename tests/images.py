"""Small images in folders named by class, that a classifier can tell apart at once."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from sppdet.types import ImageArray

SHAPES = {"cross": (210, 60, 50), "disc": (60, 190, 80), "square": (50, 80, 220)}  # RGB


def painted(rng: np.random.Generator, shape: str, *, width: int, height: int) -> ImageArray:
    """(H, W, 3) RGB: one coloured shape on a grey ground with some noise."""
    image = np.full((height, width, 3), rng.integers(90, 160), dtype=np.int64)
    reach = int(min(width, height) * rng.uniform(0.2, 0.3))
    x, y = (int(rng.integers(reach, side - reach)) for side in (width, height))
    rows, columns = np.ogrid[:height, :width]
    inside = (abs(columns - x) <= reach) & (abs(rows - y) <= reach)
    if shape == "disc":
        inside &= (columns - x) ** 2 + (rows - y) ** 2 <= reach**2
    elif shape == "cross":
        inside &= (abs(columns - x) <= reach / 3) | (abs(rows - y) <= reach / 3)
    image[inside] = SHAPES[shape]
    noisy = image + rng.integers(-12, 13, image.shape)
    clipped: ImageArray = np.clip(noisy, 0, 255).astype(np.uint8)
    return clipped


def save_image(path: Path, image: ImageArray) -> Path:
    """Write a PNG; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(image[:, :, ::-1]))
    path.write_bytes(encoded.tobytes())
    return path


def shape_sets(root: Path, *, train: int, val: int) -> Path:
    """`train` and `val` in the layout of ImageNet, so many images of each shape."""
    shape_folders(root / "train", count=train, seed=1)
    shape_folders(root / "val", count=val, seed=2)
    return root


def shape_folders(folder: Path, *, count: int, seed: int) -> Path:
    """`count` images of each of the three shapes, 32 to 48 pixels a side."""
    for label, shape in enumerate(SHAPES):
        for number in range(count):
            rng = np.random.default_rng([seed, label, number])
            width, height = rng.integers(32, 49, 2).tolist()
            image = painted(rng, shape, width=width, height=height)
            save_image(folder / shape / f"{number:03}.png", image)
    return folder

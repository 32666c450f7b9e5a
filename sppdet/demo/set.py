"""The demo set: a few hundred painted images in VOC's layout."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from sppdet.demo.scene import DemoObject, draw_scene
from sppdet.errors import DataError
from sppdet.io.voc_writing import voc_annotation
from sppdet.runs.artifacts import read_json, write_json, write_text
from sppdet.runs.progress import track
from sppdet.types import ImageArray

GENERATOR_VERSION = 2  # raised when the same arguments give other images
MANIFEST = "demo_set.json"
JPEG_QUALITY = 95


def make_demo_set(
    root: Path,
    *,
    seed: int,
    train_images: int = 240,
    test_images: int = 80,
    fresh_images: int = 12,
) -> Path:
    """Paint the demo set into `root`, unless it is there already.

    Writes `JPEGImages`, `Annotations` and `ImageSets/Main/{trainval,test}.txt`, and images
    without annotations in `fresh`. The same arguments give the same bytes (with the same build of
    OpenCV); image i of a split depends on the seed, the split and i alone. The manifest is completed
    last: a set that is incomplete is painted again.

    Args:
        root: folder of the set; created if missing.
        seed: >= 0.
        train_images, test_images, fresh_images: images of each split, >= 0.

    Returns:
        `root`.

    Raises:
        DataError: `root` holds a set of other arguments or anything else; nothing is overwritten.
        ValueError: a negative count or seed.
    """
    counts = {"trainval": train_images, "test": test_images, "fresh": fresh_images}
    if min(seed, *counts.values()) < 0:
        raise ValueError(f"seed {seed}, images {counts}: expected >= 0")
    made_by = {"version": GENERATOR_VERSION, "seed": seed, "images": counts}
    numbers = itertools.count(1)  # six digits as in VOC, running on from split to split
    ids = {split: [f"{next(numbers):06d}" for _ in range(n)] for split, n in counts.items()}
    if _is_complete(root, made_by, ids):
        return root
    write_json(root / MANIFEST, {**made_by, "complete": False})
    for folder in ("Annotations", "JPEGImages", "fresh"):
        (root / folder).mkdir(exist_ok=True)
    for split_index, split in enumerate(ids):
        painted = track(enumerate(ids[split]), total=len(ids[split]), label=f"painting, {split}")
        for index, image_id in painted:
            image, objects = draw_scene(np.random.default_rng([seed, split_index, index]))
            folder = "fresh" if split == "fresh" else "JPEGImages"
            _write_image(root / folder / f"{image_id}.jpg", image)
            if split != "fresh":
                _write_annotation(root, image_id, image, objects)
    for split in ("trainval", "test"):
        lines = "".join(f"{image_id}\n" for image_id in ids[split])
        write_text(root / "ImageSets" / "Main" / f"{split}.txt", lines)
    write_json(root / MANIFEST, {**made_by, "complete": True})
    return root


def _is_complete(root: Path, made_by: Mapping[str, object], ids: Mapping[str, list[str]]) -> bool:
    """Check whether `root` holds the complete set; DataError if it holds something else."""
    if not (root / MANIFEST).exists():
        if root.exists() and (
            not root.is_dir() or any(file.name[0] != "." for file in root.iterdir())
        ):
            raise DataError(f"{root}: something without {MANIFEST}; expected an empty folder")
        return False
    found = read_json(root / MANIFEST)
    complete = isinstance(found, dict) and found.pop("complete", False)
    if found != made_by:
        raise DataError(f"{root}: holds a demo set made by {found}, expected {made_by}")
    annotated = ids["trainval"] + ids["test"]
    files = [
        *(f"ImageSets/Main/{split}.txt" for split in ("trainval", "test")),
        *(f"JPEGImages/{image_id}.jpg" for image_id in annotated),
        *(f"Annotations/{image_id}.xml" for image_id in annotated),
        *(f"fresh/{image_id}.jpg" for image_id in ids["fresh"]),
    ]
    return bool(complete) and all((root / file).is_file() for file in files)


def _write_annotation(
    root: Path, image_id: str, image: ImageArray, objects: tuple[DemoObject, ...]
) -> None:
    write_text(
        root / "Annotations" / f"{image_id}.xml",
        voc_annotation(
            filename=f"{image_id}.jpg",
            width=image.shape[1],
            height=image.shape[0],
            boxes=np.array([item.box for item in objects], dtype=np.float32),
            names=[item.name for item in objects],
            difficult=np.array([item.difficult for item in objects]),
            truncated=np.array([item.truncated for item in objects]),
        ),
    )


def _write_image(path: Path, image: ImageArray) -> None:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    written, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not written:
        raise DataError(f"{path}: can't be encoded")
    path.write_bytes(data.tobytes())

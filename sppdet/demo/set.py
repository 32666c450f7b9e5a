"""The demo set: a few hundred painted images in VOC's layout, to try the detector on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from sppdet.demo.scene import DemoObject, draw_scene
from sppdet.errors import DataError
from sppdet.io.voc import write_voc_annotation
from sppdet.runs.artifacts import read_json, write_json, write_text
from sppdet.types import ImageArray

GENERATOR_VERSION = 2  # of the images: raise it with every change that shows in them
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
    """Paint the demo set into `root`, or find it already there.

    Writes `JPEGImages`, `Annotations` and `ImageSets/Main/{trainval,test}.txt`, and images
    without annotations in `fresh`. The same arguments give the same bytes (with one build of
    OpenCV); what image i of a split shows depends on the seed, the split and i alone. A manifest,
    written last, says what was painted: a complete set of the same arguments is left as it is, one
    that was cut short or has lost files is painted again.

    Args:
        root: folder of the set; made if missing.
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
    if _is_complete(root, seed, counts):
        return root
    made_by = _made_by(seed, counts)
    write_json(root / MANIFEST, {**made_by, "complete": False})
    for folder in ("Annotations", "JPEGImages", "fresh"):
        (root / folder).mkdir(exist_ok=True)
    for split_index, split in enumerate(counts):
        for index, image_id in enumerate(_ids(counts, split)):
            image, objects = draw_scene(np.random.default_rng([seed, split_index, index]))
            if split == "fresh":
                _write_image(root / "fresh" / f"{image_id}.jpg", image)
            else:
                _write_annotated(root, image_id, image, objects)
    for split in ("trainval", "test"):
        lines = "".join(f"{image_id}\n" for image_id in _ids(counts, split))
        write_text(root / "ImageSets" / "Main" / f"{split}.txt", lines)
    write_json(root / MANIFEST, {**made_by, "complete": True})
    return root


def _made_by(seed: int, counts: Mapping[str, int]) -> dict[str, object]:
    return {"version": GENERATOR_VERSION, "seed": seed, "images": dict(counts)}


def _is_complete(root: Path, seed: int, counts: Mapping[str, int]) -> bool:
    """Whether `root` holds the whole set already; DataError if it holds something else."""
    if not (root / MANIFEST).exists():
        if root.exists() and (
            not root.is_dir() or any(file.name[0] != "." for file in root.iterdir())
        ):
            raise DataError(f"{root}: something without {MANIFEST}; expected an empty folder")
        return False
    found, wanted = read_json(root / MANIFEST), _made_by(seed, counts)
    complete = isinstance(found, dict) and found.pop("complete", False)
    if found != wanted:
        raise DataError(f"{root}: holds a demo set made by {found}, expected {wanted}")
    return bool(complete) and all(file.is_file() for file in _files(root, counts))


def _files(root: Path, counts: Mapping[str, int]) -> list[Path]:
    """Every file of the set but the manifest."""
    annotated = _ids(counts, "trainval") + _ids(counts, "test")
    return [
        *(root / "ImageSets" / "Main" / f"{split}.txt" for split in ("trainval", "test")),
        *(root / "JPEGImages" / f"{image_id}.jpg" for image_id in annotated),
        *(root / "Annotations" / f"{image_id}.xml" for image_id in annotated),
        *(root / "fresh" / f"{image_id}.jpg" for image_id in _ids(counts, "fresh")),
    ]


def _ids(counts: Mapping[str, int], split: str) -> list[str]:
    """Six digits as in VOC; the numbers run on from split to split."""
    before = list(counts)[: list(counts).index(split)]
    first = 1 + sum(counts[name] for name in before)
    return [f"{number:06d}" for number in range(first, first + counts[split])]


def _write_annotated(
    root: Path, image_id: str, image: ImageArray, objects: tuple[DemoObject, ...]
) -> None:
    """Write an image and its annotation."""
    filename = f"{image_id}.jpg"
    _write_image(root / "JPEGImages" / filename, image)
    write_voc_annotation(
        root / "Annotations" / f"{image_id}.xml",
        filename=filename,
        width=image.shape[1],
        height=image.shape[0],
        boxes=np.array([item.box for item in objects], dtype=np.float32),
        names=[item.name for item in objects],
        difficult=np.array([item.difficult for item in objects]),
        truncated=np.array([item.truncated for item in objects]),
    )


def _write_image(path: Path, image: ImageArray) -> None:
    """Write `image` as a JPEG."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    written, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not written:
        raise DataError(f"{path}: can't be encoded")
    path.write_bytes(data.tobytes())

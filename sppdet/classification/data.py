"""Labelled images in folders named by class, their splits and their augmentation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.classification.config import AugmentConfig, FolderConfig
from sppdet.errors import DataError, ImageError, image_named
from sppdet.features.preprocessing import IMAGENET
from sppdet.io.digests import FileDigests, name_below
from sppdet.io.finding import find_images
from sppdet.io.images import read_image
from sppdet.parallel import ordered_map
from sppdet.randomness import rng
from sppdet.resizing import resized, resized_to
from sppdet.runs.progress import track
from sppdet.setting_types import MAX_PIXELS
from sppdet.training.sgd import Batch
from sppdet.types import ImageArray

# Principal components of ImageNet's colours (RGB / 255), Krizhevsky et al. 2012: deviations along
# the columns of `_COMPONENTS`.
_DEVIATIONS = np.array([0.2175, 0.0188, 0.0045], dtype=np.float32)
_COMPONENTS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]],
    dtype=np.float32,
)


@dataclass(frozen=True)
class LabelledImages:
    """Images with one class each; label k is `class_names[k]`."""

    name: str
    class_names: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: NDArray[np.int64]  # (N,) 0..K-1
    skipped: tuple[str, ...] = ()
    folder: Path = Path()  # root of `paths`
    max_pixels: int = MAX_PIXELS
    contents: FileDigests | None = None  # if given, `read` refuses files with other digests

    def __len__(self) -> int:
        return len(self.paths)

    def chosen(self, rows: NDArray[np.int64], name: str) -> LabelledImages:
        """Select images by position."""
        paths = tuple(self.paths[row] for row in rows.tolist())
        return replace(self, name=name, paths=paths, labels=self.labels[rows])

    def read(self, row: int) -> ImageArray:
        """Read the image at a position, (H, W, 3) RGB.

        Raises:
            ImageError: see `read_image`; also if its digest isn't the one in `contents`.
        """
        path, contents = self.paths[row], self.contents
        check = None if contents is None else partial(contents.check, path)
        return read_image(path, max_pixels=self.max_pixels, check=check)

    def digest(self, digests: FileDigests, *, workers: int) -> str:
        """Digest (16 hexadecimal digits) of the classes and, in order, the images with their labels.

        An image is identified by its content and its path below `folder`.
        """
        digest = hashlib.blake2b(json.dumps(self.class_names).encode(), digest_size=8)
        hashed = digests.of(self.paths, workers=workers)
        contents = track(hashed, total=len(self.paths), label=f"reading the images of {self.name}")
        for path, label, content in zip(self.paths, self.labels.tolist(), contents, strict=True):
            name = name_below(path, self.folder)
            digest.update(f"{label} {content} {name}\0".encode(errors="surrogatepass"))
        return digest.hexdigest()


def read_folder(
    folder: Path, class_names: Sequence[str] | None = None, *, max_pixels: int = MAX_PIXELS
) -> LabelledImages:
    """List the images of a folder whose subfolders are named by class, sorted by name.

    Args:
        class_names: classes of the training set; every subfolder must be one. None: the subfolders.
        max_pixels: maximum number of pixels of an image, for `LabelledImages.read`.

    Raises:
        DataError: no such folder, no class, a class that is unknown or has no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not found:
        raise DataError(f"{folder}: no folders in it; expected one a class")
    names = tuple(class_names or found)
    unknown = [name for name in found if name not in names]
    if unknown:
        raise DataError(f"{folder / unknown[0]}: no such class in the training set")
    paths: list[Path] = []
    labels: list[int] = []
    for name in found:
        images = find_images([folder / name])
        paths += images
        labels += [names.index(name)] * len(images)
    numbers = np.array(labels, dtype=np.int64)
    return LabelledImages(
        folder.name, names, tuple(paths), numbers, folder=folder, max_pixels=max_pixels
    )


def read_sets(
    config: FolderConfig, *, workers: int
) -> tuple[LabelledImages, LabelledImages | None]:
    """Read the training set and, if one is named, the validation set with the same classes."""
    bound = config.max_pixels
    whole = read_folder(config.root / config.train, max_pixels=bound)
    if config.on_error == "skip":
        whole = _without_broken(whole, workers=workers)
    seed = config.split_seed
    training, rest = split_classes(whole, first=config.train_per_class, second=None, seed=seed)
    if config.val is None:
        return training, None
    if config.val != config.train:
        rest = read_folder(config.root / config.val, whole.class_names, max_pixels=bound)
        if config.on_error == "skip":
            rest = _without_broken(rest, workers=workers)
    validation, _ = split_classes(rest, first=config.val_per_class, second=None, seed=seed)
    if len(validation) == 0:
        raise DataError(f"{config.root / config.val}: no images are left for validation")
    return training, validation


def split_classes(
    images: LabelledImages, *, first: int | None, second: int | None, seed: int
) -> tuple[LabelledImages, LabelledImages]:
    """Draw two disjoint sets of at most `first` and `second` images per class; None: all that are left.

    The draw of a class doesn't depend on the other classes.
    """
    one: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    two: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    for label, name in enumerate(images.class_names):
        rows = np.flatnonzero(images.labels == label)
        order = rng(seed, f"split of class {name}").permutation(rows)
        end = len(order) if first is None else first
        one.append(order[:end])
        two.append(order[end:][:second])
    first_rows, second_rows = (np.sort(np.concatenate(rows)) for rows in (one, two))
    return images.chosen(first_rows, images.name), images.chosen(second_rows, images.name)


def _without_broken(images: LabelledImages, *, workers: int) -> LabelledImages:
    def problem(row: int) -> str:
        try:
            images.read(row)
        except ImageError as error:
            return str(error)
        return ""

    found = ordered_map(problem, range(len(images)), workers=workers)
    problems = list(track(found, total=len(images), label=f"images of {images.name}"))
    for label, name in enumerate(images.class_names):
        ours = [text for text, k in zip(problems, images.labels, strict=True) if k == label]
        if ours and all(ours):
            raise DataError(f"class {name}: none of its images can be decoded; {ours[0]}")
    good = np.flatnonzero(np.array([not text for text in problems]))
    kept = images.chosen(good, images.name)
    skipped = tuple(text for text in problems if text)
    return replace(kept, skipped=skipped)


def augmented(
    image: ImageArray, config: AugmentConfig, *, size: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Cut a random training crop (size, size, 3), RGB in about 0..255, from an image (H, W, 3)."""
    height, width = image.shape[:2]
    larger = resized(image, config.resize / min(height, width))
    room = np.array([larger.shape[1], larger.shape[0]]) - config.crop
    if config.crop_choice == "five":
        spots = np.array([[0.5, 0.5], [0, 0], [0, 1], [1, 0], [1, 1]])
        left, top = (room * spots[rng.integers(5)]).astype(int).tolist()
    else:
        left, top = rng.integers(0, room + 1).tolist()
    crop = larger[top : top + config.crop, left : left + config.crop]
    if config.flip and rng.random() < 0.5:
        crop = crop[:, ::-1]
    if size != config.crop:
        crop = resized_to(crop, size, size)
    drawn = rng.normal(0, config.colour, 3).astype(np.float32) if config.colour else np.zeros(3)
    shift = _COMPONENTS @ (_DEVIATIONS * drawn) * 255
    return crop.astype(np.float32) + shift.astype(np.float32)


def training_batches(
    images: LabelledImages,
    batches: Iterable[NDArray[np.int64]],
    config: AugmentConfig,
    *,
    size: int,
    key: tuple[int, int],
    workers: int,
) -> Iterator[Batch]:
    """Yield the augmented images and labels of every batch of positions.

    Args:
        key: the run's seed and the epoch; with an image's position they determine its augmentation,
            whatever the number of workers and processes.
    """
    seed, epoch = key
    wanted = [rows for rows in batches if len(rows)]

    def make(row: int) -> NDArray[np.float32]:
        drawn = rng(seed, "augmentation", epoch, row)
        image = images.read(row)
        with image_named(images.paths[row]):
            return augmented(image, config, size=size, rng=drawn)

    rows_of_all = (row for rows in wanted for row in rows.tolist())
    ahead = 2 * max((len(rows) for rows in wanted), default=1)
    made = ordered_map(make, rows_of_all, workers=workers, ahead=ahead)
    for rows in wanted:
        crops = np.stack([next(made) for _ in rows])
        x = IMAGENET.normalised(crops).contiguous(memory_format=torch.channels_last)
        yield x, torch.from_numpy(images.labels[rows])

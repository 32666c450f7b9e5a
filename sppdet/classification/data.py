"""Labelled pictures for classification: folders named by class, and what training does to a picture."""

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
from sppdet.data.digests import FileDigests, name_below
from sppdet.data.headers import MAX_PIXELS
from sppdet.data.images import find_images, read_image
from sppdet.errors import DataError, ImageError, image_named
from sppdet.features.backbones import normalised
from sppdet.parallel import ordered_map
from sppdet.randomness import rng
from sppdet.resizing import resized, resized_to
from sppdet.types import Picture

# Principal components of ImageNet's colours (RGB / 255), Krizhevsky et al. 2012: deviations along
# the columns of `_COMPONENTS`.
_DEVIATIONS = np.array([0.2175, 0.0188, 0.0045], dtype=np.float32)
_COMPONENTS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]],
    dtype=np.float32,
)

Batch = tuple[torch.Tensor, torch.Tensor]  # (N, 3, H, W) normalised pictures, (N,) labels


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures with one class each; label k is `class_names[k]`."""

    name: str
    class_names: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: NDArray[np.int64]  # (N,) 0..K-1
    skipped: tuple[str, ...] = ()
    folder: Path = Path()  # that `paths` are below
    max_pixels: int = MAX_PIXELS
    contents: FileDigests | None = None  # where given, `read` takes no others

    def __len__(self) -> int:
        return len(self.paths)

    def chosen(self, rows: NDArray[np.int64], name: str) -> LabelledPictures:
        """Some of the pictures, by position."""
        paths = tuple(self.paths[row] for row in rows.tolist())
        return replace(self, name=name, paths=paths, labels=self.labels[rows])

    def read(self, row: int) -> Picture:
        """The image at a position, (H, W, 3) RGB.

        Raises:
            ImageError: see `read_image`; also where it isn't the image that `contents` knows.
        """
        path, contents = self.paths[row], self.contents
        check = None if contents is None else partial(contents.check, path)
        return read_image(path, max_pixels=self.max_pixels, check=check)

    def digest(self, digests: FileDigests, *, workers: int) -> str:
        """16 hexadecimal digits that name the classes and, in order, the images with their labels.

        An image is named by its content and its path below `folder`.
        """
        digest = hashlib.blake2b(json.dumps(self.class_names).encode(), digest_size=8)
        contents = digests.of(self.paths, workers=workers)
        for path, label, content in zip(self.paths, self.labels.tolist(), contents, strict=True):
            name = name_below(path, self.folder)
            digest.update(f"{label} {content} {name}\0".encode(errors="surrogatepass"))
        return digest.hexdigest()


def read_folder(
    folder: Path, class_names: Sequence[str] | None = None, *, max_pixels: int = MAX_PIXELS
) -> LabelledPictures:
    """The pictures below a folder whose folders are named by class, sorted by name.

    Args:
        class_names: of the training set; every folder must be one of them. None: those found.
        max_pixels: of an image, for `LabelledPictures.read`.

    Raises:
        DataError: no such folder, no class, a class that is unknown or has no picture.
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
        pictures = find_images([folder / name])
        paths += pictures
        labels += [names.index(name)] * len(pictures)
    numbers = np.array(labels, dtype=np.int64)
    return LabelledPictures(
        folder.name, names, tuple(paths), numbers, folder=folder, max_pixels=max_pixels
    )


def read_sets(
    config: FolderConfig, *, workers: int
) -> tuple[LabelledPictures, LabelledPictures | None]:
    """The training set and, where one is named, the validation set with the same classes."""
    bound = config.max_pixels
    whole = read_folder(config.root / config.train, max_pixels=bound)
    if config.on_error == "skip":
        whole = _without_broken(whole, workers=workers)
    rest: LabelledPictures | None = None
    training, remaining = split_classes(
        whole, first=config.train_per_class, second=None, seed=config.split_seed
    )
    if config.val is not None:
        if config.val == config.train:
            rest = remaining
        else:
            rest = read_folder(config.root / config.val, whole.class_names, max_pixels=bound)
            if config.on_error == "skip":
                rest = _without_broken(rest, workers=workers)
        rest, _ = split_classes(
            rest, first=config.val_per_class, second=None, seed=config.split_seed
        )
        if len(rest) == 0:
            raise DataError(f"{config.root / config.val}: no pictures are left for validation")
    return training, rest


def split_classes(
    pictures: LabelledPictures, *, first: int | None, second: int | None, seed: int
) -> tuple[LabelledPictures, LabelledPictures]:
    """Two disjoint draws of at most `first` and `second` pictures a class; None: all that are left.

    A class has the same draw whatever other classes there are.
    """
    one: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    two: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    for label, name in enumerate(pictures.class_names):
        rows = np.flatnonzero(pictures.labels == label)
        order = rng(seed, f"split of class {name}").permutation(rows)
        end = len(order) if first is None else first
        one.append(order[:end])
        two.append(order[end:][:second])
    parts = (np.sort(np.concatenate(rows)) for rows in (one, two))
    train_rows, other_rows = parts
    return pictures.chosen(train_rows, pictures.name), pictures.chosen(other_rows, pictures.name)


def _without_broken(pictures: LabelledPictures, *, workers: int) -> LabelledPictures:
    def problem(row: int) -> str:
        try:
            pictures.read(row)
        except ImageError as error:
            return str(error)
        return ""

    problems = list(ordered_map(problem, range(len(pictures)), workers=workers))
    for label, name in enumerate(pictures.class_names):
        ours = [text for text, k in zip(problems, pictures.labels, strict=True) if k == label]
        if ours and all(ours):
            raise DataError(f"class {name}: none of its pictures can be decoded; {ours[0]}")
    good = np.flatnonzero(np.array([not text for text in problems]))
    kept = pictures.chosen(good, pictures.name)
    skipped = tuple(text for text in problems if text)
    return replace(kept, skipped=skipped)


def augmented(
    picture: Picture, config: AugmentConfig, *, size: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """A training crop (size, size, 3) RGB in about 0..255 of a picture (H, W, 3)."""
    height, width = picture.shape[:2]
    larger = resized(picture, config.resize / min(height, width))
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
    pictures: LabelledPictures,
    batches: Iterable[NDArray[np.int64]],
    config: AugmentConfig,
    *,
    size: int,
    key: tuple[int, int],
    workers: int,
) -> Iterator[Batch]:
    """Augmented pictures of every batch of positions.

    Args:
        key: the run's seed and the epoch; with a picture's position they fix what happens to it, so
            that neither workers nor processes nor interruptions change anything.
    """
    seed, epoch = key
    wanted = [rows for rows in batches if len(rows)]

    def make(row: int) -> NDArray[np.float32]:
        drawn = rng(seed, "augmentation", epoch, row)
        picture = pictures.read(row)
        with image_named(pictures.paths[row]):
            return augmented(picture, config, size=size, rng=drawn)

    rows_of_all = (row for rows in wanted for row in rows.tolist())
    ahead = 2 * max((len(rows) for rows in wanted), default=1)
    made = ordered_map(make, rows_of_all, workers=workers, ahead=ahead)
    for rows in wanted:
        crops = np.stack([next(made) for _ in rows])
        x = normalised(crops).contiguous(memory_format=torch.channels_last)
        yield x, torch.from_numpy(pictures.labels[rows])

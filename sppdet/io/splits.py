"""Reading of the splits that the settings name."""

from __future__ import annotations

from typing import Any

from sppdet.data_config import DataConfig
from sppdet.io.dataset import load_dataset, read_records
from sppdet.io.image_cache import ImageCache
from sppdet.io.records import ImageRecord, Skips
from sppdet.types import Dataset


def read_split(
    config: DataConfig,
    split: str,
    class_names: tuple[str, ...] | None,
    cache: ImageCache | None,
    *,
    workers: int,
) -> Dataset:
    """Read a split by its name: train, test, or any other set in the folders.

    With `data.repair_sizes` images are always read, since boxes are moved into them.

    Args:
        class_names: the labels; None takes `data.classes`.
        cache: of the images; None reads annotations alone.
        workers: threads that decode.
    """
    if class_names is None and config.classes != "auto":
        class_names = tuple(config.classes)
    if cache is None and config.repair_sizes:
        cache = ImageCache(max_pixels=config.max_pixels)
    return load_dataset(
        **_source(config, split),
        class_names=class_names,
        on_error=config.on_error,
        read_images=cache is not None,
        workers=workers,
        known=cache,
        repair_sizes=config.repair_sizes,
    )


def read_split_records(
    config: DataConfig, split: str, skips: Skips
) -> tuple[str, list[ImageRecord]]:
    """Read the annotations of a split as they are, see `read_records`; returns its name, too."""
    names = None if config.classes == "auto" else config.classes
    return read_records(**_source(config, split), class_names=names, skips=skips)


def _source(config: DataConfig, split: str) -> dict[str, Any]:
    return {
        "format": config.format,
        "roots": config.root,
        "sets": config.sets_of(split),
        "images": config.images,
        "only": {"train": config.train_ids, "test": config.test_ids}.get(split),
    }

"""Detections to convert: a detections.json, COCO results, or a folder of comp4 files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from sppdet.boxes import clip_boxes, empty_boxes
from sppdet.data_config import DataConfig
from sppdet.errors import ConfigError, DataError, ImageError
from sppdet.io.coco_results import CocoResults
from sppdet.io.detection_files import Comp4Folder, open_detections
from sppdet.io.files import read_json
from sppdet.io.finding import find_images
from sppdet.io.image_ids import meaning_of
from sppdet.io.names import number_repeats, safe_id, unescape_name
from sppdet.io.writing.sets import LabelledImage, LabelledSet
from sppdet.runs.log import LOGGER
from sppdet.runs.progress import track
from sppdet.stages.convert_labels import Reading, look_at
from sppdet.stages.convert_names import image_names, image_stems
from sppdet.types import AnnotatedImage, Dataset, Detections

_PREFIX = "comp4_det_"


def is_detections(path: Path) -> bool:
    """Check whether a file or folder has detections rather than labels.

    Raises:
        DataError: a JSON file that can't be read.
    """
    if path.is_dir():
        return any(path.glob(f"{_PREFIX}*.txt"))
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    data = read_json(path)
    if isinstance(data, list):
        return True
    entries = data.get("annotations") if isinstance(data, dict) else None
    if not isinstance(entries, list):
        return False
    if not entries:  # of an empty detections.json
        return _have(data.get("images"), "path")
    return _have(entries, "score")


def read_found(path: Path, reading: Reading) -> LabelledSet:
    """Read detections and look at the images that they are of.

    Raises:
        ConfigError: the folder of the images, or the classes of comp4 files, must be named.
        DataError: the detections or images can't be used.
    """
    opened = open_detections(path)
    if reading.split is not None:
        raise ConfigError(f"--split {reading.split}: detections have no sets")
    files = _images_of(opened, path, reading)
    data = DataConfig(
        format="xml",
        root=[reading.images or path.parent],
        classes=list(reading.classes or ()) or "auto",
    )
    meaning = meaning_of(reading.ids, data, "all")
    names = reading.classes or _classes_of(opened, opened.class_names(meaning))
    if not names:
        raise DataError(f"{path}: names no class; expected --classes")
    real = [Path(os.path.abspath(file)) for _, file, _ in files]
    short, folders = image_names({"": real})
    stems = image_stems(short)
    ids = number_repeats([safe_id(stems[file]) for file in real])  # as comp4 files name them
    annotated = tuple(
        _image(key, stated, size) for key, (stated, _, size) in zip(ids, files, strict=True)
    )
    found = opened.detections(Dataset("all", names, annotated), meaning)
    if isinstance(opened, CocoResults) and _have(opened.entries, "probability"):
        LOGGER.warning("%s: probabilities aren't converted", path)
    joined = tuple(
        _joined(found[image.id], image, (file, short[file], stems[file]), reading)
        for image, file in zip(annotated, real, strict=True)
    )
    return LabelledSet(names, joined, (), folders)


_File = tuple[Path, Path, tuple[int, int]]  # path as stated, path on this machine, (width, height)


def _images_of(opened: Comp4Folder | CocoResults, path: Path, reading: Reading) -> list[_File]:
    if isinstance(opened, CocoResults) and opened.images is not None:
        return [
            _file(names, opened.sizes[key], path, reading)
            for key, names in track(opened.images.items(), total=len(opened.images), label="images")
        ]
    if reading.images is None:
        raise ConfigError(f"{path}: doesn't name its images; expected --images-in FOLDER")
    found = [Path(os.path.abspath(file)) for file in find_images([reading.images])]
    return [
        (file, file, _size(file, None)) for file in track(found, total=len(found), label="images")
    ]


def _file(
    names: Sequence[str], stated: tuple[int, int] | None, source: Path, reading: Reading
) -> _File:
    """Find an image by its path, or by its name below `--images-in` or the folder of the file."""
    texts = [unescape_name(name) for name in names]
    places = [*texts, *(str(source.parent / text) for text in texts)]
    if reading.images is not None:
        places = [str(reading.images / text) for text in reversed(texts)]
        places += [str(reading.images / Path(texts[-1]).name)]
    there = (Path(place) for place in places if os.path.lexists(place))
    file = next(there, Path(places[0]))
    return Path(names[0]), file, _size(file, stated)


def _size(path: Path, stated: tuple[int, int] | None) -> tuple[int, int]:
    try:
        info = look_at(path, stated)
    except ImageError as error:
        raise ImageError(f"{error}; --images-in FOLDER says where the images are") from None
    return info.width, info.height


def _classes_of(opened: Comp4Folder | CocoResults, found: Iterable[str]) -> tuple[str, ...]:
    if isinstance(opened, CocoResults):
        if opened.categories is not None:
            return tuple(dict.fromkeys(names[0] for names in opened.categories.values()))
        return tuple(found)
    names = _classes_of_files(opened.path)
    LOGGER.info("classes by the names of the files: %s; --classes names others", ", ".join(names))
    return names


def _classes_of_files(folder: Path) -> tuple[str, ...]:
    """Take for classes what the names of comp4 files don't begin with alike, up to a `_`."""
    stems = sorted(file.stem.removeprefix(_PREFIX) for file in folder.glob(f"{_PREFIX}*.txt"))
    words = [stem.split("_") for stem in stems]
    shared = (
        1 if len(words) == 1 else sum(1 for _ in takewhile(_are_one, zip(*words, strict=False)))
    )
    return tuple("_".join(own[min(shared, len(own) - 1) :]) for own in words)


def _are_one(words: Sequence[str]) -> bool:
    return len(set(words)) == 1


def _image(key: str, path: Path, size: tuple[int, int]) -> AnnotatedImage:
    nothing, flags = np.zeros(0, np.int64), np.zeros(0, np.bool_)
    return AnnotatedImage(key, path, *size, empty_boxes(), nothing, flags, flags)


def _joined(
    found: Detections, image: AnnotatedImage, names: tuple[Path, str, str], reading: Reading
) -> LabelledImage:
    if reading.min_score is not None:
        found = found.above(float(reading.min_score))
    boxes = clip_boxes(found.boxes, width=image.width, height=image.height)
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if not kept.all():
        LOGGER.warning("%s: %d boxes outside the image left out", names[1], int((~kept).sum()))
    flags = np.zeros(int(kept.sum()), np.bool_)
    path, name, stem = names
    return LabelledImage(
        name=name,
        stem=stem,
        path=path,
        width=image.width,
        height=image.height,
        boxes=boxes[kept],
        labels=found.labels[kept],
        difficult=flags,
        truncated=flags,
        scores=found.scores[kept],
    )


def _have(entries: Any, key: str) -> bool:
    return isinstance(entries, list) and any(isinstance(e, dict) and key in e for e in entries)

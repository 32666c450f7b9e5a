"""Labels to convert: a folder or file in any format that is read, with its sets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sppdet.errors import AnnotationError, DataError, ImageError, shorten
from sppdet.io.coco import read_coco_ids
from sppdet.io.dataset import class_order, label_records, read_records, usable
from sppdet.io.folder_files import ALL, FolderFiles
from sppdet.io.formats.common import Found, ordered, split_word
from sppdet.io.formats.csv_boxes import csv_kind
from sppdet.io.formats.find import find_format
from sppdet.io.formats.json_kinds import json_kind
from sppdet.io.formats.xml import root_tag
from sppdet.io.formats.yolo_sets import YoloSets
from sppdet.io.headers import read_header
from sppdet.io.image_cache import ImageCache, ImageInfo
from sppdet.io.images import read_image_bytes
from sppdet.io.records import ImageRecord, Skips
from sppdet.io.writing.sets import LabelledImage, LabelledSet
from sppdet.runs.log import LOGGER, event
from sppdet.runs.progress import track
from sppdet.stages.convert_names import image_names, image_stems, set_names
from sppdet.types import AnnotatedImage


@dataclass(frozen=True)
class Reading:
    """How to read what is converted.

    Attributes:
        format: of labels; None for the one that is found.
        split: the one set to convert; None for all.
        images: folder of the images, where they aren't where the source says.
        classes: the classes in their order; others are left out. None for all.
        ids: meaning of numbers in detection files, as in `sppdet eval --ids`.
        min_score: least score of detections; None for all.
        skip: whether to leave out and list what can't be used rather than to stop at it.
    """

    format: str | None = None
    split: str | None = None
    images: Path | None = None
    classes: tuple[str, ...] | None = None
    ids: str | None = None
    min_score: float | None = None
    skip: bool = False


def read_labels(path: Path, reading: Reading) -> LabelledSet:
    """Read a labelled data set, all of its sets or one.

    Sizes are those of the images; of an image that isn't there, the one in its annotation.

    Raises:
        DataError: no format is found, an annotation or image can't be used, or a size is known from
            neither.
    """
    found = find_labels(path, reading)
    sets = _chosen_sets(found, reading.split)
    skips = {name: Skips(stop=not reading.skip) for name in sets}
    records = {name: _records(found, name, reading, skips[name]) for name in sets}
    classes = reading.classes or _class_names(found, sets, reading, records)
    infos = _look_up(records, skips)
    images: dict[str, Sequence[AnnotatedImage]] = {}
    for (title, own), name in zip(records.values(), sets, strict=True):
        dataset = label_records(title, own, infos, class_names=classes, skips=skips[name])
        images[name] = dataset.images
    plain = set_names(sets)
    unsplit = len(found.sets) == 1 and (sets[0] == ALL or not split_word(sets[0]))
    renamed = dict(zip(plain, images.values(), strict=True))
    return _joined(classes, renamed, keep_sets=not unsplit)


def find_labels(path: Path, reading: Reading) -> Found:
    """Find the format of a folder, or of a file that holds the labels of many images."""
    if path.is_dir():
        return find_format(path, only=reading.format, images=reading.images)
    root, name = path.parent, path.name
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder")
    suffix, kind = path.suffix.lower(), ""
    if suffix == ".json":
        kind = json_kind(path)
    elif suffix == ".csv":
        kind = csv_kind(path)
    elif suffix == ".xml" and root_tag(FolderFiles(root), name) == "annotations":
        kind = "cvat"
    if kind not in ("coco", "via", "csv", "cvat"):
        raise AnnotationError(
            f"{path}: no file that has the labels or detections of many images (COCO, VIA, CSV, CVAT); "
            "expected one, or the folder of the labels"
        )
    if kind == "coco" and root.name == "annotations":
        root, name = root.parent, f"annotations/{name}"
    return Found(kind, name, (name,), root)


def _chosen_sets(found: Found, split: str | None) -> tuple[str, ...]:
    facts = event("data found", format=found.format, sets=found.sets, evidence=found.evidence)
    said = f"sets: {shorten(found.sets, limit=6)}" if len(found.sets) > 1 else "no split"
    LOGGER.info("%s: %s (%s); %s", found.root, found.format, found.evidence, said, extra=facts)
    if split is None:
        return ordered(found.sets)
    plain = dict(zip(found.sets, set_names(found.sets), strict=True))
    chosen = [name for name in found.sets if split in (name, plain[name])]
    if not chosen:
        there = shorten(list(plain.values()), limit=6)
        raise DataError(f"{found.root}: no set {split}; there are: {there}")
    return (chosen[0],)


def _records(
    found: Found, name: str, reading: Reading, skips: Skips
) -> tuple[str, list[ImageRecord]]:
    title, records = read_records(
        format=found.format,
        roots=[found.root],
        sets=[name],
        images=reading.images,
        class_names=reading.classes,
        only=None,
        skips=skips,
    )
    return title, [usable(record, skips) for record in records]


def _class_names(
    found: Found,
    sets: Sequence[str],
    reading: Reading,
    records: Mapping[str, tuple[str, list[ImageRecord]]],
) -> tuple[str, ...]:
    """List the classes in the order that the source gives them, or else sorted."""
    if found.format == "yolo":
        folder = FolderFiles(found.root)
        images = FolderFiles(reading.images) if reading.images else folder
        names = YoloSets(folder, images).class_names
        return tuple(dict.fromkeys(names[key] for key in sorted(names)))
    if found.format == "coco":
        ids = [read_coco_ids(found.root, name, images=reading.images) for name in sets]
        return tuple(dict.fromkeys(n for one in ids for n in one.category_names.values()))
    return class_order([record for _, own in records.values() for record in own])


def _look_up(
    records: Mapping[str, tuple[str, list[ImageRecord]]], skips: Mapping[str, Skips]
) -> dict[Path, ImageInfo]:
    """Look at the images' headers; of images that aren't there, at the sizes in their annotations."""
    infos: dict[Path, ImageInfo] = {}
    for name, (_, own) in records.items():
        for record in track(own, total=len(own), label="images"):
            if record.path in infos:
                continue
            try:
                infos[record.path] = look_at(record.path, record.stated)
            except ImageError as error:
                skips[name].report(error)
    return infos


def look_at(path: Path, stated: tuple[int, int] | None) -> ImageInfo:
    """Read the size of an image from its header, or take the one that is stated if it isn't there.

    Raises:
        ImageError: it isn't there and no size is stated, or it is no image.
    """
    if not os.path.lexists(path):
        if stated is None:
            raise ImageError(f"{path}: no such file, and its annotation states no size")
        return ImageInfo(0, 0, 0, "", *stated, 1, "")
    header = read_header(read_image_bytes(path))
    if header is None:
        return ImageCache().look(path)
    size = (header.width, header.height)
    upright = size[::-1] if header.orientation >= 5 else size
    return ImageInfo(0, 0, 0, "", *upright, header.orientation, "")


def _joined(
    classes: tuple[str, ...], images: Mapping[str, Sequence[AnnotatedImage]], *, keep_sets: bool
) -> LabelledSet:
    """Join the sets; an image may be in several."""
    paths = {n: [Path(os.path.abspath(image.path)) for image in own] for n, own in images.items()}
    names, folders = image_names(paths)
    stems = image_stems(names)
    first: dict[Path, AnnotatedImage] = {}
    sets: dict[Path, tuple[str, ...]] = {}
    for part, own in images.items():
        for path, image in zip(paths[part], own, strict=True):
            first.setdefault(path, image)
            sets[path] = (*sets.get(path, ()), part)
    joined = tuple(
        LabelledImage(
            name=names[path],
            stem=stems[path],
            path=path,
            width=image.width,
            height=image.height,
            boxes=image.gt_boxes,
            labels=image.gt_labels,
            difficult=image.difficult,
            truncated=image.truncated,
            sets=tuple(dict.fromkeys(sets[path])) if keep_sets else (),
        )
        for path, image in first.items()
    )
    return LabelledSet(classes, joined, tuple(images) if keep_sets else (), folders)

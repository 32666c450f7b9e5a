"""Reading of data sets: annotations joined, checked against their images and labelled."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from sppdet.errors import AnnotationError, DataError, ImageError, shorten
from sppdet.io.coco import read_coco_set
from sppdet.io.folder_files import FolderFiles
from sppdet.io.formats.find import READERS
from sppdet.io.id_lists import choose_records
from sppdet.io.image_cache import ImageCache, ImageInfo
from sppdet.io.names import number_repeats, safe_id
from sppdet.io.record_boxes import clip_record, conflict_of, repaired_record
from sppdet.io.records import ImageRecord, Skips
from sppdet.io.stated_sizes import EXPLAINED, REPAIRABLE, Conflict
from sppdet.io.voc import read_voc_set
from sppdet.runs.log import event
from sppdet.runs.progress import track
from sppdet.types import AnnotatedImage, Dataset

_log = logging.getLogger("sppdet")
_SHOWN, _LISTED = 3, 200  # names in a warning, and in its details
_CLIP_TOLERANCE_PX = 0.01  # a box that reaches out by no more is rounding and not counted


def load_dataset(
    *,
    format: str,
    roots: Sequence[Path],
    sets: Sequence[str | None],
    images: Path | None,
    class_names: Sequence[str] | None,
    on_error: Literal["stop", "skip"],
    read_images: bool,
    workers: int = 1,
    known: ImageCache | None,
    repair_sizes: bool = False,
    only: Path | None = None,
) -> Dataset:
    """Read one split, from one root or several.

    Images come in the order of the roots and of their set files; images without objects stay.
    With `read_images` every image is decoded once, or found unchanged in `known`: sizes are those of
    the images, never of the annotations, and boxes are clipped to them. Warnings count the stated
    sizes that contradict their images, and the images that aren't 8-bit. Without it no image need
    exist, sizes are 0 and boxes stay as annotated.

    Args:
        format: of the annotations, in all roots: voc, coco or one of `READERS`.
        roots: folders in that layout.
        sets: a set of each root; None where the root has none for this split.
        images: folder of the images; None takes the format's own.
        class_names: the classes in the order of their labels; objects of others are left out with a
            warning. None takes the classes that occur, sorted.
        on_error: "stop" raises the first error; "skip" leaves out a box that can't be used or an
            image that can't be read, and lists it in `Dataset.skipped`.
        read_images: read the images.
        workers: threads that decode.
        known: cache of the images; the caller saves it.
        repair_sizes: move the boxes of images whose annotations state another size into the images,
            where it is certain how; see `stated_sizes`. Needs `read_images`.
        only: list of the ids of the images to use, see `id_lists`; None for all.

    Returns:
        The data set; its name is made of those of roots, sets and list ("VOC2007-trainval").

    Raises:
        AnnotationError: an annotation can't be read, or a box has no area.
        ImageError: an image is missing or can't be decoded.
        DataError: no set, image or class is left, or a class name is given twice.
    """
    skips = Skips(stop=on_error == "stop")
    split, records = read_records(
        format=format,
        roots=roots,
        sets=sets,
        images=images,
        class_names=class_names,
        only=only,
        skips=skips,
    )
    records = [usable(record, skips) for record in records]
    names = class_order(records) if class_names is None else tuple(class_names)
    infos: dict[Path, ImageInfo] | None = None
    if read_images:
        cache = ImageCache() if known is None else known
        infos = _look_up(split, records, cache, workers=workers, skips=skips)
        _warn_of_depths(split, infos)
    return label_records(
        split, records, infos, class_names=names, skips=skips, repair_sizes=repair_sizes
    )


def label_records(
    split: str,
    records: Sequence[ImageRecord],
    infos: Mapping[Path, ImageInfo] | None,
    *,
    class_names: Sequence[str],
    skips: Skips,
    repair_sizes: bool = False,
) -> Dataset:
    """Label records, all of whose objects can be used, and clip their boxes to their images.

    Args:
        infos: the images by path; records of others are left out. None: nothing is known of any.
        skips: told of boxes without area in their image.

    Raises:
        DataError: no image or class is left, or a class name is given twice.
    """
    labels = _labels(class_names)
    if infos is not None:
        records = [record for record in records if record.path in infos]
        if not records:
            raise DataError(f"{split}: no image can be read; the first: {skips.lines[0]}")
        records = _check_sizes(split, records, infos, repair=repair_sizes)
    infos = infos or {}
    annotated = [_annotate(record, infos.get(record.path), labels, skips) for record in records]
    clipped = sum(count for _, count in annotated)
    if clipped:
        _log.warning("%s: %d boxes reached outside their image: clipped", split, clipped)
    if skips.lines:
        _log.warning("%s: left out: %s", split, shorten(skips.lines, limit=_SHOWN))
        _list(split, "left out", skips.lines)
    for kind, examples in skips.left_out.items():
        _log.warning("%s: %s: %d (%s)", split, kind, len(examples), shorten(examples, limit=_SHOWN))
        _list(split, kind, examples)
    kept = tuple(image for image, _ in annotated)
    return Dataset(split, tuple(labels), kept, tuple(skips.lines), clipped)


def _list(split: str, kind: str, items: Sequence[str]) -> None:
    """Log as a detail what a warning has shortened."""
    if len(items) > _SHOWN:
        text = shorten(items, limit=_LISTED)
        _log.debug("%s: %s, %d: %s", split, kind, len(items), text, extra=event("listed"))


def read_records(
    *,
    format: str,
    roots: Sequence[Path],
    sets: Sequence[str | None],
    images: Path | None,
    class_names: Sequence[str] | None,
    only: Path | None,
    skips: Skips,
) -> tuple[str, list[ImageRecord]]:
    """Read the annotations of one split as they are: no image is opened, no box is clipped.

    Args:
        skips: told of annotations that can't be read; objects that can't be used stay in their records.

    Returns:
        The name of the split, and its records; see `load_dataset` for the arguments and errors.
    """
    if len(roots) != len(sets):
        raise DataError(f"{len(sets)} sets for {len(roots)} roots, expected one for each")
    used = [(root, name, k) for k, (root, name) in enumerate(zip(roots, sets, strict=True)) if name]
    split = "+".join(safe_id(f"{_root_name(root)}-{name}") for root, name, _ in used)
    parts = [_read_set(format, root, name, images, skips) for root, name, _ in used]
    records = _join(parts, _prefixes(roots, [position for *_, position in used]))
    if not records:
        raise DataError(f"{split or 'no set is named'}: no images")
    if only is not None:
        records = choose_records(records, only, set_name=split)
        split = safe_id(f"{split}-{only.stem}")
    if class_names is not None:
        records = _of_classes(records, frozenset(class_names))
    return split, records


def _read_set(
    format: str, root: Path, set_name: str, images: Path | None, skips: Skips
) -> list[ImageRecord]:
    if format == "coco":
        return read_coco_set(root, set_name, images=images, skips=skips)
    if format in READERS:
        for path in (root, images or root):
            if not path.is_dir():
                raise AnnotationError(f"{path}: no such folder")
        folder = FolderFiles(root)
        return READERS[format](folder, set_name, FolderFiles(images) if images else folder, skips)
    return list(read_voc_set(root, set_name, images=images, skips=skips))


def _root_name(root: Path) -> str:
    return Path(os.path.abspath(root)).name or "root"


def _prefixes(roots: Sequence[Path], positions: Sequence[int]) -> list[str]:
    """Name the roots at `positions`; where names are the same, append the positions from 1."""
    names = [_root_name(root) for root in roots]
    if len({names[k] for k in positions}) < len(positions):
        return [f"{names[k]}_{k + 1}" for k in positions]
    return [names[k] for k in positions]


def _join(parts: Sequence[list[ImageRecord]], prefixes: Sequence[str]) -> list[ImageRecord]:
    """Concatenate the records of all roots; prefix every id with its root if two roots share one."""
    ids = [{record.id for record in part} for part in parts]
    shared = sum(map(len, ids)) > len(set().union(*ids))
    names = [
        safe_id(f"{prefix}__{record.id}") if shared else record.id
        for prefix, part in zip(prefixes, parts, strict=True)
        for record in part
    ]
    records = (record for part in parts for record in part)
    return [
        replace(record, id=name)
        for name, record in zip(number_repeats(names), records, strict=True)
    ]


def _of_classes(records: Iterable[ImageRecord], names: frozenset[str]) -> list[ImageRecord]:
    """Leave out the objects of other classes than `names`; a warning counts them."""
    others: Counter[str] = Counter()
    kept = []
    for record in records:
        # an object without a name stays: that is an error, not another class
        ours = tuple(item for item in record.objects if item.name in names or not item.name)
        kept.append(replace(record, objects=ours))
        others.update(o.name for o in record.objects if o.name and o.name not in names)
    if others:
        counts = [f"{name} {count}" for name, count in others.most_common()]
        _log.warning("%d objects of other classes left out: %s", others.total(), shorten(counts))
    return kept


def usable(record: ImageRecord, skips: Skips) -> ImageRecord:
    """Leave out and report the objects that the file describes wrongly."""
    for item in record.objects:
        if item.problem:
            skips.report(record.error(item, item.problem))
    return replace(record, objects=tuple(item for item in record.objects if not item.problem))


def class_order(records: Iterable[ImageRecord]) -> tuple[str, ...]:
    """List the classes of the objects, sorted.

    Raises:
        DataError: there is no object.
    """
    names = {item.name for record in records for item in record.objects}
    if not names:
        raise DataError("no class: the annotations have no object and no class is named")
    return tuple(sorted(names))


def _labels(names: Sequence[str]) -> dict[str, int]:
    """Map class names to labels 1..K."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"class names given twice: {shorten(twice)}")
    return {name: label for label, name in enumerate(names, start=1)}


def _look_up(
    split: str, records: Sequence[ImageRecord], cache: ImageCache, *, workers: int, skips: Skips
) -> dict[Path, ImageInfo]:
    """Look up each image in the cache, which decodes new ones; by path, without undecodable ones."""
    infos = {}
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        futures = [pool.submit(cache.look, record.path) for record in records]
        looked = zip(records, futures, strict=True)
        for record, future in track(looked, total=len(records), label=f"images of {split}"):
            try:
                infos[record.path] = future.result()
            except ImageError as error:
                skips.report(error)
    finally:
        pool.shutdown(cancel_futures=True)  # after an error the rest need not be read
    return infos


def _warn_of_depths(split: str, infos: dict[Path, ImageInfo]) -> None:
    """Warn of images that aren't 8-bit, one line per kind."""
    kinds: dict[str, list[str]] = {}
    for path, info in infos.items():
        if info.depth:
            kinds.setdefault(info.depth, []).append(path.name)
    for depth, names in kinds.items():
        listed, counts = shorten(names, limit=_SHOWN), (split, len(names), len(infos))
        _log.warning("%s: %d of %d images have %s, made 8 bits: %s", *counts, depth, listed)
        _list(split, depth, names)


def _check_sizes(
    split: str, records: Sequence[ImageRecord], infos: Mapping[Path, ImageInfo], *, repair: bool
) -> list[ImageRecord]:
    """Warn of stated sizes that contradict their images, a line per kind; repair boxes if asked."""
    kept: list[ImageRecord] = []
    found: dict[Conflict, list[str]] = {}
    for record in records:
        info, stated = infos[record.path], record.stated
        kind = conflict_of(record, info)
        if stated is not None and kind is not None:
            size = info.width, info.height
            example = f"{record.path.name} {stated[0]}x{stated[1]} for {size[0]}x{size[1]}"
            found.setdefault(kind, []).append(example)
            if repair and kind in REPAIRABLE:
                record = repaired_record(record, info, kind)
        kept.append(record)
    for kind, examples in found.items():
        cause, advice = EXPLAINED[kind]
        if repair and kind in REPAIRABLE:
            advice = "repaired (data.repair_sizes)"
        _log.warning(
            "%s: %d of %d images haven't the size that was annotated (%s): %s; %s",
            *(split, len(examples), len(records), shorten(examples, limit=_SHOWN), cause, advice),
        )
        _list(split, f"another size than annotated, {cause}", examples)
    return kept


def _annotate(
    record: ImageRecord, info: ImageInfo | None, labels: dict[str, int], skips: Skips
) -> tuple[AnnotatedImage, int]:
    """Clip and label the boxes of an image; returns it and the number of clipped boxes."""
    found = clip_record(record, info)
    for row in np.flatnonzero(~found.has_area).tolist():
        skips.report(record.error(record.objects[row], found.problem(row)))
    clipped = int(np.count_nonzero(found.has_area & (found.reach_px > _CLIP_TOLERANCE_PX)))
    return found.annotated(labels), clipped

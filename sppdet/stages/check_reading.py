"""Reading of a data set for its check: everything that is wrong becomes a case, and nothing ends it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from sppdet.config import Config
from sppdet.errors import ImageError
from sppdet.evaluation.dataset_check import class_numbers, repeats, shapes
from sppdet.evaluation.similar_images import Look, group_near_duplicates, look_of
from sppdet.io.image_cache import ImageCache, ImageInfo
from sppdet.io.record_boxes import ClippedRecord, clip_record, conflict_of, repaired_record
from sppdet.io.records import ImageRecord, ObjectRecord, Skips
from sppdet.io.splits import read_split_records
from sppdet.io.stated_sizes import EXPLAINED, REPAIRABLE
from sppdet.parallel import ordered_map
from sppdet.proposals.recall import Coverage
from sppdet.runs.environment import worker_count
from sppdet.runs.progress import track
from sppdet.stages.check_findings import (
    Case,
    Part,
    class_cases,
    double_cases,
    repeat_cases,
)
from sppdet.types import AnnotatedImage, ImageArray

_CLIPPED_PX = (
    1.0  # a box that reaches out by no more may be rounded, or counted from 0 instead of 1
)
_UNLABELLED = "images without a"  # how readers call what has no annotation


@dataclass
class Survey:
    """Hold what was read: images by set, without those that can't be, and the cases found.

    Attributes:
        splits: "train" and, where there is one, "test".
        titles: name of each set.
        class_names: of both sets.
        images: of each set; label k is class_names[k - 1].
        coverage: of the proposals of a sample of `sampled` images; None without a sample.
    """

    config: Config
    cache: ImageCache
    splits: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    class_names: tuple[str, ...] = ()
    images: list[list[AnnotatedImage]] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    coverage: Coverage | None = None
    sampled: int = 0

    def short(self, text: str) -> str:
        """Shorten a message that begins with a path below a root by that root."""
        for root in self.config.data.root:
            text = text.removeprefix(f"{root}{os.sep}")
        return text


def survey(config: Config) -> Survey:
    """Read both sets, decode every image once, and look for everything but proposals.

    Args:
        config: with the format and the sets settled.

    Raises:
        DataError: a set can't be read at all.
    """
    looks: dict[str, Look] = {}

    def keep(path: Path, pixels: ImageArray) -> None:
        looks[os.path.abspath(path)] = look_of(pixels)

    cache = ImageCache(max_pixels=config.data.max_pixels, on_decoded=keep)
    found = Survey(config, cache)
    clipped: list[list[ClippedRecord]] = []
    for split in ("train", "test")[: 1 if config.data.test is None else 2]:
        skips = Skips(stop=False)
        title, records = read_split_records(config.data, split, skips)
        found.splits.append(split)
        found.titles.append(title)
        found.cases += [replace(case, text=found.short(case.text)) for case in _unread(skips)]
        clipped.append(_read_images(found, split, records))
    found.class_names = _names(config, clipped)
    labels = {name: label for label, name in enumerate(found.class_names, start=1)}
    found.images = [[one.annotated(labels) for one in records] for records in clipped]
    for split, own, images in zip(found.splits, clipped, found.images, strict=True):
        for one, image in zip(own, images, strict=True):
            found.cases += _shape_cases(config, split, one, image)
            found.cases += double_cases(split, image, found.class_names)
    found.cases += class_cases(class_numbers(found.images, found.class_names), found.splits)
    if not found.class_names:
        found.cases.append(Case("untrained class", "no object of any class"))
    _find_repeats(found, looks)
    return found


def _unread(skips: Skips) -> Iterator[Case]:
    """List what a reader reports about files, before any image is decoded."""
    for error in skips.errors:
        yield Case("image" if isinstance(error, ImageError) else "annotation", str(error))
    for what, examples in skips.left_out.items():
        kind = "unlabelled" if what.startswith(_UNLABELLED) else "left out"
        for example in examples:
            yield Case(kind, example if kind == "unlabelled" else f"{what}: {example}")


def _read_images(found: Survey, split: str, records: list[ImageRecord]) -> list[ClippedRecord]:
    """Decode the images of a set; return the records of those that can be, with their usable boxes."""

    def look(record: ImageRecord) -> ImageInfo | ImageError:
        try:
            return found.cache.look(record.path)
        except ImageError as error:
            return error

    infos = ordered_map(look, records, workers=worker_count(found.config.workers))
    kept = []
    for record, info in zip(
        records, track(infos, total=len(records), label=f"images, {split}"), strict=True
    ):
        if isinstance(info, ImageError):
            found.cases.append(Case("image", found.short(str(info))))
            continue
        for item in record.objects:
            if item.problem:
                text = str(record.error(item, item.problem))
                found.cases.append(Case("invalid box", text, (Part(record.path, split),)))
        usable = tuple(item for item in record.objects if not item.problem)
        if not record.objects:
            found.cases.append(Case("no objects", record.id, (Part(record.path, split),)))
        if info.depth:
            text = f"{record.path.name}: {info.depth}"
            found.cases.append(Case("depth", text, (Part(record.path, split),)))
        sized, cases = _sized(found.config, split, replace(record, objects=usable), info)
        found.cases += cases
        kept.append(clip_record(sized, info))
    return kept


def _sized(
    config: Config, split: str, record: ImageRecord, info: ImageInfo
) -> tuple[ImageRecord, list[Case]]:
    """Compare the stated size with the image's; with `data.repair_sizes` move what can be moved."""
    conflict = conflict_of(record, info)
    if conflict is None or record.stated is None:
        return record, []
    if config.data.repair_sizes and conflict in REPAIRABLE:
        return repaired_record(record, info, conflict), []
    cause, advice = EXPLAINED[conflict]
    stated, size = (f"{a}x{b}" for a, b in (record.stated, (info.width, info.height)))
    text = f"{record.path.name}: annotated as {stated}, the image is {size}: {cause}; {advice}"
    boxes = tuple((item.box, item.name) for item in record.objects)
    return record, [Case("size", text, (Part(record.path, split, boxes),))]


def _names(config: Config, sets: list[list[ClippedRecord]]) -> tuple[str, ...]:
    if config.data.classes != "auto":
        return tuple(config.data.classes)
    return tuple(
        sorted({item.name for records in sets for one in records for item in one.record.objects})
    )


def _shape_cases(
    config: Config, split: str, one: ClippedRecord, image: AnnotatedImage
) -> Iterator[Case]:
    """Find boxes outside of an image or beyond its border, tiny, huge and thin ones."""
    record, kept = one.record, one.objects()

    def case(kind: str, item: ObjectRecord, said: str, worth: float) -> Case:
        part = Part(record.path, split, ((item.box, item.name),), close=kind in ("tiny", "thin"))
        return Case(kind, str(record.error(item, f"{item.name}, {said}")), (part,), worth)

    for row, item in enumerate(record.objects):
        reach = float(one.reach_px[row])
        if not one.has_area[row]:
            yield case("outside", item, one.problem(row), reach)
        elif reach > _CLIPPED_PX:
            yield case("beyond the border", item, f"by {reach:.0f} pixels", reach)
    settings = config.proposals
    found = shapes(
        image.gt_boxes,
        width=image.width,
        height=image.height,
        image_width=settings.image_width,
        min_size=settings.min_size,
    )
    sides = image.gt_boxes[:, 2:] - image.gt_boxes[:, :2]
    for row, item in enumerate(kept):
        size = "{:.0f} x {:.0f} pixels".format(*sides[row])
        if found.huge[row]:
            yield case("huge", item, f"{found.fraction[row]:.0%} of the image", found.fraction[row])
        if image.difficult[row]:  # which count neither way
            continue
        if found.tiny[row]:
            seen = found.searched_px[row]
            said = f"{size}; as searched its shorter side is {seen:.1f}, that of proposals "
            yield case("tiny", item, f"{said}{settings.min_size} or more", -seen)
        if found.thin[row]:
            yield case("thin", item, size, found.aspect[row])


def _find_repeats(found: Survey, looks: dict[str, Look]) -> None:
    """Find images that are there more than once, in a set or across both."""
    every = [
        (split, image)
        for split, images in zip(found.splits, found.images, strict=True)
        for image in images
    ]
    images, splits = [image for _, image in every], [split for split, _ in every]
    groups = group_near_duplicates([looks.get(os.path.abspath(image.path)) for image in images])
    content = [found.cache.digest(image.path) for image in images]
    found.cases += repeat_cases(repeats(content, groups, splits), images, splits, found.class_names)

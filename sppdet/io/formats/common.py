"""Shared by the readers of formats that labelling tools write."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sppdet.errors import AnnotationError, one_line
from sppdet.io.folder_files import ALL, FolderFiles, in_set
from sppdet.io.names import safe_id
from sppdet.io.records import ImageRecord, ObjectRecord, Skips, is_coordinate

Box = tuple[float, float, float, float]
NO_BOX: Box = (0.0, 0.0, 0.0, 0.0)
# the ones used for training first; of several that could be the test set the first is
TRAIN_NAMES = ("trainval", "train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation", "dev")
_SET_NAME = re.compile(r"(trainval|train|val|test)(ing|id|idation)?", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """The format that a folder is taken for.

    Attributes:
        format: a value of `data.format`.
        evidence: what says so: "12 label files such as labels/a.txt".
        sets: names of its sets; `ALL` alone where it has no split.
        root: the folder, or the one in it that the format begins at.
    """

    format: str
    evidence: str
    sets: tuple[str, ...]
    root: Path


@dataclass(frozen=True)
class Item:
    """The annotation of one image before its image is looked up.

    Attributes:
        names: of the image, the best first.
        near: folder below the root that the names were written in.
        source: file of the annotation.
        where: beginning of messages about an object: "a.json, shape".
    """

    names: tuple[str, ...]
    near: str
    source: str
    where: str
    objects: tuple[ObjectRecord, ...]
    stated: tuple[int, int] | None = None


def found_in(
    folder: FolderFiles,
    format: str,
    kind: str,
    names: Sequence[str],
    sets_of: Callable[[Sequence[str]], tuple[str, ...]],
) -> Found | None:
    """Describe the files `names` of a format, which are called `kind`; None if there are none."""
    if not names:
        return None
    return Found(format, such_as(kind, names), sets_of(names), folder.root)


def folder_of(name: str) -> str:
    """Return the folder of a path below the root; "" for the root."""
    return PurePosixPath(name).parent.as_posix().lstrip(".")


def records_of(
    items: Iterable[Item], images: FolderFiles, set_name: str, skips: Skips
) -> list[ImageRecord]:
    """Find the image of each item; its path below the folder of images makes its id.

    An image that isn't there has the path of its first name: reading it will tell. Images of the set
    that have no item are counted.

    Raises:
        AnnotationError: unless skipped: a name fits two images, or two items have one image.
    """
    records: list[ImageRecord] = []
    by_image: dict[str, str] = {}
    for item in items:
        try:
            image = _image_of(item, images)
        except AnnotationError as error:
            skips.report(AnnotationError(f"{item.source}: image {error}"))
            continue
        if image in by_image:
            both = f"{item.source} and {by_image[image]}"
            skips.report(AnnotationError(f"{image}: annotated twice, by {both}"))
            continue
        by_image[image] = item.source
        key, path = image_id(image), images.path(image)
        records.append(ImageRecord(key, path, item.objects, item.where, item.stated))
    labelled = {record.path for record in records}
    for name in images.images:
        if in_set(name, set_name) and images.path(name) not in labelled:
            skips.leave_out("images without an annotation", name)
    return records


def _image_of(item: Item, images: FolderFiles) -> str:
    for name in item.names:
        if found := images.image(name, near=item.near):
            return found
    base = re.split(r"[/\\]", item.names[0].strip())[-1]
    return f"{item.near}/{base}".lstrip("/") if base else item.source


def image_id(image: str) -> str:
    """Make the id of an image from its path below the root, which no other image changes."""
    return safe_id(str(PurePosixPath(image).with_suffix("")))


def box_around(points: object) -> Box:
    """Find the box around a list of [x, y] points.

    Raises:
        ValueError: no such list, or the box has no area.
    """
    pairs = points if isinstance(points, list) else []
    if not pairs or not all(
        isinstance(pair, list) and len(pair) == 2 and all(map(is_coordinate, pair))
        for pair in pairs
    ):
        raise ValueError(f"points {points!r:.80}, expected pairs of numbers")
    xs, ys = zip(*pairs, strict=True)
    return with_area(float(min(xs)), float(min(ys)), float(max(xs)), float(max(ys)))


def with_area(x1: float, y1: float, x2: float, y2: float) -> Box:
    """Return the box; ValueError if it has no area."""
    for axis, low, high in (("x", x1, x2), ("y", y1, y2)):
        if high <= low:
            raise ValueError(f"{axis} from {low:g} to {high:g}, expected a box with area")
    return x1, y1, x2, y2


def problem_object(name: str, number: int | str, problem: object) -> ObjectRecord:
    """Make the record of an object that can't be used."""
    return ObjectRecord(name, NO_BOX, False, False, number, one_line(str(problem), 160))


def class_name(value: object, what: str) -> str:
    """Check the name of a class; ValueError if it is no text or empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} {value!r:.40}, expected the name of a class")
    return value.strip()


def folder_sets(names: Sequence[str]) -> tuple[str, ...]:
    """Find the sets among the folders of files: "train", "valid", ...; `ALL` where there is no split.

    All files must be in such folders, and one of them in a training set's.
    """
    known = (*TRAIN_NAMES, *TEST_NAMES)
    sets: dict[str, None] = {}
    for name in names:
        own = [part for part in name.split("/")[:-1] if part.lower() in known]
        if not own:
            return (ALL,)
        sets[own[0]] = None
    return ordered(sets) if any(name.lower() in TRAIN_NAMES for name in sets) else (ALL,)


def file_sets(names: Sequence[str]) -> tuple[str, ...]:
    """Order annotation files that are a set each; those of no split by name come as they are."""
    return ordered(names) if len(names) > 1 else tuple(names)


def split_word(set_name: str) -> str:
    """Tell which split a set's name means: "train" of "annotations/instances_train2017.json"; or ""."""
    for part in reversed(set_name.split("/")):
        base = part.removeprefix("instances_")
        base = base.partition(".")[0] if part == set_name.split("/")[-1] else base
        for word in re.split(r"[^a-zA-Z]+", base):
            if match := _SET_NAME.fullmatch(word):
                return match[1].lower()
    return ""


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Order sets: those to train on, to validate with, to test with, others."""
    order = ("trainval", "train", "val", "test", "")
    return tuple(sorted(names, key=lambda name: (order.index(split_word(name)), name)))


def such_as(kind: str, names: Sequence[str]) -> str:
    """Say how many files there are: "12 label files such as labels/a.txt"."""
    shown = one_line(names[0], 80)
    return f"1 {kind}, {shown}" if len(names) == 1 else f"{len(names)} {kind}s such as {shown}"


def chosen_files(names: Sequence[str], set_name: str) -> Iterator[str]:
    """Yield the files of a set of a format that has a file for each image."""
    return (name for name in names if in_set(name, set_name))

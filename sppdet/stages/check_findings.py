"""Findings of a check of a data set, of which `train` prints those that cost nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sppdet.errors import shorten
from sppdet.evaluation.dataset_check import (
    ClassNumbers,
    Repeat,
    alike_names,
    class_numbers,
    repeats,
    same_boxes,
)
from sppdet.io.image_cache import ImageCache
from sppdet.runs.log import LOGGER, event
from sppdet.stages.check_kinds import KINDS, Severity
from sppdet.stages.report import FEW_OBJECTS
from sppdet.types import AnnotatedImage, Dataset

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Part:
    """An image to show, with boxes in its pixels and their classes; a cut-out around them if `close`."""

    file: Path
    split: str = ""
    boxes: tuple[tuple[Box, str], ...] = ()
    close: bool = False


@dataclass(frozen=True)
class Case:
    """One place where something was found: a line of text, and one or two images to show.

    Of one kind the cases with the largest `worth` come first.
    """

    kind: str
    text: str
    parts: tuple[Part, ...] = ()
    worth: float = 0.0


@dataclass(frozen=True)
class Finding:
    """All cases of one kind, the worst first."""

    kind: str
    cases: tuple[Case, ...]

    @property
    def severity(self) -> Severity:
        """Say how much it matters."""
        return KINDS[self.kind].severity

    @property
    def title(self) -> str:
        """Say what the cases are."""
        return KINDS[self.kind].title


def sorted_findings(cases: Iterable[Case]) -> list[Finding]:
    """Collect cases by kind, in the order of `KINDS`."""
    by_kind: dict[str, list[Case]] = {kind: [] for kind in KINDS}
    for case in cases:
        by_kind[case.kind].append(case)
    return [
        Finding(kind, tuple(sorted(own, key=lambda case: -case.worth)))
        for kind, own in by_kind.items()
        if own
    ]


def part_of(
    split: str, image: AnnotatedImage, rows: Sequence[int], names: Sequence[str], *, close: bool
) -> Part:
    """Make a part of an image with some of its boxes."""
    boxes = tuple(
        (_box(image.gt_boxes[row].tolist()), names[image.gt_labels[row] - 1]) for row in rows
    )
    return Part(image.path, split, boxes, close)


def _box(sides: Sequence[float]) -> Box:
    x1, y1, x2, y2 = (round(float(side), 2) for side in sides)
    return x1, y1, x2, y2


def class_cases(numbers: Sequence[ClassNumbers], splits: Sequence[str]) -> Iterator[Case]:
    """Find class names that are nearly the same, and classes with few objects in a set or none.

    Args:
        numbers: of the sets `splits`: to train on or, second, to test with.
    """
    counts = {one.name: one.objects for one in numbers}
    for names in alike_names(list(counts)):
        text = " and ".join(f'"{name}" ({sum(counts[name])})' for name in names)
        yield Case("class names", text, worth=len(names))
    for name, objects in counts.items():
        said = ", ".join(f"{n} in {split}" for n, split in zip(objects, splits, strict=True))
        if objects[0] < FEW_OBJECTS:
            kind = "few objects" if objects[0] else "untrained class"
            yield Case(kind, f"{name} ({said})", worth=-objects[0])
        if len(objects) > 1 and not objects[1] and objects[0]:
            yield Case("untested class", f"{name} ({said})", worth=objects[0])


def double_cases(split: str, image: AnnotatedImage, names: Sequence[str]) -> Iterator[Case]:
    """Find boxes of an image that are the same."""
    for one, other, agree in same_boxes(image.gt_boxes, image.gt_labels):
        first, second = (names[image.gt_labels[row] - 1] for row in (one, other))
        what = f"two boxes of {first}" if agree else f"{first} and {second} in one box"
        part = part_of(split, image, [one, other], names, close=True)
        yield Case("double box" if agree else "two classes", f"{image.id}: {what}", (part,))


def repeat_cases(
    found: Sequence[Repeat],
    images: Sequence[AnnotatedImage],
    splits: Sequence[str],
    names: Sequence[str],
) -> Iterator[Case]:
    """Describe images that are there more than once."""
    for repeat in found:
        one, other = repeat.rows[:2]
        if repeat.crosses and images[one].path == images[other].path:
            kind = "in both sets"
        else:
            kind = ("similar" if repeat.near else "copy") + " across sets" * repeat.crosses
        said = f"{images[one].id} ({splits[one]}) and {images[other].id} ({splits[other]})"
        more = f", and {len(repeat.rows) - 2} more" if len(repeat.rows) > 2 else ""
        parts = (
            part_of(splits[row], images[row], range(len(images[row].gt_boxes)), names, close=False)
            for row in (one, other)
        )
        yield Case(kind, said + more, tuple(parts), worth=len(repeat.rows))


_SHORT_LINES = 5  # besides the last


def say_short_form(training_set: Dataset, test_set: Dataset | None, images: ImageCache) -> None:
    """Log what a training need not search for: of classes, of double boxes, of the same images.

    Nothing is decoded. What would spoil the numbers is a warning; where all is well nothing is said.
    """
    named = [("train", training_set), *([("test", test_set)] if test_set is not None else [])]
    names = training_set.class_names
    numbers = class_numbers([dataset.images for _, dataset in named], names)
    cases = list(class_cases(numbers, [split for split, _ in named]))
    every = [(split, image) for split, dataset in named for image in dataset.images]
    for split, image in every:
        cases += double_cases(split, image, names)
    content = [images.digest(image.path) for _, image in every]
    splits = [split for split, _ in every]
    found = repeats(content, np.arange(len(every)), splits)
    cases += repeat_cases(found, [image for _, image in every], splits, names)
    findings = sorted_findings(cases)
    for one in findings[:_SHORT_LINES]:
        text = (
            f"{len(one.cases)} {one.title}: {shorten([case.text for case in one.cases], limit=2)}"
        )
        say = LOGGER.warning if one.severity == "error" else LOGGER.info
        say("check: %s", text, extra=event("check", kind=one.kind, count=len(one.cases)))
    if findings:
        LOGGER.info(
            "check: `sppdet check` looks at images and proposals, too, and shows every case"
        )

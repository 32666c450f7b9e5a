"""Conversion of labels and detections between the formats that are read and those that are written."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

from sppdet.errors import ConfigError, ImageError
from sppdet.io.writing.layouts import LAYOUTS, ImageChoice, Layout, Target, facts_of
from sppdet.io.writing.sets import LabelledSet, Places
from sppdet.runs.log import LOGGER, RESULT, event
from sppdet.runs.owned import Content, Copied, Linked, can_link, replace_files
from sppdet.stages.convert_detections import is_detections, read_found
from sppdet.stages.convert_labels import Reading, read_labels


def convert(
    source: Path,
    out: Path,
    target: Target,
    *,
    reading: Reading | None = None,
    images: ImageChoice | None = None,
    scores: bool = False,
) -> LabelledSet:
    """Convert a data set or detections; says what the target format can't hold.

    Files of others in `out` stay; those of an earlier conversion into the same format are replaced.

    Args:
        source: a folder or file of labels, or detections.
        out: folder of the converted set.
        reading: how to read the source; None for all that it has.
        images: link or copy the images into `out`, or none; None: as the target's programs need them.
        scores: write scores of detections also where the format has none by rule (YOLO).

    Returns:
        What was written.

    Raises:
        ConfigError: `out` is no folder or in the source, or what is of detections alone is asked of labels.
        DataError: the source can't be read.
        ArtifactError: a file of somebody else would be overwritten, or one can't be written.
    """
    layout, reading = LAYOUTS[target], reading or Reading()
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: isn't a folder")
    if reading.min_score is not None and not math.isfinite(reading.min_score):
        raise ConfigError(f"--score {reading.min_score}: expected a number")
    detections = is_detections(source)
    if not detections:
        if layout.of_detections:
            raise ConfigError(f"--format {target}: is of detections, and {source} has labels")
        if scores or reading.min_score is not None:
            raise ConfigError(f"--score, --scores: are of detections, and {source} has labels")
        _check_apart(source, out)
    data = read_found(source, reading) if detections else read_labels(source, reading)
    if layout.score_is_optional and not scores:
        data = replace(data, images=tuple(replace(one, scores=None) for one in data.images))
        if detections:
            LOGGER.info("%s: scores are left out; --scores writes them", target)
    choice = images or layout.images
    files = _files(data, layout, out, choice)
    _say_lost(data, layout, target)
    replace_files(out, files, command="convert", part=target)
    _say_done(data, layout, choice, target, out)
    return data


def _check_apart(source: Path, out: Path) -> None:
    """Refuse a folder that would be read, or that has the source in it."""
    if not source.is_dir():
        return
    place, target = Path(os.path.realpath(source)), Path(os.path.realpath(out))
    if target.is_relative_to(place) or place.is_relative_to(target):
        raise ConfigError(f"{out}: is in {source} or has it in it; expected a folder of its own")


def _files(data: LabelledSet, layout: Layout, out: Path, choice: ImageChoice) -> dict[str, Content]:
    places = Places(out, None if choice == "none" else lambda image: layout.place(data, image))
    files: dict[str, Content] = dict(layout.files(data, places))
    if choice == "none":
        return files
    link = choice == "link" and can_link(out)
    if choice == "link" and not link:
        LOGGER.warning("%s: takes no symbolic links; images are copied", out)
    for image in data.images:
        if not image.path.is_file():
            raise ImageError(
                f"{image.path}: no such file; expected --images none to convert the labels alone"
            )
        place = layout.place(data, image)
        if place in files:
            raise ConfigError(f"{image.path}: {place} is a file of the format, too")
        files[place] = Linked(image.path) if link else Copied(image.path)
    return files


def _say_lost(data: LabelledSet, layout: Layout, target: Target) -> None:
    lost = [f"{name} ({n})" for name, n in facts_of(data).items() if name not in layout.keeps]
    if lost:
        LOGGER.warning("%s can't hold: %s", target, ", ".join(lost))


def _say_done(
    data: LabelledSet, layout: Layout, choice: ImageChoice, target: Target, out: Path
) -> None:
    objects = sum(len(image.boxes) for image in data.images)
    sizes = [f"{part} {len(own)}" for part, own in data.parts("") if data.sets]
    facts = event(
        "converted", format=target, images=len(data.images), objects=objects, sets=list(data.sets)
    )
    LOGGER.log(
        RESULT,
        "%d images%s, %d %s of %d classes as %s; see %s",
        len(data.images),
        f" ({', '.join(sizes)})" if sizes else "",
        objects,
        "detections" if data.scored else "objects",
        len(data.class_names),
        target,
        out,
        extra=facts,
    )
    if choice == "none":
        where = [
            f"{part}: {folder}" if part else str(folder) for part, folder in data.folders.items()
        ]
        LOGGER.info("images stay where they are; names are below %s", ", ".join(where))

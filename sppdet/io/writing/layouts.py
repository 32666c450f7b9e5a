"""The formats that `sppdet convert` writes: their files, where images go, and what they keep."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from sppdet.io.comp4 import comp4_files
from sppdet.io.names import safe_id
from sppdet.io.writing import annotations as labels
from sppdet.io.writing import results
from sppdet.io.writing.sets import LabelledImage, LabelledSet, Places, is_whole
from sppdet.types import AnnotatedImage, Dataset, Detections

Target = Literal[
    "voc", "coco", "yolo", "csv", "jsonl", "labelme", "via", "cvat", "labelstudio",
    "json", "coco-results", "comp4",
]  # fmt: skip
ImageChoice = Literal["link", "copy", "none"]
Facts = frozenset[str]  # of those that `facts_of` counts


@dataclass(frozen=True)
class Layout:
    """A format as a layout of files.

    Attributes:
        files: yields the files of a set.
        place: path of an image below the folder of the set, if it is put there.
        images: whether images are put there unless told otherwise: where the target's programs find
            them by their place alone. They are copied, since some programs repair images in their place
            (Ultralytics JPEGs that are cut short), and a link could lead them to the originals.
        keeps: the facts beside whole boxes and classes that the format has.
        score_is_optional: whether scores are written only if asked for, since trainers refuse them.
        of_detections: whether it holds detections alone.
    """

    files: Callable[[LabelledSet, Places], labels.Files]
    place: Callable[[LabelledSet, LabelledImage], str]
    images: Literal["copy", "none"]
    keeps: Facts
    score_is_optional: bool = False
    of_detections: bool = False


def facts_of(data: LabelledSet) -> dict[str, int]:
    """Count what a format may lose: objects that have it, by its name."""
    images = data.images
    fractional = sum(len(image.boxes) for image in images if not is_whole(image.boxes))
    counts = {
        "difficult": sum(int(image.difficult.sum()) for image in images),
        "truncated": sum(int(image.truncated.sum()) for image in images),
        "scores": sum(len(image.boxes) for image in images) if data.scored else 0,
        "fractions of pixels": fractional,
        "images without an object": sum(not len(image.boxes) for image in images),
        "sets": len(data.sets),
    }
    return {name: count for name, count in counts.items() if count}


def _beside(data: LabelledSet, image: LabelledImage) -> str:
    return f"images/{image.file}"


def _voc_place(data: LabelledSet, image: LabelledImage) -> str:
    return f"JPEGImages/{image.file}"


def _yolo_place(data: LabelledSet, image: LabelledImage) -> str:
    return f"images/{labels.set_folder(data, image)}{image.file}"


def _labelme_place(data: LabelledSet, image: LabelledImage) -> str:
    return f"{labels.set_folder(data, image)}{image.file}"


def _csv_files(data: LabelledSet, places: Places) -> labels.Files:
    """Write labels as RetinaNet's CSV, detections as `sppdet detect` does."""
    if data.scored:
        yield "detections.csv", _result(results.write_csv, data, places)
    else:
        yield from labels.csv_files(data, places)


def _jsonl_files(data: LabelledSet, places: Places) -> labels.Files:
    """Write labels as lines of objects, detections as `sppdet detect` does."""
    if data.scored:
        yield "detections.jsonl", _result(results.write_jsonl, data, places)
    else:
        yield from labels.jsonl_files(data, places)


def _json_files(data: LabelledSet, places: Places) -> labels.Files:
    yield "detections.json", _result(results.write_detections_json, data, places)


def _coco_result_files(data: LabelledSet, places: Places) -> labels.Files:
    yield "coco_results.json", _result(results.write_results, data, places)


def _comp4_files(data: LabelledSet, places: Places) -> labels.Files:
    """Write VOC's detection files; an image's id is its stem as one name."""
    ids = {image.name: safe_id(image.stem) for image in data.images}
    images = tuple(
        AnnotatedImage(
            ids[image.name], image.path, image.width, image.height,
            image.boxes[:0], image.labels[:0], image.difficult[:0], image.truncated[:0],
        )
        for image in data.images
    )  # fmt: skip
    found = {
        ids[image.name]: Detections(image.boxes, image.scores, image.labels, data.class_names)
        for image in data.images
        if image.scores is not None
    }
    files = comp4_files(Dataset(labels.ALL, data.class_names, images), found)
    yield from ((name, text.encode()) for name, text in files.items())


def _result(writer: results.Writer, data: LabelledSet, places: Places) -> bytes:
    def images() -> Iterator[results.ImageResults]:
        for number, image in enumerate(data.images, start=1):
            scores = image.scores if image.scores is not None else ()
            yield results.ImageResults(
                number=number,
                name=image.name,
                origin=places.path(image).as_posix(),
                width=image.width,
                height=image.height,
                boxes=image.boxes.tolist(),
                scores=[float(f"{score:.9g}") for score in scores],
                labels=image.labels.tolist(),
            )

    text = io.StringIO()
    writer(text, images, data.class_names)
    return text.getvalue().encode()


_FRACTIONS = "fractions of pixels"
_EMPTY = "images without an object"
_ALL = frozenset({"difficult", "truncated", "scores", _FRACTIONS, _EMPTY, "sets"})
_FLAGS = frozenset({"difficult", "truncated"})
_RESULT = _ALL - _FLAGS - {"sets"}

LAYOUTS: dict[Target, Layout] = {
    "voc": Layout(labels.voc_files, _voc_place, "copy", _ALL - {"scores", _FRACTIONS}),
    "coco": Layout(labels.coco_files, _beside, "none", _ALL),
    "yolo": Layout(labels.yolo_files, _yolo_place, "copy", _ALL - _FLAGS, score_is_optional=True),
    "csv": Layout(_csv_files, _beside, "none", _ALL - _FLAGS),
    "jsonl": Layout(_jsonl_files, _beside, "none", _ALL),
    "labelme": Layout(labels.labelme_files, _labelme_place, "none", _ALL),
    "via": Layout(labels.via_files, _beside, "none", _ALL),
    "cvat": Layout(labels.cvat_files, _beside, "none", _ALL - {"scores"}),
    "labelstudio": Layout(labels.label_studio_files, _beside, "none", _ALL - _FLAGS),
    "json": Layout(_json_files, _beside, "none", _RESULT, of_detections=True),
    "coco-results": Layout(
        _coco_result_files, _beside, "none", _RESULT - {_EMPTY}, of_detections=True
    ),
    "comp4": Layout(_comp4_files, _beside, "none", _RESULT - {_EMPTY}, of_detections=True),
}

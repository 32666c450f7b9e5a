"""Write what a labelling tool opens: copies of the suggested images, and pre-labels in its format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from sppdet.io.names import escape_name, fit_name
from sppdet.io.voc_writing import voc_annotation
from sppdet.io.writing.annotations import coco_files, label_studio_files
from sppdet.io.writing.sets import LabelledImage, LabelledSet, Places
from sppdet.io.yolo_writing import yolo_data, yolo_labels
from sppdet.runs.owned import Content, Copied
from sppdet.types import AnnotatedImage, Detections

Prelabels = Literal["voc", "yolo", "coco", "labelstudio"]
Item = tuple[AnnotatedImage, Detections]
IMAGES = "images"  # folder of the copies
_FOLDERS: dict[Prelabels, str] = {
    "voc": "Annotations",
    "yolo": "labels",
}  # that LabelImg saves into
_CLASSES: dict[Prelabels, str] = {"voc": "classes.txt", "yolo": "labels/classes.txt"}


def files_of(
    items: Sequence[Item],
    class_names: Sequence[str],
    kind: Prelabels,
    *,
    folder: Path,
    copy: bool,
) -> dict[str, Content]:
    """Make the files by their path below `folder`.

    Args:
        items: images, whose ids name their files, and the detections that are to be corrected.
        copy: whether the images are copied; otherwise the labels are for the images where they are.
    """
    names = [escape_name(name) for name in class_names]
    files: dict[str, Content] = {}
    if copy:
        files = {_copy_of(image): Copied(image.path) for image, _ in items}
    if kind in _CLASSES:
        files[_CLASSES[kind]] = "".join(f"{name}\n" for name in names).encode()
    if kind == "voc":
        for image, found in items:
            files[f"Annotations/{fit_name(image.id, '.xml')}"] = _voc(image, found, copy)
    elif kind == "yolo":
        files["data.yaml"] = yolo_data(names).encode()
        for image, found in items:
            text = yolo_labels(found.boxes, found.labels, width=image.width, height=image.height)
            files[f"labels/{fit_name(image.id, '.txt')}"] = text.encode()
    elif kind == "coco":
        [(_, content)] = coco_files(
            _labelled(items, names, folder, copy=copy, scored=False), Places(folder)
        )
        files["coco.json"] = content
    else:
        data = _labelled(items, class_names, folder, copy=copy, scored=True)
        [(_, tasks), (name, interface)] = label_studio_files(data, Places(folder))
        files |= {"label_studio.json": tasks, name: interface}
    return files


def labelling_command(
    kind: Prelabels, folder: Path, images: Sequence[AnnotatedImage], *, copy: bool
) -> list[str] | None:
    """Return the command that opens the images with the pre-labels; None where there is none.

    LabelImg opens one folder of images: without copies the one that all images are in.
    """
    places = {image.path.parent for image in images}
    if kind not in _FOLDERS or (not copy and len(places) != 1):
        return None
    shown = folder / IMAGES if copy else next(iter(places))
    return ["labelImg", *map(str, (shown, folder / _CLASSES[kind], folder / _FOLDERS[kind]))]


def _copy_of(image: AnnotatedImage) -> str:
    return f"{IMAGES}/{fit_name(image.id, image.path.suffix.lower())}"


def _file_name(image: AnnotatedImage, copy: bool) -> str:
    return _copy_of(image) if copy else escape_name(image.path.absolute().as_posix())


def _voc(image: AnnotatedImage, found: Detections, copy: bool) -> bytes:
    text = voc_annotation(
        filename=_copy_of(image).rpartition("/")[2] if copy else escape_name(image.path.name),
        width=image.width,
        height=image.height,
        boxes=found.boxes,
        names=[escape_name(name) for name in found.names()],
    )
    return text.encode()


def _labelled(
    items: Sequence[Item], class_names: Sequence[str], folder: Path, *, copy: bool, scored: bool
) -> LabelledSet:
    """Make a labelled set of detections, with their probabilities, or scores, if `scored`."""
    images = []
    for image, found in items:
        strengths = found.scores if found.probabilities is None else found.probabilities
        nothing = np.zeros(len(found), dtype=np.bool_)
        images.append(
            LabelledImage(
                name=_file_name(image, copy),
                stem=image.id,
                path=folder / _copy_of(image) if copy else image.path,
                width=image.width,
                height=image.height,
                boxes=found.boxes,
                labels=found.labels,
                difficult=nothing,
                truncated=nothing,
                scores=strengths if scored else None,
            )
        )
    return LabelledSet(tuple(class_names), tuple(images))

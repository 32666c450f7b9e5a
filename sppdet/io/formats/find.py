"""Find out which labelling tool's format a folder is in, and its sets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from sppdet.errors import AnnotationError, DataError, shorten
from sppdet.io.files import read_foreign_text
from sppdet.io.folder_files import FolderFiles
from sppdet.io.formats.common import (
    TEST_NAMES,
    TRAIN_NAMES,
    Found,
    file_sets,
    folder_sets,
    found_in,
    split_word,
    such_as,
)
from sppdet.io.formats.csv_boxes import csv_kind, read_csv
from sppdet.io.formats.cvat import read_cvat
from sppdet.io.formats.json_kinds import json_kind
from sppdet.io.formats.labelme import read_labelme
from sppdet.io.formats.via import read_via
from sppdet.io.formats.xml import find_xml, read_xml, root_tag
from sppdet.io.formats.yolo import read_yolo
from sppdet.io.formats.yolo_sets import find_yolo
from sppdet.io.records import ImageRecord, Skips

READERS: dict[str, Callable[[FolderFiles, str, FolderFiles, Skips], list[ImageRecord]]] = {
    "xml": read_xml,
    "yolo": read_yolo,
    "labelme": read_labelme,
    "csv": read_csv,
    "via": read_via,
    "cvat": read_cvat,
}
"""The readers besides VOC's and COCO's: (files, name of a set, files of the images, skips) to records."""


def find_format(root: Path, *, only: str | None = None, images: Path | None = None) -> Found:
    """Find the format of a folder's annotations.

    Args:
        only: the one format to look for; None for all.
        images: folder of the images, if they aren't in `root`.

    Raises:
        AnnotationError: none is found, or two are, which are named with what speaks for them.
    """
    for path in (root, images or root):
        if not path.is_dir():
            raise AnnotationError(f"{path}: no such folder")
    folder = FolderFiles(root)
    of_images = folder if images is None else FolderFiles(images)
    found = [
        one
        for one in _all(folder, of_images, only)
        if one is not None and only in (None, one.format)
    ]
    if not found:
        raise AnnotationError(
            f"{root}: no annotations{f' of format {only}' if only else ''} found; expected VOC, COCO, "
            f"YOLO, labelme, VIA, CVAT or CSV; there are {len(of_images.images)} images and "
            f"{len(folder.names) - len(folder.images)} other files"
        )
    if len(found) > 1:
        said = " or ".join(f"{one.format} ({one.evidence})" for one in found)
        raise AnnotationError(
            f"{root}: could be {said}; expected one, or data.format that says which"
        )
    return found[0]


def _all(folder: FolderFiles, images: FolderFiles, only: str | None) -> list[Found | None]:
    kinds: dict[str, list[str]] = defaultdict(list)
    if only in (None, "coco", "labelme", "via"):
        for name in folder.with_suffix(".json"):
            kinds[json_kind(folder.path(name))].append(name)
    if only in (None, "csv", "via"):
        for name in folder.with_suffix(".csv"):
            kinds[csv_kind(folder.path(name))].append(name)
    if only in (None, "cvat"):
        names = folder.with_suffix(".xml")
        kinds["cvat"] = [name for name in names if root_tag(folder, name) == "annotations"]
    if kinds["via3"]:
        raise AnnotationError(
            f"{folder.path(kinds['via3'][0])}: VIA 3's; expected VIA 2's JSON or CSV"
        )
    devkit = _find_voc(folder) if only in (None, "voc", "xml") else None
    found = [
        devkit or (find_xml(folder) if only in (None, "xml") else None),
        _find_coco(folder, kinds["coco"]),
        find_yolo(folder, images) if only in (None, "yolo") else None,
        found_in(folder, "labelme", "labelme file", kinds["labelme"], folder_sets),
        found_in(folder, "via", "VIA file", kinds["via"], file_sets),
        found_in(folder, "csv", "CSV file", kinds["csv"], file_sets),
        found_in(folder, "cvat", "CVAT file", kinds["cvat"], file_sets),
    ]
    if not any(found) and kinds["damaged"]:
        path = folder.path(kinds["damaged"][0])
        read_foreign_text(path)  # says more of a file that is no text
        raise AnnotationError(f"{path}: damaged, and no other annotations")
    return found


def _find_voc(folder: FolderFiles) -> Found | None:
    """Find VOC's devkit: annotations, and lists of sets."""
    bases: dict[str, list[str]] = defaultdict(list)
    for name in folder.with_suffix(".txt"):
        head, between, tail = f"/{name}".rpartition("/ImageSets/Main/")
        if between and "/" not in tail:
            bases[head.lstrip("/")].append(PurePosixPath(tail).stem)
    starts = tuple(f"{base}/Annotations/".lstrip("/") for base in bases)
    xmls = (
        [name for name in folder.with_suffix(".xml") if name.startswith(starts)] if starts else []
    )
    if not xmls:
        return None
    if len(bases) > 1:
        years = shorten([str(folder.path(base)) for base in bases], limit=4)
        raise AnnotationError(
            f"{folder.root}: several devkits: {years}; expected data.root to list them"
        )
    ((base, names),) = bases.items()
    own = [
        n for n in names if n.rpartition("_")[2] not in names or "_" not in n
    ]  # not of one class
    evidence = f"{such_as('VOC annotation', xmls)}, ImageSets of {shorten(own, limit=4)}"
    return Found("voc", evidence, tuple(sorted(own)), folder.path(base) if base else folder.root)


def _find_coco(folder: FolderFiles, names: Sequence[str]) -> Found | None:
    instances = [n for n in names if PurePosixPath(n).name.startswith("instances_")]
    chosen = instances or list(names)  # COCO's folder has keypoints and others beside them
    if not chosen:
        return None
    return Found("coco", such_as("COCO file", chosen), file_sets(chosen), folder.root)


def choose_sets(found: Found, *, named: bool = False) -> tuple[str, str | None]:
    """Choose the set to train on, and the one to test with where the layout has one.

    Args:
        named: the settings name the first, so that it needn't be certain.

    Raises:
        DataError: several sets could be the one.
    """
    if len(found.sets) == 1:
        return found.sets[0], None
    train = _first(found, TRAIN_NAMES)
    if train is None and named:
        return "", _first(found, TEST_NAMES)
    if train is None:
        raise DataError(
            f"{found.root}: {found.format} with the sets {shorten(found.sets, limit=6)}; expected "
            "data.train to name one"
        )
    return train, _first(found, TEST_NAMES)


def _first(found: Found, names: Sequence[str]) -> str | None:
    for name in names:
        fits = [one for one in found.sets if one.lower() == name]
        fits = fits or [one for one in found.sets if split_word(one) == name]
        if len(fits) > 1:
            raise DataError(
                f"{found.root}: {shorten(fits, limit=4)} could each be the set {name}; expected data.train "
                "and data.test to name them"
            )
        if fits:
            return fits[0]
    return None

"""VOC's detection files `comp4_det_<set>_<class>.txt`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sppdet.errors import DataError, shorten
from sppdet.evaluation.inputs import flatten_detections
from sppdet.io.detection_rows import Key, Rows
from sppdet.io.files import read_text
from sppdet.io.image_names import ImageNames
from sppdet.io.names import class_file_names, safe_id
from sppdet.io.records import read_number
from sppdet.runs.artifacts import write_text
from sppdet.types import Dataset, Detections

_log = logging.getLogger("sppdet")


def write_comp4(folder: Path, dataset: Dataset, detections: Mapping[str, Detections]) -> list[Path]:
    """Write the files of `comp4_files` into a folder; returns their paths.

    Raises:
        DataError: detections that do not fit the data set.
    """
    files = comp4_files(dataset, detections)
    for name, text in files.items():
        write_text(folder / name, text)
    return [folder / name for name in files]


def comp4_files(dataset: Dataset, detections: Mapping[str, Detections]) -> dict[str, str]:
    """Make `comp4_det_<set>_<class>.txt` for every class, with or without detections.

    A line is `id score x1 y1 x2 y2`, the box 1-based and inclusive as VOC has it. Nine digits, so
    that scores come back as they were and boxes to 1e-5 px.

    Returns:
        The texts by the names of the files, in the order of the classes.

    Raises:
        DataError: detections that do not fit the data set (see `flatten_detections`).
    """
    found = flatten_detections(dataset, detections)
    boxes = found.boxes.astype(np.float64) + np.array([1.0, 1.0, 0.0, 0.0])
    values = np.column_stack([found.scores, boxes])
    files = {}
    for label, name in enumerate(_file_names(dataset), start=1):
        rows = np.flatnonzero(found.labels == label)
        lines = [
            f"{dataset.images[index].id} {' '.join(f'{value:.9g}' for value in row)}\n"
            for index, row in zip(
                found.image_index[rows].tolist(), values[rows].tolist(), strict=True
            )
        ]
        files[name] = "".join(lines)
    return files


def read_comp4(folder: Path, dataset: Dataset) -> dict[str, Detections]:
    """Read the `comp4` files of a folder; `ImageNames` finds their images.

    A class's file is that of the set `dataset.name`, or else the only one that ends in
    `_<class>.txt`. A class without a file has no detections; that and files of other classes are
    warned of. Empty lines are skipped. Detections on other images and boxes that can't be scored are
    left out with a warning (see `Rows.group`).

    Returns:
        The detections of every image of the split by its id, in descending score.

    Raises:
        DataError: there are no such files, several sets of them, a line is wrong (not six fields, no
            number), or there are lines and not one is of an image of the split.
    """
    rows = Rows(folder)
    for label, path in _find_files(folder, dataset).items():
        rows.begin(f"{path}:")
        for number, line in enumerate(read_text(path).split("\n"), start=1):
            if line.strip():
                name, (score, x1, y1, x2, y2) = _fields(line, f"{path}:{number}")
                box = (x1 - 1, y1 - 1, x2, y2)
                rows.add(number, image=name, category=label, score=score, box=box)
    try:
        found = ImageNames(dataset).match([(str(name),) for name in rows.images])
    except DataError as error:
        raise DataError(f"{folder}: {error}") from None
    images: dict[Key, int | None] = dict(zip(rows.images, found, strict=True))
    labels: dict[Key, int | None] = {k + 1: k + 1 for k in range(len(dataset.class_names))}
    return rows.group(dataset, images=images, labels=labels)


def _file_names(dataset: Dataset) -> list[str]:
    names = class_file_names(dataset.class_names)
    return [f"comp4_det_{safe_id(dataset.name)}_{name}.txt" for name in names]


def _find_files(folder: Path, dataset: Dataset) -> dict[int, Path]:
    """Map each label to its file; of other sets only where the data set's own is missing."""
    there = sorted(folder.glob("comp4_det_*.txt"))
    if not there:
        raise DataError(f"{folder}: no comp4_det_*.txt in it")
    expected = [folder / name for name in _file_names(dataset)]
    candidates = {k: [path] * (path in there) for k, path in enumerate(expected, start=1)}
    for path in there:
        label = _label_of(path, dataset)
        if label is None:
            _log.warning("%s: not a class of %s, not read", path, dataset.name)
        elif expected[label - 1] not in there:
            candidates[label].append(path)
    for paths in candidates.values():
        if len(paths) > 1:
            raise DataError(f"{folder}: {paths[0].name} or {paths[1].name}? keep one set of files")
    missing = [dataset.class_names[k - 1] for k, paths in candidates.items() if not paths]
    if missing:
        _log.warning("%s: no file, so no detections, for: %s", folder, shorten(missing))
    return {label: paths[0] for label, paths in candidates.items() if paths}


def _label_of(path: Path, dataset: Dataset) -> int | None:
    # of a file of this set by the whole class name, of another set by the longest that ends it:
    # "test_dining_table" is "dining_table" before "table"
    names = class_file_names(dataset.class_names)
    prefix = f"comp4_det_{safe_id(dataset.name)}_"
    if path.stem.startswith(prefix):
        rest = path.stem[len(prefix) :]
        return names.index(rest) + 1 if rest in names else None
    ends = [k for k, name in enumerate(names, start=1) if path.stem.endswith(f"_{name}")]
    return max(ends, key=lambda k: len(names[k - 1]), default=None)


def _fields(line: str, where: str) -> tuple[str, list[float]]:
    name, *fields = line.rsplit(maxsplit=5)  # from the right: ids may have spaces
    if len(fields) != 5:
        raise DataError(f"{where}: {len(fields) + 1} fields, expected: id score x1 y1 x2 y2")
    try:
        return name.strip(), [read_number(field) for field in fields]
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None

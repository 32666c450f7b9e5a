"""Detection files: reading either format, and a CSV for each class."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from sppdet.artifacts import write_text
from sppdet.errors import DataError
from sppdet.evaluation.coco_results import read_coco_results
from sppdet.evaluation.comp4 import read_comp4
from sppdet.evaluation.voc import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE
from sppdet.types import ClassResult, Dataset, Detections

_COLUMNS = ("image", "score", "x1", "y1", "x2", "y2", "recall", "precision", "outcome")
_OUTCOMES = {TRUE_POSITIVE: "tp", FALSE_POSITIVE: "fp", IGNORED: "ignored"}


def read_detections(
    path: Path,
    dataset: Dataset,
    *,
    image_ids: Mapping[str, int | str] | None = None,
    category_ids: Mapping[str, int] | None = None,
) -> dict[str, Detections]:
    """Read detections made elsewhere: a folder of `comp4` files or a COCO results `.json`.

    Args:
        path: what it is decides the format.
        dataset: the split that they are of.
        image_ids, category_ids: for COCO, see `read_coco_results`.

    Returns:
        The detections of every picture of the split by its id, in descending score.

    Raises:
        DataError: `path` is neither, or `read_comp4` or `read_coco_results` refuses it.
    """
    if path.is_dir():
        return read_comp4(path, dataset)
    if path.is_file() and path.suffix.lower() == ".json":
        return read_coco_results(path, dataset, image_ids=image_ids, category_ids=category_ids)
    problem = "neither a folder nor a .json file" if path.exists() else "no such file or folder"
    raise DataError(f"{path}: {problem}; expected comp4_det_*.txt in a folder or COCO results")


def write_curve_csv(path: Path, result: ClassResult, image_ids: Sequence[str]) -> None:
    """Write one class's curve: a line a detection in descending score.

    Columns: image, score, x1, y1, x2, y2 (0-based, half-open), recall, precision, outcome (tp, fp,
    ignored). Where the result has no outcomes (COCO): recall, precision, score.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    curve = [
        [f"{value:.9g}" for value in column.tolist()]
        for column in (result.scores, result.recall, result.precision)
    ]
    if len(result.outcomes) < len(result.scores):
        writer.writerow(["recall", "precision", "score"])
        writer.writerows(zip(curve[1], curve[2], curve[0], strict=True))
    else:
        writer.writerow(_COLUMNS)
        names = [image_ids[index] for index in result.image_index.tolist()]
        boxes = [[f"{side:.9g}" for side in box] for box in result.boxes.tolist()]
        outcomes = [_OUTCOMES[outcome] for outcome in result.outcomes.tolist()]
        for name, box, score, recall, precision, outcome in zip(
            names, boxes, *curve, outcomes, strict=True
        ):
            writer.writerow([name, score, *box, recall, precision, outcome])
    write_text(path, text.getvalue())

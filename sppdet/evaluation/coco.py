"""COCO's average precision, computed by pycocotools."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sppdet.errors import DataError
from sppdet.evaluation.curves import mean_of_known
from sppdet.evaluation.inputs import flatten_detections, flatten_ground_truth
from sppdet.evaluation.voc import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE, warn_uncounted
from sppdet.types import Boxes, ClassResult, Dataset, Detections, EvalResult, Labels, Matches

COCO_NUMBERS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)
_ALL_AREAS, _AT_MOST_100 = 0, -1  # indices in pycocotools' `eval['precision']`


def evaluate_coco(dataset: Dataset, detections: Mapping[str, Detections]) -> EvalResult:
    """Compute COCO AP of a split: the mean over classes and over IoU .50:.05:.95.

    Difficult objects become crowds, the only objects that pycocotools counts neither way. A
    detection's IoU with a crowd is intersection / area of the *detection*, a crowd matches any number
    of detections, and only those that no other object of the class takes. So a small box inside a
    difficult object is forgiven here and a false positive under VOC's rules.

    Small, medium and large (below 32², below 96² and above) refer to the area of the box, but in
    COCO's own figures to that of the segmentation: APs, APm, APl and the like may differ.

    Args:
        dataset: the split with its ground truth.
        detections: by image id; an image that is missing has none. pycocotools takes at most 100
            a class and image.

    Returns:
        `mean_ap` is AP at IoU .50:.95, `ClassResult.ap` likewise; `extra` has the twelve numbers
        `COCO_NUMBERS` (NaN where no object counts, such as no small ones). `recall`, `precision`
        and `scores` of a class are pycocotools' 101 points at IoU 0.5, not one a detection, and
        empty for a class without ground truth.

    Raises:
        DataError: detections that do not fit the data set, or pycocotools is not installed.
    """
    found = flatten_detections(dataset, detections)
    objects = _coco_objects(found.image_index, found.labels, found.boxes)
    for entry, score in zip(objects, found.scores.tolist(), strict=True):
        entry["score"] = score
    evaluation = _run_pycocotools(to_coco(dataset), objects)
    stats = [float("nan") if value < 0 else float(value) for value in evaluation.stats]
    truth = flatten_ground_truth(dataset)
    counts = [
        np.bincount(labels, minlength=len(dataset.class_names) + 1)[1:].tolist()
        for labels in (truth.labels[~truth.difficult], found.labels)
    ]
    classes = tuple(
        _class_result(name, evaluation, k, ground_truths=counted, detections=detected)
        for k, (name, counted, detected) in enumerate(
            zip(dataset.class_names, *counts, strict=True)
        )
    )
    warn_uncounted([c.name for c in classes if c.ground_truths == 0], dataset.name)
    return EvalResult(
        metric="coco",
        split=dataset.name,
        mean_ap=stats[0],
        classes=classes,
        images=len(dataset),
        extra=dict(zip(COCO_NUMBERS, stats, strict=True)),
        image_ids=tuple(image.id for image in dataset.images),
    )


def to_coco(dataset: Dataset) -> dict[str, Any]:
    """Convert the ground truth to a COCO dict for pycocotools.

    Image ids are 1..N in the order of the data set, category ids are the labels. Each image also
    has `sppdet_id`, the id in the data set. Difficult objects become crowds, the only ones that
    pycocotools counts neither way; `area` is the box's.
    """
    images = [
        {
            "id": image_id,
            "file_name": image.path.name,
            "width": image.width,
            "height": image.height,
            "sppdet_id": image.id,
        }
        for image_id, image in enumerate(dataset.images, start=1)
    ]
    truth = flatten_ground_truth(dataset)
    annotations = _coco_objects(truth.image_index, truth.labels, truth.boxes)
    for annotation, difficult in zip(annotations, truth.difficult.tolist(), strict=True):
        annotation["iscrowd"] = int(difficult)
    categories = [{"id": k, "name": name} for k, name in enumerate(dataset.class_names, start=1)]
    return {
        "info": {"description": dataset.name},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _coco_objects(
    image_index: NDArray[np.int64], labels: Labels, boxes: Boxes
) -> list[dict[str, Any]]:
    """Build COCO entries of objects; ids count from 1, since 0 means "no match" to pycocotools."""
    corners = boxes.astype(np.float64)
    sizes = corners[:, 2:] - corners[:, :2]
    rows = zip(
        (image_index + 1).tolist(),
        labels.tolist(),
        np.hstack([corners[:, :2], sizes]).tolist(),
        np.prod(sizes, axis=1).tolist(),
        strict=True,
    )
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    return [dict(zip(keys, (n, *row, 0), strict=True)) for n, row in enumerate(rows, start=1)]


def _run_pycocotools(truth: dict[str, Any], found: list[dict[str, Any]]) -> Any:
    # returns a COCOeval after summarize(), as Any since pycocotools has no types
    try:
        coco_module = importlib.import_module("pycocotools.coco")
        eval_module = importlib.import_module("pycocotools.cocoeval")
    except ImportError:
        raise DataError(
            "COCO AP needs pycocotools, which is not installed: pip install pycocotools"
        ) from None
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        coco_truth, coco_found = coco_module.COCO(), coco_module.COCO()
        coco_truth.dataset = truth
        coco_truth.createIndex()
        # loadRes fails on an empty list
        coco_found.dataset = {**truth, "annotations": found}
        coco_found.createIndex()
        evaluation = eval_module.COCOeval(coco_truth, coco_found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _class_result(
    name: str, evaluation: Any, k: int, *, ground_truths: int, detections: int
) -> ClassResult:
    accumulated: Mapping[str, Any] = evaluation.eval
    # precision, scores: [IoU, recall, class, area, detections an image]; -1 if nothing counts
    precision: NDArray[np.float64] = accumulated["precision"][:, :, k, _ALL_AREAS, _AT_MOST_100]
    scores: NDArray[np.float64] = accumulated["scores"][0, :, k, _ALL_AREAS, _AT_MOST_100]
    counts = precision[0] > -1
    return ClassResult(
        name=name,
        ap=mean_of_known([float(value) for value in precision[precision > -1]]),
        recall=np.asarray(accumulated["params"].recThrs, dtype=np.float64)[counts],
        precision=precision[0][counts],
        scores=scores[counts],
        ground_truths=ground_truths,
        detections=detections,
        matches=_matches(evaluation, k),
    )


def _matches(evaluation: Any, k: int) -> Matches:
    """Collect the matches of a class at the ten IoUs, all areas, at most 100 detections an image."""
    params = evaluation.params
    images, areas = len(params.imgIds), len(params.areaRng)
    first = (k * areas + _ALL_AREAS) * images  # pycocotools' order: class, area, image
    of_image = evaluation.evalImgs[first : first + images]
    none = np.zeros((len(params.iouThrs), 0), np.bool_)
    objects = np.zeros(images, np.int64)
    scores, rows, matched, ignored = [np.zeros(0)], [np.zeros(0, np.int64)], [none], [none]
    for row, one in enumerate(of_image):
        if one is not None:  # it is None without detections and objects
            objects[row] = np.count_nonzero(one["gtIgnore"] == 0)
            scores.append(np.asarray(one["dtScores"], dtype=np.float64))
            rows.append(np.full(len(one["dtScores"]), row, np.int64))
            matched.append(one["dtMatches"] > 0)
            ignored.append(one["dtIgnore"].astype(np.bool_))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    outcomes = np.where(np.concatenate(matched, axis=1), TRUE_POSITIVE, FALSE_POSITIVE)
    outcomes = np.where(np.concatenate(ignored, axis=1), IGNORED, outcomes).astype(np.int8)
    return Matches(np.concatenate(rows)[order], outcomes[:, order], objects)

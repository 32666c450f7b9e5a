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
from sppdet.evaluation.inputs import FlatDetections, flatten_detections
from sppdet.evaluation.voc import mean_of_known, warn_uncounted
from sppdet.types import ClassResult, Dataset, Detections, EvalResult

COCO_NUMBERS = (
    "AP",
    "AP50",
    "AP75",
    "APs",
    "APm",
    "APl",
    "AR1",
    "AR10",
    "AR100",
    "ARs",
    "ARm",
    "ARl",
)
_ALL_AREAS, _AT_MOST_100 = 0, -1  # where pycocotools keeps these in `eval['precision']`


def evaluate_coco(dataset: Dataset, detections: Mapping[str, Detections]) -> EvalResult:
    """COCO AP of a split: the mean over classes and over IoU .50:.05:.95.

    Difficult objects are handed over as crowds, the only objects that pycocotools counts neither
    way. A detection's IoU with a crowd is intersection / area of the *detection*, a crowd matches
    any number of detections, and only those that no other object of the class takes. So a small box
    inside a difficult object is forgiven here and a false positive under VOC's rules.

    Small, medium and large (under 32², under 96² and above) go by the area of the box, where COCO's
    own figures go by that of the segmentation: APs, APm, APl and the like may differ from those.

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
    evaluation = _run_pycocotools(to_coco(dataset), _coco_detections(found))
    stats = [float("nan") if value < 0 else float(value) for value in evaluation.stats]
    counted = _count_ground_truths(dataset)
    detected = np.bincount(found.labels, minlength=len(dataset.class_names) + 1)
    classes = tuple(
        _class_result(name, evaluation.eval, k, int(counted[k + 1]), int(detected[k + 1]))
        for k, name in enumerate(dataset.class_names)
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
    """The ground truth as a COCO dict, as pycocotools takes it.

    Image ids are 1..N in the order of the data set, category ids are the labels. Each image also
    has `sppdet_id`, the id in the data set. Difficult objects become crowds, the only ones that
    pycocotools counts neither way; `area` is the box's.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(dataset.images, start=1):
        images.append(
            {
                "id": image_id,
                "file_name": image.path.name,
                "width": image.width,
                "height": image.height,
                "sppdet_id": image.id,
            }
        )
        objects = zip(
            image.gt_boxes.tolist(),
            image.gt_labels.tolist(),
            image.difficult.tolist(),
            strict=True,
        )
        for (x1, y1, x2, y2), label, difficult in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes id 0 for "no match"
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(difficult),
                }
            )
    categories = [{"id": k, "name": name} for k, name in enumerate(dataset.class_names, start=1)]
    return {
        "info": {"description": dataset.name},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _coco_detections(found: FlatDetections) -> list[dict[str, Any]]:
    # the ids of `to_coco`: images 1..N in order, categories by label
    boxes = found.boxes.astype(np.float64)
    sizes = boxes[:, 2:] - boxes[:, :2]
    rows = zip(
        (found.image_index + 1).tolist(),
        found.labels.tolist(),
        np.hstack([boxes[:, :2], sizes]).tolist(),
        np.prod(sizes, axis=1).tolist(),
        found.scores.tolist(),
        strict=True,
    )
    return [
        {
            "id": number,
            "image_id": image_id,
            "category_id": label,
            "bbox": box,
            "area": area,
            "score": score,
            "iscrowd": 0,
        }
        for number, (image_id, label, box, area, score) in enumerate(rows, start=1)
    ]


def _run_pycocotools(truth: dict[str, Any], found: list[dict[str, Any]]) -> Any:
    # a COCOeval after summarize(); typed Any, pycocotools has no types
    try:
        coco_module = importlib.import_module("pycocotools.coco")
        eval_module = importlib.import_module("pycocotools.cocoeval")
    except ImportError:
        raise DataError(
            "COCO AP needs pycocotools, which is not installed: pip install pycocotools"
        ) from None
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress by print
        coco_truth, coco_found = coco_module.COCO(), coco_module.COCO()
        coco_truth.dataset = truth
        coco_truth.createIndex()
        # not loadRes, which fails on an empty list
        coco_found.dataset = {**truth, "annotations": found}
        coco_found.createIndex()
        evaluation = eval_module.COCOeval(coco_truth, coco_found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _class_result(
    name: str, accumulated: Mapping[str, Any], k: int, ground_truths: int, detected: int
) -> ClassResult:
    # precision, scores: [IoU, recall, class, area, detections an image]; -1 where nothing counts
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
        detections=detected,
    )


def _count_ground_truths(dataset: Dataset) -> NDArray[np.int64]:
    # [K + 1] objects that are not difficult, by label
    labels = [image.gt_labels[~image.difficult] for image in dataset.images]
    every = np.concatenate([np.zeros(0, np.int64), *labels])
    return np.bincount(every, minlength=len(dataset.class_names) + 1).astype(np.int64)

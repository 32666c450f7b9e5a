"""Label audit: annotations that detections by models which haven't seen the image speak against.

docs/method.md defines the kinds of suspicions and their score.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sppdet.boxes import box_iou
from sppdet.types import AnnotatedImage, Boxes, Dataset, Detections

Kind = Literal["unlabelled", "loose box", "swapped class", "double box"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Values = NDArray[np.float64]

ON = 0.5  # IoU from which a detection is on an object
APART = 0.3  # IoU below which an object has no say about a detection beside it
NEAR = 0.2  # IoU from which a box may be meant for the object that a detection is on
NESTED = 0.85  # fraction of a box from which it is inside another one
OF_A_PART = 0.1  # factor of a detection inside an object of its class, or around it
DOUBLE = 0.8  # IoU from which two boxes are of one object
TRUST = 0.9  # probability that an annotation is right, before any detection is seen
UNSEEN = 0.01  # least probability of the best detection on an object
LEAST_SCORE = 0.1  # of a suspicion that is listed


@dataclass(frozen=True)
class Suspicion:
    """One annotation that looks wrong, and its correction.

    The object `row` should have `box` and `label`; without a row they are of an object that is missing;
    with `kept`, they are those of this other object, and `row` should go.
    """

    kind: Kind
    score: float  # in [0, 1]
    image: str  # id
    box: NDArray[np.float32]  # (4,)
    label: int  # 1..K
    row: int | None = None  # of the image's objects
    kept: int | None = None
    detection: int | None = None  # row of the image's detections that suggests it


def audit(dataset: Dataset, detections: Mapping[str, Detections]) -> list[Suspicion]:
    """List the suspicions about the images that have detections, by score, descending.

    Args:
        detections: with probabilities, by the image's id.
    """
    found = [
        one
        for image in dataset.images
        if image.id in detections
        for one in suspicions(image, detections[image.id])
    ]
    return sorted(found, key=lambda one: -one.score)


def suspicions(image: AnnotatedImage, found: Detections) -> list[Suspicion]:
    """Find the suspicions about an image; every object and every detection is in one at most.

    Args:
        found: detections of the image, with probabilities.

    Raises:
        ValueError: the detections have no probabilities.
    """
    if found.probabilities is None:
        raise ValueError(f"{image.id}: detections without probabilities")
    p = found.probabilities.astype(np.float64)
    iou = box_iou(image.gt_boxes, found.boxes)  # [G, D]
    same = image.gt_labels[:, None] == found.labels[None, :]
    own = np.where(same & (iou >= ON), p, 0.0).max(axis=1, initial=0.0)  # [G]
    candidates = list(_doubles(image, np.where(same, iou * p, 0.0).max(axis=1, initial=0.0)))
    explained = (same & (iou >= ON)).any(axis=0)  # [D]
    for d in np.flatnonzero(~explained & (p >= UNSEEN)).tolist():
        candidates += _against(image, found, d, iou=iou[:, d], own=own, p=float(p[d]))
    kept: list[Suspicion] = []
    taken: set[tuple[str, int]] = set()
    for one in sorted(candidates, key=lambda one: -one.score):
        parts = {("object", one.row), ("object", one.kept), ("detection", one.detection)}
        involved = {(what, row) for what, row in parts if row is not None}
        if one.score >= LEAST_SCORE and not involved & taken and not _repeats(one, kept):
            kept.append(one)
            taken |= involved
    return kept


def _repeats(one: Suspicion, kept: Sequence[Suspicion]) -> bool:
    """Check whether a new box is on one that is suggested already, of whatever class."""
    new = ("unlabelled", "loose box")
    boxes = [other.box for other in kept if other.kind in new]
    if one.kind not in new or not boxes:
        return False
    return bool((box_iou(np.stack(boxes), one.box[None]) >= ON).any())


def corrected(image: AnnotatedImage, found: Iterable[Suspicion]) -> AnnotatedImage:
    """Apply suggestions to an image's objects; those of `row` stay in place, new ones come last."""
    boxes, labels = image.gt_boxes.copy(), image.gt_labels.copy()
    missing = [one for one in found if one.row is None]
    keep = np.ones(len(boxes), dtype=np.bool_)
    for one in found:
        if one.kept is not None:
            keep[one.row] = False
        elif one.row is not None:
            boxes[one.row], labels[one.row] = one.box, one.label
    new = [np.stack([one.box for one in missing])] if missing else []
    no = np.zeros(len(missing), dtype=np.bool_)
    return replace(
        image,
        gt_boxes=np.concatenate([boxes[keep], *new]),
        gt_labels=np.append(labels[keep], np.array([one.label for one in missing], dtype=np.int64)),
        difficult=np.append(image.difficult[keep], no),
        truncated=np.append(image.truncated[keep], no),
    )


def rather(suggested: float, annotated: float) -> float:
    """Compute the probability of the first of two claims, where exactly one holds.

    p (1 - q) / (p (1 - q) + (1 - p) q), of claims that hold independently with probabilities p and q.
    """
    first, second = suggested * (1 - annotated), (1 - suggested) * annotated
    return first / (first + second) if first + second > 0 else 0.5


def supported(own: float) -> float:
    """Compute the probability of an annotation from its annotator and the best detection on it.

    They are two independent witnesses, right with probabilities `TRUST` and `own` (`UNSEEN` or more).
    """
    own = max(own, UNSEEN)
    right, wrong = own * TRUST, (1 - own) * (1 - TRUST)
    return right / (right + wrong)


def _against(
    image: AnnotatedImage, found: Detections, d: int, *, iou: Values, own: Values, p: float
) -> Iterator[Suspicion]:
    """Yield what a detection that is on no object of its class may say.

    Args:
        d: its row.
        iou: (G,) with the objects.
        own: (G,) the best probability of a detection of its class that is on each object.
        p: its probability.
    """
    box, label = found.boxes[d], int(found.labels[d])
    same = image.gt_labels == label
    if (same & _nested(box, image.gt_boxes, iou)).any():
        p *= OF_A_PART  # most of these are of a part of the object, or of a group
    if not (iou >= ON).any():
        # a detection beside an object is of another one if that object is found by itself
        alone = p * float(own[iou >= APART].prod())
        yield Suspicion("unlabelled", alone, image.id, box, label, detection=d)
    if len(iou) == 0:
        return
    others, near = np.where(same, 0.0, iou), np.where(same, iou, 0.0)
    row = int(others.argmax())
    if others[row] >= ON and not image.difficult[row]:
        score, box_of = rather(p, supported(own[row])), image.gt_boxes[row]
        yield Suspicion("swapped class", score, image.id, box_of, label, row, detection=d)
    row = int(near.argmax())
    # a detection near several objects of its class is of all of them at once
    if (near >= NEAR).sum() == 1 and not image.difficult[row]:
        score = rather(p, supported(own[row]))
        yield Suspicion("loose box", score, image.id, box, label, row, detection=d)


def _nested(box: NDArray[np.float32], boxes: Boxes, iou: Values) -> NDArray[np.bool_]:
    """Check which boxes (G, 4) are inside a box (4,), or it inside them, of known IoU (G,)."""
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float64)
    area = float(np.prod(box[2:] - box[:2], dtype=np.float64))
    common = iou / (1 + iou) * (areas + area)  # IoU = common / (areas + area - common)
    inside: NDArray[np.bool_] = common >= NESTED * np.minimum(areas, area)
    return inside


def _doubles(image: AnnotatedImage, fit: Values) -> Iterator[Suspicion]:
    """Yield the pairs of objects with nearly the same box; the one of larger `fit` (G,) is kept."""
    iou = np.triu(box_iou(image.gt_boxes, image.gt_boxes), k=1)
    for i, j in np.argwhere(iou >= DOUBLE).tolist():
        kept, row = (i, j) if fit[i] >= fit[j] else (j, i)
        box, label = image.gt_boxes[kept], int(image.gt_labels[kept])
        yield Suspicion("double box", float(iou[i, j]), image.id, box, label, row, kept)

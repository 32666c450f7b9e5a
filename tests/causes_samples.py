"""Traces of detection in made images, and the cause of an error by loops from the definitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from evaluation_samples import make_image
from samples import random_boxes
from sppdet.config import DetectConfig
from sppdet.detection.detect import DetectionParts, ScoredProposals, select
from sppdet.detection.trace import regressed_boxes, suppressors
from sppdet.evaluation.causes import MIN_IOU
from sppdet.evaluation.traces import ImageTrace, JudgedImage
from sppdet.types import Boxes, Dataset, Detections
from stages import Box, slow_iou

SIDE = 400  # of the made images
FINEST = 2  # bins a side of the finest level
SCALES_PX = (100, 200)


@dataclass(frozen=True)
class Scored(ScoredProposals):
    """Scored proposals whose regressed boxes are given."""

    moved: NDArray[np.float32]  # (P, K, 4)

    def move(self, chosen: Sequence[NDArray[np.int64]], *, width: int, height: int) -> list[Boxes]:
        return [self.moved[rows, k] for k, rows in enumerate(chosen)]


def boxes_of(rows: Sequence[Box]) -> Boxes:
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def trace_of(
    objects: Sequence[tuple[int, Box]],
    windows: Sequence[Box] | Boxes,
    scores: Sequence[Sequence[float]] | NDArray[np.float32],
    *,
    classes: int = 2,
    regressed: NDArray[np.float32] | None = None,
    cells: NDArray[np.int64] | None = None,
    unscored: Sequence[Box] = (),
    difficult: Sequence[bool] = (),
    config: DetectConfig | None = None,
    kind: str = "svm",
) -> ImageTrace:
    """Run the package's NMS, regression and votes on windows with these scores (P, K)."""
    config = config or DetectConfig()
    boxes = boxes_of([tuple(row) for row in np.asarray(windows).reshape(-1, 4).tolist()])
    given = np.array(scores, dtype=np.float32).reshape(-1, classes)
    moved = np.repeat(boxes[:, None], classes, axis=1) if regressed is None else regressed
    names = tuple("abcdefgh"[:classes])
    parts = SimpleNamespace(class_names=names, classifiers=SimpleNamespace(kind=kind))
    scored = Scored(cast(DetectionParts, parts), boxes, given, (), moved)
    selection = select([scored], config, width=SIDE, height=SIDE)
    image = make_image("x", list(objects), list(difficult) or None)
    if cells is None:
        cells = np.tile(np.array([1, 0, 0, 5, 5]), (len(boxes), 1))
    return ImageTrace(
        gt_boxes=image.gt_boxes,
        gt_labels=image.gt_labels,
        difficult=image.difficult,
        truncated=image.truncated,
        gt_cells=np.tile(np.array([0, 0, 0, 5, 5]), (len(image.gt_boxes), 1)),
        proposals=np.concatenate([boxes, boxes_of(unscored)]),
        windows=boxes,
        cells=cells,
        scores=given,
        regressed=regressed_boxes(
            scored,
            selection,
            config,
            targets=image.gt_boxes,
            labels=image.gt_labels,
            min_iou=MIN_IOU,
            width=SIDE,
            height=SIDE,
        ),
        suppressor=suppressors(scored, selection, config),
        detections=selection.detections,
        rows=selection.rows,
        scales_px=np.array(SCALES_PX),
    )


def random_trace(rng: np.random.Generator, *, classes: int = 3) -> ImageTrace:
    """A crowded image in which windows, regression and settings vary, sometimes without anything."""
    count = int(rng.integers(0, 7))
    truth = random_boxes(rng, count, width=SIDE, height=SIDE, whole=True)
    if count > 1:  # two objects that a detection may be counted for
        truth[1] = truth[0] + np.array([3, 0, 3, 0], np.float32)
    labels = rng.integers(1, classes + 1, count)
    labels[:2] = labels[:1]
    near = np.repeat(truth, 8, axis=0)
    size = np.tile(near[:, 2:] - near[:, :2], 2)
    near = near + (rng.normal(0, 0.13, near.shape) * size).astype(np.float32)
    windows = np.concatenate([near, random_boxes(rng, 20, width=SIDE, height=SIDE)])
    windows[:, 2:] = np.maximum(windows[:, 2:], windows[:, :2] + 1)
    windows = windows[rng.random(len(windows)) < rng.choice([0.0, 0.3, 1.0])]
    moved = np.repeat(windows[:, None], classes, axis=1)
    size = np.tile(moved[..., 2:] - moved[..., :2], 2)
    moved = moved + (rng.normal(0, rng.choice([0.0, 0.15]), moved.shape) * size).astype(np.float32)
    moved[..., 2:] = np.maximum(moved[..., 2:], moved[..., :2] + 1)
    scored = int(len(windows) * rng.choice([0.2, 1.0]))
    scores = rng.normal(-0.3, 0.7, (scored, classes)).astype(np.float32)
    low = rng.integers(0, 3, (scored, 2))
    cells = np.hstack([rng.integers(0, 2, (scored, 1)), low, low + rng.integers(0, 4, low.shape)])
    pairs: list[tuple[int, Box]] = [
        (int(k), (b[0], b[1], b[2], b[3])) for k, b in zip(labels, truth.tolist(), strict=True)
    ]
    config = DetectConfig(
        max_per_class=int(rng.choice([2, 100])),
        soft_nms=0.4 if rng.random() < 0.25 else None,
        box_voting=0.4 if rng.random() < 0.4 else None,
    )
    return trace_of(
        pairs,
        windows[:scored],
        scores,
        classes=classes,
        regressed=moved[:scored],
        cells=cells,
        unscored=[(b[0], b[1], b[2], b[3]) for b in windows[scored:].tolist()],
        difficult=(rng.random(count) < 0.2).tolist(),
        config=config,
    )


def dataset_of(
    traces: Sequence[ImageTrace | JudgedImage], classes: int
) -> tuple[Dataset, dict[str, Detections]]:
    """The data set and the detections that `evaluate_voc` takes."""
    images, found = [], {}
    for i, trace in enumerate(traces):
        pairs: list[tuple[int, Box]] = [
            (int(k), (b[0], b[1], b[2], b[3]))
            for k, b in zip(trace.gt_labels, trace.gt_boxes.tolist(), strict=True)
        ]
        images.append(make_image(f"im{i}", pairs, trace.difficult.tolist()))
        found[f"im{i}"] = trace.detections
    return Dataset("made", tuple("abcdefgh"[:classes]), tuple(images)), found


# -- slow loops ------------------------------------------------------------------------------------


def _row(box: NDArray[np.float32]) -> Box:
    x1, y1, x2, y2 = (float(side) for side in box)
    return x1, y1, x2, y2


def slow_outcomes(trace: ImageTrace) -> tuple[list[str], list[int | None]]:
    """For each detection true, false or ignored by VOC's rules, and the object that it takes."""
    found, taken = trace.detections, set()
    outcomes, targets = ["false"] * len(found), [None] * len(found)  # type: list[str], list[int | None]
    for d in sorted(range(len(found)), key=lambda d: -float(found.scores[d])):
        own = [g for g in range(len(trace.gt_boxes)) if trace.gt_labels[g] == found.labels[d]]
        ious = {g: slow_iou(_row(found.boxes[d]), _row(trace.gt_boxes[g])) for g in own}
        best = max(own, key=lambda g: ious[g], default=None)
        if best is None or ious[best] < 0.5:
            continue
        targets[d] = best
        if trace.difficult[best]:
            outcomes[d] = "ignored"
        elif best not in taken:
            outcomes[d] = "true"
            taken.add(best)
    return outcomes, targets


def slow_misses(trace: ImageTrace, thresholds: Sequence[float]) -> dict[int, str]:
    """The cause of every missed object, from the definitions in docs/method.md."""
    found, causes = trace.detections, {}
    outcomes, targets = slow_outcomes(trace)
    enough = [found.scores[d] >= thresholds[found.labels[d] - 1] for d in range(len(found))]
    for g in range(len(trace.gt_boxes)):
        hits = [d for d in range(len(found)) if targets[d] == g and outcomes[d] == "true"]
        if not trace.difficult[g] and not any(enough[d] for d in hits):
            causes[g] = _slow_cause(trace, g, thresholds, outcomes, targets, enough)
    return causes


def _slow_cause(
    trace: ImageTrace,
    g: int,
    thresholds: Sequence[float],
    outcomes: list[str],
    targets: list[int | None],
    enough: list[bool],
) -> str:
    found, box, k = trace.detections, _row(trace.gt_boxes[g]), int(trace.gt_labels[g]) - 1
    if all(slow_iou(box, _row(p)) < 0.5 for p in trace.proposals):
        return "not proposed"
    before = {p: slow_iou(box, _row(w)) for p, w in enumerate(trace.windows)}
    on = [p for p in before if before[p] >= 0.5]
    if not on:
        return "not scored"
    good = [p for p in on if slow_iou(box, _row(trace.regressed[p, k])) >= 0.5]
    if not good:
        best_before = max(before[p] for p in on)
        return "moved off by regression" if best_before >= 0.7 else "proposed badly"
    best = max(good, key=lambda p: float(trace.scores[p, k]))
    if trace.scores[best, k] < thresholds[k]:
        _, left, top, right, bottom = trace.cells[best].tolist()
        if (right - left + 1) * (bottom - top + 1) < FINEST**2:
            return "pooled too coarsely"
        for d in range(len(found)):
            other = found.labels[d] != k + 1 and enough[d] and outcomes[d] == "false"
            if other and targets[d] is None and before[int(trace.rows[d])] >= 0.5:
                return "wrong class"
        return "scored below the threshold"
    kept = [
        d
        for d in range(len(found))
        if enough[d]
        and found.labels[d] == k + 1
        and trace.rows[d] in good
        and trace.scores[trace.rows[d], k] >= thresholds[k]
    ]
    if not kept:
        # a window that NMS has kept or only the limit has cut meets no kept one that could suppress it
        return "suppressed by NMS" if trace.suppressor[best, k] >= 0 else "over max_per_class"
    if all(slow_iou(box, _row(found.boxes[d])) < 0.5 for d in kept):
        return "moved off by box voting"
    return "counted for another object"


def slow_false(trace: ImageTrace, certain: Sequence[float]) -> dict[int, str]:
    """The cause of every false detection, from the definitions in docs/method.md."""
    found, causes = trace.detections, {}
    outcomes, targets = slow_outcomes(trace)
    for d in range(len(found)):
        if outcomes[d] != "false":
            continue
        own, rest = 0.0, 0.0
        for box, k in zip(trace.gt_boxes, trace.gt_labels.tolist(), strict=True):
            iou = slow_iou(_row(found.boxes[d]), _row(box))
            own, rest = (max(own, iou), rest) if k == found.labels[d] else (own, max(rest, iou))
        if targets[d] is not None:
            causes[d] = "duplicate"
        elif rest >= 0.5:
            causes[d] = "wrong class"
        elif own >= 0.1:
            causes[d] = "badly localised"
        elif rest < 0.1 and found.scores[d] > certain[found.labels[d] - 1]:
            causes[d] = "looks unlabelled"
        else:
            causes[d] = "background"
    return causes

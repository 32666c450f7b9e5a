"""Show a window's scores, NMS and regression on a page of `sppdet explain`, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sppdet.boxes import box_iou, encode_deltas
from sppdet.detection.explain import Fate, Scene, contributions
from sppdet.pages.graphics import boxes_path
from sppdet.stages.detector import Detector
from sppdet.stages.explain_views import box_of

_MOST_ROWS = 10  # of a table


def scores_view(
    detector: Detector, scene: Scene, subject: Fate, cells: tuple[int, int, int, int]
) -> dict[str, Any]:
    """List the scores of all classes and, where they are linear, the shares of levels and bins."""
    scores = scene.scored.scores[subject.row]
    labels = np.arange(1, len(scores) + 1)
    calibration = detector.calibration
    p = calibration.probabilities(scores, labels) if calibration else None
    shares = contributions(scene.scored, subject.row)
    by_level = shares.by_level if shares else np.zeros((0, len(scores)))
    rows = [
        {
            "name": detector.class_names[k],
            "score": float(scores[k]),
            "threshold": float(scene.thresholds[k]),
            "probability": None if p is None else float(p[k]),
            "levels": by_level[:, k].tolist(),
            "bias": float(shares.bias[k]) if shares else None,
            "own": k + 1 == subject.label,
        }
        for k in np.argsort(-scores, kind="stable").tolist()
    ]
    levels = []
    largest = (
        max((np.abs(one[:, :, subject.label - 1]).max() for one in shares.bins), default=0.0)
        if shares
        else 0.0
    )
    for i, n in enumerate(detector.extractor.levels):
        own = shares.bins[i][:, :, subject.label - 1] if shares else None
        levels.append(
            {
                "n": n,
                "total": None if own is None else float(own.sum()),
                "bins": _bins(n, cells, own, largest),
            }
        )
    return {
        "linear": shares is not None,
        "layer": detector.classifiers.layer,
        "kind": detector.classifiers.kind,
        "rows": rows,
        "levels": levels,
    }


def _bins(
    n: int, cells: tuple[int, int, int, int], shares: NDArray[np.float64] | None, largest: float
) -> list[dict[str, Any]]:
    """Lay out the n × n bins of a window in cells of its own, with their shares of the score.

    Bin (i, j) covers columns [⌊j·w/n⌋, ⌈(j+1)·w/n⌉) and rows likewise, as pooling does.
    """
    left, top, right, bottom = cells
    across, down = right - left + 1, bottom - top + 1
    found = []
    for i in range(n):
        for j in range(n):
            x, y = j * across // n, i * down // n
            x2, y2 = -(-(j + 1) * across // n), -(-(i + 1) * down // n)
            share = None if shares is None else float(shares[i, j])
            shade = 0.0 if share is None or largest == 0 else abs(share) / largest
            found.append(
                {"x": x, "y": y, "width": x2 - x, "height": y2 - y, "share": share, "shade": shade}
            )
    return found


def nms_view(scene: Scene, subject: Fate, names: Sequence[str]) -> dict[str, Any]:
    """Show a class's windows before and after NMS, and which has suppressed which."""
    k, boxes = subject.label - 1, scene.scored.boxes
    scores, found = scene.scored.scores[:, k], scene.selection.detections
    lowest = scene.scored.parts.config.lowest_score(scene.scored.parts.classifiers.kind)
    before = np.flatnonzero(scores >= np.float32(lowest))
    kept = scene.selection.rows[found.labels == subject.label]
    counted = scene.selection.rows[scene.counted][found.labels[scene.counted] == subject.label]
    by = scene.suppressor[:, k]

    def rows(of: NDArray[np.int64], against: int) -> list[dict[str, Any]]:
        iou = box_iou(boxes[of], boxes[[against]])[:, 0]
        return [
            {"window": int(row) + 1, "score": float(scores[row]), "iou": float(value)}
            for row, value in zip(of, iou, strict=True)
        ]

    dropped = np.flatnonzero(by == subject.row)
    dropped = dropped[np.argsort(-scores[dropped], kind="stable")]
    winners = [
        {
            "window": int(row) + 1,
            "score": float(scores[row]),
            "dropped": int((by == row).sum()),
            "own": int(row) == subject.row,
        }
        for row in kept[:_MOST_ROWS].tolist()
    ]
    return {
        "name": names[k],
        "lowest": lowest,
        "before": len(before),
        "after": len(kept),
        "before_path": boxes_path(boxes[before]),
        "fallen_path": boxes_path(boxes[by == (subject.by if subject.by >= 0 else subject.row)]),
        "after_path": boxes_path(boxes[kept]),
        "counted": len(counted),
        "counted_path": boxes_path(boxes[counted]),
        "winners": winners,
        "dropped": rows(dropped[:_MOST_ROWS], subject.row),
        "dropped_count": len(dropped),
        "by": rows(np.array([subject.by]), subject.row)[0] | box_of(boxes[subject.by])
        if subject.by >= 0
        else None,
    }


def moved_view(scene: Scene, subject: Fate, *, width: int, height: int) -> dict[str, Any] | None:
    """Show where regression moves the window for the class; None without box regression."""
    scored, k = scene.scored, subject.label - 1
    if scored.parts.regressors is None:
        return None
    chosen = [np.zeros(0, np.int64) for _ in scored.parts.class_names]
    chosen[k] = np.array([subject.row])
    after = scored.move(chosen, width=width, height=height)[k]
    before = scored.boxes[[subject.row]]
    deltas = encode_deltas(before, after)[0].tolist()
    low = np.minimum(before, after)[0, :2]
    high = np.maximum(before, after)[0, 2:]
    margin = 0.25 * float((high - low).max())
    starts, ends = (_landmarks(box[0]) for box in (before, after))
    voted = scored.parts.config.box_voting is not None and subject.detection >= 0
    final = scene.selection.detections.boxes[subject.detection] if voted else None
    return {
        "before": box_of(before[0]),
        "after": box_of(after[0]),
        "deltas": deltas,
        "growth": np.exp(deltas[2:]).tolist(),
        "iou": float(box_iou(before, after)[0, 0]),
        "arrows": list(zip(starts, ends, strict=True)),
        "view": box_of([*(low - margin), *(high + margin)]),
        "voted": None if final is None else box_of(final),
    }


def _landmarks(box: NDArray[np.float32]) -> list[tuple[float, float]]:
    """List the centre and the corners of a box."""
    x1, y1, x2, y2 = (round(float(side), 1) for side in box)
    centre = (round((x1 + x2) / 2, 1), round((y1 + y2) / 2, 1))
    return [centre, (x1, y1), (x2, y1), (x2, y2), (x1, y2)]

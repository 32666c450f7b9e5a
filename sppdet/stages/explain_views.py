"""Show detections, proposals, scales and windows on a page of `sppdet explain`, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sppdet.boxes import box_iou
from sppdet.config import ProposalsConfig
from sppdet.detection.explain import Fate, Scene
from sppdet.evaluation.calibration import Calibration
from sppdet.pages.graphics import boxes_path, heat_uri
from sppdet.proposals.selective_search import first_merges
from sppdet.stages.detector import Detector
from sppdet.types import FeatureMaps, ImageArray

_IOU_EDGES = (0.0, 0.1, 0.3, 0.5, 0.7, 1.0)
_MERGES, _HIERARCHIES = 12, 8  # shown of each, and of a mode that builds more


def box_of(box: Any) -> dict[str, float]:
    """Convert a box for SVG and text."""
    x1, y1, x2, y2 = (round(float(side), 1) for side in box)
    return {"x": x1, "y": y1, "width": round(x2 - x1, 1), "height": round(y2 - y1, 1)}


def detections_view(
    scene: Scene, subject: Fate | None, names: Sequence[str], calibration: Calibration | None
) -> list[dict[str, Any]]:
    """List the detections that count; `own` is the one of the window that is explained."""
    found = scene.selection.detections
    p = calibration.probabilities(found.scores, found.labels) if calibration else None
    return [
        {
            "name": names[found.labels[d] - 1],
            "score": float(found.scores[d]),
            "probability": None if p is None else float(p[d]),
            "own": subject is not None and subject.detection == d,
            **box_of(found.boxes[d]),
        }
        for d in scene.counted.tolist()
    ]


def proposals_view(scene: Scene, subject: Fate | None) -> dict[str, Any]:
    """Group all proposals by their IoU with the nearest detection that counts, or with the window."""
    found, counted = scene.selection.detections, scene.counted
    shown = found.boxes[counted]
    if not len(counted) and subject is not None:
        shown = scene.scored.boxes[[subject.row]]
    iou = box_iou(scene.proposals, shown).max(axis=1, initial=0.0)
    place = np.clip(np.searchsorted(_IOU_EDGES, iou, side="right") - 1, 0, len(_IOU_EDGES) - 2)
    groups = [
        {
            "low": _IOU_EDGES[k],
            "high": _IOU_EDGES[k + 1],
            "count": int((place == k).sum()),
            "path": boxes_path(scene.proposals[place == k]),
        }
        for k in range(len(_IOU_EDGES) - 1)
    ]
    return {
        "count": len(scene.proposals),
        "scored": len(scene.scored.boxes),
        "groups": groups,
        "to_detections": bool(len(counted)),
    }


def merges_view(pixels: ImageArray, config: ProposalsConfig) -> list[dict[str, Any]]:
    """Show the first merges of the hierarchies of regions; none of engines that keep them."""
    if not {"sppdet", "stored"} & set(config.engines()):
        return []
    found = first_merges(pixels, config, count=_MERGES, most=_HIERARCHIES)
    return [
        {"name": one.name, "regions": one.regions, "boxes": [box_of(box) for box in one.boxes]}
        for one in found
    ]


def scales_view(
    detector: Detector,
    maps: FeatureMaps,
    scene: Scene,
    scales: Sequence[int],
    *,
    width: int,
    height: int,
) -> list[dict[str, Any]]:
    """List the scales of the image with their maps and how many windows each has."""
    windows = detector.extractor.windows(maps, scene.scored.boxes)
    of_each = windows.cells[windows.index, 0]
    rows = []
    for s, (factor, one) in enumerate(zip(maps.scale_factors.tolist(), maps.maps, strict=True)):
        rows.append(
            {
                "side": round(factor * min(width, height)),
                "factor": factor,
                "share": factor / float(maps.scale_factors.max()),
                "width": round(width * factor),
                "height": round(height * factor),
                "columns": one.shape[2],
                "rows": one.shape[1],
                "windows": int((of_each == s).sum()),
            }
        )
    return rows


def window_view(
    detector: Detector, maps: FeatureMaps, scene: Scene, subject: Fate
) -> dict[str, Any]:
    """Show the scale of a window, its cells on the map, and the map as root mean square of channels."""
    windows = detector.extractor.windows(maps, scene.scored.boxes[[subject.row]])
    scale, left, top, right, bottom = windows.cells[0].tolist()
    values = maps.maps[scale].float()
    strength: NDArray[np.float32] = values.square().mean(dim=0).sqrt().cpu().numpy()
    area = float(np.prod(scene.scored.boxes[subject.row, 2:] - scene.scored.boxes[subject.row, :2]))
    return {
        "scale": scale,
        "factor": float(maps.scale_factors[scale]),
        "side": (area**0.5) * float(maps.scale_factors[scale]),
        "canonical": detector.extractor.canonical_size,
        "stride": maps.stride,
        "cells": (left, top, right, bottom),
        "columns": values.shape[2],
        "rows": values.shape[1],
        "channels": values.shape[0],
        "left": left,
        "top": top,
        "across": right - left + 1,
        "down": bottom - top + 1,
        "heat": heat_uri(strength),
    }

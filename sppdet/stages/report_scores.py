"""The scores of an evaluation, read back from its `metrics.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from sppdet.errors import ArtifactError, one_line
from sppdet.runs.artifacts import read_json
from sppdet.stages.report import metric_name


class _Metrics(BaseModel):
    mAP: float | None
    AP: dict[str, float | None]
    mAP_interval: tuple[float, float] | None = None
    AP_interval: dict[str, tuple[float, float] | None] = {}
    metric: str
    images: int
    ground_truths: int
    detections: int
    signature: str = ""


def read_scores(folder: Path, metric: str) -> dict[str, Any]:
    """Read the scores of a split's folder: of `metric` first and, as `others`, those of all other metrics.

    Raises:
        ArtifactError: there are none, or a file is damaged.
    """
    found = {path.parent.name: _read(path) for path in sorted(folder.glob("*/metrics.json"))}
    if not found:
        raise ArtifactError(f"{folder}: no metrics.json; expected `sppdet eval` before")
    first = found.pop(metric, None) or found.pop(next(iter(found)))
    return {**first, "others": list(found.values())}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = _Metrics.model_validate(read_json(path)).model_dump()
    except ValidationError as error:
        what = error.errors()[0]
        place = ".".join(map(str, what["loc"]))
        problem = f"{place}: {what['msg']}" if place else "expected an object"
        raise ArtifactError(f"{path}: damaged: {one_line(problem, 100)}") from None
    return {**found, "title": metric_name(found["metric"])}

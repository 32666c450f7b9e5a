"""Gather what a report says beside the scores: settings, times, versions, warnings, causes of errors."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from sppdet.config import Config
from sppdet.errors import ArtifactError
from sppdet.evaluation.traces import FalseCause, MissCause
from sppdet.io import plain_yaml
from sppdet.io.files import read_bytes
from sppdet.runs.artifacts import read_json
from sppdet.runs.log import is_seconds, read_timings
from sppdet.version import __version__

STAGE_OF_MISS: dict[MissCause, str] = {
    "not proposed": "proposals",
    "not scored": "ranking of windows",
    "proposed badly": "proposals",
    "moved off by regression": "box regression",
    "pooled too coarsely": "scales and pyramid",
    "wrong class": "SVMs",
    "scored below the threshold": "SVMs",
    "suppressed by NMS": "NMS",
    "over max_per_class": "NMS",
    "moved off by box voting": "box voting",
    "counted for another object": "matching",
}
STAGE_OF_FALSE: dict[FalseCause, str] = {
    "duplicate": "NMS",
    "wrong class": "SVMs",
    "badly localised": "box regression",
    "looks unlabelled": "annotations",
    "background": "SVMs",
}
_PACKAGES = ("torch", "torchvision", "numpy", "opencv-contrib-python", "scikit-learn", "numba")
_MOST_WARNINGS = 50


def settings_lines(config: Config) -> list[str]:
    """List the lines of the resolved settings as YAML."""
    return plain_yaml.dump(config.to_plain()).splitlines()


def versions() -> list[tuple[str, str]]:
    """List the versions of sppdet, Python and the libraries that numbers depend on."""
    found = [("sppdet", __version__), ("Python", platform.python_version())]
    for package in _PACKAGES:
        try:
            found.append((package, version_of(package)))
        except PackageNotFoundError:  # installed under another name, such as -headless
            continue
    return found


def stage_times(run: Path) -> list[dict[str, Any]]:
    """List every stage with its seconds and, where the log has them, CPU seconds, and its share."""
    used: dict[str, float] = {}
    for record in _records(run / "log.jsonl"):
        seconds: Any = record.get("cpu_seconds")
        if record.get("event") == "stage ended" and is_seconds(seconds):
            stage = str(record.get("stage"))
            if not (record.get("idle") and stage in used):
                used[stage] = float(seconds)
    times = read_timings(run / "timings.json")
    longest = max(times.values(), default=0.0) or 1.0
    return [
        {"stage": stage, "seconds": seconds, "cpu": used.get(stage), "share": seconds / longest}
        for stage, seconds in times.items()
    ]


def warnings_of(log: Path) -> dict[str, Any]:
    """List the warnings in a run's log, each once, with the number of those that are left out."""
    texts = [str(r.get("text", "")) for r in _records(log) if r.get("event") == "warning"]
    found = list(dict.fromkeys(texts))
    return {"shown": found[:_MOST_WARNINGS], "more": max(0, len(found) - _MOST_WARNINGS)}


def _records(log: Path) -> list[dict[str, Any]]:
    """Read the lines of a log; none that is damaged, as by a crash, and none without a log."""
    if not log.is_file():
        return []
    found = []
    for line in read_bytes(log, ArtifactError).decode("utf-8", "replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


class _Cause(BaseModel):
    count: int
    share: float
    delta_mAP: float | None
    by_class: dict[str, int]


class _Case(BaseModel):
    image: str
    box: tuple[float, float, float, float]
    cause: str


class _Summary(BaseModel):
    missed: dict[str, _Cause]
    false: dict[str, _Cause]


class _Causes(BaseModel):
    signature: str
    objects: int
    found: int
    summary: _Summary
    advice: list[str]
    notes: list[str]
    missed: list[_Case]
    false_detections: list[_Case]


def causes_of(path: Path, *, signature: str) -> dict[str, Any] | None:
    """Read the causes of errors that `sppdet diagnose` has found; None where it hasn't been called.

    Returns:
        `problem` where they are of another state of the run or damaged; else objects, found, advice,
        notes, `tables` of (title, rows by cause), and `cases`: the cause by image, kind and box.
    """
    if not path.is_file():
        return None
    try:
        found = _Causes.model_validate(read_json(path))
    except (ArtifactError, ValidationError):
        return {"problem": "causes.json is damaged"}
    if found.signature != signature:
        return {"problem": "causes.json is of other settings or data than the run has now"}
    tables = []
    for title, summary, stages in (
        ("missed objects", found.summary.missed, STAGE_OF_MISS),
        ("false detections", found.summary.false, STAGE_OF_FALSE),
    ):
        by_name = {str(cause): stage for cause, stage in stages.items()}
        rows = [
            {"cause": cause, "stage": by_name.get(cause, ""), **one.model_dump()}
            for cause, one in summary.items()
            if one.count or one.delta_mAP
        ]
        tables.append((title, rows))
    cases = {
        (case.image, kind, tuple(round(side, 1) for side in case.box)): case.cause
        for kind, own in (("missed", found.missed), ("false", found.false_detections))
        for case in own
    }
    facts = found.model_dump(include={"objects", "found", "advice", "notes"})
    return {"problem": "", **facts, "tables": tables, "cases": cases}

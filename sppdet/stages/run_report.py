"""The report of a run as one HTML page: what was trained on what, how well it does, where it fails."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sppdet.config import Config
from sppdet.errors import SppdetError
from sppdet.evaluation.calibration import Calibration
from sppdet.evaluation.confusion import confusion_matrix, judge_images
from sppdet.evaluation.curves import curve_corners
from sppdet.evaluation.operating_point import operating_points
from sppdet.evaluation.reliability import calibration_error, reliability_bins
from sppdet.evaluation.repairs import best_threshold
from sppdet.evaluation.voc import IGNORED, TRUE_POSITIVE, class_results
from sppdet.io.dataset_digest import dataset_digest
from sppdet.io.names import safe_id
from sppdet.io.splits import read_split
from sppdet.pages.graphics import polyline
from sppdet.pages.render import render
from sppdet.runs.artifacts import write_text
from sppdet.runs.environment import worker_count
from sppdet.runs.log import LOGGER
from sppdet.runs.places import check_own_page
from sppdet.stages.compare import read_scored
from sppdet.stages.evaluate import Scored
from sppdet.stages.model import read_calibration
from sppdet.stages.model_files import ModelFiles, read_run_config, signature
from sppdet.stages.report import FEW_OBJECTS, LEVEL_TITLE
from sppdet.stages.report_facts import causes_of, settings_lines, stage_times, versions, warnings_of
from sppdet.stages.report_images import gallery
from sppdet.stages.report_scores import read_scores
from sppdet.stages.thresholds import Threshold, least_scores
from sppdet.types import ClassResult, Dataset
from sppdet.version import __version__

NAME = "report.html"
_LEAST_PROBABILITY = 0.1  # of the reliability diagram: a hundred detections an image are below


@dataclass(frozen=True)
class _Calibrated:
    class_names: tuple[str, ...]
    calibration: Calibration | None


def write_report(
    run: Path,
    split: str = "test",
    *,
    out: Path | None = None,
    scored: Scored | None = None,
    training_set: Dataset | None = None,
) -> Path:
    """Write the report of a run that was evaluated on a split; nothing is detected again.

    Args:
        out: the page; None: `report.html` in the run, with the name of a split other than test.
        scored: what the evaluation has scored; None reads it.
        training_set: None reads it, where it is still there.

    Returns:
        The path of the page. The same run gives the same bytes, but for the times of stages.

    Raises:
        ArtifactError: not a run, not evaluated on the split, or a file that isn't such a page is there.
        DataError: the data of the split can't be read.
    """
    config = read_run_config(run)
    path = out or run / (NAME if split == "test" else f"report_{safe_id(split)}.html")
    check_own_page(path)
    scored = scored or read_scored(run, split)
    write_text(path, render("report.html", _content(run, split, config, scored, training_set)))
    return path


def report_after_training(scored: Scored, training_set: Dataset) -> None:
    """Write the report at the end of a training; a failure is a warning and ends nothing."""
    try:
        path = write_report(scored.run, scored=scored, training_set=training_set)
    except Exception as error:  # the training itself is complete
        LOGGER.warning("the report isn't written: %s", error)
    else:
        LOGGER.info("a report to read is in %s", path)


def _content(
    run: Path, split: str, config: Config, scored: Scored, training_set: Dataset | None
) -> dict[str, Any]:
    """Collect the values of the template."""
    dataset, files = scored.dataset, ModelFiles(run)
    names = dataset.class_names
    calibration = read_calibration(
        files.find("calibration"), classes=len(names), made_for=files.detection_fingerprint(config)
    )
    results = class_results(dataset, scored.detections, metric="voc07")
    least, threshold = _threshold(names, calibration, results)
    points = operating_points(results, least, images=len(dataset))
    verdicts = judge_images(dataset, scored.detections, least)
    digests = {"train": files.training_data(), "test": dataset_digest(dataset, scored.images)}
    scores = read_scores(run / "eval" / safe_id(split), config.eval.metric)
    now = signature(config, **digests)
    causes = causes_of(run / "eval" / safe_id(split) / "causes.json", signature=now)
    return {
        "version": __version__,
        "run": run.resolve().name,
        "split": split,
        "dataset": dataset.name,
        "scores": scores,
        "changed": scores["signature"] != now,
        "level": LEVEL_TITLE,
        "few": FEW_OBJECTS,
        "threshold": threshold,
        "names": names,
        "points": points,
        "total": points[-1],
        "sets": _sets(config, scored, training_set),
        "digests": digests,
        "config": config,
        "settings": settings_lines(config),
        "curves": [
            curve_view(one, point.recall, point.precision)
            for one, point in zip(results, points, strict=False)
        ],
        "reliability": _reliability(results, calibration),
        "least_probability": _LEAST_PROBABILITY,
        "confusion": confusion_view(confusion_matrix(verdicts, len(names)), names),
        "causes": causes,
        "gallery": gallery(verdicts, scored.images, calibration, causes),
        "times": stage_times(run),
        "warnings": warnings_of(run / "log.jsonl"),
        "skipped": dataset.skipped,
        "versions": versions(),
    }


def _threshold(
    names: tuple[str, ...], calibration: Calibration | None, results: tuple[ClassResult, ...]
) -> tuple[NDArray[np.float32], str]:
    """Choose what counts as `sppdet detect` does or, without probabilities, by F1 on the split itself."""
    if calibration is None:
        scores = np.concatenate([one.scores for one in results])
        outcomes = np.concatenate([one.outcomes for one in results])
        best = best_threshold(scores, outcomes, objects=sum(r.ground_truths for r in results))
        if best is not None:
            text = (
                f"scores >= {best.score:.2f} (the best F1 on these very images: no probabilities)"
            )
            return np.full(len(names), best.score, np.float32), text
    return least_scores(_Calibrated(names, calibration), Threshold())


def _sets(config: Config, scored: Scored, training_set: Dataset | None) -> dict[str, Any]:
    """Count images and objects of the training set, where it can be read, and of the split."""
    problem, workers = "", worker_count(config.workers)
    names = scored.dataset.class_names
    if training_set is None:
        try:
            training_set = read_split(config.data, "train", names, scored.images, workers=workers)
        except SppdetError as error:
            problem = str(error)
    rows = [("train", training_set), ("test", scored.dataset)]
    counts = {
        key: {
            "name": one.name,
            "images": len(one),
            "objects": _objects(one, difficult=False),
            "difficult": sum(_objects(one, difficult=True)),
        }
        for key, one in rows
        if one is not None
    }
    return {"problem": problem, "train": None, **counts}


def _objects(dataset: Dataset, *, difficult: bool) -> list[int]:
    labels = [image.gt_labels[image.difficult == difficult] for image in dataset.images]
    counts = np.bincount(
        np.concatenate([np.zeros(0, np.int64), *labels]), minlength=len(dataset.class_names) + 1
    )
    return [int(count) for count in counts[1:]]


def curve_view(one: ClassResult, recall: float, precision: float) -> dict[str, Any]:
    """Collect the curve of a class, with the recall and precision of the threshold."""
    shown = one.ground_truths > 0 and len(one.recall) > 0
    rows = curve_corners(one.recall) if shown else np.zeros(0, np.int64)
    marked = shown and not np.isnan(precision)
    return {
        "name": one.name,
        "points": polyline(one.recall[rows], one.precision[rows]) if shown else "",
        "at": (round(200 * recall, 1), round(200 * (1 - precision), 1)) if marked else None,
        "recall": recall,
        "precision": precision,
    }


def _reliability(
    results: tuple[ClassResult, ...], calibration: Calibration | None
) -> dict[str, Any] | None:
    """Collect the reliability of all classes' probabilities; None without any."""
    if calibration is None:
        return None
    labels = np.repeat(np.arange(1, len(results) + 1), [len(one.scores) for one in results])
    scores = np.concatenate([one.scores for one in results]).astype(np.float32)
    outcomes = np.concatenate([one.outcomes for one in results])
    p = calibration.probabilities(scores, labels)
    counted = (outcomes != IGNORED) & (p >= _LEAST_PROBABILITY)
    bins = reliability_bins(p[counted], outcomes[counted] == TRUE_POSITIVE)
    return {
        "bins": [one for one in bins if one.count],
        "error": calibration_error(bins),
        "count": int(counted.sum()),
        "borrowing": [results[k].name for k in calibration.borrowing()],
    }


def confusion_view(matrix: NDArray[np.int64], names: tuple[str, ...]) -> dict[str, Any]:
    """Collect the rows of the confusion matrix, the background last, each with its shares."""
    order = [*range(1, len(names) + 1), 0]
    rows = []
    for k in order:
        counts = matrix[k, order]
        shares = counts / max(1, counts.sum())
        rows.append(
            {
                "name": names[k - 1] if k else "background",
                "cells": list(zip(counts.tolist(), shares.tolist(), strict=True)),
                "total": int(counts.sum()),
            }
        )
    return {"columns": [*names, "not detected"], "rows": rows}

"""Describe a run in a few lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sppdet.classification.classifier import load_classifier, read_classifier_config
from sppdet.errors import ArtifactError, shorten
from sppdet.runs.artifacts import read_json
from sppdet.stages.evaluate import signature
from sppdet.stages.model import ModelFiles, read_classifiers, read_run_config


def describe_run(run: Path) -> Iterator[str]:
    """Yield lines on a run's settings, parts, times and scores.

    Raises:
        ArtifactError: not a run, or, after all other lines, a file of times or scores is damaged.
    """
    if (run / "model" / "net.safetensors").is_file():
        yield from _describe_classifier(run)
        return
    config = read_run_config(run)
    files = ModelFiles(run)
    yield f"run        {run}"
    yield f"settings   {signature(config, train=files.training_data())}"
    if files.svm.is_file():
        classifiers, names = read_classifiers(files.svm)
        yield f"classes    {len(names)}: {', '.join(names)}"
        yield f"svms       on {classifiers.layer}, {classifiers.weights.shape[1]} values"
    else:
        yield "svms       not trained yet"
    for part in (files.backbone, files.head, files.svm, files.bbox):
        if part.is_file():
            yield f"part       {part.name}, {part.stat().st_size / 2**20:.1f} MiB"
    problems = []
    if (run / "timings.json").is_file():
        try:
            yield from _describe_times(run / "timings.json")
        except ArtifactError as error:
            problems.append(error)
    for path in _score_files(run / "eval"):
        try:
            yield from _describe_score(path, run / "eval")
        except ArtifactError as error:
            problems.append(error)
    if problems:
        raise problems[0]


def _score_files(folder: Path) -> list[Path]:
    """Every `metrics.json`: SPLIT/METRIC/metrics.json, and SPLIT/metrics.json of older versions."""
    return sorted(folder.rglob("metrics.json"))


def _describe_times(path: Path) -> Iterator[str]:
    times = _read_object(path)
    for stage, seconds in times.items():
        yield f"seconds    {stage}: {_number(seconds, path, stage):.1f}"


def _describe_score(path: Path, folder: Path) -> Iterator[str]:
    metrics = _read_object(path)
    name = metrics.get("metric")
    if not isinstance(name, str) or "mAP" not in metrics:
        raise ArtifactError(f"{path}: damaged: expected mAP and metric")
    by_metric = path.parent.name == name  # the folder of a split in older versions
    if metrics["mAP"] is None or (not by_metric and (path.parent / name / path.name).is_file()):
        return  # no object counts; or an older score of the same kind
    split = path.parent.parent if by_metric else path.parent
    value = _number(metrics["mAP"], path, "mAP")
    yield f"score      mAP ({name}, {split.relative_to(folder).as_posix()}) {value:.4f}"


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: damaged: a {type(value).__name__}, expected an object")
    return value


def _number(value: object, path: Path, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        raise ArtifactError(f"{path}: damaged: {key} {value!r:.40}, expected a number")
    return float(value)


def _describe_classifier(run: Path) -> Iterator[str]:
    config = read_classifier_config(run)
    classifier = load_classifier(run)
    weights = sum(p.numel() for p in classifier.parameters())
    yield f"run        {run}"
    yield f"classifier {classifier.net}, levels {config.spp_levels}, {weights / 1e6:.1f} M weights"
    yield f"trained    at {config.train.sizes} px, seed {config.seed}"
    yield f"classes    {len(classifier.class_names)}: {shorten(list(classifier.class_names))}"
    if not (run / "model" / "last.safetensors").is_file():
        yield "training   not finished yet"
    path = run / "eval" / "classifier.json"
    if not path.is_file():
        return
    results = _read_object(path).get("results")
    if not isinstance(results, list) or not all(isinstance(one, dict) for one in results):
        raise ArtifactError(f"{path}: damaged: expected a list of results")
    for one in results:
        top1, top5 = (_number(one.get(key), path, key) for key in ("top1", "top5"))
        yield f"score      {one.get('views')}: top-1 {top1:.4f}, top-5 {top5:.4f}"

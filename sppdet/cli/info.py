"""Describe a run or a model file in a few lines, from small files and headers of large ones: no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from sppdet.errors import ArtifactError, shorten
from sppdet.runs.artifacts import TensorHeader, read_header, read_json
from sppdet.runs.weights import class_names_in
from sppdet.stages.model_files import ModelFiles, read_run_config, signature
from sppdet.stages.trained_model import is_model_file, needed_parts, read_model_header
from sppdet.training_config import Layer

# tensors of a network that aren't weights: the statistics of batch normalisation
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def describe_run(run: Path) -> Iterator[str]:
    """Yield lines on the settings, parts, times and scores of a run, or on those of a model file.

    Raises:
        ArtifactError: neither of them, or, after all other lines, a file of times or scores is damaged.
    """
    if is_model_file(run):
        yield from _describe_file(run)
        return
    if (run / "model" / "net.safetensors").is_file():
        yield from _describe_classifier(run)
        return
    config = read_run_config(run)
    files = ModelFiles(run)
    yield f"run        {run}"
    yield f"settings   {signature(config, train=files.training_data())}"
    if files.svm.is_file():
        header = _header(files.svm)
        names = class_names_in(header.about, files.svm)
        _, shape = header.layout.get("weights", ("", ()))
        layer = header.about.get("layer")
        if layer not in get_args(Layer) or len(shape) != 2:
            raise ArtifactError(f"{files.svm}: damaged: expected a layer and weights in its header")
        yield f"classes    {len(names)}: {', '.join(names)}"
        yield f"svms       on {layer}, {shape[1]} values"
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
    # SPLIT/METRIC/metrics.json, and SPLIT/metrics.json of older versions
    for path in sorted((run / "eval").rglob("metrics.json")):
        try:
            yield from _describe_score(path, run / "eval")
        except ArtifactError as error:
            problems.append(error)
    if problems:
        raise problems[0]


def _describe_file(path: Path) -> Iterator[str]:
    about, config, headers = read_model_header(path)
    missing = [
        name for name in needed_parts(config) if not (name in headers and headers[name].layout)
    ]
    if missing:
        raise ArtifactError(f"{path}: damaged: has no {missing[0]}")
    names = class_names_in(headers["svm"].about, f"{path}: svm")
    yield f"model      {path}, {path.stat().st_size / 2**20:.1f} MiB, by sppdet {about['sppdet']}"
    yield f"settings   {about['signature']}"
    yield f"classes    {len(names)}: {', '.join(names)}"
    yield f"svms       on {config.svm_layer()}"
    yield f"weights    {headers['backbone'].about.get('origin') or 'of unknown origin'}"
    for name, header in headers.items():
        values = sum(math.prod(shape) for _, shape in header.layout.values())
        yield (
            f"part       {name}, {values:,} values" if values else f"part       {name}, not needed"
        )


def _header(path: Path) -> TensorHeader:
    header = read_header(path)
    if header is None:
        raise ArtifactError(f"{path}: damaged, or not written by this version of sppdet")
    return header


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
    from sppdet.classification.config import read_classifier_config  # takes its time

    config = read_classifier_config(run)
    path = run / "model" / "net.safetensors"
    header = _header(path)
    names = class_names_in(header.about, path)
    shapes = [s for name, (_, s) in header.layout.items() if not name.endswith(_STATISTICS)]
    weights = sum(map(math.prod, shapes))
    yield f"run        {run}"
    yield f"classifier {config.backbone.name}, levels {config.spp_levels}, {weights / 1e6:.1f} M weights"
    yield f"trained    at {config.train.sizes} px, seed {config.seed}"
    yield f"classes    {len(names)}: {shorten(names)}"
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

"""What a run consists of, in a few lines."""

from __future__ import annotations

from pathlib import Path

from sppdet.artifacts import read_json
from sppdet.classification.classifier import load_classifier, read_classifier_config
from sppdet.data.records import shorten
from sppdet.errors import ArtifactError
from sppdet.evaluation.stage import signature
from sppdet.model import ModelFiles, read_classifiers, read_run_config


def describe_run(run: Path) -> list[str]:
    """Lines on a run's settings, parts, times and scores.

    Raises:
        ArtifactError: not a run.
    """
    if (run / "model" / "net.safetensors").is_file():
        return _describe_classifier(run)
    config = read_run_config(run)
    files = ModelFiles(run)
    lines = [f"run        {run}", f"settings   {signature(config)}"]
    if files.svm.is_file():
        classifiers, names = read_classifiers(files.svm)
        lines.append(f"classes    {len(names)}: {', '.join(names)}")
        lines.append(f"svms       on {classifiers.layer}, {classifiers.weights.shape[1]} values")
    else:
        lines.append("svms       not trained yet")
    parts = [p for p in (files.backbone, files.head, files.svm, files.bbox) if p.is_file()]
    lines.extend(f"part       {p.name}, {p.stat().st_size / 2**20:.1f} MiB" for p in parts)
    try:
        timings = read_json(run / "timings.json")
    except ArtifactError:
        timings = {}
    lines.extend(f"seconds    {stage}: {seconds:.1f}" for stage, seconds in timings.items())
    for path in sorted(run.glob("eval/*/metrics.json")):
        metrics = read_json(path)
        if metrics["mAP"] is not None:
            lines.append(
                f"score      mAP ({metrics['metric']}, {path.parent.name}) {metrics['mAP']:.4f}"
            )
    return lines


def _describe_classifier(run: Path) -> list[str]:
    config = read_classifier_config(run)
    classifier = load_classifier(run)
    weights = sum(p.numel() for p in classifier.parameters())
    lines = [
        f"run        {run}",
        f"classifier {classifier.net}, levels {config.spp_levels}, {weights / 1e6:.1f} M weights",
        f"trained    at {config.train.sizes} px, seed {config.seed}",
        f"classes    {len(classifier.class_names)}: {shorten(list(classifier.class_names))}",
    ]
    if not (run / "model" / "last.safetensors").is_file():
        lines.append("training   not finished yet")
    path = run / "eval" / "classifier.json"
    results = read_json(path)["results"] if path.is_file() else []
    return lines + [
        f"score      {result['views']}: top-1 {result['top1']:.4f}, top-5 {result['top5']:.4f}"
        for result in results
    ]

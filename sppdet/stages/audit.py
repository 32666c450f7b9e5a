"""The label audit of a run: suspicious annotations of its training set, ranked, drawn and exported."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from sppdet.boxes import clip_boxes
from sppdet.errors import ArtifactError
from sppdet.evaluation.audit import Suspicion, audit
from sppdet.evaluation.calibration import Calibration
from sppdet.io.dataset_digest import dataset_digest
from sppdet.io.image_cache import ImageCache
from sppdet.io.splits import read_split
from sppdet.runs.distributed import Ranks
from sppdet.runs.environment import worker_count
from sppdet.runs.log import LOGGER, RESULT, consoles, event, log_file
from sppdet.runs.owned import replace_files
from sppdet.stages.audit_report import annotation_folders, counts, files_of, print_rows
from sppdet.stages.crossfit import read_cross_fitted
from sppdet.stages.model import choose_device, read_calibration
from sppdet.stages.model_files import ModelFiles, read_run_config
from sppdet.types import AnnotatedImage, Dataset, Detections


@dataclass(frozen=True)
class Audit:
    """A training set and the suspicions about its annotations, by score, descending."""

    dataset: Dataset
    suspicions: tuple[Suspicion, ...]


def audit_run(run: Path, *, top: int = 50, out: Path | None = None) -> Audit:
    """Audit the labels of a run's training set by its cross-fitted detections.

    Prints the first rows and writes all of them, with the first `top` drawn and exported, into `out`
    (None: `run/audit`). Nothing is detected again, and no annotation is changed.

    Raises:
        ArtifactError: not a trained run, or it has no cross-fitted detections or no probabilities;
            or a file in `out` isn't of an audit.
    """
    config = read_run_config(run)  # before anything is logged into a folder that is no run
    files, folder = ModelFiles(run), out or run / "audit"
    files.check_sealed(config)
    if config.calibrate is None:
        raise ArtifactError(
            f"{run}: has no cross-fitted detections (calibrate: none); train with calibrate"
        )
    detections = read_cross_fitted(run)
    names = next((one.class_names for one in detections.values()), ())
    calibration = read_calibration(
        files.find("calibration"),
        classes=len(names),
        made_for=files.detection_fingerprint(config),
    )
    if calibration is None:
        raise ArtifactError(
            f"{run}: has no probabilities: too few detections in held-out images, or other settings of "
            "detect than in training"
        )
    with log_file(run, Ranks(device=choose_device("cpu"))):
        images = ImageCache.load(run / "images.json", max_pixels=config.data.max_pixels)
        workers = worker_count(config.workers)
        dataset = read_split(config.data, "train", names, images, workers=workers)
        images.save(run / "images.json")
        if files.training_data() not in (None, dataset_digest(dataset, images)):
            LOGGER.warning(
                "%s has changed since the run was trained; its detections are by the labels of before",
                dataset.name,
            )
        seen = {
            image.id: with_probabilities(detections[image.id], calibration, image)
            for image in dataset.images
            if image.id in detections
        }
        found = audit(dataset, seen)
        replace_files(folder, files_of(dataset, found, images, top=top), command="audit")
        for console in consoles():
            print_rows(dataset, found, console, top)
        by_kind = counts(found)
        numbers = ", ".join(f"{kind} {number}" for kind, number in by_kind.items())
        text = f"{len(found)} suspicions: {numbers}"
        LOGGER.log(RESULT, "%s", text, extra=event("audited", suspicions=by_kind))
        unseen = len(dataset) - len(seen)
        aside = f"; {unseen} images have no detections by models that haven't seen them" * bool(
            unseen
        )
        LOGGER.info("%d of %d images audited%s", len(seen), len(dataset), aside)
        LOGGER.log(RESULT, "see %s%s", folder, "; to correct labels:" * bool(found[:top]))
        by_id = {image.id: image for image in dataset.images}
        first = [by_id[one.image] for one in found[:top]]
        for parent, name in annotation_folders(first).items():
            parts = map(str, (parent, folder / "classes.txt", folder / name))
            command = shlex.join(["labelImg", *parts])
            LOGGER.info("  %s", command, extra=event("next", command=command))
    return Audit(dataset, tuple(found))


def with_probabilities(
    found: Detections, calibration: Calibration, image: AnnotatedImage
) -> Detections:
    """Add probabilities; boxes are clipped to the image, which may be another one by now."""
    boxes = clip_boxes(found.boxes, width=image.width, height=image.height)
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    labels, scores = found.labels[kept], found.scores[kept]
    probabilities = calibration.probabilities(scores, labels)
    return replace(
        found, boxes=boxes[kept], scores=scores, labels=labels, probabilities=probabilities
    )

"""`sppdet pretrain-eval` and `sppdet classify`: evaluate a classifier, and classify images."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.classification.classifier import (
    SppClassifier,
    load_classifier,
)
from sppdet.classification.config import TestConfig, ViewSet, read_classifier_config
from sppdet.classification.data import read_sets
from sppdet.classification.views import score_crops, score_maps, views_of
from sppdet.errors import ArtifactError, ConfigError, DataError, ImageError, image_named
from sppdet.io.finding import find_images
from sppdet.io.images import read_image
from sppdet.io.settings import check_config
from sppdet.parallel import ordered_map
from sppdet.runs.artifacts import read_json, write_json
from sppdet.runs.environment import available_cores, worker_count
from sppdet.runs.log import LOGGER, RESULT
from sppdet.runs.progress import track
from sppdet.stages.model import choose_device
from sppdet.types import ImageArray


@dataclass(frozen=True)
class TestResult:
    """Accuracies with a set of views, 0..1, and the time that they take."""

    views: ViewSet
    top1: float
    top5: float
    images: int
    seconds: float  # per image, without decoding


def score_image(
    classifier: SppClassifier, image: ImageArray, views: ViewSet, config: TestConfig
) -> torch.Tensor:
    """Mean softmax scores (K,) of an image (H, W, 3) over a set of views.

    Raises:
        DataError: a score isn't finite.
    """
    chosen = views_of(views, config.side)
    if views.startswith("maps"):
        scores = score_maps(classifier, image, chosen, crop=config.crop)
    else:
        size = config.size or config.crop
        scores = score_crops(classifier, image, chosen, crop=config.crop, size=size)
    if not bool(torch.isfinite(scores).all()):
        raise DataError("scores that aren't finite: are the classifier's weights the right ones?")
    return scores


def evaluate_classifier(
    run: Path,
    *,
    overrides: Mapping[str, object] | None = None,
    device: str = "auto",
) -> list[TestResult]:
    """Evaluate a run's best classifier on its validation set, with every set of views of `test`.

    Writes `RUN/eval/classifier.json`.

    Args:
        overrides: fields of the run's `test` settings to replace.

    Raises:
        ConfigError: the run's settings name no validation set.
    """
    config = read_classifier_config(run)
    given = {**config.test.model_dump(), **(overrides or {})}
    test = check_config(given, "test", TestConfig)
    classifier = load_classifier(run).to(choose_device(device))
    _, images = read_sets(config.data, workers=worker_count(config.workers))
    if images is None:
        raise ConfigError(f"{run}: data.val names no images to test on")
    results = []
    for views in test.views:
        ranks, seconds = [], 0.0
        decoded = ordered_map(images.read, range(len(images)), workers=worker_count(config.workers))
        rows = zip(decoded, images.labels.tolist(), images.paths, strict=True)
        for image, label, path in track(rows, total=len(images), label=views):
            start = time.perf_counter()
            with image_named(path):
                scores = score_image(classifier, image, views, test)
            ranks.append(int((scores > scores[label]).sum()))  # waits for the GPU
            seconds += time.perf_counter() - start
        found = np.array(ranks)
        result = TestResult(
            views,
            float((found < 1).mean()),
            float((found < 5).mean()),
            len(images),
            seconds / len(images),
        )
        results.append(result)
        LOGGER.log(
            RESULT,
            "%s: top-1 %.4f, top-5 %.4f on %d images, %.3f s an image",
            *(views, result.top1, result.top5, result.images, result.seconds),
        )
    write_json(
        run / "eval" / "classifier.json",
        {"test": test.model_dump(), "results": [vars(result) for result in results]},
    )
    return results


def check_answers_file(path: Path) -> None:
    """Refuse to overwrite a file that `classify --json` hasn't written.

    Raises:
        ConfigError: the path is something else, or its folder isn't writable.
    """
    if os.path.lexists(path):
        try:
            answers = read_json(path) if path.is_file() else None
        except ArtifactError:
            answers = None
        keys = {"file", "classes"}
        if not isinstance(answers, list) or any(
            not isinstance(answer, dict) or answer.keys() != keys for answer in answers
        ):
            raise ConfigError(
                f"--json {path}: wasn't written by classify and isn't overwritten; expected another"
            )
    folder = path.parent
    if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ConfigError(f"--json {path}: {folder} can't be written into")


def classify_images(
    run: Path,
    paths: Sequence[Path],
    *,
    views: ViewSet,
    top: int = 5,
    device: str = "auto",
) -> Iterator[tuple[Path, list[tuple[str, float]] | str]]:
    """Find the most probable classes of every image, in the order of `find_images`.

    Yields:
        the image and its (class, probability) pairs in descending order, or its error message.
    """
    config = read_classifier_config(run)
    test = check_config({**config.test.model_dump(), "views": [views]}, "test", TestConfig)
    classifier = load_classifier(run).to(choose_device(device))
    found = find_images(paths)

    def read(path: Path) -> NDArray[np.uint8] | str:
        try:
            return read_image(path, max_pixels=config.data.max_pixels)
        except ImageError as error:
            return str(error)

    for path, image in zip(found, ordered_map(read, found, workers=available_cores()), strict=True):
        if isinstance(image, str):
            yield path, image
            continue
        try:
            with image_named(path):
                scores = score_image(classifier, image, views, test)
        except ImageError as error:
            yield path, str(error)
            continue
        scores, order = scores.sort(descending=True)
        names = [classifier.class_names[k] for k in order[:top].tolist()]
        yield path, list(zip(names, scores[:top].tolist(), strict=True))

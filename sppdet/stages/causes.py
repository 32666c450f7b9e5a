"""The diagnosis of a run: the cause of every missed object and every false detection of a split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sppdet.config import Config
from sppdet.detection.detect import select
from sppdet.detection.trace import regressed_boxes, suppressors
from sppdet.errors import ConfigError
from sppdet.evaluation.causes import CERTAIN, MIN_IOU, certain_scores, false_detections, judge
from sppdet.evaluation.groups import Grouping, GroupResult, by_group, groupings
from sppdet.evaluation.repairs import BestThreshold, Gains, Outcomes, gains
from sppdet.evaluation.traces import FalseDetection, ImageTrace, JudgedImage
from sppdet.features.backbones import ScaledImage
from sppdet.io.dataset_digest import dataset_digest
from sppdet.io.image_cache import ImageCache
from sppdet.io.names import safe_id
from sppdet.io.splits import read_split
from sppdet.parallel import ordered_map
from sppdet.runs.distributed import Ranks, process_count
from sppdet.runs.environment import worker_count
from sppdet.runs.log import LOGGER, log_file
from sppdet.runs.progress import track
from sppdet.stages.detector import Detector
from sppdet.stages.model import choose_device
from sppdet.stages.model_files import ModelFiles, read_run_config, signature
from sppdet.stages.proposer import Proposer
from sppdet.stages.thresholds import Threshold, least_scores
from sppdet.types import AnnotatedImage, Dataset, Proposals


class Prepared(NamedTuple):
    """Inputs of the detector for one image."""

    proposals: Proposals
    views: tuple[ScaledImage, ...]


@dataclass(frozen=True)
class Diagnosis:
    """All errors of a run on a split, their causes, and what repairing them would gain."""

    config: Config
    dataset: Dataset
    thresholds: NDArray[np.float64]  # (K,) minimum scores, the detector's own included
    images: tuple[JudgedImage, ...]  # in the order of the data set
    false: tuple[tuple[FalseDetection, ...], ...]  # of each image, of all scores
    gains: Gains
    groups: tuple[tuple[Grouping, tuple[GroupResult, ...]], ...]
    best: BestThreshold | None  # None without true detections

    def false_above(self, image: int) -> list[FalseDetection]:
        """List the false detections of an image at or above the thresholds."""
        found = self.images[image].detections
        enough = found.scores >= self.thresholds[found.labels - 1]
        return [one for one in self.false[image] if enough[one.row]]


def diagnose_run(
    run: Path,
    split: str = "test",
    *,
    wanted: Threshold | float | NDArray[np.float64] | None = None,
    device: str = "auto",
) -> Diagnosis:
    """Detect in every image of a split and find the cause of every error.

    Prints tables and advice, and writes `run/eval/<split>/causes.json`. The run's proposals are used
    where they are stored, else computed and stored; detections are computed again.

    Args:
        wanted: what detections count: as `sppdet detect` takes it (None: the best F1), or a minimum score
            for all classes or (K,) for each.

    Raises:
        ConfigError: several processes call, or there are as many thresholds as classes neither.
        ArtifactError: not a run, or its training isn't finished.
    """
    from sppdet.stages.causes_report import report

    if process_count() > 1:
        raise ConfigError("diagnose: runs in one process")
    config = read_run_config(run)  # before anything is logged into a folder that is no run
    ranks = Ranks(device=choose_device(device))
    detector = Detector.load(run, device=ranks.device)
    with log_file(run, ranks):
        images = ImageCache.load(run / "images.json", max_pixels=config.data.max_pixels)
        dataset = read_split(
            config.data,
            split,
            detector.class_names,
            images,
            workers=worker_count(config.workers),
        )
        images.save(run / "images.json")
        thresholds = wanted
        if thresholds is None or isinstance(thresholds, Threshold):
            least, text = least_scores(detector, thresholds or Threshold())
            LOGGER.info("detections with %s", text)
            thresholds = least.astype(np.float64)
        found = diagnose(run, config, detector, dataset, images, thresholds=thresholds)
        train, test = ModelFiles(run).training_data(), dataset_digest(dataset, images)
        folder = run / "eval" / safe_id(split)
        report(found, folder, signature=signature(config, train=train, test=test))
        LOGGER.info("every missed object and false detection is in %s", folder / "causes.json")
    return found


def diagnose(
    run: Path,
    config: Config,
    detector: Detector,
    dataset: Dataset,
    images: ImageCache,
    *,
    thresholds: float | NDArray[np.float64],
) -> Diagnosis:
    """Diagnose a detector on a data set; see `diagnose_run`."""
    lowest = _lowest(detector, thresholds)
    proposer = Proposer(config.proposals, config.store or run / "store")
    finest = max(config.spp_levels)

    def prepare(image: AnnotatedImage) -> Prepared:
        pixels = images.read(image.path)
        return Prepared(proposer.of_image(image, images), detector.prepare(pixels))

    judged = []
    prepared = ordered_map(prepare, dataset.images, workers=worker_count(config.workers))
    pairs = zip(dataset.images, prepared, strict=True)
    for image, inputs in track(pairs, total=len(dataset), label=f"diagnosing, {dataset.name}"):
        traced = trace_image(detector, image, inputs, config.scales)
        judged.append(judge(traced, lowest, finest_level=finest))
    softmax = detector.classifiers.kind == "softmax"
    if detector.calibration is not None:
        certain = detector.calibration.scores_at(CERTAIN)
    else:
        certain = certain_scores(judged, lowest, probabilities=softmax)
    false = [false_detections(image, certain) for image in judged]
    return Diagnosis(
        config,
        dataset,
        lowest,
        tuple(judged),
        tuple(map(tuple, false)),
        gains(judged, false, min_score=detector.min_score),
        tuple(
            (grouping, tuple(by_group(judged, grouping, lowest)))
            for grouping in groupings(judged, config.scales)
        ),
        Outcomes.of(judged).best_threshold(),
    )


def trace_image(
    detector: Detector, image: AnnotatedImage, inputs: Prepared, scales: list[int]
) -> ImageTrace:
    """Detect in an image and keep the results of every stage.

    Args:
        scales: image scales of the settings, in pixels.
    """
    width, height = image.width, image.height
    maps, *mirrored = (detector.maps.compute(view) for view in inputs.views)
    scored = detector.score_in(
        maps, inputs.proposals, width=width, mirrored=mirrored[0] if mirrored else None
    )
    selection = select([scored], detector.config, width=width, height=height)
    windows = detector.extractor.windows(maps, scored.boxes)
    of_objects = detector.extractor.windows(maps, image.gt_boxes)
    # `features.max_side` may have made a scale smaller than the settings say
    shorter = maps.scale_factors * min(width, height)
    nearest = np.abs(np.array(scales)[None, :] - shorter[:, None]).argmin(axis=1)  # [S]
    return ImageTrace(
        gt_boxes=image.gt_boxes,
        gt_labels=image.gt_labels,
        difficult=image.difficult,
        truncated=image.truncated,
        gt_cells=of_objects.cells[of_objects.index],
        proposals=inputs.proposals.boxes,
        windows=scored.boxes,
        cells=windows.cells[windows.index],
        scores=scored.scores,
        regressed=regressed_boxes(
            scored,
            selection,
            detector.config,
            targets=image.gt_boxes,
            labels=image.gt_labels,
            min_iou=MIN_IOU,
            width=width,
            height=height,
        ),
        suppressor=suppressors(scored, selection, detector.config),
        detections=selection.detections,
        rows=selection.rows,
        scales_px=np.array(scales, dtype=np.int64)[nearest],
    )


def _lowest(detector: Detector, thresholds: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Expand thresholds to (K,), none of them below the detector's own minimum score."""
    count = len(detector.class_names)
    given = np.asarray(thresholds, dtype=np.float64)
    if given.shape not in ((), (count,)) or not np.isfinite(given).all():
        raise ConfigError(f"thresholds: expected one number, or one for each of {count} classes")
    if (given < detector.min_score).any():
        LOGGER.info("thresholds: the run's detect.min_score is %s", detector.min_score)
    return np.maximum(np.broadcast_to(given, count), detector.min_score)

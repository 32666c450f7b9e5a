"""The evaluation of several runs as one detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sppdet.errors import ConfigError
from sppdet.features.backbones import ScaledImage
from sppdet.io.dataset_digest import dataset_digest
from sppdet.io.image_cache import ImageCache
from sppdet.io.splits import read_split
from sppdet.runs.artifacts import fingerprint
from sppdet.runs.distributed import Ranks, process_count
from sppdet.runs.environment import worker_count
from sppdet.runs.items import ItemStore
from sppdet.runs.log import LOGGER
from sppdet.runs.places import claim_folder
from sppdet.stages.combined import CombinedDetector
from sppdet.stages.detector import Detector
from sppdet.stages.evaluate import Metric, detect_missing, expected_types, score, write_scores
from sppdet.stages.model import choose_device
from sppdet.stages.model_files import read_run_config, settings_fingerprint
from sppdet.stages.proposer import Proposer
from sppdet.stages.trained_model import TrainedModel
from sppdet.types import AnnotatedImage, Detections, EvalResult, Proposals
from sppdet.version import __version__

Prepared = tuple[list[Proposals], dict[tuple[str, bool], ScaledImage]]


def evaluate_runs(
    runs: Sequence[Path],
    out: Path,
    split: str,
    *,
    metric: Metric | None = None,
    device: str = "auto",
) -> EvalResult:
    """Combine the detectors of several runs and score them on a split into `out`.

    The first run's settings of data, `detect` (but `flip`, `svd` and `max_windows`) and `eval` apply.
    Detections are kept in `out`, so that another metric needs no second detection.

    Args:
        runs: two or more, of the same classes; those after the first may be model files.
        out: a folder that is new, empty, or has the results of an earlier call.

    Raises:
        ArtifactError: `out` has files that no such call has written, or a run isn't trained.
        ConfigError: the runs' classes differ, or several processes call.
    """
    if process_count() > 1:
        raise ConfigError("eval: several runs are combined in one process")
    ranks = Ranks(device=choose_device(device))
    first = read_run_config(runs[0])
    models = [TrainedModel.open(run) for run in runs]
    detectors = [Detector.of(model, device=ranks.device) for model in models]
    combined = CombinedDetector.of(detectors)
    configs = [model.config for model in models]
    claim_folder(out, command="eval", shared=False)
    images = ImageCache.load(runs[0] / "images.json", max_pixels=first.data.max_pixels)
    workers = worker_count(first.workers)
    dataset = read_split(first.data, split, combined.class_names, images, workers=workers)
    proposers = [
        Proposer(config.proposals, None if run.is_file() else config.store or run / "store")
        for config, run in zip(configs, runs, strict=True)
    ]

    def prepare(image: AnnotatedImage) -> Prepared:
        views = combined.prepare(images.read(image.path))
        different = {proposer.fingerprint: proposer for proposer in proposers}
        found = {key: proposer.of_image(image, images) for key, proposer in different.items()}
        return [found[proposer.fingerprint] for proposer in proposers], views

    def detect(image: AnnotatedImage, prepared: Prepared) -> Detections:
        proposals, views = prepared
        return combined.detect_prepared(views, proposals, width=image.width, height=image.height)

    made_by = fingerprint("combined", [one.made_by for one in detectors])
    detections, _ = detect_missing(
        ItemStore(out / "store", "detections", made_by, expected_types),
        dataset,
        images,
        ranks,
        names=combined.class_names,
        prepare=prepare,
        detect=detect,
        workers=workers,
    )
    result = score(dataset, detections, metric=metric or first.eval.metric)
    parts = [
        f"nets:{'+'.join(config.backbone.name for config in configs)}",
        f"settings:{'+'.join(map(settings_fingerprint, configs))}",
        f"test:{dataset_digest(dataset, images)[:8]}",
        f"sppdet:{__version__}",
    ]
    write_scores(
        result, first.data, dataset, detections, out, signature="|".join(parts), split=split
    )
    LOGGER.info("reports are in %s", out)
    return result

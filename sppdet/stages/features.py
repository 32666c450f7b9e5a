"""The features stage: compute the maps that later stages need."""

from __future__ import annotations

from sppdet.features.regions import FeatureExtractor
from sppdet.runs.environment import worker_count
from sppdet.stages.backbone import untrained_head
from sppdet.stages.context import Context, Stage
from sppdet.stages.crossfit import Folds
from sppdet.stages.map_cache import MapCache
from sppdet.stages.map_memory import MapMemory
from sppdet.stages.plan import Part, TrainingPlan
from sppdet.stages.training_data import TrainingData


def compute_maps(context: Context) -> bool:
    """Plan what must be trained and store its feature maps; returns False if none were computed."""
    config, ranks = context.config, context.ranks
    maps = MapCache(context.backbone, config.scales, config.features, context.images, context.store)
    context.files.check_arithmetic(config, maps.arithmetic)
    context.training_data = TrainingData(
        dataset=context.training_set,
        images=context.images,
        proposer=context.proposer,
        maps=maps,
        extractor=FeatureExtractor.by(config.spp_levels, config.features, None, ranks.device),
        folder=context.run,
        seed=config.seed,
        checkpoint_seconds=60 * config.checkpoint_minutes,
        ranks=ranks,
    )
    classes = len(context.training_set.class_names)
    context.initial_head = untrained_head(context.backbone, config, classes=classes)
    context.folds = Folds.of(config, context.training_data)
    context.plan = TrainingPlan.of(
        config, context.training_data, context.initial_head, context.folds, context.files
    )
    if config.tunes_conv():
        return False  # the maps of later stages are the tuned layers'
    return ranks.sums([fill(context, maps)])[0] > 0


def fill(context: Context, maps: MapCache) -> int:
    """Store the maps of what is due; all maps, and on disk, where this is the last stage."""
    config, alone = context.config, context.last_stage == "features"
    stages: dict[Part, Stage] = {
        "head": "finetune",
        "ranking": "ranking",
        "svm": "svm",
        "bbox": "bbox",
        "calibration": "calibrate",
    }
    due = {part for part, stage in stages.items() if alone or context.reaches(stage)}
    if not alone:
        due &= context.plan.due
    if "head" not in context.plan.made_by or config.finetune is None or config.finetune.on_images:
        due.discard("head")  # which takes no maps
    if "ranking" not in context.plan.made_by:
        due.discard("ranking")
    if config.calibrate is None or config.classifier == "softmax":
        due.discard("calibration")  # the latter looks at few images
    if config.classifier == "softmax":
        due.discard("svm")
    if config.bbox is not None and config.bbox.source == "finetune":
        due.discard("bbox")
    if not due:
        return 0
    if not alone:
        maps.keep_in_memory(MapMemory.by_what_is_free(maps.device))
    return maps.fill(
        context.ranks.share(context.training_set.images),
        mirrored="head" in due and config.finetune is not None and config.finetune.flip,
        workers=worker_count(config.workers),
    )

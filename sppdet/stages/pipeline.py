"""The stages in order: data, proposals, features, finetune, svm, bbox, evaluate.

Each stage finds what is there already by its fingerprint, so that a run that was interrupted, or
whose settings have changed, does again only what it must.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from sppdet.config import Config, worker_count
from sppdet.errors import TrainingError
from sppdet.features.backbones import Backbone
from sppdet.features.head import Head, build_head, check_start, pretrained_fc
from sppdet.features.regions import Extractor
from sppdet.io import plain_yaml
from sppdet.io.backbone_weights import load_backbone
from sppdet.io.dataset_digest import dataset_digest
from sppdet.io.image_cache import ImageCache
from sppdet.io.splits import read_split
from sppdet.runs.artifacts import (
    fingerprint,
    fingerprint_of,
    is_intact,
    remove_leftovers,
    write_text,
)
from sppdet.runs.distributed import Ranks, joined_ranks
from sppdet.runs.run import Reporter, held_run
from sppdet.stages.bbox import train_box_regressors
from sppdet.stages.evaluate import evaluate_run
from sppdet.stages.finetune import finetune
from sppdet.stages.map_memory import MapMemory
from sppdet.stages.maps import MapSource, weights_digest
from sppdet.stages.material import Material
from sppdet.stages.model import (
    choose_device,
    read_head,
    save_backbone,
    save_classifiers,
    save_head,
    save_regressors,
)
from sppdet.stages.model_files import ModelFiles
from sppdet.stages.plan import Plan
from sppdet.stages.proposals import Proposer
from sppdet.stages.svm import train_svms
from sppdet.types import Dataset, EvalResult

Stage = Literal["data", "proposals", "features", "finetune", "svm", "bbox", "evaluate"]
STAGES: tuple[Stage, ...] = (
    "data",
    "proposals",
    "features",
    "finetune",
    "svm",
    "bbox",
    "evaluate",
)


def train(
    config: Config,
    run: Path,
    *,
    device: str = "auto",
    until: Stage = "evaluate",
    reporter: Reporter | None = None,
) -> EvalResult | None:
    """Train a detector in the folder `run`, going on where an earlier call stopped.

    Under `torchrun` all its processes train together, each with a share of the images and of the
    classes; the folder, and the store where one is named, must be the same for all of them.

    Returns:
        the evaluation on the test set, where one is named and `until` reaches so far.

    Raises:
        ArtifactError: another process is training in this folder.
        ConfigError: no training set is named.
    """
    config.data.sets_of("train")  # without one nothing need be made
    with joined_ranks(choose_device(device)) as ranks:
        with held_run(run, ranks, reporter) as speaking:
            result = _train(config, run, ranks, until=until, reporter=speaking)
        speaking.say(f"the run is in {run}")
        return result


def _train(
    config: Config, run: Path, ranks: Ranks, *, until: Stage, reporter: Reporter
) -> EvalResult | None:
    last = STAGES.index(until)
    files = ModelFiles(run)
    reporter.log(
        "run started", config=config.model_dump(mode="json"), until=until, processes=ranks.count
    )

    with reporter.stage("data"), ranks.first_goes_first():
        images = ImageCache.load(run / "images.json", max_pixels=config.data.max_pixels)
        training_set, test_set = read_data(config, images, reporter=reporter)
        _check_positives(training_set)
        if ranks.is_first:
            images.save(run / "images.json")
            if not files.sealed.is_file():  # a trained model keeps the settings it was trained by
                write_text(files.config, plain_yaml.dump(config.to_plain()))
        if last >= STAGES.index("features"):
            # before the long stages: weights that are missing or don't fit end the run here
            backbone = _backbone(config, files, ranks)
            check_start(backbone, config)
    if last < STAGES.index("proposals"):
        return None

    store = config.store or run / "store"
    if ranks.is_first:
        remove_leftovers(
            store
        )  # it may lie outside of the run, and other runs may be at work in it
    with reporter.stage("proposals"):
        proposer = Proposer(config.proposals, store)
        datasets = [dataset for dataset in (training_set, test_set) if dataset is not None]
        _propose(proposer, datasets, images, ranks, worker_count(config.workers), reporter)
    if last < STAGES.index("features"):
        return None

    with reporter.stage("features"):
        maps = MapSource(backbone, config.scales, config.features, images, store)
        files.check_arithmetic(config, maps.arithmetic)
        material = Material(
            dataset=training_set,
            images=images,
            proposer=proposer,
            maps=maps,
            extractor=Extractor.by(config.spp_levels, config.features, None, ranks.device),
            folder=run,
            seed=config.seed,
            checkpoint_seconds=60 * config.checkpoint_minutes,
            reporter=reporter,
            ranks=ranks,
        )
        classes = len(training_set.class_names)
        start = None
        if config.head is not None:
            start = build_head(
                backbone, config.spp_levels, config.head, outputs=classes + 1, seed=config.seed
            )
        plan = Plan.of(config, material, start, files)
        _features(config, material, plan, until=until)
    if last < STAGES.index("finetune"):
        return None

    with reporter.stage("finetune"):
        head = _head(config, material, backbone, start, files, plan)
        start = None  # it was fine-tuned in place; its gradients take as much room as it does
    if last < STAGES.index("svm"):
        return None

    material = material.with_head(head)
    with reporter.stage("svm"):
        _svms(config, material, files, plan)
    if last < STAGES.index("bbox"):
        return None

    with reporter.stage("bbox"):
        _regressors(config, material, files, plan)
    maps.keep_in_memory(None)
    if ranks.is_first:
        data = dataset_digest(training_set, images)
        files.seal(config, training_data=data, arithmetic=maps.arithmetic)
        shutil.rmtree(run / "state", ignore_errors=True)  # all that was unfinished is finished
    ranks.wait()  # the others evaluate what is sealed
    reporter.log("trained", svm=plan.svm)
    if last < STAGES.index("evaluate") or test_set is None:
        return None
    result = evaluate_run(run, "test", reporter=reporter, ranks=ranks)
    _say_skipped((training_set, test_set), reporter)
    return result


def _propose(
    proposer: Proposer,
    datasets: Sequence[Dataset],
    images: ImageCache,
    ranks: Ranks,
    workers: int,
    reporter: Reporter,
) -> None:
    """Search in the images that aren't in the store yet and measure what covers the objects."""
    made = 0
    for dataset in datasets:
        made += proposer.fill(
            ranks.share(dataset.images),
            images,
            workers=workers,
            reporter=reporter,
            label=dataset.name,
        )
    if sum(ranks.sums([made])) == 0:
        reporter.nothing_done()
    if ranks.is_first:
        for dataset in datasets:
            proposer.measure(dataset, images, reporter=reporter)


def read_data(
    config: Config, images: ImageCache, *, reporter: Reporter
) -> tuple[Dataset, Dataset | None]:
    """The training set and, where one is named, the test set with the same classes."""
    workers = worker_count(config.workers)
    training_set = read_split(config.data, "train", None, images, workers=workers)
    splits = [("train", training_set)]
    test_set = None
    if config.data.test is not None:
        names = training_set.class_names
        test_set = read_split(config.data, "test", names, images, workers=workers)
        splits.append(("test", test_set))
    for name, dataset in splits:
        objects = sum(len(image.gt_boxes) for image in dataset.images)
        reporter.say(
            f"{name}: {dataset.name}, {len(dataset)} images, {objects} objects of "
            f"{len(dataset.class_names)} classes",
            "data",
            split=name,
            skipped=dataset.skipped,
            clipped_boxes=dataset.clipped_boxes,
        )
    _say_skipped((training_set, test_set), reporter)
    return training_set, test_set


def _say_skipped(datasets: Iterable[Dataset | None], reporter: Reporter) -> None:
    for dataset in datasets:
        for line in dataset.skipped if dataset is not None else ():
            reporter.say(f"skipped: {line}", "skipped")


def _check_positives(dataset: Dataset) -> None:
    """Refuse a class that no SVM could be trained for."""
    labels = [image.gt_labels[~image.difficult] for image in dataset.images]
    counts = np.bincount(np.concatenate(labels), minlength=len(dataset.class_names) + 1)
    for name, count in zip(dataset.class_names, counts[1:], strict=True):
        if count == 0:
            raise TrainingError(
                f"class {name}: no positive in {dataset.name}; expected one object or more that "
                "isn't difficult"
            )


def _backbone(config: Config, files: ModelFiles, ranks: Ranks) -> Backbone:
    """The convolutional layers by the settings, kept in the run."""
    backbone = load_backbone(config.backbone.name, config.backbone.weights, seed=config.seed)
    made_by = fingerprint("backbone", config.backbone.name, weights_digest(backbone.layers))
    if ranks.is_first and not is_intact(files.backbone, made_by):
        save_backbone(files.backbone, backbone, made_by=made_by)
    backbone.layers.to(ranks.device)
    return backbone


def _features(config: Config, material: Material, plan: Plan, *, until: Stage) -> None:
    """Make the maps that the stages which are due need; `until` features: all, and on disk."""
    maps, ranks = material.maps, material.ranks
    parts = {"finetune": "head", "svm": "svm", "bbox": "bbox"}
    wanted = {part for stage, part in parts.items() if STAGES.index(stage) <= STAGES.index(until)}
    due = set(parts.values()) if until == "features" else set(plan.due & wanted)
    if plan.head is None or config.finetune is None:
        due.discard("head")  # no maps are looked at for it
    made = 0
    if due:
        if until != "features":
            maps.keep_in_memory(MapMemory.by_what_is_free(maps.device))
        tuning = config.finetune if "head" in due else None
        made = maps.fill(
            ranks.share(material.dataset.images),
            mirrored=tuning is not None and tuning.flip,
            workers=worker_count(config.workers),
            reporter=material.reporter,
        )
    if sum(ranks.sums([made])) == 0:
        material.reporter.nothing_done()


def _head(
    config: Config,
    material: Material,
    backbone: Backbone,
    start: Head | None,
    files: ModelFiles,
    plan: Plan,
) -> Head | None:
    """The fully connected layers, fine-tuned where that is asked for."""
    ranks = material.ranks
    if config.head is None or start is None or plan.head is None:
        if ranks.is_first:
            files.head.unlink(missing_ok=True)
        return None
    if config.finetune is None:
        if ranks.is_first and "head" in plan.due:
            save_head(files.head, start.eval().requires_grad_(False), made_by=plan.head)
        ranks.wait()  # the others read it
    elif _is_due("head", files.head, plan.head, plan, material.reporter):
        pretrained = pretrained_fc(backbone, config.head) is not None
        tuned = finetune(material, start, config.finetune, pretrained=pretrained, made_by=plan.head)
        if ranks.is_first:
            save_head(files.head, tuned, made_by=plan.head)
        ranks.wait()  # the others read it
    classes = len(material.dataset.class_names)
    return read_head(files.head, backbone, config, classes=classes).to(material.maps.device)


def _svms(config: Config, material: Material, files: ModelFiles, plan: Plan) -> None:
    if _is_due("svm", files.svm, plan.svm, plan, material.reporter):
        classifiers = train_svms(material, config.svm_layer(), config.svm, made_by=plan.svm)
        if material.ranks.is_first:
            names = material.dataset.class_names
            save_classifiers(files.svm, classifiers, names, made_by=plan.svm)


def _regressors(config: Config, material: Material, files: ModelFiles, plan: Plan) -> None:
    if config.bbox is None or plan.bbox is None:
        if material.ranks.is_first:
            files.bbox.unlink(missing_ok=True)
    elif _is_due("bbox", files.bbox, plan.bbox, plan, material.reporter):
        width = material.extractor.width(config.bbox.layer, material.maps.channels)
        regressors = train_box_regressors(
            material, config.bbox, config.svm, width=width, made_by=plan.bbox
        )
        if material.ranks.is_first:
            save_regressors(files.bbox, regressors, made_by=plan.bbox)


def _is_due(part: str, path: Path, made_by: str, plan: Plan, reporter: Reporter) -> bool:
    """Whether a part must be trained; says what was found."""
    if part not in plan.due:
        reporter.say(f"{part}: there already", "stage skipped", part=part)
        reporter.nothing_done()
        return False
    if path.exists():
        reason = "made by other settings or data"
        if fingerprint_of(path) in (None, made_by):
            reason = "damaged, or written by an earlier version"
        reporter.say(f"{part}: {reason}; done anew", "stage redone")
    return True

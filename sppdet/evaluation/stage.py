"""The evaluation of a run on a split: detections picture by picture, then the metric."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sppdet.artifacts import ItemStore, fingerprint
from sppdet.config import Config, DataConfig
from sppdet.config_file import load_config
from sppdet.data.cache import PictureCache
from sppdet.data.coco import coco_file
from sppdet.data.images import read_image
from sppdet.data.splits import read_split
from sppdet.detection.detector import VERSION as DETECTION_VERSION
from sppdet.detection.detector import Detector
from sppdet.evaluation.coco import evaluate_coco
from sppdet.evaluation.coco_results import ids_from_annotations, write_coco_results
from sppdet.evaluation.comp4 import write_comp4
from sppdet.evaluation.files import read_detections
from sppdet.evaluation.report import print_table, write_report
from sppdet.evaluation.voc import evaluate_voc
from sppdet.model import ModelFiles, load_detector, read_run_config
from sppdet.parallel import ordered_map
from sppdet.proposals.stage import Proposer
from sppdet.run import Reporter
from sppdet.types import AnnotatedImage, Dataset, Detections, EvalResult, FeatureMaps, Proposals
from sppdet.version import __version__

Metric = Literal["voc07", "voc10", "coco"]


def evaluate_run(
    run: Path,
    split: str,
    *,
    metric: Metric | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> EvalResult:
    """Detect in every picture of a split and score the detections into `run/eval/<split>`.

    Detections are kept, so that another metric needs no second detection.
    """
    reporter = reporter or Reporter(run)
    config = read_run_config(run)
    with reporter.stage("evaluate"):
        detector = load_detector(run, device=device)
        pictures = PictureCache.load(run / "pictures.json")
        names, workers = detector.class_names, config.worker_count()
        dataset = read_split(config.data, split, names, pictures, workers=workers)
        pictures.save(run / "pictures.json")
        detections = _detect_all(run, config, detector, dataset, pictures, reporter)
        folder = run / "eval" / split
        return score(
            config.data,
            dataset, detections, folder, metric=metric or config.eval.metric,
            signature=signature(config), split=split, reporter=reporter,
        )  # fmt: skip


def score(
    data: DataConfig,
    dataset: Dataset,
    detections: dict[str, Detections],
    folder: Path,
    *,
    metric: Metric,
    signature: str,
    split: str,
    reporter: Reporter,
) -> EvalResult:
    """Score detections of a split and write all reports into `folder`; prints the table."""
    if metric == "coco":
        result = evaluate_coco(dataset, detections)
    else:
        result = evaluate_voc(dataset, detections, metric=metric)
    write_report(result, folder, signature=signature)
    # the devkit's files are named by the set alone
    set_name = "+".join(dict.fromkeys(Path(name).stem for name in data.sets_of(split) if name))
    write_comp4(folder, replace(dataset, name=set_name), detections)
    ids = _coco_ids(data, dataset, split)
    write_coco_results(folder / "coco_results.json", dataset, detections, **ids)
    print_table(result, reporter.console, signature=signature)
    reporter.log("evaluated", metric=metric, split=split, mean_ap=result.mean_ap)
    return result


def _coco_ids(data: DataConfig, dataset: Dataset, split: str) -> dict[str, Any]:
    """The ids of COCO annotations; none (our own) for VOC's, or where several files are joined."""
    used = [(r, s) for r, s in zip(data.root, data.sets_of(split), strict=True) if s is not None]
    if data.format != "coco" or len(used) != 1:
        return {}
    image_ids, category_ids = ids_from_annotations(coco_file(*used[0]), dataset)
    return {"image_ids": image_ids, "category_ids": category_ids}


def signature(config: Config) -> str:
    """A short line that names the settings behind a score."""
    levels = "+".join(map(str, config.spp_levels))
    scales = "+".join(map(str, config.scales))
    parts = [
        f"net:{config.backbone.name}",
        f"scales:{scales}",
        f"spp:{levels}",
        f"svm:{config.svm_layer()}",
        f"ft:{'yes' if config.head and config.finetune else 'no'}",
        f"bb:{'yes' if config.bbox else 'no'}",
        f"prop:{config.proposals.engine}.{config.proposals.mode}",
        f"seed:{config.seed}",
        f"settings:{_settings_fingerprint(config)}",
        f"sppdet:{__version__}",
    ]
    return "|".join(parts)


def _settings_fingerprint(config: Config) -> str:
    """Of what can change the result: not of folders, threads or how often work is saved."""
    aside = {"store", "workers", "checkpoint_minutes"}
    raw = config.model_dump(mode="json", exclude=aside)
    raw["data"] = {k: v for k, v in raw["data"].items() if k not in ("root", "images")}
    raw["features"].pop("store")
    raw["backbone"]["weights"] = Path(raw["backbone"]["weights"]).name
    return fingerprint(raw)[:8]


def _detect_all(
    run: Path,
    config: Config,
    detector: Detector,
    dataset: Dataset,
    pictures: PictureCache,
    reporter: Reporter,
) -> dict[str, Detections]:
    """Detections of every picture by its id, from the run's store where they are there already."""
    proposer = Proposer(config.proposals, config.store or run / "store")
    made_by = fingerprint(
        "detections",
        DETECTION_VERSION,
        ModelFiles(run).fingerprint(),
        proposer.fingerprint,
        detector.maps.fingerprint,
        config.spp_levels,
        config.features.canonical_size,
        config.detect.model_dump(),
    )
    store = ItemStore(run / "store", "detections", made_by)

    def prepare(image: AnnotatedImage) -> tuple[AnnotatedImage, Proposals | None]:
        digest = pictures.digest(image.path)
        done = store.has(image.id, digest)
        return image, None if done else proposer.of_image(image, digest)

    def maps_of(image: AnnotatedImage) -> FeatureMaps:
        return detector.maps.compute(read_image(image.path))

    found, new = {}, 0
    prepared = ordered_map(prepare, dataset.images, workers=config.worker_count())
    label = f"detecting, {dataset.name}"
    for image, proposals in reporter.track(prepared, total=len(dataset), label=label):
        if proposals is not None:
            made = detector.detect_in(
                maps_of(image), proposals, width=image.width, height=image.height
            )
            _store(store, image, pictures.digest(image.path), made)
            new += 1
        found[image.id] = _stored(store, image, pictures.digest(image.path), detector.class_names)
    if new == 0:
        reporter.nothing_done()
    return found


def _store(store: ItemStore, image: AnnotatedImage, digest: str, found: Detections) -> None:
    arrays = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels}
    tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()}
    store.write(image.id, digest, tensors)


def _stored(
    store: ItemStore, image: AnnotatedImage, digest: str, names: tuple[str, ...]
) -> Detections:
    t = store.read(image.id, digest)
    boxes, scores, labels = (t[k].numpy() for k in ("boxes", "scores", "labels"))
    return Detections(boxes, scores, labels, names, str(image.path))


def evaluate_files(
    config_path: Path, detections: Path, out: Path, *, split: str, metric: Metric | None
) -> EvalResult:
    """Score detections made elsewhere into `out`; annotations are needed, pictures are not.

    Args:
        detections: a folder of comp4 files, or COCO results.
    """
    config = load_config(config_path)
    workers = config.worker_count()
    names = None
    if config.data.classes == "auto":
        names = read_split(config.data, "train", None, None, workers=workers).class_names
    dataset = read_split(config.data, split, names, None, workers=workers)
    found = read_detections(detections, dataset, **_coco_ids(config.data, dataset, split))
    return score(
        config.data,
        dataset,
        found,
        out,
        metric=metric or config.eval.metric,
        signature=f"detections:{detections.name}|sppdet:{__version__}",
        split=split,
        reporter=Reporter(),
    )

"""The demo: paint a data set, train a small backbone on its crops, train and use a detector."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from sppdet.classification.config import PretrainConfig
from sppdet.classification.crops import VERSION as CROPS_VERSION
from sppdet.classification.crops import CropConfig, write_crops
from sppdet.classification.stage import pretrain
from sppdet.config import Config
from sppdet.demo.set import GENERATOR_VERSION, make_demo_set
from sppdet.errors import DataError
from sppdet.folders.folder import detect_folder
from sppdet.folders.formats import FORMATS
from sppdet.io.files import read_text
from sppdet.io.image_cache import ImageCache
from sppdet.io.packaged_configs import packaged_config
from sppdet.io.settings import load_config, load_settings
from sppdet.io.splits import read_split
from sppdet.runs.artifacts import fingerprint, remove_leftovers, write_text
from sppdet.runs.environment import available_cores
from sppdet.runs.log import LOGGER, RESULT
from sppdet.stages.detector import Detector
from sppdet.stages.pipeline import train
from sppdet.stages.report import metric_title
from sppdet.stages.thresholds import Threshold, least_scores

BACKBONE_SETTINGS = Path(__file__).with_name("backbone.yaml")
_ROUNDS = 4  # of crops per image
_UNFINISHED = "unfinished"


def run_demo(
    out: Path,
    *,
    seed: int,
    train_images: int = 240,
    test_images: int = 80,
    fresh_images: int = 12,
    backbone_epochs: int | None = None,
    overrides: tuple[str, ...] = (),
) -> float:
    """Paint the set, train on it, evaluate, detect in fresh images; return the mAP.

    Args:
        out: folder for `set` (the images), `crops` (the backbone's training images), `backbone` and
            `run` (the two runs) and `detections`. What the same arguments have made is used again.
        backbone_epochs: None takes the settings' number.
    """
    LOGGER.info("demo: painting %d images", train_images + test_images + fresh_images)
    root = make_demo_set(
        out / "set",
        seed=seed,
        train_images=train_images,
        test_images=test_images,
        fresh_images=fresh_images,
    )
    backbone = out / "backbone"
    config = load_config(
        packaged_config("demo"),
        [f"data.root={root}", f"backbone.weights={backbone}", f"seed={seed}", *overrides],
    )
    _train_backbone(backbone, config, epochs=backbone_epochs)
    result = train(config, out / "run", device="cpu")
    if result is None:
        raise ValueError("the demo's settings name no test set")

    detector = Detector.load(out / "run", device="cpu")
    least, text = least_scores(detector, Threshold())
    LOGGER.info("detecting in fresh images, %s", text)
    found = detect_folder(
        detector,
        [root / "fresh"],
        out / "detections",
        min_score=least,
        formats=FORMATS,
        workers=available_cores(),
    )
    LOGGER.info("%d detections in %d fresh images", found.detections, found.detected)
    LOGGER.log(RESULT, "%s: %.4f", metric_title(result), result.mean_ap)
    LOGGER.log(RESULT, "annotated images: %s", out / "detections" / "images")
    LOGGER.info("curves and tables: %s", out / "run" / "eval" / "test")
    return result.mean_ap


def _made_by(note: Path) -> str:
    """Read the fingerprint of the crops beside `note`; "" if there are none.

    Raises:
        DataError: the folder holds something other than the demo's crops.
    """
    folder = note.parent
    remove_leftovers(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return ""
    found = read_text(note, DataError) if folder.is_dir() and note.is_file() else ""
    if found != _UNFINISHED and not re.fullmatch("[0-9a-f]{16}", found):
        raise DataError(f"{folder}: wasn't made by the demo; expected another --out, or none")
    return found


def _train_backbone(run: Path, config: Config, *, epochs: int | None) -> None:
    """Train the small backbone as a classifier on crops of the training images."""
    dataset = read_split(config.data, "train", None, ImageCache(), workers=1)
    overrides = [f"data.root={run.parent / 'crops'}", f"seed={config.seed}"]
    if epochs is not None:
        overrides.append(f"train.epochs={epochs}")
    settings = load_settings(BACKBONE_SETTINGS, PretrainConfig, overrides)
    crops = CropConfig(
        scales=tuple(config.scales),
        canonical_size=config.features.canonical_size,
        side=settings.augment.resize,
        max_side=config.features.max_side,
    )
    images = [(image.id, image.gt_boxes.tolist()) for image in dataset.images]
    made_by = fingerprint(
        "crops", CROPS_VERSION, GENERATOR_VERSION, vars(crops), config.seed, images
    )
    note = settings.data.root / "made_by.txt"
    if _made_by(note) != made_by:
        shutil.rmtree(settings.data.root, ignore_errors=True)
        write_text(note, _UNFINISHED)
        count = write_crops(dataset, settings.data.root, crops, rounds=_ROUNDS, seed=config.seed)
        write_text(note, made_by)
        LOGGER.info("backbone: %d crops of the objects and the background", count)
    pretrain(settings, run, device="cpu")

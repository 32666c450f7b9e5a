"""The demo: a set of pictures made here, a small backbone trained on its crops, a whole run."""

from __future__ import annotations

from pathlib import Path

from sppdet.artifacts import fingerprint, fingerprint_of, write_tensors
from sppdet.config import Config, available_cores
from sppdet.config_file import load_config
from sppdet.data.cache import PictureCache
from sppdet.data.demo_set import GENERATOR_VERSION, make_demo_set
from sppdet.data.splits import read_split
from sppdet.detection.detector import Detector
from sppdet.detection.folder import FORMATS, detect_folder
from sppdet.evaluation.report import metric_title
from sppdet.features.tiny import Tiny
from sppdet.pipeline import train
from sppdet.run import Reporter
from sppdet.training.crops import VERSION as CROPS_VERSION
from sppdet.training.crops import CropConfig, train_on_crops

SETTINGS = Path(__file__).with_name("demo.yaml")


def run_demo(
    out: Path,
    *,
    seed: int,
    train_images: int = 240,
    test_images: int = 80,
    fresh_images: int = 12,
    crop_steps: int = 700,
    overrides: tuple[str, ...] = (),
) -> float:
    """Make the set, train on it, evaluate, detect in fresh pictures; returns the mAP.

    Args:
        out: receives `set` (the pictures), `tiny.safetensors`, `run` and `detections`. Whatever is
            there already from the same arguments is used again.
    """
    reporter = Reporter(out / "run")
    reporter.say(f"demo: painting {train_images + test_images + fresh_images} pictures")
    root = make_demo_set(
        out / "set",
        seed=seed,
        train_images=train_images,
        test_images=test_images,
        fresh_images=fresh_images,
    )
    weights = out / "tiny.safetensors"
    config = load_config(
        SETTINGS,
        [f"data.root={root}", f"backbone.weights={weights}", f"seed={seed}", *overrides],
    )
    with reporter.stage("backbone"):
        _train_backbone(weights, config, steps=crop_steps, reporter=reporter)
    result = train(config, out / "run", device="cpu", reporter=reporter)
    if result is None:
        raise ValueError("the demo's settings name no test set")

    found = detect_folder(
        Detector.load(out / "run", device="cpu"),
        [root / "fresh"],
        out / "detections",
        min_score=0.0,
        formats=FORMATS,
        workers=available_cores(),
        reporter=reporter,
    )
    reporter.say(f"{found.detections} detections in {found.pictures} fresh pictures")
    reporter.say(f"{metric_title(result)}: {result.mean_ap:.4f}")
    reporter.say(f"annotated pictures: {out / 'detections' / 'images'}")
    reporter.say(f"curves and tables:  {out / 'run' / 'eval' / 'test'}")
    return result.mean_ap


def _train_backbone(path: Path, config: Config, *, steps: int, reporter: Reporter) -> None:
    """Train the small backbone on crops of the training pictures, unless it is there already."""
    dataset = read_split(config.data, "train", None, PictureCache(), workers=1)
    crops = CropConfig(
        scales=tuple(config.scales),
        canonical_size=config.features.canonical_size,
        max_side=config.features.max_side,
    )
    images = [(image.id, image.gt_boxes.tolist()) for image in dataset.images]
    made_by = fingerprint(
        "crops", CROPS_VERSION, GENERATOR_VERSION, vars(crops), steps, config.seed, images
    )
    if fingerprint_of(path) == made_by:
        reporter.say("backbone: there already")
        return
    reporter.say(f"backbone: {steps} steps on crops of the objects and the background")
    network = Tiny()

    def say(step: int, total: int, loss: float) -> None:
        if step % 100 == 0 or step == total:
            reporter.say(f"backbone: step {step} of {total}, loss {loss:.3f}")

    train_on_crops(
        network.features,
        network.channels,
        dataset,
        seed=config.seed,
        steps=steps,
        config=crops,
        on_progress=say,
    )
    write_tensors(path, network.features.state_dict(), made_by=made_by)

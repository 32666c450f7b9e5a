"""A small run: its settings, its training, and its files as bytes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from sppdet.config import Config
from sppdet.config_file import load_config
from sppdet.data.demo_set import make_demo_set
from sppdet.pipeline import Stage, train
from sppdet.run import Reporter
from sppdet.types import EvalResult

CommandLine = Callable[..., tuple[int, str, str]]
CLASSES = ("disc", "square", "star", "triangle")
SMALL: dict[str, Any] = {
    "backbone": {"name": "tiny", "weights": "none"},
    "proposals": {"image_width": 200, "max_boxes": 150, "min_size": 12},
    "scales": [120, 200],
    "features": {"canonical_size": 80},
    "head": {"widths": [32]},
    "finetune": {"batches": 30, "lr": 5e-3, "snapshots": 3},
    "svm": {"retrain_after": 200},  # so that mining retrains more than once
}


def small_set(folder: Path) -> Path:
    """Twelve pictures to train on, six to test, three without annotations."""
    return make_demo_set(folder, seed=3, train_images=12, test_images=6, fresh_images=3)


def write_settings(path: Path, root: Path, **more: Any) -> Path:
    """A file of small settings for the set in `root`; `more` takes the place of its sections."""
    data = {"root": str(root), "train": "trainval", "test": "test"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"data": data, **SMALL, **more}), encoding="utf-8")
    return path


def train_quietly(
    settings: Path | Config, run: Path, *overrides: str, until: Stage = "evaluate"
) -> tuple[EvalResult | None, str]:
    """Train in the folder `run`; returns the evaluation and what was said."""
    said = io.StringIO()
    config = settings if isinstance(settings, Config) else load_config(settings, overrides)
    reporter = Reporter(run, console=Console(file=said, width=200, soft_wrap=True))
    result = train(config, run, device="cpu", until=until, reporter=reporter)
    return result, said.getvalue()


def contents(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    """Every file of a folder by its name."""
    return {p.name: p.read_bytes() for p in folder.glob(pattern) if p.is_file()}


def results(run: Path) -> dict[str, bytes]:
    """What must not depend on how a run came about: the model, scores and detections."""
    scored = run / "eval" / "test"
    found = contents(run / "model") | contents(scored, "metrics.json")
    return found | contents(scored, "comp4*") | contents(scored, "coco_results.json")


def log_of(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, each of them JSON in the strict sense."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    text = (run / "log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]

"""Training from Python: settings of any kind in, the folder of the run and its evaluation out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sppdet.config import Config
from sppdet.errors import ConfigError
from sppdet.runs.log import EventCallback
from sppdet.stages import pipeline
from sppdet.stages.choice import Preset, settings_and_choice
from sppdet.stages.context import STAGES, Stage
from sppdet.stages.detector import Detector
from sppdet.stages.report import metric_title
from sppdet.types import EvalResult


@dataclass(frozen=True, repr=False)
class Trained:
    """A training: the folder of its run, and its evaluation on the test set, None without one."""

    run: Path
    result: EvalResult | None

    def __repr__(self) -> str:
        scored = "" if self.result is None else f", {metric_title(self.result)}: {self.mean_ap:.4f}"
        return f"<Trained: {self.run}{scored}>"

    @property
    def mean_ap(self) -> float:
        """The mean AP on the test set, 0 to 1.

        Raises:
            ValueError: there was no test set, or the training ended before the evaluation.
        """
        if self.result is None:
            raise ValueError(
                f"{self.run}: not evaluated: there is no test set or `until` stops before"
            )
        return self.result.mean_ap

    def load(self, *, device: str | torch.device = "auto") -> Detector:
        """Load the detector; see `Detector.load`."""
        return Detector.load(self.run, device=device)


def train(
    settings: Config | Mapping[str, Any] | Path | str,
    run: Path | str,
    *,
    device: str = "auto",
    until: Stage = "evaluate",
    preset: Preset | None = None,
    minutes: float | None = None,
    on_event: EventCallback | None = None,
) -> Trained:
    """Train a detector in the folder `run`, going on where an earlier call stopped.

    The process's environment and numbers of threads are left alone (the command line sets them, see
    `sppdet.runs.environment`), and nothing is printed: messages go to the logger `sppdet`.

    Args:
        settings: a dict such as `{"base": "squeezenet_small", "data": {"root": "photos"}}`, a YAML file,
            the name of a packaged config, or a folder of labelled images; see `sppdet.load_config`.
        run: folder of the run; a new one is made.
        device: "auto", "cpu" or "cuda".
        until: the last stage.
        preset: "fast", "balanced" or "accurate", for a folder of images alone.
        minutes: choose what the training of a folder of images has time for.
        on_event: called with the name and the facts of every event that `log.jsonl` records, for an
            experiment tracker. The first process alone calls it; an error of it becomes a warning, and
            ends the calls.

    Returns:
        The folder and the evaluation; `.load()` loads the detector.

    Raises:
        ConfigError: a setting is unknown or has the wrong type; one line, as for YAML files.
        ArtifactError: another process is training in this folder.
        DataError: images or annotations are missing or wrong.
    """
    if until not in STAGES:
        raise ConfigError(f"until: {until!r}, expected one of {', '.join(STAGES)}")
    if not isinstance(run, str | os.PathLike) or not os.fspath(run):
        raise ConfigError(f"run: {run!r}, expected the path of a folder")
    config, choice = settings_and_choice(settings, preset=preset, minutes=minutes)
    folder = Path(run)
    result = pipeline.train(
        config, folder, device=device, until=until, choice=choice, on_event=on_event
    )
    return Trained(folder, result)

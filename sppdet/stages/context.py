"""The state that the stages of one training share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from sppdet.config import Config
from sppdet.features.backbones import Backbone
from sppdet.features.head import Head
from sppdet.io.image_cache import ImageCache
from sppdet.runs.artifacts import fingerprint_of, is_intact, why_made_again
from sppdet.runs.distributed import Ranks
from sppdet.runs.log import LOGGER, event
from sppdet.stages.crossfit import Folds
from sppdet.stages.model_files import ModelFiles
from sppdet.stages.plan import Part, TrainingPlan
from sppdet.stages.proposer import Proposer
from sppdet.stages.training_data import TrainingData
from sppdet.types import Dataset, EvalResult

if TYPE_CHECKING:
    from sppdet.stages.choice import Choice
    from sppdet.stages.evaluate import Scored

Stage = Literal[
    "data", "proposals", "features", "finetune", "ranking", "svm", "bbox", "calibrate", "evaluate"
]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass
class Context:
    """The run folder, its settings and processes, and the results of the stages so far."""

    config: Config
    run: Path
    ranks: Ranks
    last_stage: Stage
    choice: Choice | None = None  # that the data stage makes, of settings in place of `config`

    # by the data stage
    images: ImageCache = field(init=False)
    training_set: Dataset = field(init=False)
    test_set: Dataset | None = field(init=False)
    # by the proposals stage
    proposer: Proposer = field(init=False)
    # by the features stage
    backbone: Backbone = field(init=False)
    training_data: TrainingData = field(init=False)
    initial_head: Head | None = field(init=False, default=None)  # before fine-tuning
    folds: Folds | None = field(init=False)  # of the training images, to calibrate on
    plan: TrainingPlan = field(init=False)
    # by the evaluate stage
    result: EvalResult | None = field(init=False, default=None)
    scored: Scored | None = field(init=False, default=None)

    @property
    def files(self) -> ModelFiles:
        """The files of the model."""
        return ModelFiles(self.run)

    @property
    def store(self) -> Path:
        """The folder of proposals and feature maps."""
        return self.config.store or self.run / "store"

    def reaches(self, stage: Stage) -> bool:
        """Check whether a stage is run, before or as the last one."""
        return STAGES.index(stage) <= STAGES.index(self.last_stage)

    def is_due(self, part: Part) -> bool:
        """Decide whether a part of the model must be trained, and log why."""
        made_by, path = self.plan.made_by[part], self.files.of(part)
        text = "%s: fingerprint %s of settings and inputs; %s has %s"
        LOGGER.debug(text, part, made_by, path.name, fingerprint_of(path) or "none")
        if part not in self.plan.due:
            LOGGER.info("%s: there already", part, extra=event("stage skipped", part=part))
            return False
        if path.exists():
            intact = is_intact(path, made_by)
            folds = "there already, but not those of the folds"
            reason = folds if intact else why_made_again(path, made_by)
            LOGGER.info("%s: %s; made again", part, reason, extra=event("stage redone", part=part))
        return True

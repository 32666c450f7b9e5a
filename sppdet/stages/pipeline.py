"""The stages of a training in their order.

Each stage finds by its fingerprint what is there already, so that a run that was interrupted, or
whose settings have changed, makes only what it must.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sppdet.config import Config
from sppdet.runs.distributed import joined_ranks
from sppdet.runs.environment import release_memory
from sppdet.runs.lock import open_run
from sppdet.runs.log import LOGGER, RESULT, EventCallback, event, events_passed, timed
from sppdet.stages.announce import title
from sppdet.stages.bbox import train_regressors
from sppdet.stages.calibrate import calibrate
from sppdet.stages.choice import Choice
from sppdet.stages.context import Context, Stage
from sppdet.stages.data import read_data
from sppdet.stages.evaluate import evaluate
from sppdet.stages.features import compute_maps
from sppdet.stages.finetune import train_head
from sppdet.stages.forecast import announce
from sppdet.stages.model import choose_device
from sppdet.stages.proposals import propose
from sppdet.stages.ranking import train_ranking
from sppdet.stages.run_report import report_after_training
from sppdet.stages.settle import settle
from sppdet.stages.svm import train_classifiers
from sppdet.types import EvalResult

FUNCTIONS: dict[Stage, Callable[[Context], bool]] = {
    "data": read_data,
    "proposals": propose,
    "features": compute_maps,
    "finetune": train_head,
    "ranking": train_ranking,
    "svm": train_classifiers,
    "bbox": train_regressors,
    "calibrate": calibrate,
    "evaluate": evaluate,
}
"""The stages; each returns False if all of its results were there already."""


def train(
    config: Config,
    run: Path,
    *,
    device: str = "auto",
    until: Stage = "evaluate",
    choice: Choice | None = None,
    on_event: EventCallback | None = None,
) -> EvalResult | None:
    """Train a detector in the folder `run`, going on where an earlier call stopped.

    Under `torchrun` all its processes train together, each with a share of the images and of the
    classes; the folder, and the store where one is named, must be the same for all of them.

    Args:
        choice: of presets, whose settings take the place of `config`'s but for the data.
        on_event: called with the name and the facts of every event that `log.jsonl` records, for an
            experiment tracker. The first process alone calls it; an error of it becomes a warning, and
            ends the calls.

    Returns:
        The evaluation on the test set, where one is named and `until` reaches so far.

    Raises:
        ArtifactError: another process is training in this folder.
        ConfigError: no training set is named.
    """
    if not config.data.is_open():
        config.data.sets_of("train")  # checks that one is named
    with (
        joined_ranks(choose_device(device)) as ranks,
        open_run(run, ranks),
        events_passed(on_event if ranks.is_first else None),
    ):
        settings = config.model_dump(mode="json")
        facts = event("run started", config=settings, until=until, processes=ranks.count)
        LOGGER.debug("training in %s", run, extra=facts)
        with ranks.first_goes_first():
            config = settle(config, run)
        context = Context(config, run, ranks, until, choice)
        for stage, function in FUNCTIONS.items():
            if stage == "evaluate" and context.test_set is None:
                break
            said = title(stage, context.config, until=until)
            with timed(run, stage, write=ranks.is_first, title=said) as timing:
                timing.cached = not function(context)
                if stage == "data" and ranks.is_first:
                    announce(context)
            release_memory()
            if stage == until:
                break
        if context.scored is not None and ranks.is_first:
            report_after_training(context.scored, context.training_set)
        if until == "evaluate" and context.test_set is None:
            LOGGER.log(RESULT, "no test set, so there is no metric (data.test names one)")
        LOGGER.log(RESULT, "the run is in %s", run)
        return context.result

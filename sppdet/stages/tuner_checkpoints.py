"""Checkpoints and log of fine-tuning, whatever its batches are made of."""

from __future__ import annotations

import time
from dataclasses import asdict

from sppdet.runs.artifacts import read_checkpoint, write_tensors
from sppdet.runs.log import LOGGER, event
from sppdet.stages.training_data import TrainingData
from sppdet.training.finetune import Progress, Tuner


class TunerCheckpoints:
    """Resumes a tuner, then keeps its checkpoint and logs its snapshots.

    Args:
        made_by: fingerprint of the stage; a checkpoint of another one is ignored.
    """

    def __init__(self, data: TrainingData, tuner: Tuner, *, made_by: str) -> None:
        self._data = data
        self._tuner = tuner
        self._made_by = made_by
        self._path = data.state_path("finetune")
        if checkpoint := read_checkpoint(self._path, made_by):
            state, about = checkpoint
            tuner.restore(state, Progress(**about))
            text = "finetune: going on after batch %d of %d"
            LOGGER.info(text, tuner.progress.batch, tuner.config.batches)
        data.ranks.wait()  # all have read the checkpoint before the first writes the next
        self._saved, self._logged = time.monotonic(), 0

    def update(self) -> None:
        """Log new snapshots; write a checkpoint where one is due."""
        data, tuner = self._data, self._tuner
        for record in tuner.history[self._logged :]:
            text = ", ".join(f"{key} {value:.4g}" for key, value in record.items())
            LOGGER.info("finetune: %s", text, extra=event("finetune", **record))
        self._logged = len(tuner.history)
        if data.ranks.is_first and time.monotonic() - self._saved >= data.checkpoint_seconds:
            about = asdict(tuner.progress)
            write_tensors(self._path, tuner.state(), made_by=self._made_by, about=about)
            self._saved = time.monotonic()

    def log_choice(self) -> None:
        """Log which snapshot is kept."""
        LOGGER.info("finetune: kept the snapshot after batch %d", self._tuner.progress.best_batch)

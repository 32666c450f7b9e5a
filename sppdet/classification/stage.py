"""`sppdet pretrain`: train a classifier in a run's folder, resuming where it stopped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.classification.classifier import (
    SppClassifier,
    build_classifier,
    save_classifier,
)
from sppdet.classification.config import PretrainConfig
from sppdet.classification.data import (
    LabelledImages,
    read_sets,
    training_batches,
)
from sppdet.classification.trainer import VERSION, Trainer, batches_of_epoch, size_of_epoch
from sppdet.classification.views import centre_crop
from sppdet.errors import TrainingError, image_named
from sppdet.features.preprocessing import IMAGENET
from sppdet.io import plain_yaml
from sppdet.io.digests import FileDigests
from sppdet.parallel import ordered_map
from sppdet.runs.artifacts import (
    fingerprint,
    is_intact,
    read_checkpoint,
    why_made_again,
    write_tensors,
    write_text,
)
from sppdet.runs.distributed import Ranks, joined_ranks
from sppdet.runs.environment import worker_count
from sppdet.runs.lock import open_run
from sppdet.runs.log import LOGGER, RESULT, event, timed
from sppdet.runs.progress import track
from sppdet.stages.map_cache import weights_digest
from sppdet.stages.model import choose_device
from sppdet.training.sgd import Batch

_VALIDATION_BATCH = 32  # images


def pretrain(config: PretrainConfig, run: Path, *, device: str = "auto") -> None:
    """Train a classifier in the folder `run`, resuming where an earlier call stopped.

    All processes of `torchrun` train together. The run receives `config.yaml`,
    `model/net.safetensors` (the epoch of minimum validation error), `model/last.safetensors`, and
    `log.jsonl` with one line per epoch.

    Raises:
        ArtifactError: another process is training in this folder.
        DataError, TrainingError: see the stages.
    """
    with joined_ranks(choose_device(device)) as ranks, open_run(run, ranks):
        _pretrain(config, run, ranks)


def _pretrain(config: PretrainConfig, run: Path, ranks: Ranks) -> None:
    training, validation = read_sets(config.data, workers=worker_count(config.workers))
    for line in training.skipped + (validation.skipped if validation else ()):
        LOGGER.info("skipped: %s", line, extra=event("skipped"))
    held_out = f"{len(validation)} to validate on" if validation else "none to validate on"
    counts = f"{len(training)} images of {len(training.class_names)} classes, {held_out}"
    LOGGER.info(counts, extra=event("data"))
    classifier = build_classifier(config, training.class_names)
    with ranks.first_goes_first():  # the others find its digests in `digests.json`
        digests = FileDigests.load(run / "digests.json", config.data.root)
        sets = [part for part in (training, validation) if part is not None]
        data = [part.digest(digests, workers=worker_count(config.workers)) for part in sets]
        if ranks.is_first:
            digests.save(run / "digests.json")
    # training ends with an error if an image changes from here on
    training = replace(training, contents=digests)
    validation = replace(validation, contents=digests) if validation else None
    made_by = _fingerprint(config, classifier, data)
    last, net = (run / "model" / f"{name}.safetensors" for name in ("last", "net"))
    if ranks.is_first:
        write_text(run / "config.yaml", plain_yaml.dump(config.to_plain()))
    if all(is_intact(part, made_by) for part in (last, net)):
        LOGGER.info("the classifier is there already")
        return
    if last.exists():
        LOGGER.info("the classifier is %s; made again", why_made_again(last, made_by))
    trainer = Trainer(classifier, config.train, seed=config.seed, ranks=ranks)
    path = _state_path(run)
    checkpoint = read_checkpoint(path, made_by)
    # after the first epoch a checkpoint is of use only with the best net so far
    if checkpoint and (checkpoint[1].get("epoch") == 0 or is_intact(net, made_by)):
        trainer.restore(*checkpoint)
        p = trainer.progress
        if p.epoch < config.train.epochs:
            epochs = config.train.epochs
            LOGGER.info("going on in epoch %d of %d, batch %d", p.epoch + 1, epochs, p.batch)
    ranks.wait()
    work = _Pretraining(config, trainer, training, validation, ranks, run, made_by)
    with timed(run, "pretrain", write=ranks.is_first), _curves(run, config, ranks) as draw:
        work.go_on(draw)
    if ranks.is_first:
        save_classifier(last, trainer.classifier, made_by=made_by)
        path.unlink(missing_ok=True)
    ranks.wait()
    best = trainer.progress
    kept = best.best_epoch if validation is not None else best.epoch
    LOGGER.log(RESULT, "kept epoch %d of %d; the run is in %s", kept, best.epoch, run)


@dataclass(frozen=True)
class _Pretraining:
    """The remaining epochs of a classifier's training, in one of the processes."""

    config: PretrainConfig
    trainer: Trainer
    training: LabelledImages
    validation: LabelledImages | None
    ranks: Ranks
    run: Path
    made_by: str

    def go_on(self, draw: Callable[[dict[str, float]], None]) -> None:
        """Train to the end; `draw` is called with every epoch's record."""
        saved = time.monotonic()
        p = self.trainer.progress
        while p.epoch < self.config.train.epochs:
            started, seen_before = time.perf_counter(), p.seen
            size = size_of_epoch(self.config.train, p.epoch, seed=self.config.seed)
            label = f"epoch {p.epoch + 1} of {self.config.train.epochs}, {size} px"
            steps, left = self._steps_left(size)
            batches = track(steps, total=p.batch + left, label=f"{label}, batches", done=p.batch)
            for share, whole in batches:
                self.trainer.step(share, whole)
                due = time.monotonic() - saved >= 60 * self.config.checkpoint_minutes
                if self.ranks.count == 1 and due:
                    self._save_state()
                    saved = time.monotonic()
            rate = (p.seen - seen_before) / max(time.perf_counter() - started, 1e-9)
            found = None
            if self.validation is not None:
                found = self.trainer.validate(self._validation_batches(self.validation))
            record, best = self.trainer.end_epoch(found)
            record |= {"size": float(size), "images_per_second": rate}
            text = ", ".join(f"{key} {value:.4g}" for key, value in record.items())
            LOGGER.info(text, extra=event("epoch", **record))
            draw(record)
            if best and self.ranks.is_first:
                # before the checkpoint: an interruption between the two repeats the epoch
                net = self.run / "model" / "net.safetensors"
                save_classifier(net, self.trainer.classifier, made_by=self.made_by)
            self._save_state()
            saved = time.monotonic()

    def _save_state(self) -> None:
        if self.ranks.is_first:
            state, about = self.trainer.state()
            write_tensors(_state_path(self.run), state, made_by=self.made_by, about=about)

    def _steps_left(self, size: int) -> tuple[Iterator[tuple[Batch, int]], int]:
        """Return the rest of an epoch, as (share of a batch, size of the batch), and its length."""
        p, config, ranks = self.trainer.progress, self.config, self.ranks
        order = batches_of_epoch(len(self.training), config.train, p.epoch, seed=config.seed)
        batches = order[p.batch :]
        least = min(map(len, batches), default=ranks.count)
        if least < ranks.count:
            raise TrainingError(
                f"batches of {least} images for {ranks.count} processes; expected one each"
            )
        made = training_batches(
            self.training,
            [rows[ranks.rank :: ranks.count] for rows in batches],
            config.augment,
            size=size,
            key=(config.seed, p.epoch),
            workers=worker_count(config.workers),
        )
        return zip(made, map(len, batches), strict=True), len(batches)

    def _validation_batches(self, images: LabelledImages) -> Iterator[Batch]:
        """Centre crops, at the first training size, of this process's share of the images."""
        config = self.config
        rows = np.arange(len(images))[self.ranks.rank :: self.ranks.count]

        def make(row: int) -> NDArray[np.uint8]:
            image = images.read(row)
            augment = config.augment
            size = config.train.sizes[0]
            with image_named(images.paths[row]):
                return centre_crop(image, side=augment.resize, crop=augment.crop, size=size)

        made = ordered_map(make, rows.tolist(), workers=worker_count(config.workers), ahead=64)
        parts = np.split(rows, range(_VALIDATION_BATCH, len(rows), _VALIDATION_BATCH))
        for part in track(parts, total=len(parts), label="validation, batches"):
            if len(part):
                crops = np.stack([next(made) for _ in part])
                x = IMAGENET.normalised(crops).contiguous(memory_format=torch.channels_last)
                yield x, torch.from_numpy(images.labels[part])


def _state_path(run: Path) -> Path:
    """Path of the checkpoint of an unfinished training."""
    return run / "state" / "pretrain.safetensors"


def _fingerprint(config: PretrainConfig, classifier: SppClassifier, data: list[str]) -> str:
    return fingerprint(
        "pretrain",
        VERSION,
        config.augment.model_dump(),
        config.train.model_dump(),
        config.spp_levels,
        config.head and config.head.model_dump(),
        config.seed,
        weights_digest(classifier),
        data,
    )


@contextlib.contextmanager
def _curves(
    run: Path, config: PretrainConfig, ranks: Ranks
) -> Iterator[Callable[[dict[str, float]], None]]:
    """Yield a function that adds an epoch's record to the TensorBoard curves, if they are enabled."""
    if not config.tensorboard or not ranks.is_first:
        yield lambda _: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise TrainingError("tensorboard: true needs `pip install tensorboard`") from None
    with SummaryWriter(str(run / "tensorboard")) as writer:

        def draw(record: dict[str, float]) -> None:
            for key, value in record.items():
                if key != "epoch":
                    writer.add_scalar(key, value, int(record["epoch"]))
            writer.flush()

        yield draw

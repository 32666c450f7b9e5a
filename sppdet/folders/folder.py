"""Run the detector on files and folders of images.

Results are stored as soon as an image is done (see `journal`), the files about all images are
written at the end, and a repeated call does only what is left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sppdet.errors import ArtifactError, DataError, ImageError, SppdetError, one_line, shorten
from sppdet.features.backbones import ScaledImage
from sppdet.folders.formats import Format
from sppdet.folders.image_files import Finding, content_of
from sppdet.folders.joint import JointFiles
from sppdet.folders.journal import JournalError
from sppdet.folders.outputs import Outputs, is_of_one_file, open_outputs
from sppdet.folders.planning import FolderPlan, Item, plan_images
from sppdet.io.files import read_bytes
from sppdet.parallel import detection_threads, ordered_map
from sppdet.runs.artifacts import fingerprint
from sppdet.runs.log import LOGGER, event
from sppdet.runs.progress import track
from sppdet.stages.detector import Detector
from sppdet.types import Detections, ImageArray, Proposals

VERSION = 3  # incremented when the same detections give other files


_MISSED = 0.05  # least probability of a detection that counts as missed by the threshold


@dataclass(frozen=True)
class FolderResult:
    """Numbers of images, of those with results and of detections; a line per image that failed.

    An image whose detections were found, but not all of its files written, has results and failed.
    `missed` are class and probability of detections of this call that were below the threshold.
    """

    images: int
    detected: int
    detections: int
    failed: tuple[str, ...]
    missed: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class _Failed:
    problem: str


@dataclass(frozen=True)
class _Kept:
    """An image whose results were there already."""


@dataclass(frozen=True)
class _Prepared:
    made_by: str
    image: ImageArray
    proposals: Proposals
    views: tuple[ScaledImage, ...]


@dataclass(frozen=True)
class _Found:
    made_by: str
    image: ImageArray
    detections: Detections


def detect_folder(
    detector: Detector,
    paths: Sequence[Path],
    out: Path,
    *,
    min_score: float | NDArray[np.float32],
    formats: Sequence[Format],
    workers: int,
) -> FolderResult:
    """Detect in images and folders of images and write the results into `out`.

    An image that can't be read, or whose files can't be written, is listed in the result and doesn't
    end the call. Results are kept whatever ends it, and a call with the same images, model and
    settings doesn't repeat them.

    Args:
        min_score: detections with a score >= this are kept; one number, or one for each class (K,).
        workers: threads that decode and resize images and search for proposals.

    Raises:
        ImageError: a path doesn't exist, or there is no image.
        ConfigError: `out` is searched for images, or something that sppdet hasn't written stands
            where a result would be.
        ArtifactError: results can't be written, for another reason than their names.
    """
    classes = len(detector.class_names)
    least = np.broadcast_to(np.maximum(min_score, detector.min_score), classes).astype(np.float32)
    if detector.config.box_voting is None:
        # lower scores influence neither NMS nor soft-NMS, so nothing is computed for them
        lowest = float(least.min())
        if detector.calibration is not None:  # what is just missed is said
            lowest = min(lowest, float(detector.calibration.scores_at(_MISSED).min()))
        settings = detector.config.model_copy(update={"min_score": max(lowest, detector.min_score)})
        detector = replace(detector, config=settings)
    plan = plan_images(paths)
    if plan.left_out:
        LOGGER.info("left out: %d images that detect has written", plan.left_out)
    with open_outputs(out, plan, formats, detector.class_names) as outputs:
        work = _Work(detector, plan, outputs, formats, least)
        return work.run(workers)


@dataclass
class _Work:
    detector: Detector
    plan: FolderPlan
    outputs: Outputs
    formats: Sequence[Format]
    least: NDArray[np.float32]  # (K,) score of each class
    failed: list[str] = field(default_factory=list)
    missed: list[tuple[str, float]] = field(default_factory=list)

    def run(self, workers: int) -> FolderResult:
        """Detect in all images; report and collect failures."""
        items, journal = self.plan.items, self.outputs.journal
        with_results: list[Item] = []
        kept = 0
        work = zip(items, self._detected(workers), strict=True)
        new = track(
            work,
            total=len(items),
            label="detecting",
            made=lambda one: not isinstance(one[1], _Kept),
        )
        for item, found in new:
            if isinstance(found, _Failed):
                self._fail(found.problem)
                continue
            if isinstance(found, _Found):
                self._write(item, found)
            kept += isinstance(found, _Kept)
            with_results.append(item)
        if kept:
            LOGGER.info("%d of %d images were done already", kept, len(items))
        JointFiles(self.outputs, with_results, self.detector.class_names).write(self.formats)
        names = [item.name for item in with_results]
        self.outputs.remove_stale()
        journal.compact(names)
        detections = sum(len(entry.labels) for entry in map(journal.entry, names) if entry)
        failed, missed = tuple(self.failed), tuple(self.missed)
        return FolderResult(len(items), len(with_results), detections, failed, missed)

    def _detected(self, workers: int) -> Iterator[_Kept | _Found | _Failed]:
        """Yield the outcome of every item, in order; memory holds a few of them."""
        prepared = ordered_map(self._prepare, self.plan.items, workers=workers)
        due = zip(self.plan.items, prepared, strict=True)
        return ordered_map(self._detect, due, workers=detection_threads(self.detector.maps.device))

    def _prepare(self, item: Item) -> _Kept | _Prepared | _Failed:
        try:
            made_by = self._made_by(item)
            if self.detector.made_by and self.outputs.is_done(item, made_by):
                return _Kept()
            image = self.detector.read(item.path)
            proposals = self.detector.proposer.of(image)
            return _Prepared(made_by, image, proposals, self.detector.prepare(image))
        except Exception as error:  # one image's failure must not end the others
            return _Failed(_describe(item, error))

    def _made_by(self, item: Item) -> str:
        """Fingerprint the inputs of an image's results: its bytes, the model, the settings."""
        digest = hashlib.blake2b(read_bytes(item.path, ImageError), digest_size=20).hexdigest()
        config = self.detector.config.model_dump()
        config["min_score"] = self.least.tolist()
        return fingerprint("detect", VERSION, self.detector.made_by, config, digest)

    def _detect(self, due: tuple[Item, _Kept | _Prepared | _Failed]) -> _Kept | _Found | _Failed:
        item, prepared = due
        if not isinstance(prepared, _Prepared):
            return prepared
        try:
            height, width = prepared.image.shape[:2]
            found = self.detector.detect_prepared(
                prepared.views, prepared.proposals, width=width, height=height
            )
            kept = found.above(self.least)
            self._note_missed(found)
            return _Found(prepared.made_by, prepared.image, kept)
        except Exception as error:  # as above
            return _Failed(_describe(item, error))

    def _note_missed(self, found: Detections) -> None:
        if found.probabilities is not None:
            below = found.scores < self.least[found.labels - 1]
            names = found.names()
            self.missed.extend(
                (names[row], float(found.probabilities[row]))
                for row in np.flatnonzero(below & (found.probabilities >= _MISSED)).tolist()
            )

    def _write(self, item: Item, found: _Found) -> None:
        """Write an image's files, then its line in the journal, which vouches for them."""
        files: dict[str, str] = {}
        problems: list[str] = []
        finding = Finding(item.name, found.image, found.detections)
        labels = found.detections.labels.tolist()
        for kind, number, file in self.outputs.files(item, labels):
            try:
                content = content_of(kind, finding, number)
                with self.outputs.writing(file) as temporary:
                    temporary.write_bytes(content)
                files[file] = self.outputs.digest(file)
            except JournalError:
                raise
            except (ArtifactError, DataError) as error:
                if isinstance(error, ArtifactError) and not is_of_one_file(error):
                    raise
                problems.append(str(error))
        if problems:
            self._fail(one_line(f"{item.path}: {shorten(problems, limit=3)}"))
        height, width = found.image.shape[:2]
        self.outputs.journal.add(
            item.name, found.detections,
            width=width, height=height, made_by=found.made_by, files=files,
        )  # fmt: skip

    def _fail(self, problem: str) -> None:
        self.failed.append(problem)
        LOGGER.info("failed: %s", problem, extra=event("failed"))


def _describe(item: Item, error: Exception) -> str:
    """One line that names the image."""
    text = str(error) if isinstance(error, SppdetError) else f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError):
        text = "not enough memory"
    path = str(item.path)
    return one_line(text if text.startswith(path) else f"{path}: {text}")

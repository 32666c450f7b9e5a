"""Run the detector on files and folders of images.

Results are stored as soon as an image is done (see `journal`), the files about all images are
written at the end, and a repeated call does only what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sppdet.errors import ArtifactError, DataError, ImageError, describe_failure, one_line, shorten
from sppdet.folders.films import write_film
from sppdet.folders.finder import MISSED, Failed, Finder, Found, Kept
from sppdet.folders.formats import Format
from sppdet.folders.image_files import Finding, content_of
from sppdet.folders.inputs import plan_images
from sppdet.folders.joint import JointFiles
from sppdet.folders.journal import JournalError
from sppdet.folders.outputs import Outputs, is_of_one_file, open_outputs
from sppdet.folders.planning import Item
from sppdet.folders.sources import FolderPlan
from sppdet.runs.log import LOGGER, event
from sppdet.runs.progress import track
from sppdet.stages.detector import Detector


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


def detect_folder(
    detector: Detector,
    plan: FolderPlan | Sequence[Path | str],
    out: Path,
    *,
    min_score: float | NDArray[np.float32],
    formats: Sequence[Format],
    workers: int,
) -> FolderResult:
    """Detect in images, folders and videos and write the results into `out`.

    An image that can't be read, or whose files can't be written, is listed in the result and doesn't
    end the call. Results are kept whatever ends it, and a call with the same images, model and
    settings doesn't repeat them.

    Args:
        plan: what to detect in, by `plan_images`, or the words that it takes.
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
            lowest = min(lowest, float(detector.calibration.scores_at(MISSED).min()))
        settings = detector.config.model_copy(update={"min_score": max(lowest, detector.min_score)})
        detector = replace(detector, config=settings)
    if not isinstance(plan, FolderPlan):
        plan = plan_images(plan)
    for line in plan.left_out:
        LOGGER.info("left out: %s", line)
    with open_outputs(out, plan, formats, detector.class_names) as outputs:
        finder = Finder(detector, plan, outputs.is_done, least)
        work = _Work(detector, plan, outputs, formats, finder)
        return work.run(workers)


@dataclass
class _Work:
    detector: Detector
    plan: FolderPlan
    outputs: Outputs
    formats: Sequence[Format]
    found: Finder
    failed: list[str] = field(default_factory=list)

    def run(self, workers: int) -> FolderResult:
        """Detect in all images; report and collect failures."""
        journal, pixels = self.outputs.journal, self.detector.max_pixels
        with_results: list[Item] = []
        images = kept = 0
        new = track(
            self.found.outcomes(workers),
            total=self.plan.count(pixels),
            label="detecting",
            made=lambda one: not isinstance(one[1], Kept),
        )
        for item, found in new:
            images += 1
            if isinstance(found, Failed):
                self._fail(found.problem)
                continue
            if isinstance(found, Found):
                self._write(item, found)
            kept += isinstance(found, Kept)
            with_results.append(item)
        if kept:
            LOGGER.info("%d of %d images were done already", kept, images)
        if "images" in self.formats:
            done = [item.name for item in with_results]
            for film in self.plan.films:
                try:
                    write_film(film, self.outputs, done, self.detector)
                except (DataError, ImageError) as error:
                    self._fail(describe_failure(film.whole.origin, error))
        JointFiles(self.outputs, with_results, self.detector.class_names).write(self.formats)
        names = [item.name for item in with_results]
        self.outputs.remove_stale()
        journal.compact(names)
        detections = sum(len(entry.labels) for entry in map(journal.entry, names) if entry)
        failed, missed = tuple(self.failed), tuple(self.found.missed)
        return FolderResult(images, len(with_results), detections, failed, missed)

    def _write(self, item: Item, found: Found) -> None:
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
            self._fail(one_line(f"{item.origin}: {shorten(problems, limit=3)}"))
        height, width = found.image.shape[:2]
        self.outputs.journal.add(
            item.name, found.detections,
            width=width, height=height, made_by=found.made_by, files=files,
        )  # fmt: skip

    def _fail(self, problem: str) -> None:
        self.failed.append(problem)
        LOGGER.info("failed: %s", problem, extra=event("failed"))

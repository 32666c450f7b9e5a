"""The next images to label: unlabelled ones in the order of what their labels would teach a run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from sppdet.errors import ConfigError, ImageError
from sppdet.io.image_cache import ImageCache
from sppdet.runs.distributed import Ranks
from sppdet.runs.environment import worker_count
from sppdet.runs.log import LOGGER, RESULT, consoles, event, log_file
from sppdet.runs.owned import replace_files
from sppdet.runs.progress import track
from sppdet.stages.detector import Detector
from sppdet.stages.look import Looker
from sppdet.stages.model_files import read_run_config
from sppdet.stages.suggest_files import Prelabels, files_of, labelling_command
from sppdet.stages.suggest_images import find_candidates, look_at, used_images
from sppdet.stages.suggest_order import ordered
from sppdet.stages.suggest_report import Report, print_rows, report_files
from sppdet.stages.thresholds import Threshold, least_scores


def suggest_images(
    run: Path,
    paths: Sequence[Path],
    *,
    out: Path | None = None,
    count: int = 20,
    prelabels: Prelabels = "voc",
    copy: bool = True,
    wanted: Threshold | None = None,
    device: str = "auto",
) -> Report:
    """Order images by what their labels would teach a run, and write the first ones with pre-labels.

    Images that the run was trained or tested on are left out, by their content. One that can't be read
    is listed and ends nothing. What is seen of an image is kept in the run's store: a repeated call, with
    another `count` or format, too, looks at no image again.

    Args:
        paths: images and folders of images, in which nothing is written.
        out: folder for the results; None: `run/suggest`.
        count: number of images to label now.
        prelabels: the format of the labelling tool.
        copy: whether these images are copied beside their pre-labels.
        wanted: of the detections that become pre-labels; None: the best F1.

    Raises:
        ArtifactError: not a trained run; or a file in `out` isn't `suggest`'s or was edited since.
        ConfigError: `out` is in a folder that is searched.
        ImageError: there is no image without labels that can be read.
    """
    config = read_run_config(run)  # before anything is logged into a folder that is no run
    folder = out or run / "suggest"
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder}: is a file; expected a folder")
    found = find_candidates(paths, run=run, out=folder)
    detector = Detector.load(run, device=device)
    least, threshold = least_scores(detector, wanted or Threshold())
    with log_file(run, Ranks(device=detector.maps.device)):
        images = ImageCache.load(run / "images.json", max_pixels=config.data.max_pixels)
        used = used_images(run, config, detector.class_names, images)
        if detector.calibration is None:
            LOGGER.warning("%s has no probabilities; a score of 0 is taken for an even chance", run)
        looker = Looker(run, config, detector, images)
        workers = worker_count(config.workers)
        seen = look_at(found, looker, images, used, workers=workers)
        if not seen.images:
            raise ImageError(_nothing_left(paths, seen.labelled, seen.failed))
        known = used.training_set.images
        vectors = map(looker.vector, known)
        rows = ordered(
            seen.images,
            detector.calibration,
            labelled=list(track(vectors, total=len(known), label="looking at labelled images")),
            counts=used.counts(),
            count=count,
        )
        boxes = [one.detections.above(least) for one in rows]
        made = Report(
            *(detector.class_names, tuple(rows), tuple(boxes), seen.labelled, seen.failed),
            threshold=threshold,
            count=count,
        )
        items = [(one.candidate.image, b) for one, b in zip(rows[:count], boxes, strict=False)]
        labels = files_of(items, made.class_names, prelabels, folder=folder, copy=copy)
        replace_files(folder, {**labels, **report_files(made, images)}, command="suggest")
        for console in consoles():
            print_rows(rows[:count], console)
        facts = event(
            "suggested", images=len(rows), left_out=seen.labelled, failed=len(seen.failed)
        )
        aside = f"; {seen.labelled} that the run has used are left out" * bool(seen.labelled)
        LOGGER.log(RESULT, "%d of %d images to label%s", len(items), len(rows), aside, extra=facts)
        total = sum(len(found) for _, found in items)
        LOGGER.log(RESULT, "%d boxes to correct, %s; see %s", total, threshold, folder)
        shown = [image for image, _ in items]
        if command := labelling_command(prelabels, folder, shown, copy=copy):
            line = shlex.join(command)
            LOGGER.info("to correct them: %s", line, extra=event("next", command=line))
    return made


def _nothing_left(paths: Sequence[Path], labelled: int, failed: Sequence[str]) -> str:
    where = ", ".join(map(str, paths))
    if not failed:
        return f"{where}: no images besides {labelled} that the run has used"
    return f"{where}: none of {len(failed)} images can be read; the first: {failed[0]}"

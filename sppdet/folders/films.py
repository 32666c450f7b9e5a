"""Videos with their detections drawn, made from the journal when all frames are done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sppdet.drawing.draw import draw_detections
from sppdet.folders.journal import Result
from sppdet.folders.outputs import Outputs
from sppdet.folders.sources import Film
from sppdet.io.videos import Capture, write_video
from sppdet.runs.artifacts import fingerprint
from sppdet.runs.progress import track
from sppdet.stages.detector import Detector
from sppdet.types import Detections, ImageArray

VERSION = 1  # incremented when the same detections give another video


def write_film(film: Film, outputs: Outputs, done: Sequence[str], detector: Detector) -> None:
    """Draw the results of a video into a video of the frames that were detected in, at their pace.

    The video is decoded a second time, a frame at a time, and written under a temporary name: memory
    holds a frame, and a kill leaves no half of it. Nothing is done if it is there, made of the same.

    Args:
        done: names of the images that have results, in order.

    Raises:
        DataError: it can't be encoded, or something that sppdet hasn't written is in its place.
        ImageError: the video can't be opened any more.
    """
    prefix = f"{film.name}#"
    names = [name for name in done if name.startswith(prefix)]
    if not names:
        return
    entries = [outputs.journal.entry(name) for name in names]
    made_by = fingerprint(
        "film", VERSION, film.every, [entry and entry.made_by for entry in entries]
    )
    present = outputs.present(film.file)
    if present is not None and outputs.journal.made_by(film.file, present) == made_by:
        return
    capture = film.open(detector.max_pixels)
    frames = _drawn(film, capture, names, outputs, detector.class_names)
    with outputs.writing(film.file, made_by=made_by) as temporary:
        shown = track(frames, total=len(names), label=f"video {film.name}")
        write_video(temporary, shown, fps=capture.fps / film.every)


def _drawn(
    film: Film, capture: Capture, names: Sequence[str], outputs: Outputs, classes: tuple[str, ...]
) -> Iterator[ImageArray]:
    """Yield the frames with these names, each with its detections drawn."""
    results = outputs.journal.results(names)
    due = iter(names)
    name = next(due)
    for frame in film.frames(capture):
        if film.item(frame).name == name:
            yield draw_detections(frame.pixels, _detections(next(results), classes))
            try:
                name = next(due)
            except StopIteration:
                return


def _detections(result: Result, classes: tuple[str, ...]) -> Detections:
    known = result.probabilities
    return Detections(
        np.array(result.boxes, dtype=np.float32).reshape(-1, 4),
        np.array(result.scores, dtype=np.float32),
        np.array(result.labels, dtype=np.int64),
        classes,
        probabilities=None if known is None else np.array(known, dtype=np.float32),
    )

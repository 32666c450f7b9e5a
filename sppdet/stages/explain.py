"""One image walked through the stages of a trained detector, as an HTML page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from sppdet.config import Config
from sppdet.detection.detect import select
from sppdet.detection.explain import Answer, Fate, Scene, answer
from sppdet.detection.trace import suppressors
from sppdet.errors import ConfigError
from sppdet.io.names import safe_id
from sppdet.pages.graphics import thumbnail
from sppdet.pages.render import number, render
from sppdet.runs.artifacts import write_text
from sppdet.runs.places import check_own_page
from sppdet.stages.detector import Detector
from sppdet.stages.explain_scores import moved_view, nms_view, scores_view
from sppdet.stages.explain_views import (
    box_of,
    detections_view,
    merges_view,
    proposals_view,
    scales_view,
    window_view,
)
from sppdet.stages.thresholds import Threshold, least_scores
from sppdet.stages.trained_model import TrainedModel, is_model_file
from sppdet.types import FeatureMaps, ImageArray
from sppdet.version import __version__

_IMAGE_PX = 720  # of the image in the page


def explain(
    run: Path,
    image: Path,
    *,
    at: tuple[float, float] | None = None,
    detection: int | None = None,
    wanted: Threshold | None = None,
    out: Path | None = None,
    device: str = "auto",
) -> Path:
    """Detect in an image and write a page that follows one window from its proposal to its end.

    Args:
        run: folder of a run, or a model file.
        at: a point in original pixels: why is there nothing, or what is there?
        detection: number of a detection, from 1, in descending score. Without it and `at` the first one
            or, where nothing is detected, the window that comes nearest to its threshold.
        wanted: what detections count, as `sppdet detect` takes it.
        out: the page; None: `explain/NAME.html` in the run.

    Raises:
        ArtifactError: not a trained run, or a file that isn't such a page is there.
        ConfigError: a point outside the image, no detection of that number, or a model file without `out`.
        ImageError: the image can't be read.
    """
    if out is None and is_model_file(run):
        raise ConfigError(
            f"explain: {run} is a file, which has no folder for pages; expected --out"
        )
    path = out or run / "explain" / f"{safe_id(image.stem)}.html"
    check_own_page(path)
    model = TrainedModel.open(run)
    detector = Detector.of(model, device=device)
    pixels = detector.read(image)
    if at is not None:
        height, width = pixels.shape[:2]
        if not (0 <= at[0] < width and 0 <= at[1] < height):
            raise ConfigError(
                f"--at {at[0]:g},{at[1]:g}: outside the image, which has {width}x{height} pixels"
            )
    least, text = least_scores(detector, wanted or Threshold())
    thresholds = np.maximum(least.astype(np.float64), detector.min_score)
    maps, scene = look(detector, pixels, thresholds=thresholds)
    content = _content(model.config, detector, pixels, maps, scene, at=at, detection=detection)
    facts = {"version": __version__, "name": image.name, "run": run.resolve().name}
    write_text(path, render("explain.html", {**content, **facts, "threshold": text}))
    return path


def look(
    detector: Detector, pixels: ImageArray, *, thresholds: np.ndarray[Any, np.dtype[np.float64]]
) -> tuple[FeatureMaps, Scene]:
    """Detect in an image (H, W, 3) as `detector` does, and keep the results of every stage.

    Args:
        thresholds: (K,) minimum scores of what counts.

    Returns:
        The maps of the image at its scales, and the rest.
    """
    height, width = pixels.shape[:2]
    proposals = detector.proposer.of(pixels)
    maps, *mirrored = (detector.maps.compute(view) for view in detector.prepare(pixels))
    scored = detector.score_in(
        maps, proposals, width=width, mirrored=mirrored[0] if mirrored else None
    )
    selection = select([scored], detector.config, width=width, height=height)
    suppressor = suppressors(scored, selection, detector.config)
    return maps, Scene(proposals.boxes, scored, selection, suppressor, thresholds)


def choose(
    scene: Scene, *, at: tuple[float, float] | None, detection: int | None
) -> tuple[Answer | None, Fate | None]:
    """Choose the window that is explained; returns the answer at the point and the window's fate.

    Raises:
        ConfigError: there is no detection of that number.
    """
    found, counted = scene.selection, scene.counted
    if detection is not None and not 1 <= detection <= len(counted):
        expected = f"expected 1 to {len(counted)}" if len(counted) else "nothing is detected"
        raise ConfigError(f"--detection {detection}: {expected}")
    if at is not None:
        why = answer(scene, *at)
        return why, why.detected or (why.best[0] if why.best else None)
    if len(counted):
        row = counted[(detection or 1) - 1]
        return None, scene.fate(int(found.rows[row]), int(found.detections.labels[row]))
    best = scene.best(np.arange(len(scene.scored.boxes)), 1)
    return None, best[0] if best else None


def _content(
    config: Config,
    detector: Detector,
    pixels: ImageArray,
    maps: FeatureMaps,
    scene: Scene,
    *,
    at: tuple[float, float] | None,
    detection: int | None,
) -> dict[str, Any]:
    """Collect the values of the template."""
    height, width = pixels.shape[:2]
    why, subject = choose(scene, at=at, detection=detection)
    names, calibration = detector.class_names, detector.calibration
    parts: dict[str, Any] = {"subject": None}
    if subject is not None:
        window = window_view(detector, maps, scene, subject)
        parts = {
            "subject": subject,
            "said": said(subject, names, scene),
            "box": box_of(scene.scored.boxes[subject.row]),
            "window": window,
            "scores": scores_view(detector, scene, subject, window["cells"]),
            "nms": nms_view(scene, subject, names),
            "moved": moved_view(scene, subject, width=width, height=height),
        }
    return {
        "width": width,
        "height": height,
        "uri": thumbnail(pixels, side=_IMAGE_PX),
        "names": names,
        "point": at,
        "why": why,
        "reason": reason(why, names, scene, maps=maps, detector=detector) if why else "",
        "best": [
            {"fate": one, "said": said(one, names, scene), **box_of(scene.scored.boxes[one.row])}
            for one in (why.best if why else ())
        ],
        "detections": detections_view(scene, subject, names, calibration),
        "proposals": proposals_view(scene, subject),
        "merges": merges_view(pixels, config.proposals),
        "engines": config.proposals.engines(),
        "scales": scales_view(detector, maps, scene, config.scales, width=width, height=height),
        "settings": detector.config,
        "finest": max(config.spp_levels),
        **parts,
    }


def said(one: Fate, names: tuple[str, ...], scene: Scene) -> str:
    """Say what became of a window."""
    name, score, threshold = names[one.label - 1], number(one.score), number(one.threshold)
    if one.state == "detected":
        return f"{name}, score {score}: detected (threshold {threshold})"
    if one.state == "scored below the threshold":
        short = number(one.threshold - one.score)
        kept = ", though NMS has kept it" if one.detection >= 0 else ""
        return f"{name}, score {score}: {short} below the threshold {threshold}{kept}"
    if one.by >= 0:
        rival = number(float(scene.scored.scores[one.by, one.label - 1]))
        return f"{name}, score {score}: suppressed by NMS, by window {one.by + 1} of score {rival}"
    return f"{name}, score {score}: over detect.max_per_class"


def reason(
    why: Answer, names: tuple[str, ...], scene: Scene, *, maps: FeatureMaps, detector: Detector
) -> str:
    """Say in a sentence or two why there is nothing at a point, or what there is."""
    total, scored = len(scene.proposals), len(scene.scored.boxes)
    if why.detected is not None:
        return f"There is a detection: {said(why.detected, names, scene)}."
    if why.reason == "not proposed":
        return f"Not proposed: none of the {total} proposals contains this point."
    if why.reason == "not scored":
        return (
            f"Not scored: {why.proposals} proposals contain this point, but detect.max_windows has let "
            f"only {scored} of {total} be scored, and none of them does."
        )
    own = said(why.best[0], names, scene)
    best = f"Of {why.proposals} proposals that contain this point the best is {own}."
    if why.reason == "scored below the threshold":
        windows = detector.extractor.windows(maps, scene.scored.boxes[[why.best[0].row]])
        _, left, top, right, bottom = windows.cells[0].tolist()
        cells, bins = (right - left + 1) * (bottom - top + 1), max(detector.extractor.levels) ** 2
        coarse = f" Its window has {cells} cells for {bins} bins: it was pooled too coarsely."
        return f"Scored below the threshold. {best}{coarse if cells < bins else ''}"
    if why.reason in ("moved off by regression", "moved off by box voting"):
        return f"M{why.reason[1:]}: {best} Its final box doesn't contain the point any more."
    return f"{why.reason[0].upper()}{why.reason[1:]}. {best}"


def parse_point(text: str) -> tuple[float, float]:
    """Read `x,y`.

    Raises:
        ConfigError: anything else.
    """
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        x = y = math.nan
    if not (math.isfinite(x) and math.isfinite(y)):
        raise ConfigError(f"--at {text}: expected x,y in pixels of the image, such as 120,80")
    return x, y

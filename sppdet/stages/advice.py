"""Advice on the causes of errors: the settings of a run that would repair each."""

from __future__ import annotations

from sppdet.config import Config
from sppdet.evaluation.traces import FalseCause, MissCause


def advice_for_miss(
    cause: MissCause, config: Config, *, too_small: int = 0, lower: float | None = None
) -> str:
    """Say what would find the objects that are missed for a cause.

    Args:
        too_small: of these objects, those smaller than `proposals.min_size`.
        lower: a threshold with a higher F1, if there is one below those in use.
    """
    detect = config.detect
    threshold = "" if lower is None else f"--score {lower:.2f} (where F1 is highest), "
    texts: dict[MissCause, str] = {
        "not proposed": _more_proposals(config, too_small=too_small),
        "not scored": f"try a larger detect.max_windows than {detect.max_windows}",
        "proposed badly": _more_proposals(config),
        "moved off by regression": "try detect.box_voting: 0.5 or a larger bbox.ridge",
        "pooled too coarsely": (
            f"try a larger image scale than {max(config.scales)} in scales, or spp_levels without "
            f"{max(config.spp_levels)}"
        ),
        "wrong class": f"try more training images of the confused classes, or {_features(config)}",
        "scored below the threshold": (
            f"try {threshold}more training images, or {_features(config)}"
        ),
        "suppressed by NMS": (
            f"try a larger detect.soft_nms than {detect.soft_nms}"
            if detect.soft_nms is not None
            else f"try detect.soft_nms: 0.5 or a larger detect.nms than {detect.nms:g}"
        ),
        "over max_per_class": f"try a larger detect.max_per_class than {detect.max_per_class}",
        "moved off by box voting": f"try a larger detect.box_voting than {detect.box_voting}",
        "counted for another object": (
            f"look for objects that are annotated twice; else {_more_proposals(config)}"
        ),
    }
    return texts[cause]


def advice_for_false(cause: FalseCause, config: Config, *, higher: float | None = None) -> str:
    """Say what would avoid the false detections of a cause.

    Args:
        higher: a threshold with a higher F1, if there is one above those in use.
    """
    detect = config.detect
    texts: dict[FalseCause, str] = {
        "duplicate": (
            f"try a smaller detect.soft_nms than {detect.soft_nms}"
            if detect.soft_nms is not None
            else f"try a smaller detect.nms than {detect.nms:g}"
        ),
        "wrong class": f"try more training images of the confused classes, or {_features(config)}",
        "badly localised": (
            "try box regression (bbox)"
            if config.bbox is None
            else f"{_more_proposals(config)}, and more training images"
        ),
        "looks unlabelled": "look at these first and annotate what is missing, or mark it difficult",
        "background": _against_background(config, higher=higher),
    }
    return texts[cause]


def _more_proposals(config: Config, *, too_small: int = 0) -> str:
    """Name the settings that give more proposals or better ones."""
    proposals = config.proposals
    engines = proposals.engines()
    if engines == ["stored"]:
        return "try more stored proposals per image"
    ways = []
    if too_small:
        ways.append(
            f"proposals.min_size below {proposals.min_size} or a larger proposals.image_width "
            f"({too_small} of these objects are smaller than every proposal)"
        )
    if "sppdet" in engines and proposals.mode != "quality":
        ways.append(f"proposals.mode: {'quality' if proposals.mode == 'diverse' else 'diverse'}")
    if "edgeboxes" not in engines:
        ways.append(f"proposals.engine: [{engines[0]}, edgeboxes]")
    ways.append(f"a larger proposals.max_boxes than {proposals.max_boxes}")
    return "try " + " or ".join(ways[:2])


def _features(config: Config) -> str:
    """Name the next step towards better features."""
    if config.tunes_conv():
        return "a stronger backbone"
    return "fine-tuned convolutional layers (finetune.layers)"


def _against_background(config: Config, *, higher: float | None) -> str:
    threshold = "" if higher is None else f"--score {higher:.2f} (where F1 is highest) or "
    if config.classifier == "svm" and config.svm.passes == 1:
        return f"try {threshold}svm.passes: 2 (more hard negatives)"
    return f"try {threshold}more training images"

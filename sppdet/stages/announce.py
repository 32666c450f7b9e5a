"""Lines that say which stage of a training begins."""

from __future__ import annotations

from sppdet.config import Config
from sppdet.stages.context import STAGES, Stage

_DOING: dict[Stage, str] = {
    "data": "reading the annotations, checking every image",
    "proposals": "searching every image for windows that may hold an object",
    "features": "computing the feature maps of whole images",
    "finetune": "fine-tuning the network on these windows",
    "ranking": "learning which windows are worth a closer look",
    "svm": "training a linear SVM for each class",
    "bbox": "learning to move boxes to the objects",
    "calibrate": "detecting in training images held out, to turn scores into probabilities",
    "evaluate": "detecting in the test set, scoring the detections",
}


def title(stage: Stage, config: Config, *, until: Stage) -> str:
    """Describe a stage in a line with its number: "[2/7] proposals: searching ..."; "" if it has no work.

    Args:
        config: whose sets are settled.
        until: the last stage.
    """
    idle = {
        "features": config.tunes_conv(),  # whose maps are computed anew when they are needed
        "finetune": config.tuning() is None,
        "ranking": config.detect.max_windows is None,
        "svm": config.classifier == "softmax",  # fine-tuning has trained it
        "bbox": config.bbox is None or config.bbox.source == "finetune",
        "calibrate": config.calibrate is None,
        "evaluate": config.data.test is None,
    }
    up_to = STAGES[: STAGES.index(until) + 1]
    shown = [one for one in up_to if not idle.get(one)]
    if stage not in shown:
        return ""
    return f"[{shown.index(stage) + 1}/{len(shown)}] {stage}: {_DOING[stage]}"

"""Fingerprints of a model's parts, known before any of them is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sppdet.config import Config
from sppdet.detection.detect import VERSION as DETECTION_VERSION
from sppdet.evaluation.calibration import VERSION as CALIBRATION_VERSION
from sppdet.features.head import Head
from sppdet.features.spp import VERSION as SPP_VERSION
from sppdet.runs.artifacts import fingerprint, is_intact
from sppdet.stages.crossfit import Folds
from sppdet.stages.map_cache import weights_digest
from sppdet.stages.model_files import ModelFiles
from sppdet.stages.training_data import TrainingData
from sppdet.training.bbox import VERSION as BBOX_VERSION
from sppdet.training.finetune import VERSION as FINETUNE_VERSION
from sppdet.training.ranking import VERSION as RANKING_VERSION
from sppdet.training.svm import VERSION as SVM_VERSION
from sppdet.training_config import Layer

Part = Literal["head", "ranking", "svm", "bbox", "calibration"]


@dataclass(frozen=True)
class TrainingPlan:
    """The parts of the model that the settings ask for, by the fingerprint of their inputs."""

    made_by: Mapping[Part, str]
    due: frozenset[Part]  # missing, damaged, or made from something else

    @classmethod
    def of(
        cls,
        config: Config,
        data: TrainingData,
        initial_head: Head | None,
        folds: Folds | None,
        files: ModelFiles,
    ) -> TrainingPlan:
        """Plan by the settings, the training data, the head before fine-tuning and the folds."""
        inputs = data.fingerprint()
        made_by: dict[Part, str] = {}
        if initial_head is not None:
            made_by["head"] = _head(config, inputs, initial_head)

        def below(layer: Layer | None) -> str:
            """Return the fingerprint of the fine-tuning that the features depend on."""
            on_head = layer != "pool5" or config.tunes_conv()
            return made_by.get("head", "") if on_head else ""

        if config.detect.max_windows is not None:
            made_by["ranking"] = fingerprint(
                "ranking", RANKING_VERSION, SPP_VERSION, below("pool5"), inputs
            )
        softmax = ["softmax"] if config.classifier == "softmax" else []

        made_by["svm"] = fingerprint(
            "svm",
            SVM_VERSION,
            SPP_VERSION,
            config.svm.model_dump(exclude={"layer"}),
            config.svm_layer(),
            below(config.svm_layer()),
            inputs,
            *softmax,
        )
        if config.bbox is not None:
            made_by["bbox"] = fingerprint(
                "bbox",
                BBOX_VERSION,
                SPP_VERSION,
                config.bbox.model_dump(exclude={"source"}),
                config.svm.model_dump(include={"target_norm", "norm_images", "norm_windows"}),
                below(config.bbox_layer()),
                inputs,
                *([] if config.bbox.source == "ridge" else [config.bbox.source]),
            )
        if config.calibrate is not None:
            made_by["calibration"] = fingerprint(
                "calibration",
                [CALIBRATION_VERSION, DETECTION_VERSION],
                [made_by[part] for part in ("ranking", "svm", "bbox") if part in made_by],
                config.detect.model_dump(),
                config.calibrate.model_dump(),
            )
        due = {part for part, digest in made_by.items() if not is_intact(files.of(part), digest)}
        if config.tunes_conv() and not is_intact(files.backbone, made_by["head"]):
            due.add("head")
        if "calibration" in made_by and not is_intact(files.cross_fitted, made_by["calibration"]):
            due.add("calibration")
        if folds is not None and "calibration" in due:
            fold_files: dict[Part, Path] = {"svm": files.fold_svm}
            if config.bbox is not None and config.bbox.source == "ridge":
                fold_files["bbox"] = files.fold_bbox
            due |= {p for p, path in fold_files.items() if folds.lack(path, made_by[p])}
        return cls(made_by, frozenset(due))


def _head(config: Config, inputs: str, initial: Head) -> str:
    assert config.head is not None
    if config.finetune is None:
        return fingerprint("head", weights_digest(initial))
    return fingerprint(
        "finetune",
        FINETUNE_VERSION,
        SPP_VERSION,
        config.finetune.model_dump(),
        config.head.model_dump(),
        weights_digest(initial),
        inputs,
    )

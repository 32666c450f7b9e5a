"""What the trained parts of a model are made of, which is known before any of them is trained."""

from __future__ import annotations

from dataclasses import dataclass

from sppdet.config import Config
from sppdet.features.head import Head
from sppdet.features.spp import VERSION as SPP_VERSION
from sppdet.runs.artifacts import fingerprint, is_intact
from sppdet.stages.maps import weights_digest
from sppdet.stages.material import Material
from sppdet.stages.model_files import ModelFiles
from sppdet.training.bbox import VERSION as BBOX_VERSION
from sppdet.training.finetune import VERSION as FINETUNE_VERSION
from sppdet.training.svm import VERSION as SVM_VERSION


@dataclass(frozen=True)
class Plan:
    """The fingerprints of the parts; None for one that the settings leave out."""

    head: str | None
    svm: str
    bbox: str | None
    due: frozenset[str]  # the parts that are missing, damaged, or made of something else

    @classmethod
    def of(cls, config: Config, material: Material, start: Head | None, files: ModelFiles) -> Plan:
        """By the settings, the material and the fully connected layers before fine-tuning."""
        of_material = material.fingerprint()
        head = None if start is None else _head(config, of_material, start)

        def below(layer: str) -> str:
            return "" if layer == "pool5" or head is None else head

        svm = fingerprint(
            "svm",
            SVM_VERSION,
            SPP_VERSION,
            config.svm.model_dump(exclude={"layer"}),
            config.svm_layer(),
            below(config.svm_layer()),
            of_material,
        )
        bbox = None
        if config.bbox is not None:
            bbox = fingerprint(
                "bbox",
                BBOX_VERSION,
                SPP_VERSION,
                config.bbox.model_dump(),
                config.svm.model_dump(include={"target_norm", "norm_images", "norm_windows"}),
                below(config.bbox.layer),
                of_material,
            )
        wanted = {"head": (head, files.head), "svm": (svm, files.svm), "bbox": (bbox, files.bbox)}
        due = frozenset(
            part
            for part, (made_by, path) in wanted.items()
            if made_by is not None and not is_intact(path, made_by)
        )
        return cls(head, svm, bbox, due)


def _head(config: Config, of_material: str, start: Head) -> str:
    assert config.head is not None
    if config.finetune is None:
        return fingerprint("head", weights_digest(start))
    return fingerprint(
        "finetune",
        FINETUNE_VERSION,
        SPP_VERSION,
        config.finetune.model_dump(),
        config.head.model_dump(),
        weights_digest(start),
        of_material,
    )

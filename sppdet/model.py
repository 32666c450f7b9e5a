"""A run's trained parts on disk: safetensors under `model/`, put together into a detector."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from sppdet.artifacts import (
    fingerprint,
    fingerprint_of,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
    write_text,
)
from sppdet.config import Config
from sppdet.config_file import load_config
from sppdet.data.cache import PictureCache
from sppdet.detection.detector import Classifiers, Detector, Regressors
from sppdet.errors import ArtifactError, ConfigError
from sppdet.features.backbones import Backbone, conv_backbone
from sppdet.features.head import Head, empty_head, truncated
from sppdet.features.regions import Extractor
from sppdet.features.source import MapSource
from sppdet.proposals.stage import Proposer


class ModelFiles:
    """The files of a run's model; each has the fingerprint of what made it."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.config = run / "config.yaml"
        self.backbone = run / "model" / "backbone.safetensors"
        self.head = run / "model" / "head.safetensors"
        self.svm = run / "model" / "svm.safetensors"
        self.bbox = run / "model" / "bbox.safetensors"
        self.sealed = run / "model" / "trained.json"

    def fingerprint(self) -> list[str | None]:
        """Of all parts; None for one that isn't there."""
        return [fingerprint_of(p) for p in (self.backbone, self.head, self.svm, self.bbox)]

    def seal(self, config: Config, *, training_data: str) -> None:
        """Write the completion marker: all parts are trained, by these settings, on this data.

        Args:
            training_data: digest of the training set.
        """
        text = config.to_yaml()
        if not self.config.is_file() or self.config.read_text(encoding="utf-8") != text:
            write_text(self.config, text)
        seal = {**self._seal(config), "training_data": training_data}
        with contextlib.suppress(ArtifactError):  # missing or damaged
            if read_json(self.sealed) == seal:
                return
        write_json(self.sealed, seal)

    def check_sealed(self, config: Config) -> None:
        """Refuse a model whose parts or settings aren't those of one finished training."""
        if not self.sealed.is_file():
            raise ArtifactError(f"{self.run}: isn't trained to the end; go on with `sppdet train`")
        sealed, wanted = read_json(self.sealed), self._seal(config)
        if not isinstance(sealed, dict) or {key: sealed.get(key) for key in wanted} != wanted:
            raise ArtifactError(
                f"{self.run}: its parts or its config.yaml have changed since it was trained; "
                "go on with `sppdet train`"
            )

    def _seal(self, config: Config) -> dict[str, Any]:
        return {"parts": self.fingerprint(), "settings": _trained_by(config)}

    def training_data(self) -> str | None:
        """The digest of the training set; None where training isn't finished or didn't record it."""
        try:
            sealed = read_json(self.sealed)
        except ArtifactError:
            return None
        digest = sealed.get("training_data") if isinstance(sealed, dict) else None
        return digest if isinstance(digest, str) else None


def _trained_by(config: Config) -> str:
    """Fingerprint of the settings that training depends on; the others may be edited in a run."""
    aside = {"data", "detect", "eval", "workers", "store", "checkpoint_minutes"}
    raw = config.model_dump(mode="json", exclude=aside)
    raw["features"].pop("store")
    raw["backbone"].pop("weights")  # the run has its own copy
    raw["svm"]["layer"] = config.svm_layer()
    raw["finetune"] = raw["finetune"] if config.head else None
    return fingerprint(raw)


def save_backbone(path: Path, backbone: Backbone, *, made_by: str) -> None:
    """Write the convolutional layers' tensors."""
    write_tensors(path, backbone.layers.state_dict(), made_by=made_by)


def read_backbone(path: Path, config: Config) -> Backbone:
    """The run's convolutional layers."""
    backbone = conv_backbone(config.backbone.name)
    fill(backbone.layers, read_tensors(path)[0], path)
    return backbone


def save_head(path: Path, head: Head, *, made_by: str) -> None:
    """Write fc6, fc7 and fc8."""
    write_tensors(path, head.state_dict(), made_by=made_by)


def read_head(path: Path, backbone: Backbone, config: Config, *, classes: int) -> Head:
    """The run's fully connected layers."""
    if config.head is None:
        raise ConfigError("head: none")
    head = empty_head(backbone, config.spp_levels, config.head, classes + 1)
    fill(head, read_tensors(path)[0], path)
    return head.eval().requires_grad_(False)


def fill(module: torch.nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Load the tensors of `path` into a module; ArtifactError where they don't fit."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{path}: doesn't fit the run's settings: {reason}") from None


def save_classifiers(
    path: Path, classifiers: Classifiers, class_names: tuple[str, ...], *, made_by: str
) -> None:
    """Write the SVMs with the names of their classes."""
    about = {"layer": classifiers.layer, "class_names": list(class_names)}
    tensors = {"weights": classifiers.weights, "biases": classifiers.biases}
    write_tensors(path, tensors, made_by=made_by, about=about)


def read_classifiers(path: Path) -> tuple[Classifiers, tuple[str, ...]]:
    """The SVMs and the names of their classes."""
    tensors, about = read_tensors(path)
    part = Classifiers(_get(about, "layer", path), *_both(tensors, path))
    return part, tuple(_get(about, "class_names", path))


def save_regressors(path: Path, regressors: Regressors, *, made_by: str) -> None:
    """Write the box regressors."""
    tensors = {"weights": regressors.weights, "biases": regressors.biases}
    write_tensors(path, tensors, made_by=made_by, about={"layer": regressors.layer})


def read_regressors(path: Path) -> Regressors:
    """The box regressors."""
    tensors, about = read_tensors(path)
    return Regressors(_get(about, "layer", path), *_both(tensors, path))


def _both(tensors: dict[str, torch.Tensor], path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    if "weights" not in tensors or "biases" not in tensors:
        raise ArtifactError(f"{path}: damaged: expected the tensors weights and biases")
    return tensors["weights"], tensors["biases"]


def _get(about: dict[str, Any], key: str, path: Path) -> Any:
    if key not in about:
        raise ArtifactError(f"{path}: damaged: its header has no {key}")
    return about[key]


def choose_device(name: str) -> torch.device:
    """auto takes a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU here; expected cpu or auto")
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: expected auto, cpu or cuda")
    return torch.device(name)


def read_run_config(run: Path) -> Config:
    """The resolved settings of a run."""
    path = ModelFiles(run).config
    if not path.is_file():
        raise ArtifactError(f"{run}: not a run: it has no config.yaml")
    return load_config(path)


def load_detector(run: Path, *, device: str | torch.device = "auto") -> Detector:
    """The detector of a run's folder.

    Raises:
        ArtifactError: not a run, or one whose training isn't finished or was by other settings.
    """
    config = read_run_config(run)
    files = ModelFiles(run)
    target = device if isinstance(device, torch.device) else choose_device(device)
    files.check_sealed(config)
    classifiers, names = read_classifiers(files.svm)
    backbone = read_backbone(files.backbone, config)
    backbone.layers.to(target)
    regressors = read_regressors(files.bbox) if config.bbox is not None else None
    layers = {classifiers.layer, regressors.layer if regressors else "pool5"}
    head = None
    if layers != {"pool5"}:
        head = read_head(files.head, backbone, config, classes=len(names)).to(target)
        head = truncated(head, config.detect.svd or ())
    return Detector(
        class_names=names,
        proposer=Proposer(config.proposals),
        maps=MapSource(backbone, config.scales, config.features, PictureCache()),
        extractor=Extractor.by(config.spp_levels, config.features, head, target),
        classifiers=Classifiers(
            classifiers.layer, classifiers.weights.to(target), classifiers.biases.to(target)
        ),
        regressors=regressors
        and Regressors(
            regressors.layer, regressors.weights.to(target), regressors.biases.to(target)
        ),
        config=config.detect,
        max_pixels=config.data.max_pixels,
    )

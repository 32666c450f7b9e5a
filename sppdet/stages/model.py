"""A run's trained parts on disk: safetensors under `model/`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from sppdet.config import Config, Layer
from sppdet.detection.detect import Classifiers, Regressors
from sppdet.errors import ArtifactError, ConfigError
from sppdet.features.backbones import Backbone, conv_backbone
from sppdet.features.head import Head, empty_head
from sppdet.io import plain_yaml
from sppdet.io.settings import load_config
from sppdet.runs.artifacts import (
    fingerprint,
    read_header,
    read_json,
    write_json,
    write_text,
)
from sppdet.runs.weights import check_types, class_names_in, fill, read_weights, write_weights
from sppdet.tensor_types import TensorType


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

    def of(self, part: Literal["head", "svm", "bbox"]) -> Path:
        """The file of a trained part."""
        return {"head": self.head, "svm": self.svm, "bbox": self.bbox}[part]

    def fingerprint(self) -> list[str | None]:
        """Fingerprint and checksum of every part; None for one that isn't there or is damaged."""
        headers = map(read_header, (self.backbone, self.head, self.svm, self.bbox))
        return [f"{h.fingerprint}-{h.checksum}" if h else None for h in headers]

    def seal(self, config: Config, *, training_data: str, arithmetic: str) -> None:
        """Write the completion marker: all parts are trained, by these settings, on this data.

        Args:
            training_data: digest of the training set.
            arithmetic: what the networks multiplied in, see `sppdet.parallel.arithmetic`.
        """
        text = plain_yaml.dump(config.to_plain())
        if not self.config.is_file() or self.config.read_text(encoding="utf-8") != text:
            write_text(self.config, text)
        seal = {**self._seal(config), "training_data": training_data, "arithmetic": arithmetic}
        if self._sealed() != seal:
            write_json(self.sealed, seal)

    def check_sealed(self, config: Config) -> None:
        """Refuse a model whose parts or settings aren't those of one finished training."""
        if not self.sealed.is_file():
            raise ArtifactError(f"{self.run}: isn't trained to the end; go on with `sppdet train`")
        for path in (self.backbone, self.head, self.svm, self.bbox):
            if path.is_file() and read_header(path) is None:
                raise ArtifactError(
                    f"{path}: damaged, or written by an earlier version of sppdet; `sppdet train` "
                    "with the run's settings makes it again"
                )
        sealed, wanted = self._sealed(), self._seal(config)
        if {key: sealed.get(key) for key in wanted} != wanted:
            raise ArtifactError(
                f"{self.run}: its parts or its config.yaml have changed since it was trained; "
                "go on with `sppdet train`"
            )

    def check_arithmetic(self, config: Config, arithmetic: str) -> None:
        """Refuse to train a finished model again only because this device multiplies otherwise.

        Raises:
            ConfigError: the model was trained by these settings in other arithmetic.
        """
        sealed = self._sealed()
        before = sealed.get("arithmetic")
        if sealed.get("settings") != _trained_by(config) or before in (None, arithmetic):
            return
        raise ConfigError(
            f"features.precision: {config.features.precision} is {arithmetic} on this device, but "
            f"{self.run} was trained in {before}; train on such a device, or into another --run"
        )

    def training_data(self) -> str | None:
        """The digest of the training set; None where training isn't finished or didn't record it."""
        digest = self._sealed().get("training_data")
        return digest if isinstance(digest, str) else None

    def _seal(self, config: Config) -> dict[str, Any]:
        return {"parts": self.fingerprint(), "settings": _trained_by(config)}

    def _sealed(self) -> dict[str, Any]:
        """What the completion marker says; nothing if it is missing or damaged."""
        try:
            sealed = read_json(self.sealed)
        except ArtifactError:
            return {}
        return sealed if isinstance(sealed, dict) else {}


def _trained_by(config: Config) -> str:
    """Fingerprint of the settings that training depends on; the others may be edited in a run."""
    aside = {"data", "detect", "eval", "workers", "store", "checkpoint_minutes"}
    raw = config.model_dump(mode="json", exclude=aside)
    raw["features"].pop("store")
    raw["proposals"].pop("path")  # what matters is what is in them
    raw["backbone"].pop("weights")  # the run has its own copy
    raw["svm"]["layer"] = config.svm_layer()
    raw["finetune"] = raw["finetune"] if config.head else None
    return fingerprint(raw)


def save_backbone(path: Path, backbone: Backbone, *, made_by: str) -> None:
    """Write the convolutional layers' tensors."""
    write_weights(path, backbone.layers.state_dict(), made_by=made_by)


def read_backbone(path: Path, config: Config) -> Backbone:
    """The run's convolutional layers."""
    backbone = conv_backbone(config.backbone.name)
    fill(backbone.layers, read_weights(path)[0], path)
    return backbone


def save_head(path: Path, head: Head, *, made_by: str) -> None:
    """Write fc6, fc7 and fc8."""
    write_weights(path, head.state_dict(), made_by=made_by)


def read_head(path: Path, backbone: Backbone, config: Config, *, classes: int) -> Head:
    """The run's fully connected layers."""
    if config.head is None:
        raise ConfigError("head: none")
    head = empty_head(backbone, config.spp_levels, config.head, classes + 1)
    fill(head, read_weights(path)[0], path)
    return head.eval().requires_grad_(False)


def save_classifiers(
    path: Path, classifiers: Classifiers, class_names: tuple[str, ...], *, made_by: str
) -> None:
    """Write the SVMs with the names of their classes."""
    about = {"layer": classifiers.layer, "class_names": list(class_names)}
    tensors = {"weights": classifiers.weights, "biases": classifiers.biases}
    write_weights(path, tensors, made_by=made_by, about=about)


def read_classifiers(path: Path) -> tuple[Classifiers, tuple[str, ...]]:
    """The SVMs and the names of their classes."""
    tensors, about = read_weights(path)
    names = class_names_in(about, path)
    float32 = partial(TensorType, torch.float32)
    expected = {"weights": float32((len(names), None)), "biases": float32((len(names),))}
    check_types(tensors, expected, path)
    return Classifiers(_layer(about, path), tensors["weights"], tensors["biases"]), names


def save_regressors(path: Path, regressors: Regressors, *, made_by: str) -> None:
    """Write the box regressors."""
    tensors = {"weights": regressors.weights, "biases": regressors.biases}
    write_weights(path, tensors, made_by=made_by, about={"layer": regressors.layer})


def read_regressors(path: Path, *, classes: int) -> Regressors:
    """The box regressors."""
    tensors, about = read_weights(path)
    float32 = partial(TensorType, torch.float32)
    expected = {"weights": float32((classes, None, 4)), "biases": float32((classes, 4))}
    check_types(tensors, expected, path)
    return Regressors(_layer(about, path), tensors["weights"], tensors["biases"])


def _layer(about: dict[str, Any], path: Path) -> Layer:
    for layer in get_args(Layer):
        if about.get("layer") == layer:
            found: Layer = layer
            return found
    raise ArtifactError(f"{path}: damaged: expected the name of a layer in its header")


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

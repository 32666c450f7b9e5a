"""The files of a trained detector in its run, and the marker that the training is complete."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from sppdet.config import Config
from sppdet.errors import ArtifactError, ConfigError
from sppdet.io import plain_yaml
from sppdet.io.settings import read_run_settings
from sppdet.runs.artifacts import (
    TensorHeader,
    fingerprint,
    read_header,
    read_json,
    write_json,
    write_text,
)
from sppdet.runs.weights import Part, read_part
from sppdet.version import __version__

PartName = Literal["backbone", "head", "ranking", "svm", "bbox", "calibration"]
PARTS: tuple[PartName, ...] = get_args(PartName)
# those that scores depend on, as fingerprints list them; the ranking only where there is one
_SCORED: tuple[PartName, ...] = ("backbone", "head", "svm", "bbox", "ranking")
Headers = Mapping[PartName, TensorHeader | None]


class ModelFiles:
    """The files of a run's model; each has the fingerprint of its inputs."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.config = run / "config.yaml"
        self.backbone = run / "model" / "backbone.safetensors"
        # before fine-tuning, where that changes the backbone and fitting took time
        self.initial_backbone = run / "model" / "initial_backbone.safetensors"
        self.head = run / "model" / "head.safetensors"
        self.ranking = run / "model" / "ranking.safetensors"  # of windows, where they are limited
        self.svm = run / "model" / "svm.safetensors"
        self.bbox = run / "model" / "bbox.safetensors"
        self.calibration = run / "model" / "calibration.safetensors"
        self.sealed = run / "model" / "trained.json"
        # folds of the training images, models that haven't seen one, and what they detect in it
        self.folds = run / "folds" / "folds.json"
        self.fold_svm = run / "folds" / "svm.safetensors"
        self.fold_bbox = run / "folds" / "bbox.safetensors"
        self.cross_fitted = run / "folds" / "detections.safetensors"

    def of(self, part: PartName) -> Path:
        """Return the path of a part."""
        return {
            "backbone": self.backbone,
            "head": self.head,
            "ranking": self.ranking,
            "svm": self.svm,
            "bbox": self.bbox,
            "calibration": self.calibration,
        }[part]

    def read(self, part: PartName) -> Part:
        """Read a part; errors are those of `read_part`."""
        return read_part(self.of(part))

    def find(self, part: PartName) -> Part | None:
        """Read a part; None where there is none."""
        return self.read(part) if self.of(part).is_file() else None

    def headers(self) -> Headers:
        """Read the headers of the parts that are there; None for one that is damaged."""
        return {name: read_header(self.of(name)) for name in PARTS if self.of(name).is_file()}

    def fingerprint(self) -> list[str | None]:
        """Read the fingerprint and checksum of every part; None for one that is missing or damaged."""
        return stamps_of(self.headers())

    def detection_fingerprint(self, config: Config) -> str:
        """Return the fingerprint of the model's parts and of the settings of detection."""
        return detection_fingerprint(self.headers(), config)

    def seal(self, config: Config, *, training_data: str, arithmetic: str) -> None:
        """Write the completion marker: all parts are trained, by these settings, on this data.

        Args:
            training_data: digest of the training set.
            arithmetic: what the networks multiplied in, see `sppdet.parallel.arithmetic`.
        """
        text = self.settings_text(config)
        if not self.config.is_file() or self.config.read_text(encoding="utf-8") != text:
            write_text(self.config, text)
        seal = {**self._seal(config), "training_data": training_data, "arithmetic": arithmetic}
        if self._sealed() != seal:
            write_json(self.sealed, seal)

    def settings_text(self, config: Config) -> str:
        """Format the settings for `config.yaml`; lists in the run are relative to it: it may move."""
        raw, run = config.to_plain(), Path.absolute(self.run)
        for key in ("train_ids", "test_ids"):
            path = Path(raw["data"][key] or "")
            if path.is_relative_to(run):
                raw["data"][key] = path.relative_to(run).as_posix()
        return plain_yaml.dump(raw)

    def check_sealed(self, config: Config) -> None:
        """Refuse a model whose parts or settings aren't those of one finished training."""
        if not self.sealed.is_file():
            raise ArtifactError(f"{self.run}: isn't trained to the end; go on with `sppdet train`")
        headers = self.headers()
        for part in _SCORED:
            if part in headers and headers[part] is None:
                raise ArtifactError(
                    f"{self.of(part)}: damaged, or written by an earlier version of sppdet; `sppdet train` "
                    "with the run's settings makes it again"
                )
        sealed, wanted = self._sealed(), self._seal(config)
        if {key: sealed.get(key) for key in wanted} != wanted:
            raise ArtifactError(
                f"{self.run}: its parts or its config.yaml have changed since it was trained; "
                "go on with `sppdet train`"
            )

    def check_arithmetic(self, config: Config, arithmetic: str) -> None:
        """Refuse to train a finished model again only because this device computes in another precision.

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
        """Read the digest of the training set; None where training isn't finished or didn't record it."""
        digest = self._sealed().get("training_data")
        return digest if isinstance(digest, str) else None

    def _seal(self, config: Config) -> dict[str, Any]:
        return {"parts": self.fingerprint(), "settings": _trained_by(config)}

    def _sealed(self) -> dict[str, Any]:
        """Read the completion marker; empty if it is missing or damaged."""
        try:
            sealed = read_json(self.sealed)
        except ArtifactError:
            return {}
        return sealed if isinstance(sealed, dict) else {}


def stamps_of(headers: Headers) -> list[str | None]:
    """List fingerprint and checksum of the parts that scores depend on; None for one that is missing."""
    names = [name for name in _SCORED if name != "ranking" or name in headers]
    found = [headers.get(name) for name in names]
    return [f"{h.fingerprint}-{h.checksum}" if h else None for h in found]


def detection_fingerprint(headers: Headers, config: Config) -> str:
    """Return the fingerprint of a model's parts and of the settings of detection."""
    return fingerprint("detection", stamps_of(headers), config.detect.model_dump())


def _trained_by(config: Config) -> str:
    """Hash the settings that training depends on; the others may be edited in a run."""
    aside = {"data", "detect", "eval", "calibrate", "workers", "store", "checkpoint_minutes"}
    raw = config.model_dump(mode="json", exclude=aside)
    raw["features"] = config.features.that_matter()
    raw["proposals"].pop("path")  # what matters is what is in them
    raw["backbone"].pop("weights")  # the run has its own copy
    raw["svm"]["layer"] = config.svm_layer()
    raw["finetune"] = raw["finetune"] if config.head else None
    if config.detect.max_windows is not None:
        raw["ranking"] = True  # how many windows it lets pass may be edited
    return fingerprint(raw)


def read_run_config(run: Path) -> Config:
    """Read the resolved settings of a run."""
    return read_run_settings(run, Config)


def signature(config: Config, *, train: str | None, test: str | None = None) -> str:
    """Build the short line that names the settings and the data behind a score.

    Args:
        train: digest of the training set, None where it isn't known.
        test: digest of the set that is scored, None where there is no score.
    """
    levels = "+".join(map(str, config.spp_levels))
    scales = "+".join(map(str, config.scales))
    parts = [
        f"net:{config.backbone.name}",
        f"scales:{scales}",
        f"spp:{levels}",
        f"{config.classifier}:{config.svm_layer()}",
        f"ft:{_tuned(config)}",
        f"bb:{'yes' if config.bbox else 'no'}",
        f"prop:{'+'.join(config.proposals.engines())}.{config.proposals.mode}",
        f"seed:{config.seed}",
        f"settings:{settings_fingerprint(config)}",
        f"train:{train[:8] if train else 'unknown'}",
        *([f"test:{test[:8]}"] if test else []),
        f"sppdet:{__version__}",
    ]
    return "|".join(parts)


def _tuned(config: Config) -> str:
    """Name what was fine-tuned: no, yes for the head, or the convolutional layers."""
    tuning = config.tuning()
    if tuning is None:
        return "no"
    return tuning.layers if config.tunes_conv() else "yes"


def settings_fingerprint(config: Config) -> str:
    """Hash the settings that can change the result: not folders, threads or how often work is saved."""
    aside = {"store", "workers", "checkpoint_minutes"}
    raw = config.model_dump(mode="json", exclude=aside)
    # which images the lists name shows in the digests of the data
    places = ("root", "images", "train_ids", "test_ids")
    raw["data"] = {k: v for k, v in raw["data"].items() if k not in places}
    raw["features"] = config.features.that_matter()
    raw["backbone"]["weights"] = Path(raw["backbone"]["weights"]).name
    if raw["proposals"]["edge_model"] is not None:
        raw["proposals"]["edge_model"] = Path(raw["proposals"]["edge_model"]).name
    return fingerprint(raw)[:8]

"""A finished model: read from a run's folder or from one file, and written into one file.

The file is a tensor file of `sppdet.runs.artifacts`. Its tensors are those of the parts that detection
needs, named `part.tensor`; its header has the settings, and fingerprint, checksum and facts of every part
of the run. It holds no path and nothing else of the machine that it was made on. Nothing here imports torch
before tensors are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppdet.config import Config
from sppdet.errors import ArtifactError, ConfigError
from sppdet.io.settings import validate
from sppdet.runs.artifacts import (
    HEADER_KEY,
    TensorHeader,
    checksum,
    fingerprint,
    read_header,
    write_tensors,
)
from sppdet.runs.weights import Part, read_weights
from sppdet.stages.model_files import (
    PARTS,
    Headers,
    ModelFiles,
    PartName,
    detection_fingerprint,
    read_run_config,
    signature,
    stamps_of,
)
from sppdet.version import __version__

SUFFIX = ".sppdet"
_KIND = "sppdet model"
_FORMAT = 1  # raise it when files of before can't be read any more
_EXPECTED = "expected the folder of a run or a file of `sppdet export`"
# settings without a part in detection that tell of the machine and of its data
_LEFT_OUT = ("data", "store", "workers", "checkpoint_minutes", "eval")


@dataclass(frozen=True)
class TrainedModel:
    """A finished model as it is stored: its settings, the headers of its parts, and the parts.

    `read` raises ArtifactError for a part that is missing or damaged.
    """

    where: Path
    config: Config
    signature: str
    headers: Headers
    read: Callable[[PartName], Part]

    @classmethod
    def open(cls, path: Path) -> TrainedModel:
        """Open the folder of a run or a model file.

        Raises:
            ArtifactError: neither of them, damaged, or its training isn't finished or was by other
                settings.
        """
        return _of_file(path) if is_model_file(path) else _of_run(path)

    def find(self, part: PartName) -> Part | None:
        """Read a part; None where there is none."""
        return self.read(part) if part in self.headers else None

    @property
    def stamps(self) -> list[str | None]:
        """Fingerprints and checksums of the parts that scores depend on; see `stamps_of`."""
        return stamps_of(self.headers)

    @property
    def detection_fingerprint(self) -> str:
        """The fingerprint of the parts and of the settings of detection."""
        return detection_fingerprint(self.headers, self.config)

    def fingerprint_of(self, part: PartName) -> str | None:
        """Return the fingerprint of a part; None where there is none."""
        header = self.headers.get(part)
        return header.fingerprint if header else None


def is_model_file(path: Path) -> bool:
    """Tell a model file, which may be missing, from the folder of a run."""
    return path.is_file() or (path.suffix == SUFFIX and not path.is_dir())


def needed_parts(config: Config) -> list[PartName]:
    """List the parts that detection by these settings needs; a calibration is optional."""
    needed: list[PartName] = ["backbone", "svm"]
    if config.bbox is not None:
        needed.append("bbox")
    if {config.svm_layer(), config.bbox_layer() or "pool5"} != {"pool5"}:
        needed.append("head")
    if config.detect.max_windows is not None:
        needed.append("ranking")
    return needed


def write_model(model: TrainedModel, path: Path) -> int:
    """Write a model into one file, atomically; the same model gives the same bytes.

    Returns:
        the bytes of the file.

    Raises:
        ArtifactError: something that isn't a model file stands there, or it can't be written.
        ConfigError: the model's proposals are read from a file.
    """
    if path.exists() and not _is_ours(path):
        raise ArtifactError(
            f"{path}: is there, but isn't a model of sppdet's; expected another name"
        )
    config = model.config
    if "stored" in config.proposals.engines():
        raise ConfigError(
            f"{model.where}: its proposals are read from files (proposals.engine: stored), and there are "
            "none of new images; a model file needs another engine"
        )
    if config.proposals.edge_model is not None:
        raise ConfigError(
            f"{model.where}: proposals.edge_model is a file that OpenCV reads without a check, so that "
            "none is taken from a model file; train with edge_model: null"
        )
    names: list[PartName] = [n for n in PARTS if n in (*needed_parts(config), "calibration")]
    parts = {name: part for name in names if (part := model.find(name))}
    tensors = {f"{n}.{key}": t for n, part in parts.items() for key, t in part.tensors.items()}
    about = {
        "kind": _KIND,
        "format": _FORMAT,
        "sppdet": __version__,
        "signature": model.signature,
        "settings": _settings_of(config),
        "parts": {
            name: {
                "fingerprint": header.fingerprint,
                "checksum": header.checksum,
                "about": header.about,
            }
            for name, header in model.headers.items()
            if header
        },
    }
    made_by = fingerprint("model", _FORMAT, about["parts"], about["settings"])
    return write_tensors(path, tensors, made_by=made_by, about=about)


def _settings_of(config: Config) -> dict[str, Any]:
    raw = {key: value for key, value in config.to_plain().items() if key not in _LEFT_OUT}
    raw["backbone"].pop("weights")  # they are in the file
    return raw | {"data": {"max_pixels": config.data.max_pixels}}


def _of_run(run: Path) -> TrainedModel:
    config, files = read_run_config(run), ModelFiles(run)
    files.check_sealed(config)
    line = signature(config, train=files.training_data())
    return TrainedModel(run, config, line, files.headers(), files.read)


def _of_file(path: Path) -> TrainedModel:
    about, config, headers = read_model_header(path)
    tensors, _ = read_weights(path)

    def read(name: PartName) -> Part:
        header, where = headers.get(name), f"{path}: {name}"
        own = {key: tensors[f"{name}.{key}"] for key in header.layout} if header else {}
        if header is None or not own:
            raise ArtifactError(f"{where}: missing in the file")
        facts = {"fingerprint": header.fingerprint, "about": header.about}
        if checksum(facts, own) != header.checksum:
            raise ArtifactError(f"{where}: damaged: its tensors don't match their checksum")
        return Part(own, header.about, where)

    return TrainedModel(path, config, about["signature"], headers, read)


def read_model_header(path: Path) -> tuple[dict[str, Any], Config, dict[PartName, TensorHeader]]:
    """Read and check the header of a model file; its tensors aren't read.

    Returns:
        the facts in the header, the settings, and the headers of the parts.

    Raises:
        ArtifactError: no such file, not a model file, damaged, or of another version.
        ConfigError: a setting is unknown or has an impossible value.
    """
    if not path.exists():
        raise ArtifactError(f"{path}: no such file")
    if not _begins_like_ours(path):
        raise ArtifactError(f"{path}: not a model of sppdet's; {_EXPECTED}")
    header = read_header(path)
    if header is None:
        raise ArtifactError(
            f"{path}: damaged: not whole, or changed; `sppdet export` makes it again"
        )
    about = header.about
    if about.get("kind") != _KIND:
        raise ArtifactError(f"{path}: not a model, but another file of sppdet's; {_EXPECTED}")
    if about.get("format") != _FORMAT:
        raise ArtifactError(
            f"{path}: of format {about.get('format')!r:.20}, expected {_FORMAT}: by another version of "
            f"sppdet ({about.get('sppdet')!r:.20}; this one is {__version__})"
        )
    if not all(isinstance(about.get(key), str) for key in ("sppdet", "signature")):
        raise ArtifactError(f"{path}: damaged: expected version and signature in its header")
    return about, _config_in(about, path), _parts_in(header, path)


def _config_in(about: Mapping[str, Any], path: Path) -> Config:
    raw = about.get("settings")
    data = raw.get("data") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(data, dict):
        raise ArtifactError(f"{path}: damaged: expected settings in its header")
    foreign = [key for key in _LEFT_OUT if key in raw and key != "data"]
    foreign += [f"data.{key}" for key in data if key != "max_pixels"]
    if foreign:
        raise ArtifactError(f"{path}: damaged: {foreign[0]:.60} is no setting of a model file")
    config = validate({**raw, "data": {**data, "root": ["."]}}, str(path), Config)
    if config.proposals.path or config.proposals.edge_model:
        raise ArtifactError(
            f"{path}: damaged: its proposals are read from a file of another machine"
        )
    return config


def _parts_in(header: TensorHeader, path: Path) -> dict[PartName, TensorHeader]:
    listed = header.about.get("parts")
    if not isinstance(listed, dict):
        raise ArtifactError(f"{path}: damaged: expected the parts of a model in its header")
    layouts: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {name: {} for name in listed}
    for name, found in header.layout.items():
        part, _, key = name.partition(".")
        if part not in layouts or not key:
            raise ArtifactError(f"{path}: damaged: tensor {name:.60} isn't expected")
        layouts[part][key] = found
    for name in listed:
        if name not in PARTS:
            raise ArtifactError(f"{path}: damaged: {name!r:.60} is no part of a model")
    return {n: _part_header(listed[n], layouts[n], f"{path}: {n}") for n in PARTS if n in listed}


def _part_header(
    facts: object, layout: dict[str, tuple[str, tuple[int, ...]]], where: str
) -> TensorHeader:
    if isinstance(facts, dict):
        stamp, check, about = (facts.get(key) for key in ("fingerprint", "checksum", "about"))
        if isinstance(stamp, str) and isinstance(check, str) and isinstance(about, dict):
            return TensorHeader(stamp, check, about, layout)
    raise ArtifactError(f"{where}: damaged: expected its fingerprint, checksum and facts")


def _begins_like_ours(path: Path) -> bool:
    """Check the first bytes after the length of the header, as `write_tensors` writes them."""
    mark = b'{"__metadata__":{"' + HEADER_KEY.encode()
    try:
        with path.open("rb") as handle:
            return handle.read(8 + len(mark))[8:] == mark
    except OSError as error:
        raise ArtifactError(f"{path}: can't be read: {error.strerror}") from None


def _is_ours(path: Path) -> bool:
    header = read_header(path) if path.is_file() else None  # reading a FIFO would never end
    return header is not None and header.about.get("kind") == _KIND

"""Reading of settings: YAML files with optional bases, overrides, and errors of one line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from sppdet.config import Config
from sppdet.errors import ArtifactError, ConfigError, name_problem, one_line
from sppdet.io import plain_yaml
from sppdet.io.files import read_text
from sppdet.io.packaged_configs import config_for_images, find_config, packaged_configs
from sppdet.runs.log import LOGGER
from sppdet.setting_problems import MAX_SHOWN, first_problem, unknown_key, unusable_text
from sppdet.setting_types import Section

PATH_KEYS = (
    *(("data", "root"), ("data", "images"), ("data", "train_ids"), ("data", "test_ids")),
    ("store",),
    *(("proposals", "path"), ("proposals", "edge_model")),
)
WEIGHT_NAMES = ("imagenet", "none")
MAX_BYTES = 1_000_000
MAX_FILES = 20  # that build on each other


S = TypeVar("S", bound=Section)


def load_config(source: Path | str | Mapping[str, Any], overrides: Iterable[str] = ()) -> Config:
    """Read a detector's settings.

    Args:
        source: a YAML file or the name of a packaged config (see `load_settings`), a folder of labelled
            images, which gets the settings of `config_for_images`, or a dict (see `settings_of`).
        overrides: such as "svm.C=0.01".

    Raises:
        ConfigError: one line with the source, the key and the expected value.
    """
    if isinstance(source, Mapping):
        return settings_of(source, Config, overrides)
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(
            f"settings: {type(source).__name__}, expected a dict, a path or the name of a packaged config"
        )
    path = Path(source)
    if not holds_images(path):
        return load_settings(path, Config, overrides)
    name = config_for_images().stem
    text = "%s: a folder of images; settings: %s (`sppdet init %s` prints them)"
    LOGGER.info(text, path, name, name)
    return load_for_images(path, overrides)


def holds_images(path: Path) -> bool:
    """Tell a folder of images from settings: it is a folder that has no packaged config's name."""
    return path.is_dir() and not (len(path.parts) == 1 and path.name in packaged_configs())


def load_for_images(path: Path, overrides: Iterable[str] = (), *, tuned: bool = False) -> Config:
    """Read the packaged settings for a folder of labelled images, whatever their format.

    Args:
        tuned: take those whose convolutional layers learn.
    """
    raw = read_with_bases(config_for_images(tuned=tuned), Path("configs"))
    raw["data"] = {"format": "auto", "root": [os.path.abspath(path)]}
    return _overridden(raw, str(path), Config, overrides)


def load_settings(path: Path, model: type[S], overrides: Iterable[str] = ()) -> S:
    """Read a YAML file, its `base` files and the `overrides` ("svm.C=0.01"), and check them.

    Args:
        path: a file, or the name of a packaged config; see `find_config`.
        model: the type of the settings.
        overrides: paths in them are relative to the working folder, those in a file to that file.

    Raises:
        ConfigError: one line with file, key and the expected value.
    """
    file, folder = find_config(Path(path))
    return _overridden(read_with_bases(file, folder), str(path), model, overrides)


def settings_of(raw: Mapping[str, Any], model: type[S], overrides: Iterable[str] = ()) -> S:
    """Check settings in a dict, as they would be in a YAML file.

    Paths, which may be `Path`s, are relative to the working folder. `base` names a packaged config or a
    YAML file, whose settings apply where the dict has none.

    Raises:
        ConfigError: see `load_settings`; the message begins with "settings".
    """
    plain = _plain(raw, "settings", (), plain_yaml.MAX_DEPTH)
    base = plain.pop("base", None)
    _resolve_paths(plain, Path.cwd(), "settings")
    if base is not None:
        if not isinstance(base, str) or not base or name_problem(base):
            raise ConfigError(
                "settings: base: expected the name of a packaged config or of a YAML file"
            )
        plain = _merge(read_with_bases(*find_config(Path(base))), plain)
    return _overridden(plain, "settings", model, overrides)


def _plain(value: Any, where: str, at: tuple[str, ...], levels: int) -> Any:
    """Convert what Python has for a setting to what YAML has: paths, tuples and NumPy's numbers."""
    key = one_line(".".join(at[:4]), MAX_SHOWN)
    if levels == 0:
        raise ConfigError(f"{where}: {key}: nested too deeply")
    if isinstance(value, Mapping):
        return {str(k): _plain(v, where, (*at, str(k)), levels - 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, where, (*at, str(k)), levels - 1) for k, v in enumerate(value)]
    if getattr(value, "ndim", None) == 0 and hasattr(
        value, "item"
    ):  # NumPy's, without importing it
        value = value.item()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value is None or isinstance(value, str | bool | float):
        return value
    if isinstance(value, int) and value.bit_length() <= 1024:
        return value
    kind = "a large number" if isinstance(value, int) else type(value).__name__
    raise ConfigError(f"{where}: {key}: {kind}, expected text, a number, a list or a dict")


def _overridden(raw: dict[str, Any], where: str, model: type[S], overrides: Iterable[str]) -> S:
    """Put overrides into plain data, and check it."""
    for item in overrides:
        _apply_override(raw, item)
        where = f"{where.removesuffix(' with --set')} with --set"
    return check_config(raw, where, model)


def read_run_settings(run: Path, model: type[S]) -> S:
    """Read the `config.yaml` of a run.

    The name of its network was checked when the run began: this needs no torch.

    Raises:
        ArtifactError: the folder has no `config.yaml`.
        ConfigError: see `load_settings`.
    """
    path = run / "config.yaml"
    if run.is_file():
        raise ArtifactError(f"{run}: a file; this needs the folder of a run")
    if not path.is_file():
        raise ArtifactError(f"{run}: not a run: it has no config.yaml")
    return validate(read_with_bases(path), str(path), model)


def check_config(raw: Mapping[str, Any], where: str, model: type[S]) -> S:
    """Validate plain data and the name of the network; `where` starts the message of an error."""
    from sppdet.features.nets import problem_with_name  # imports torchvision

    settings = validate(raw, where, model)
    backbone = getattr(settings, "backbone", None)
    if backbone is not None and (problem := problem_with_name(backbone.name)):
        raise ConfigError(f"{where}: backbone.name: {problem}")
    return settings


def validate(raw: Mapping[str, Any], where: str, model: type[S]) -> S:
    """Validate plain data, except for the name of the network, which would need torch."""
    problem = unknown_key(raw, model, ()) or unusable_text(raw, (), plain_yaml.MAX_DEPTH)
    if problem:
        raise ConfigError(f"{where}: {problem}")
    try:
        return model.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_problem(error, model)}") from None


def read_with_bases(path: Path, folder: Path | None = None) -> dict[str, Any]:
    """Merge the settings of a file over those of the files that it builds on.

    Args:
        folder: where relative paths start; None: the folder of the file that has them.
    """
    chain: list[dict[str, Any]] = []
    seen: list[str] = []
    base: Any = path.name
    while base is not None:
        raw = read_yaml(path)
        seen.append(os.path.realpath(path))
        base = raw.pop("base", None)
        _resolve_paths(raw, folder or Path(seen[-1]).parent, str(path))
        chain.append(raw)
        if base is not None:
            path = _base_path(path, base, seen)
    merged: dict[str, Any] = {}
    for raw in reversed(chain):
        merged = _merge(merged, raw)
    return merged


def _base_path(path: Path, base: Any, seen: list[str]) -> Path:
    """Path of the base of `path`, after the files `seen`."""
    if not isinstance(base, str) or not base or name_problem(base):
        raise ConfigError(f"{path}: base: expected the name of a YAML file")
    if os.path.realpath(path.parent / base) in seen:
        raise ConfigError(f"{path}: base: the files build on each other in a circle")
    if len(seen) == MAX_FILES:
        raise ConfigError(f"{path}: base: more than {MAX_FILES} files build on each other")
    return path.parent / base


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping, as plain data.

    Raises:
        ConfigError: no regular file, more than `MAX_BYTES`, not UTF-8, refused by
            `plain_yaml.parse`, or no mapping.
    """
    text = read_text(path, ConfigError, max_bytes=MAX_BYTES)
    try:
        raw = plain_yaml.parse(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, got {type(raw).__name__}")
    return raw


def _resolve_paths(raw: dict[str, Any], folder: Path, where: str) -> None:
    for *sections, key in (*PATH_KEYS, ("backbone", "weights")):
        holder: Any = raw
        for section in sections:
            holder = holder.get(section) if isinstance(holder, dict) else None
        if not isinstance(holder, dict):
            continue
        value = holder.get(key)
        if key == "weights" and value in WEIGHT_NAMES:
            continue
        name = f"{where}: {'.'.join((*sections, key))}"
        if isinstance(value, str):
            holder[key] = _absolute(value, folder, name)
        elif isinstance(value, list):
            holder[key] = [_absolute(v, folder, name) if isinstance(v, str) else v for v in value]


def _absolute(path: str, folder: Path, name: str) -> str:
    if not path:
        raise ConfigError(f"{name}: expected a path, got an empty string")
    try:
        return os.path.normpath(folder / Path(path).expanduser())
    except (RuntimeError, ValueError):  # ValueError: a NUL byte in the name
        user = one_line(path.split("/")[0], MAX_SHOWN)
        raise ConfigError(f"{name}: {user}: no such user's home") from None


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _apply_override(raw: dict[str, Any], item: str) -> None:
    key, equals, text = item.partition("=")
    where = f"--set {one_line(item, MAX_SHOWN)}"
    *sections, last = parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"{where}: expected key=value, such as svm.C=0.01")
    if len(parts) > plain_yaml.MAX_DEPTH:
        raise ConfigError(f"{where}: no setting's name has {len(parts):,} parts")
    if parts == ["base"]:
        raise ConfigError(f"{where}: base has a meaning in files alone")
    try:
        value = plain_yaml.parse(text)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    patch: dict[str, Any] = {last: value}
    for section in reversed(sections):
        patch = {section: patch}
    _resolve_paths(patch, Path.cwd(), where)
    merged = _merge(raw, patch)
    raw.clear()
    raw.update(merged)


def settings_in(overrides: Iterable[str]) -> frozenset[str]:
    """List the settings that overrides set, those of a section given as a whole one by one."""
    raw: dict[str, Any] = {}
    for item in overrides:
        _apply_override(raw, item)
    return frozenset(_names_in(raw))


def _names_in(raw: Mapping[str, Any]) -> Iterator[str]:
    for key, value in raw.items():
        if isinstance(value, Mapping):
            yield from (f"{key}.{name}" for name in _names_in(value))
        else:
            yield str(key)

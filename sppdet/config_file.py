"""Reading settings: YAML files that may build on a base, overrides, and errors of one line."""

from __future__ import annotations

import difflib
import json
import os
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from sppdet.config import Config, Section
from sppdet.errors import ConfigError

PATH_KEYS = (("data", "root"), ("data", "images"), ("proposals", "path"), ("store",))
WEIGHT_NAMES = ("imagenet", "none")


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, as YAML 1.2 does, and refuses a repeated key."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = str(key_node.value)  # a list as a key is refused below
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


S = TypeVar("S", bound=Section)


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """A detector's settings; see `load_settings`."""
    return load_settings(path, Config, overrides)


def load_settings(path: Path, model: type[S], overrides: Iterable[str] = ()) -> S:
    """Read a YAML file, its `base` files and the `overrides` ("svm.C=0.01"), and check the whole.

    Args:
        model: what the file holds the settings of.
        overrides: paths in them are relative to the working folder, those in a file to that file.

    Raises:
        ConfigError: one line with file, key and what was expected.
    """
    raw = _read_with_bases(path, ())
    known_from = str(path)
    for item in overrides:
        _apply_override(raw, item)
        known_from = f"{path} with --set"
    return check_config(raw, known_from, model)


def check_config(raw: Mapping[str, Any], where: str, model: type[S]) -> S:
    """Validate plain data; `where` starts the message of an error."""
    problem = _unknown_key(raw, model, ())
    if problem:
        raise ConfigError(f"{where}: {problem}")
    try:
        return model.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_problem(error)}") from None


def _read_with_bases(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve() if seen else path
    if path.resolve() in seen:
        raise ConfigError(f"{path}: base: the files build on each other in a circle")
    raw = read_yaml(path)
    base = raw.pop("base", None)
    _resolve_paths(raw, path.resolve().parent)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: expected the name of a YAML file")
    return _merge(_read_with_bases(path.parent / base, (*seen, path.resolve())), raw)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping, as plain data."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, got {type(raw).__name__}")
    return raw


def _resolve_paths(raw: dict[str, Any], folder: Path) -> None:
    for *sections, key in PATH_KEYS:
        holder: Any = raw
        for section in sections:
            holder = holder.get(section) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and holder.get(key) is not None:
            value = holder[key]
            if isinstance(value, str):
                holder[key] = _absolute(value, folder)
            elif isinstance(value, list):
                holder[key] = [_absolute(v, folder) if isinstance(v, str) else v for v in value]
    backbone = raw.get("backbone")
    weights = backbone.get("weights") if isinstance(backbone, dict) else None
    if isinstance(weights, str) and weights not in WEIGHT_NAMES:
        raw["backbone"]["weights"] = _absolute(weights, folder)


def _absolute(path: str, folder: Path) -> str:
    return os.path.normpath(folder / Path(path).expanduser())


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
    if not equals or not key:
        raise ConfigError(f"--set {item}: expected key=value, such as svm.C=0.01")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise ConfigError(f"--set {item}: the value is not YAML") from None
    *sections, last = key.split(".")
    patch: dict[str, Any] = {last: value}
    for section in reversed(sections):
        patch = {section: patch}
    _resolve_paths(patch, Path.cwd())
    merged = _merge(raw, patch)
    raw.clear()
    raw.update(merged)


def _unknown_key(raw: Any, model: type[BaseModel], at: tuple[str, ...]) -> str | None:
    if not isinstance(raw, Mapping):
        return None
    for key, value in raw.items():
        name = ".".join((*at, str(key)))
        field = model.model_fields.get(str(key))
        if field is None:
            known = {field.lower(): field for field in model.model_fields}
            close = difflib.get_close_matches(str(key).lower(), known, n=1, cutoff=0.5)
            near = [known[field] for field in close]
            hint = (
                f"; did you mean {'.'.join((*at, near[0]))}?"
                if near
                else (f"; known here: {', '.join(model.model_fields)}")
            )
            return f"{name}: unknown{hint}"
        section = _section_of(field.annotation)
        if section is not None:
            problem = _unknown_key(value, section, (*at, str(key)))
            if problem:
                return problem
    return None


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if get_origin(annotation) in (Union, types.UnionType):
        return next((s for a in get_args(annotation) if (s := _section_of(a))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    # the branches of a union end the location with words that are no keys of ours
    keys = [str(part) for part in first["loc"] if not _is_branch(part)]
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if _is_branch(first["loc"][-1] if first["loc"] else 0):  # what the other branches expect too
        others = [
            e["msg"].replace("Input should", "should")
            for e in error.errors()[1:]
            if e["loc"][: len(keys)] == first["loc"][: len(keys)]
        ]
        message = " or ".join(dict.fromkeys([message, *others]))
    given = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
    more = error.error_count() - 1
    also = f" (and {more} more)" if more and not any(_is_branch(p) for p in first["loc"]) else ""
    where = ".".join(keys)
    return f"{where}: {message}{given}{also}" if where else f"{message}{also}"


def _is_branch(part: Any) -> bool:
    return isinstance(part, str) and (part in ("int", "list", "str") or "[" in part or part == "")

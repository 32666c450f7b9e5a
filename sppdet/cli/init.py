"""Print packaged configs as commented YAML."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sppdet.classification.config import PretrainConfig, ProbeConfig
from sppdet.config import Config
from sppdet.io import plain_yaml
from sppdet.io.packaged_configs import packaged_config, packaged_configs
from sppdet.io.settings import read_with_bases, validate
from sppdet.setting_problems import section_of
from sppdet.setting_types import Section


def config_list() -> list[str]:
    """List the packaged configs: the name and the first sentence of the comment of each."""
    found = packaged_configs()
    width = max(map(len, found), default=0)
    sentences = {name: " ".join(_comment(path)).split(". ")[0] for name, path in found.items()}
    return [f"{name:{width}}  {text.removesuffix('.')}." for name, text in sentences.items()]


def commented_config(name: str, data: Path | None = None) -> str:
    """Write a packaged config and the files that it builds on as one YAML with comments.

    Relative paths start from the folder that the YAML is saved in.

    Args:
        data: folder of a data set, in the place of the config's.

    Raises:
        ConfigError: an unknown name.
    """
    path = packaged_config(name)
    raw = read_with_bases(path, Path("configs"))  # so that ../data becomes data
    if data is not None:
        raw["data"]["root"] = str(data)
        for key in ("train", "test"):  # several sets are for several roots
            if isinstance(raw["data"].get(key), list):
                raw["data"][key] = raw["data"][key][0]
    model = _model_of(path.stem)
    validate(raw, name, model)
    comment = [f"# {line}".rstrip() for line in _comment(path)]
    page = "config" if model is Config else "classification"
    note = f"# Every other setting has its default; docs/{page}.md lists them all."
    return "\n".join([*comment, note, *_lines(raw, model, ""), ""])


def _model_of(name: str) -> type[Section]:
    kinds: dict[str, type[Section]] = {"pretrain": PretrainConfig, "probe": ProbeConfig}
    return kinds.get(name.partition("_")[0], Config)


def _comment(path: Path) -> list[str]:
    """Read the comment that a file begins with, without its signs."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        found.append(line.removeprefix("#").removeprefix(" "))
    return found


def _lines(raw: Mapping[str, Any], model: type[Section], indent: str) -> Iterator[str]:
    """Yield the settings in `raw`, each after its meaning, in the order of `model`."""
    for key, field in model.model_fields.items():
        if key not in raw:
            continue
        value, section = raw[key], section_of(field.annotation)
        nested = section is not None and isinstance(value, Mapping)
        meaning = (section.__doc__ if section is not None and nested else field.description) or ""
        if not indent:
            yield ""
        sign = f"{indent}# "
        yield from textwrap.wrap(
            " ".join(meaning.split()), 100, initial_indent=sign, subsequent_indent=sign
        )
        if section is not None and nested:
            yield f"{indent}{key}:"
            yield from _lines(value, section, indent + "  ")
        else:
            text = plain_yaml.dump({key: value}).rstrip("\n")
            yield from textwrap.indent(text, indent).splitlines()

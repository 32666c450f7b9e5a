"""The generated pages are up to date, and the docs' commands and files exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sppdet.classification.config import PretrainConfig, ProbeConfig
from sppdet.config import Config
from sppdet.io import plain_yaml
from sppdet.io.settings import check_config
from sppdet.setting_types import Section

ROOT = Path(__file__).parent.parent


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["config.md", "classification.md"])
def test_settings_tables_are_what_the_types_say(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert text == _generator().page_with_tables(page)


MODELS = (Config, PretrainConfig, ProbeConfig)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_setting_has_a_meaning_and_its_exact_default(model: type[Section]) -> None:
    rows = _generator().settings_of(model)
    assert [row.name for row in rows if len(row.meaning.split()) < 3] == []
    whole = [
        row for row in rows if row.meaning[0].islower() or not row.meaning.endswith((".", ")"))
    ]
    assert whole == []
    # every key that the resolved settings have stands in the table, and its default reads back
    table = {row.name: row for row in rows}
    required = {row.name: "x" for row in rows if row.shown == "required"}
    raw = {"data": {name.removeprefix("data."): value for name, value in required.items()}}
    if model is PretrainConfig:
        raw["data"]["val"] = "val"
    resolved = check_config(raw, "least", model).model_dump(mode="json")

    def check(plain: dict[str, Any], prefix: str) -> None:
        for key, value in plain.items():
            if isinstance(value, dict):
                check(value, f"{prefix}{key}.")
            elif f"{prefix}{key}" not in required:
                shown = plain_yaml.parse(table[prefix + key].shown)
                assert shown == value and type(shown) is type(value), prefix + key

    check(resolved, "")


def test_numbers_of_the_tables_are_exact() -> None:
    shown = {row.name: row.shown for row in _generator().settings_of(Config)}
    assert shown["svm.hard_threshold"] == "-1.0001"
    assert shown["finetune.drop_after"] == "0.8333333333333334"
    assert shown["data.root"] == "required" and shown["data.test"] == "null"
    assert shown["head"] == "as below" and shown["head.widths"] == "[4096, 4096]"
    shown = {row.name: row.shown for row in _generator().settings_of(PretrainConfig)}
    assert shown["backbone.name"] == "zf5" and shown["backbone.weights"] == "none"
    assert shown["test.views"] == "[centre, full]"
    shown = {row.name: row.shown for row in _generator().settings_of(ProbeConfig)}
    assert shown["head"] == "null" and shown["backbone.name"] == "alexnet"


def test_cli_page_is_what_the_commands_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "96")

    # typer's releases lay the help out differently: the words and options must agree
    def words(text: str) -> list[str]:
        return sorted(set(re.findall(r"--[a-z-]+|[A-Za-z]{3,}", text)))

    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert words(page) == words(_generator().cli_page())


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md"]
    + [
        f"docs/{name}.md"
        for name in ("config", "method", "classification", "results", "performance", "serve")
    ]
    + [
        "docs/index.md",
        "docs/architecture.md",
        "docs/tutorial.md",
        "docs/photos.md",
        "data/README.md",
    ],
)
def test_links_and_configs_exist(page: str) -> None:
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert all((path.parent / link).exists() for link in links), links
    for name in re.findall(r"configs/(\w+\.yaml)", text):
        assert (ROOT / "configs" / name).is_file(), name


def test_architecture_names_every_folder_and_existing_files() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "sppdet"
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    assert {room for room in rooms if f"  {room}/ " not in text} == set()
    named = re.findall(r"`((?:cli|features|folders|io|stages|tests|docs)/[\w/]+\.py)`", text)
    assert len(named) > 8
    assert [n for n in named if not (package / n).exists() and not (ROOT / n).exists()] == []

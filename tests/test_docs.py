"""The generated pages are up to date, and the docs' commands and files exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

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
        for name in ("config", "method", "classification", "results", "performance")
    ],
)
def test_links_and_configs_exist(page: str) -> None:
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert all((path.parent / link).exists() for link in links), links
    for name in re.findall(r"configs/(\w+\.yaml)", text):
        assert (ROOT / "configs" / name).is_file(), name

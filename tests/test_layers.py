"""Imports inside the package go down its layers, and in no circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sppdet"
# folders from below; modules beside the folders are the vocabulary, below them all
LAYERS = [
    {"drawing"},
    {"proposals", "features", "training", "detection", "evaluation"},
    {"runs"},
    {"io"},
    {"pages"},
    {"stages"},
    {"folders", "classification", "demo"},
    {"service"},
    {"cli"},
]
DOORS = {"sppdet", "sppdet.__main__"}  # the package itself and `python -m sppdet`


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules of the package that are imported anywhere, but for annotations only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sppdet":
            assert node.module is not None
            for name in node.names:  # `from sppdet.io import plain_yaml` imports a module
                module = f"{node.module}.{name.name}"
                yield module if _file(module).exists() else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "sppdet")
        yield from imported(node)


def _file(module: str) -> Path:
    return PACKAGE.parent / Path(*module.split(".")).with_suffix(".py")


@cache
def graph() -> dict[str, set[str]]:
    modules = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        modules[name] = set(imported(ast.parse(path.read_text(encoding="utf-8"))))
    return modules


def layer(module: str) -> int:
    folder = module.split(".")[1]
    return next((k for k, names in enumerate(LAYERS) if folder in names), -1)


def test_every_folder_has_a_layer() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set().union(*LAYERS)


def test_imports_go_down() -> None:
    upwards = [
        f"{module} imports {other}"
        for module, others in graph().items()
        if module not in DOORS
        for other in others
        if other in DOORS or layer(other) > max(layer(module), 0)
    ]
    assert upwards == []


def test_imports_form_no_circle() -> None:
    modules = graph()
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        if module in above:
            pytest.fail(" → ".join([*above[above.index(module) :], module]))
        if module in done:
            return
        for other in sorted(modules.get(module, ())):
            visit(other, (*above, module))
        done.add(module)

    for module in sorted(modules):
        visit(module, ())

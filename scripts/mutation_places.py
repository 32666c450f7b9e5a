"""Where bugs are planted: cosmic-ray's mutations, a seeded sample of their places."""

from __future__ import annotations

import ast
import difflib
import hashlib
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

AREAS = ("stages", "training", "features", "detection", "evaluation", "proposals", "folders", "io")
NOT_TESTED_HERE = {"features/spp_triton.py"}  # needs a GPU


@dataclass(frozen=True)
class Mutant:
    """One bug: a place in a module, and what stands there instead."""

    key: str  # the same in every version of the sources that has the line
    area: str
    module: str  # relative to the package
    operator: str
    occurrence: int
    line: int


def area_of(module: Path) -> str | None:
    """The area of a module, relative to the package; None for one that isn't mutated."""
    name = module.as_posix()
    if "stage" in module.name or name in ("pipeline.py", "plan.py") or name.startswith("stages/"):
        return "stages"
    parts = module.parts
    return (
        parts[0] if len(parts) > 1 and parts[0] in AREAS and name not in NOT_TESTED_HERE else None
    )


def sample(package: Path, *, count: int, seed: int) -> list[Mutant]:
    """`count` mutants of every area, or all where there are fewer."""
    by_area: dict[str, list[tuple[bytes, Mutant]]] = {area: [] for area in AREAS}
    for path in sorted(package.rglob("*.py")):
        module = path.relative_to(package)
        area = area_of(module)
        if area is not None:
            by_area[area] += _ranked(
                path.read_text(encoding="utf-8"), module.as_posix(), area, seed
            )
    found: list[Mutant] = []
    for ranked in by_area.values():
        mutants = (mutant for _, mutant in sorted(ranked, key=lambda pair: pair[0]))
        found += islice((m for m in mutants if _compiles(package, m)), count)
    return sorted(found, key=lambda m: (AREAS.index(m.area), m.module, m.line))


def _compiles(package: Path, mutant: Mutant) -> bool:
    """Whether it is Python: the star of a signature passes for a multiplication."""
    try:
        compile(mutated(package, mutant), mutant.module, "exec")
    except SyntaxError:
        return False
    return True


def _ranked(source: str, module: str, area: str, seed: int) -> list[tuple[bytes, Mutant]]:
    """One mutant for each place of a module, drawn among those that are possible, with its rank.

    Both depend on the seed and on the text of the line alone, so that versions can be compared.
    """
    lines, left_out = source.splitlines(), _left_out(source)
    places: dict[tuple[str, int, int], list[tuple[str, int]]] = {}
    nodes = list(ast_nodes(get_ast(source)))
    for name in filter(_is_plausible, sorted(operator_names())):
        kind, occurrence = get_operator(name), 0
        for node in nodes:
            for (line, column), _ in kind().mutation_positions(node):
                if not any(start <= (line, column) < end for start, end in left_out):
                    group = name.split("/")[1].split("_")[0]
                    places.setdefault((group, line, column), []).append((name, occurrence))
                occurrence += 1
    found, seen = [], dict[str, int]()
    for (group, line, _), possible in sorted(places.items(), key=lambda item: item[0][1:]):
        text = f"{seed} {module} {lines[line - 1].strip()} {group}"
        seen[text] = seen.get(text, -1) + 1
        digest = hashlib.blake2b(f"{text} {seen[text]}".encode(), digest_size=16).digest()
        name, occurrence = possible[digest[-1] % len(possible)]
        mutant = Mutant(digest.hex(), area, module, name.split("/")[1], occurrence, line)
        found.append((digest, mutant))
    return found


# among these an operator is replaced by another: a shift of a float would be found by any test
_FAMILIES = [{"Add", "Sub", "Mul", "Div"}, {"BitAnd", "BitOr"}, {"Is", "IsNot"}]
_FAMILIES += [{"FloorDiv", "Mod", "Div"}, {"Pow", "Mul"}, {"LShift", "RShift"}]
_FAMILIES += [{"Lt", "LtE", "Gt", "GtE", "Eq", "NotEq"}, {"USub", "UAdd"}]


def _is_plausible(name: str) -> bool:
    """Whether an operator of cosmic-ray's makes bugs that a person might make."""
    if any(argument.name.endswith("_variable") for argument in get_operator(name).arguments()):
        return False
    _, *names = name.split("_")
    return len(names) < 2 or "Delete" in names or any(family >= {*names} for family in _FAMILIES)


Span = tuple[tuple[int, int], tuple[int, int]]


def _left_out(source: str) -> list[Span]:
    """Where a mutation can't show: annotations, versions, whether data classes are frozen."""
    spans: list[Span] = []

    def add(node: ast.AST | None) -> None:
        if isinstance(node, ast.expr | ast.stmt):
            end = (node.end_lineno or 0, node.end_col_offset or 0)
            spans.append(((node.lineno, node.col_offset), end))

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg | ast.AnnAssign):
            add(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            add(node.returns)
        elif isinstance(node, ast.ClassDef):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call):
                    for keyword in decorator.keywords:
                        add(keyword.value)
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if any(name.lstrip("_") in ("VERSION", "log") for name in names):
                add(node)
    return spans


def mutated(package: Path, mutant: Mutant) -> str:
    """The source of the mutant's module."""
    source = (package / mutant.module).read_text(encoding="utf-8")
    operator = get_operator(f"core/{mutant.operator}")()
    found = mutate_code(source, operator, mutant.occurrence)
    assert found is not None and found != source
    return str(found)


def diff(package: Path, mutant: Mutant, code: str) -> str:
    """The mutant as a patch with little around it."""
    before = (package / mutant.module).read_text(encoding="utf-8").splitlines()
    name = f"sppdet/{mutant.module}"
    lines = difflib.unified_diff(before, code.splitlines(), name, name, n=1, lineterm="")
    return "\n".join(lines) + "\n"

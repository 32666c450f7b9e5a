"""The table, the JSON and the page of a check."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from sppdet.errors import one_line, printable
from sppdet.evaluation.dataset_check import ClassNumbers, class_numbers
from sppdet.io.image_cache import ImageCache
from sppdet.io.names import escape_name
from sppdet.pages.render import number, render
from sppdet.runs.progress import track
from sppdet.stages.check_drawing import draw_part
from sppdet.stages.check_findings import Case, Finding
from sppdet.stages.check_kinds import KINDS, Severity
from sppdet.stages.check_reading import Survey
from sppdet.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

_DRAWN, _LISTED = 12, 100  # cases of a kind on the page: as images, as lines
_SHOWN_CLASSES = 20  # of the printed table
_LINE, _LEAST_LINE = 100, 30  # characters of the first case; in a terminal there may be less room
_SIDES = (8, 16, 32, 64, 128, 256, 512, 1024)  # of the histogram, pixels


def files_of(found: Survey, findings: Sequence[Finding], *, name: str) -> dict[str, bytes]:
    """Make the files of a check by their names."""
    numbers = class_numbers(found.images, found.class_names)
    content = json.dumps(_json(found, findings, numbers), indent=1, allow_nan=False)
    page = render("check.html", _content(found, findings, numbers, name))
    return {"check.json": f"{content}\n".encode(), "check.html": page.encode()}


def print_findings(found: Survey, findings: Sequence[Finding], console: Console) -> None:
    """Print what there is of each class, and each kind of finding with its first case."""
    from rich.table import Table
    from rich.text import Text

    numbers = class_numbers(found.images, found.class_names)
    classes = Table(header_style="bold")
    classes.add_column("class")
    for heading in (*found.splits, "median side, px"):
        classes.add_column(heading, justify="right")
    for row in sorted(numbers, key=lambda one: one.objects)[:_SHOWN_CLASSES]:
        cells = [str(n) for n in row.objects] + [number(row.side_px[1], 0)]
        classes.add_row(Text(one_line(row.name, 40)), *cells)
    if numbers:
        console.print(classes)
    if len(numbers) > _SHOWN_CLASSES:
        rest = len(numbers) - _SHOWN_CLASSES
        console.print(Text(f"and {rest} classes with more objects"), soft_wrap=True)
    wide = max((len(one.title) for one in findings), default=0)
    for one in findings:
        line = f"{one.severity:<7} {len(one.cases):>6}  {one.title:<{wide}}  "
        room = max(_LEAST_LINE, console.width - len(line)) if console.is_terminal else _LINE
        console.print(Text(line + one_line(one.cases[0].text, room)), soft_wrap=True)
    for text in looked_at(found):
        console.print(Text(printable(text)), soft_wrap=True)


def looked_at(found: Survey) -> list[str]:
    """Say in a line or two what was looked at."""
    sets = [
        f"{split} ({title}): {len(images)} images, {sum(len(i.gt_boxes) for i in images)} objects"
        for split, title, images in zip(found.splits, found.titles, found.images, strict=True)
    ]
    lines = ["; ".join(sets)]
    if found.coverage is not None:
        lines.append(f"proposals of a sample of {found.sampled} images: {found.coverage}")
    return lines


def counts(findings: Sequence[Finding]) -> str:
    """Say how much was found."""
    found = tally(findings).items()
    said = ", ".join(f"{n} {severity}{'s' * (n != 1)}" for severity, n in found)
    return said if findings else "nothing was found that should be looked at"


def tally(findings: Sequence[Finding]) -> dict[Severity, int]:
    """Count the cases of each severity."""
    found: dict[Severity, int] = dict.fromkeys(get_args(Severity), 0)
    for one in findings:
        found[one.severity] += len(one.cases)
    return found


def _json(
    found: Survey, findings: Sequence[Finding], numbers: Sequence[ClassNumbers]
) -> dict[str, Any]:
    """Collect everything as plain data; images by their path below the first root they are in."""
    return {
        "version": __version__,
        "roots": [escape_name(str(root)) for root in found.config.data.root],
        "format": found.config.data.format,
        "sets": {
            split: {"name": title, "images": len(images), "objects": _count(images)}
            for split, title, images in zip(found.splits, found.titles, found.images, strict=True)
        },
        "classes": [
            {
                "name": one.name,
                **{
                    key: dict(zip(found.splits, getattr(one, key), strict=True))
                    for key in ("objects", "difficult", "images")
                },
                "side_px": _finite(one.side_px),
                "fraction_of_image": _finite(one.fraction),
            }
            for one in numbers
        ],
        "proposals": None
        if found.coverage is None
        else {
            "images": found.sampled,
            "objects": found.coverage.objects,
            "recall_50": _number(found.coverage.recall_50),
            "recall_70": _number(found.coverage.recall_70),
        },
        "findings": [
            {
                "kind": one.kind,
                "severity": one.severity,
                "title": one.title,
                "count": len(one.cases),
                "cases": [_case(case, found.config.data.root) for case in one.cases],
            }
            for one in findings
        ],
    }


def _case(case: Case, roots: Sequence[Path]) -> dict[str, Any]:
    return {
        "text": escape_name(case.text),
        "images": [
            {
                "file": escape_name(_below(part.file, roots)),
                "set": part.split,
                "boxes": [{"class": name, "box": list(box)} for box, name in part.boxes],
            }
            for part in case.parts
        ],
    }


def _below(path: Path, roots: Sequence[Path]) -> str:
    for root in roots:
        if os.path.abspath(path).startswith(os.path.abspath(root) + os.sep):
            return Path(os.path.relpath(path, root)).as_posix()
    return str(path)


def _count(images: Sequence[Any]) -> int:
    return sum(len(image.gt_boxes) for image in images)


def _number(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


def _finite(values: Sequence[float]) -> list[float | None]:
    return [_number(value) for value in values]


# -- the page --------------------------------------------------------------------------------------


def _content(
    found: Survey, findings: Sequence[Finding], numbers: Sequence[ClassNumbers], name: str
) -> dict[str, Any]:
    """Collect the values of the template."""
    total = sum(min(_DRAWN, len(one.cases)) for one in findings)
    progress = iter(track(range(total), total=total, label="drawing"))
    return {
        "version": __version__,
        "name": name,
        "summary": [*looked_at(found), counts(findings)],
        "splits": found.splits,
        "counts": tally(findings),
        "numbers": numbers,
        "images": [len(images) for images in found.images],
        "objects": [_count(images) for images in found.images],
        "histogram": _histogram(found),
        "findings": [
            {
                "severity": one.severity,
                "title": one.title,
                "advice": KINDS[one.kind].advice,
                "count": len(one.cases),
                "cards": [
                    _card(case, found.cache)
                    for case, _ in zip(one.cases[:_DRAWN], progress, strict=False)
                ],
                "lines": [case.text for case in one.cases[_DRAWN:_LISTED]],
                "more": max(0, len(one.cases) - _LISTED),
            }
            for one in findings
        ],
        "sampled": found.sampled,
    }


def _histogram(found: Survey) -> list[dict[str, Any]]:
    """Count the objects by the square root of their boxes' areas."""
    boxes = np.concatenate(
        [np.zeros((0, 4), np.float32), *(i.gt_boxes for images in found.images for i in images)]
    )
    sides: NDArray[np.float64] = np.sqrt(
        (boxes[:, 2:] - boxes[:, :2]).astype(np.float64).prod(axis=1)
    )
    counts = np.bincount(np.digitize(sides, _SIDES), minlength=len(_SIDES) + 1).tolist()
    titles = [
        f"below {_SIDES[0]}",
        *(f"{a} to {b}" for a, b in pairwise(_SIDES)),
    ]
    titles.append(f"{_SIDES[-1]} and more")
    largest = max(1, *counts)
    return [
        {"title": title, "count": count, "share": count / largest}
        for title, count in zip(titles, counts, strict=True)
    ]


def _card(case: Case, cache: ImageCache) -> dict[str, Any]:
    return {"text": case.text, "parts": [draw_part(part, cache) for part in case.parts]}

"""Reports of an evaluation: metrics.json, curves as images and CSV, a table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppdet.errors import printable
from sppdet.evaluation.curves import curve_corners, monotone
from sppdet.evaluation.intervals import LEVEL
from sppdet.evaluation.operating_point import OperatingPoint
from sppdet.io.detection_files import write_curve_csv
from sppdet.io.names import class_file_names
from sppdet.runs.artifacts import write_text
from sppdet.stages.figures import new_figure, save_figure
from sppdet.types import ClassResult, EvalResult, Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console

# the metrics, not the set that they are taken on: 11-point is VOC 2007's, the area later years'
_METRIC_NAMES = {
    "voc07": "11-point",
    "voc10": "area under the curve",
    "coco": "COCO IoU .50:.95",
}
LEVEL_TITLE = f"{LEVEL:.0%}".replace("%", " %")
FEW_OBJECTS = 20
"""Number of objects that count below which the AP of a class is marked as rough."""
_FEW_MARK = "*"
_MOST_PANELS = 100  # of the overview


@dataclass(frozen=True)
class Points:
    """Precision, recall and F1 of each class, and of all together, at a threshold in words."""

    threshold: str
    classes: Sequence[OperatingPoint]


def metric_name(metric: str) -> str:
    """Return how a metric computes AP, in words."""
    return _METRIC_NAMES.get(metric, metric)


def metric_title(result: EvalResult) -> str:
    """Return the number's full name: "mAP (11-point, test)"; an IoU other than 0.5 is named."""
    name = metric_name(result.metric)
    iou = "" if result.min_iou == 0.5 else f" at IoU {result.min_iou:g}"
    return f"mAP ({name}{iou}, {result.split})"


def write_metrics(
    result: EvalResult, folder: Path, *, signature: str, points: Points | None = None
) -> None:
    """Write `metrics.json`; the same result gives the same bytes.

    Args:
        folder: made if it is not there.
        signature: a short text that names the settings and data behind the numbers.

    Raises:
        ArtifactError: the file can't be written.
    """
    numbers = metrics(result, signature=signature) | _point_numbers(points)
    text = json.dumps(numbers, indent=1, sort_keys=True)
    write_text(folder / "metrics.json", text + "\n")


def write_curves(result: EvalResult, folder: Path, *, detections_csv: bool = True) -> None:
    """Write `pr_curves.png`, and `pr_<class>.png` and `pr_<class>.csv` for each class.

    Each file is atomic, and the same result gives the same bytes.

    Args:
        folder: made if it is not there.
        detections_csv: whether to write the CSVs, which have a line for every detection.

    Raises:
        ArtifactError: a file can't be written.
    """
    _save_overview(result, folder / "pr_curves.png")
    names = class_file_names([c.name for c in result.classes])
    for name, one in zip(names, result.classes, strict=True):
        # "pr_class_curves" and not "pr_curves" for a class that is called "curves"
        stem = "pr_class_curves" if name.casefold() == "curves" else f"pr_{name}"
        _save_curve(one, result, folder / f"{stem}.png")
        if detections_csv:
            write_curve_csv(folder / f"{stem}.csv", one, result.image_ids)


def metrics(result: EvalResult, *, signature: str) -> dict[str, Any]:
    """Collect the numbers for JSON: fractions, not per cent; null for NaN.

    Keys: mAP, AP (by class), mAP_interval and AP_interval ([low, high]), interval (how they were
    computed), extra, metric, min_iou, split, images, ground_truths (that count), detections, signature.
    """
    found = result.intervals
    bounds = found.classes if found else [None] * len(result.classes)
    return {
        "mAP": number_or_none(result.mean_ap),
        "AP": {one.name: number_or_none(one.ap) for one in result.classes},
        "mAP_interval": interval_or_none(found.mean if found else None),
        "AP_interval": {
            one.name: interval_or_none(own) for one, own in zip(result.classes, bounds, strict=True)
        },
        "interval": {"level": LEVEL, "draws": found.draws} if found else None,
        "extra": {name: number_or_none(value) for name, value in result.extra.items()},
        "metric": result.metric,
        "min_iou": result.min_iou if result.metric != "coco" else None,
        "split": result.split,
        "images": result.images,
        "ground_truths": sum(one.ground_truths for one in result.classes),
        "detections": sum(one.detections for one in result.classes),
        "signature": signature,
    }


def _point_numbers(points: Points | None) -> dict[str, Any]:
    """Collect precision, recall and F1 at a threshold for JSON, by class; empty without a threshold."""
    if points is None:
        return {}
    by_name = {
        point.name: {
            "right": point.right,
            "wrong": point.wrong,
            "objects": point.objects,
            "precision": number_or_none(point.precision),
            "precision_interval": interval_or_none(point.precision_interval),
            "recall": number_or_none(point.recall),
            "recall_interval": interval_or_none(point.recall_interval),
            "f1": number_or_none(point.f1),
            "f1_interval": interval_or_none(point.f1_interval),
        }
        for point in points.classes
    }
    return {"at_threshold": {"threshold": points.threshold, "classes": by_name}}


def print_points(points: Points, console: Console) -> None:
    """Print precision, recall and F1 at a threshold, each with its 95 % interval, in per cent."""
    from rich.table import Table
    from rich.text import Text

    table = Table("class", header_style="bold", title=points.threshold, title_justify="left")
    for heading in ("precision %", "recall %", "F1 %", "right", "wrong"):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in points.classes:
        numbers = (
            _short(value, interval)
            for value, interval in (
                (point.precision, point.precision_interval),
                (point.recall, point.recall_interval),
                (point.f1, point.f1_interval),
            )
        )
        table.add_row(Text(printable(point.name)), *numbers, str(point.right), str(point.wrong))
    console.print(table)


def _short(value: float, interval: Interval) -> str:
    """Format a fraction and its interval in per cent, for a narrow column: "64.6 (50–77)"."""
    if math.isnan(value):
        return "n/a"
    low, high = interval
    return f"{100 * value:.1f} ({100 * low:.0f}–{100 * high:.0f})"


def print_table(result: EvalResult, console: Console) -> None:
    """Print AP in per cent by class, and further numbers of the metric."""
    from rich.table import Table
    from rich.text import Text

    table = Table("class", header_style="bold")
    found = result.intervals
    headings = ("AP %", *([LEVEL_TITLE] if found else []), "objects", "detections")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for k, one in enumerate(result.classes):
        counts = (f"{one.ground_truths}{few_mark(one.ground_truths)}", str(one.detections))
        low_high = [range_percent(found.classes[k])] if found else []
        table.add_row(
            Text(printable(one.name)), percent(one.ap), *low_high, *counts
        )  # Text: no markup in names
    console.print(table)
    print_note_on_few([one.ground_truths for one in result.classes], console)
    if result.extra:
        numbers = Table("COCO", header_style="bold")
        numbers.add_column("%", justify="right", no_wrap=True)
        for name, value in result.extra.items():
            numbers.add_row(Text(name), percent(value))
        console.print(numbers)


def headline(result: EvalResult) -> str:
    """Say the mAP in per cent with its name and its interval."""
    text = f"{metric_title(result)}: {percent(result.mean_ap)} %"
    found = result.intervals
    return f"{text} ({LEVEL_TITLE}: {range_percent(found.mean)})" if found else text


def few_mark(ground_truths: int) -> str:
    """Return the mark of a class with few objects, "" for others and those without any."""
    return _FEW_MARK if 0 < ground_truths < FEW_OBJECTS else ""


def print_note_on_few(ground_truths: Sequence[int], console: Console) -> None:
    """Explain the mark of classes with few objects, where there is one."""
    if any(map(few_mark, ground_truths)):
        note = f"{_FEW_MARK} fewer than {FEW_OBJECTS} objects: AP and its interval are rough"
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def percent(fraction: float, *, signed: bool = False) -> str:
    """Format a fraction in per cent; "n/a" for NaN."""
    return "n/a" if math.isnan(fraction) else f"{100 * fraction:{'+' if signed else ''}.2f}"


def range_percent(interval: Interval, *, signed: bool = False) -> str:
    """Format an interval of fractions in per cent: "55.10–66.98", signed "-1.20 to +3.40"."""
    low, high = (percent(bound, signed=signed) for bound in interval)
    return "n/a" if math.isnan(interval[0]) else f"{low} to {high}" if signed else f"{low}–{high}"


def interval_or_none(interval: Interval | None) -> list[float] | None:
    """Convert an interval for JSON."""
    return None if interval is None or math.isnan(interval[0]) else list(interval)


def number_or_none(value: float) -> float | None:
    """Convert a number for JSON, which has no NaN."""
    return value if math.isfinite(value) else None


def _save_curve(one: ClassResult, result: EvalResult, path: Path) -> None:
    figure = new_figure(width=5.0, height=4.5)
    axes = figure.add_subplot()
    _draw_curve(axes, one)
    axes.set_xlabel("recall")
    axes.set_ylabel(_precision_label(result))
    title = metric_title(result).removeprefix("m")
    axes.set_title(f"{one.name}: {title} {percent(one.ap)} %", parse_math=False, fontsize=9)
    save_figure(figure, path)


def _save_overview(result: EvalResult, path: Path) -> None:
    # a grid of small panels: twenty curves in one are not to be told apart
    shown = result.classes[:_MOST_PANELS]
    columns = max(1, min(len(shown), math.ceil(math.sqrt(len(shown)))))
    rows = max(1, math.ceil(len(shown) / columns))
    figure = new_figure(width=max(2.0 * columns, 5.0), height=2.0 * rows + 0.6)
    title = f"{metric_title(result)} {percent(result.mean_ap)} %"
    rest = len(result.classes) - len(shown)
    more = f"; {rest} more classes not shown" if rest else ""
    figure.suptitle(title + more, parse_math=False, fontsize=10)
    for position, one in enumerate(shown, start=1):
        axes = figure.add_subplot(rows, columns, position)
        _draw_curve(axes, one)
        axes.tick_params(labelsize=6)
        axes.set_title(f"{one.name} {percent(one.ap)}", parse_math=False, fontsize=8)
    figure.supxlabel("recall", fontsize=9)
    figure.supylabel(_precision_label(result), fontsize=9)
    save_figure(figure, path)


def _precision_label(result: EvalResult) -> str:
    # COCO's AP is the mean over ten IoUs, its curve is that of one
    return "precision at IoU 0.5" if result.metric == "coco" else "precision"


def _draw_curve(axes: Axes, one: ClassResult) -> None:
    axes.set_xlim(0.0, 1.02)
    axes.set_ylim(0.0, 1.02)
    axes.grid(alpha=0.3)
    if len(one.recall):
        corners = curve_corners(one.recall)
        axes.plot(one.recall[corners], one.precision[corners], linewidth=1.2)
        raised = monotone(one.precision)[corners]
        axes.plot(one.recall[corners], raised, linewidth=0.8, linestyle="--", color="gray")

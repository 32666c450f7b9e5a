"""Reports of a diagnosis: causes.json, tables, and the sentence that names the top cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sppdet.errors import printable
from sppdet.evaluation.traces import (
    FALSE_CAUSES,
    MISS_CAUSES,
    FalseDetection,
    JudgedImage,
    Miss,
    Rival,
)
from sppdet.evaluation.voc import FALSE_POSITIVE, TRUE_POSITIVE
from sppdet.proposals.resized import searched_size
from sppdet.runs.artifacts import write_json
from sppdet.runs.log import LOGGER, RESULT, consoles, event
from sppdet.stages.advice import advice_for_false, advice_for_miss
from sppdet.stages.report import number_or_none
from sppdet.types import AnnotatedImage, Boxes

if TYPE_CHECKING:
    from rich.console import Console

    from sppdet.stages.causes import Diagnosis

_OUTCOMES = {TRUE_POSITIVE: "true", FALSE_POSITIVE: "false"}
_MOST_CLASSES = 3  # named beside a cause


def report(found: Diagnosis, folder: Path, *, signature: str) -> None:
    """Write `causes.json` into a folder, print the tables and log the advice.

    Raises:
        ArtifactError: the file can't be written.
    """
    content = as_json(found, signature=signature)
    write_json(folder / "causes.json", content)
    for console in consoles():
        print_tables(content, console)
    text = f"mAP (11-point, {content['split']}): {_percent(content['mAP'])} %, over all scores"
    numbers = {key: content[key] for key in ("images", "objects", "found", "mAP", "summary")}
    LOGGER.log(RESULT, "%s", text, extra=event("diagnosed", **numbers))
    for console in consoles():
        console.print(printable(content["signature"]), markup=False, soft_wrap=True)
    for line in [*content["notes"], *content["advice"]]:
        LOGGER.info("%s", line)


def as_json(found: Diagnosis, *, signature: str) -> dict[str, Any]:
    """Collect a diagnosis as plain data: fractions, not per cent; null for NaN."""
    missed, false = missed_entries(found), false_entries(found)
    names = found.dataset.class_names
    objects = sum(int((~image.difficult).sum()) for image in found.images)
    summary = {
        "missed": _summary(missed, MISS_CAUSES, found.gains.missed),
        "false": _summary(false, FALSE_CAUSES, found.gains.false),
    }
    return {
        "split": found.dataset.name,
        "signature": signature,
        "metric": "voc07",
        "mAP": number_or_none(found.gains.mean_ap),
        "thresholds": dict(zip(names, found.thresholds.tolist(), strict=True)),
        "best_threshold": found.best and found.best._asdict(),
        "images": len(found.images),
        "objects": objects,
        "found": objects - len(missed),
        "summary": summary,
        "groups": {
            grouping.name: {
                one.name: {
                    "objects": one.objects,
                    "found": one.found,
                    "recall": number_or_none(one.recall),
                    "AP": number_or_none(one.mean_ap),
                }
                for one in results
            }
            for grouping, results in found.groups
        },
        "advice": advice(found, summary, missed, false, objects=objects),
        "notes": notes(found),
        "missed": missed,
        "false_detections": false,
    }


def missed_entries(found: Diagnosis) -> list[dict[str, Any]]:
    """List every missed object with its cause, image by image."""
    return [
        _miss_entry(found, annotated, judged, miss)
        for annotated, judged in zip(found.dataset.images, found.images, strict=True)
        for miss in judged.misses
    ]


def false_entries(found: Diagnosis) -> list[dict[str, Any]]:
    """List every false detection at or above the thresholds with its cause, image by image."""
    return [
        _false_entry(found, annotated, found.images[i], one)
        for i, annotated in enumerate(found.dataset.images)
        for one in found.false_above(i)
    ]


def notes(found: Diagnosis) -> list[str]:
    """Say which causes can't be told exactly with the run's settings."""
    detect, lines = found.config.detect, []
    if detect.soft_nms is not None:
        lines.append(
            "note: with detect.soft_nms several boxes lower a score; as suppressor the one of the "
            "largest IoU is named"
        )
    if detect.box_voting is not None:
        lines.append(
            "note: with detect.box_voting a badly localised box may be due to regression or to the "
            "votes of others; the causes don't tell which"
        )
    if detect.flip:
        lines.append(
            "note: with detect.flip scores are means over the image and its mirror image; cells are "
            "those of the image"
        )
    return lines


def advice(
    found: Diagnosis,
    summary: Mapping[str, Mapping[str, Mapping[str, Any]]],
    missed: Sequence[Mapping[str, Any]],
    false: Sequence[Mapping[str, Any]],
    *,
    objects: int,
) -> list[str]:
    """Name the most frequent causes and the one whose repair gains most, with what would repair them."""
    too_small = sum(one.get("below_min_size", False) for one in missed)
    best_score = found.best.score if found.best is not None else None
    lower = best_score if best_score is not None and best_score < found.thresholds.min() else None
    higher = best_score if best_score is not None and best_score > found.thresholds.max() else None

    def way(kind: str, cause: Any, *, rank: bool = False) -> str:
        # another threshold changes what counts, but not mAP
        if kind == "missed":
            return advice_for_miss(
                cause, found.config, too_small=too_small, lower=None if rank else lower
            )
        return advice_for_false(cause, found.config, higher=None if rank else higher)

    lines = []
    totals = {
        "missed": f"{len(missed)} of {objects} objects are missed",
        "false": f"{len(false)} detections are false",
    }
    for kind, total in totals.items():
        top = max(summary[kind], key=lambda cause: summary[kind][cause]["count"])
        one = summary[kind][top]
        if one["count"] == 0:
            lines.append(f"{total}.")
            continue
        pairs = _confused(missed if kind == "missed" else false) if top == "wrong class" else ""
        lines.append(
            f"{total}; the top cause is {top!r} ({one['count']}, {one['share']:.0%}){pairs}: "
            f"{way(kind, top)}."
        )
    best_kind, best = max(
        ((kind, cause) for kind in summary for cause in summary[kind]),
        key=lambda pair: summary[pair[0]][pair[1]]["delta_mAP"] or 0.0,
    )
    gain = summary[best_kind][best]["delta_mAP"] or 0.0
    if gain > 0:
        where = "missed objects" if best_kind == "missed" else "false detections"
        lines.append(
            f"the largest gain in mAP, {100 * gain:.1f} points, would come from the {where} with the "
            f"cause {best!r}: {way(best_kind, best, rank=True)}."
        )
    return lines


def print_tables(content: Mapping[str, Any], console: Console) -> None:
    """Print the causes of both kinds of errors and the groups of objects."""
    from rich.table import Table
    from rich.text import Text

    titles = {"missed": "missed objects", "false": "false detections"}
    for kind, title in titles.items():
        table = Table(title, header_style="bold")
        for heading in ("number", "share %", "ΔmAP"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("most of class")
        for cause, one in content["summary"][kind].items():
            if one["count"] or one["delta_mAP"]:
                numbers = (str(one["count"]), _percent(one["share"]), _points(one["delta_mAP"]))
                table.add_row(cause, *numbers, Text(printable(_top_classes(one["by_class"]))))
        table.add_row("all", str(sum(o["count"] for o in content["summary"][kind].values())))
        console.print(table)
    table = Table("objects by", "group", header_style="bold")
    for heading in ("objects", "found", "recall %", "AP %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, groups in content["groups"].items():
        shown = {group: one for group, one in groups.items() if one["objects"]}
        for i, (group, one) in enumerate(shown.items()):
            counts = (str(one["objects"]), str(one["found"]))
            rates = (_percent(one["recall"]), _percent(one["AP"]))
            table.add_row("" if i else name, group, *counts, *rates)
    console.print(table)


def _summary(
    entries: Sequence[Mapping[str, Any]], causes: Sequence[Any], gains: Mapping[Any, float]
) -> dict[str, dict[str, Any]]:
    counts = Counter(entry["cause"] for entry in entries)
    return {
        cause: {
            "count": counts[cause],
            "share": counts[cause] / max(len(entries), 1),
            "delta_mAP": number_or_none(gains[cause]),
            "by_class": dict(
                Counter(e["class"] for e in entries if e["cause"] == cause).most_common()
            ),
        }
        for cause in causes
    }


def _miss_entry(
    found: Diagnosis, annotated: AnnotatedImage, judged: JudgedImage, miss: Miss
) -> dict[str, Any]:
    names, threshold = found.dataset.class_names, float(found.thresholds[miss.label - 1])
    entry: dict[str, Any] = {
        "image": annotated.id,
        "class": names[miss.label - 1],
        "box": _box(judged.gt_boxes, miss.row),
        "cause": miss.cause,
        "proposal_iou": miss.proposal_iou,
    }
    if miss.cause == "not proposed" and "stored" not in found.config.proposals.engines():
        entry["below_min_size"] = _below_min_size(found, annotated, judged.gt_boxes[miss.row])
    if miss.score is not None:
        entry |= {"regressed_iou": miss.regressed_iou, "score": miss.score, "threshold": threshold}
        entry |= {"short_by": max(threshold - miss.score, 0.0), "window_cells": miss.cells}
    if miss.other is not None:
        entry["other_class"] = _rival(miss.other, names)
    if miss.rival is not None:
        key = "suppressed_by" if miss.cause == "suppressed by NMS" else "detection"
        entry[key] = _rival(miss.rival, names)
    return entry


def _false_entry(
    found: Diagnosis, annotated: AnnotatedImage, judged: JudgedImage, one: FalseDetection
) -> dict[str, Any]:
    names, boxes = found.dataset.class_names, judged.detections
    entry: dict[str, Any] = {
        "image": annotated.id,
        "class": names[boxes.labels[one.row] - 1],
        "box": _box(boxes.boxes, one.row),
        "cause": one.cause,
        "score": float(boxes.scores[one.row]),
    }
    for key, iou, row in (
        ("object", one.iou, one.target),
        ("object_of_other_class", one.other_iou, one.other_target),
    ):
        if iou > 0:
            name = names[judged.gt_labels[row] - 1]
            entry[key] = {"class": name, "box": _box(judged.gt_boxes, row), "iou": iou}
    return entry


def _rival(rival: Rival, names: Sequence[str]) -> dict[str, Any]:
    entry: dict[str, Any] = {"class": names[rival.label - 1], "score": rival.score}
    if rival.iou is not None:
        entry["iou"] = rival.iou
    if rival.outcome is not None:
        entry["outcome"] = _OUTCOMES.get(rival.outcome, "ignored")
    return entry


def _below_min_size(found: Diagnosis, annotated: AnnotatedImage, box: Any) -> bool:
    """Check whether an object is narrower or lower than every proposal can be."""
    config = found.config.proposals
    width, height = searched_size(annotated.width, annotated.height, config.image_width)
    sides = (box[2:] - box[:2]).astype(np.float64)
    resized = sides * np.array([width / annotated.width, height / annotated.height])
    return bool(resized.min() < config.min_size)


def _confused(entries: Sequence[Mapping[str, Any]]) -> str:
    """Name the pair of classes that is confused most often."""
    pairs: Counter[tuple[str, str]] = Counter()
    for entry in entries:
        if entry["cause"] == "wrong class":
            missed = "detection" in entry
            other = entry["detection" if missed else "object_of_other_class"]["class"]
            pairs[(entry["class"], other) if missed else (other, entry["class"])] += 1
    (true, taken), count = pairs.most_common(1)[0]
    return f", most often {true} taken for {taken} ({count})"


def _top_classes(by_class: Mapping[str, int]) -> str:
    first = list(by_class.items())[:_MOST_CLASSES]
    return ", ".join(f"{name} {count}" for name, count in first)


def _box(boxes: Boxes, row: int) -> list[float]:
    return [float(side) for side in boxes[row]]


def _percent(fraction: float | None) -> str:
    return "n/a" if fraction is None else f"{100 * fraction:.1f}"


def _points(gain: float | None) -> str:
    return "n/a" if gain is None else f"{100 * gain:+.2f}"

"""Files and table of a label audit."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2

from sppdet.errors import ImageError, printable
from sppdet.evaluation.audit import KINDS, Suspicion, corrected
from sppdet.io.image_cache import ImageCache
from sppdet.io.label_studio import Region, labelling_interface, task
from sppdet.io.names import escape_name, fit_name, safe_id, text_cell
from sppdet.io.voc_writing import voc_annotation
from sppdet.runs.progress import track
from sppdet.stages.audit_drawing import draw_suspicion
from sppdet.types import AnnotatedImage, Dataset

if TYPE_CHECKING:
    from rich.console import Console

_SIDES = ("x1", "y1", "x2", "y2")
_COLUMNS = (
    *("rank", "score", "kind", "image", "file", "class", *_SIDES),
    *("suggested_class", *(f"suggested_{side}" for side in _SIDES)),
)
_SHOWN = 20  # rows of the printed table


def files_of(
    dataset: Dataset, found: Sequence[Suspicion], images: ImageCache, *, top: int
) -> dict[str, bytes]:
    """Make the files of an audit, by their path below its folder.

    Args:
        found: by score, descending.
        top: number of suspicions to draw and to export.
    """
    by_id = {image.id: image for image in dataset.images}
    rows = rows_of(dataset, found)
    content = {"set": dataset.name, "images": len(dataset), "counts": counts(found), "rows": rows}
    first: dict[str, list[Suspicion]] = defaultdict(list)
    for one in found[:top]:
        first[one.image].append(one)
    tasks = [
        task(by_id[name], _regions(by_id[name], own, dataset.class_names), model="sppdet audit")
        for name, own in first.items()
    ]
    files = {
        "audit.json": _json(content),
        "audit.csv": _csv(rows),
        "label_studio.json": _json(tasks),
        "label_studio.xml": labelling_interface(dataset.class_names).encode(),
        "classes.txt": "".join(f"{escape_name(n)}\n" for n in dataset.class_names).encode(),
    }
    folders = annotation_folders([by_id[name] for name in first])
    for name, own in first.items():
        image = by_id[name]
        path = f"{folders[image.path.parent]}/{fit_name(image.path.stem, '.xml')}"
        files[path] = _annotation(corrected(image, own), dataset.class_names)
    drawn = zip(rows, found[:top], strict=False)
    for row, one in track(drawn, total=min(top, len(found)), label="drawing"):
        image = by_id[one.image]
        name = f"{row['rank']:03d}_{one.kind.replace(' ', '_')}_{safe_id(one.image)}"
        files[f"images/{fit_name(name, '.jpg')}"] = _drawing(image, one, row, images)
    return files


def rows_of(dataset: Dataset, found: Sequence[Suspicion]) -> list[dict[str, Any]]:
    """Collect suspicions as plain data; `suggestion` is null where an object should go."""
    by_id, names = {image.id: image for image in dataset.images}, dataset.class_names
    rows = []
    for rank, one in enumerate(found, start=1):
        image = by_id[one.image]
        row: dict[str, Any] = {"rank": rank, "score": round(one.score, 4), "kind": one.kind}
        row |= {"image": one.image, "file": escape_name(str(image.path))}
        row["annotated"] = row["suggestion"] = None
        if one.row is not None:
            label = int(image.gt_labels[one.row])
            row["annotated"] = {"class": names[label - 1], "box": _box(image.gt_boxes[one.row])}
        other = {"class": names[one.label - 1], "box": _box(one.box)}
        row["suggestion" if one.kept is None else "same_object"] = other
        rows.append(row)
    return rows


def counts(found: Sequence[Suspicion]) -> dict[str, int]:
    """Count the suspicions of every kind."""
    return {kind: sum(one.kind == kind for one in found) for kind in KINDS}


def annotation_folders(images: Sequence[AnnotatedImage]) -> dict[Path, str]:
    """Name a folder of annotations for each folder of images, whose files may have the same names."""
    parents = list(dict.fromkeys(image.path.parent for image in images))
    if len(parents) < 2:
        return dict.fromkeys(parents, "Annotations")
    return {parent: f"Annotations-{k}" for k, parent in enumerate(parents, start=1)}


def print_rows(dataset: Dataset, found: Sequence[Suspicion], console: Console, top: int) -> None:
    """Print the first rows."""
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold")
    table.add_column("", justify="right")
    table.add_column("score", justify="right")
    for heading in ("kind", "image", "annotated", "suggested"):
        table.add_column(heading)
    for row in rows_of(dataset, found[: min(top, _SHOWN)]):
        cells = [row["kind"], row["image"], _name(row["annotated"]), suggested(row)]
        table.add_row(
            str(row["rank"]), f"{row['score']:.2f}", *(Text(printable(cell)) for cell in cells)
        )
    console.print(table)


def suggested(row: Mapping[str, Any]) -> str:
    """Say in a few words what a row suggests."""
    if row["suggestion"] is None:
        return f"none: the same object as another {row['same_object']['class']}"
    name: str = row["suggestion"]["class"]
    return f"{name}, another box" if row["kind"] == "loose box" else name


def _regions(
    image: AnnotatedImage, found: Sequence[Suspicion], names: Sequence[str]
) -> list[Region]:
    """List an image's objects as they are, and the suggestions."""
    notes = {one.row: f"{one.kind}: remove?" for one in found if one.kept is not None}
    regions = [
        Region(_box(box), names[label - 1], notes.get(row, ""))
        for row, (box, label) in enumerate(zip(image.gt_boxes, image.gt_labels, strict=True))
    ]
    for one in found:
        if one.kept is None:
            note = f"suggested, {one.kind}"
            regions.append(Region(_box(one.box), names[one.label - 1], note, one.score))
    return regions


def _annotation(image: AnnotatedImage, names: Sequence[str]) -> bytes:
    text = voc_annotation(
        filename=escape_name(image.path.name),
        width=image.width,
        height=image.height,
        boxes=image.gt_boxes,
        names=[names[label - 1] for label in image.gt_labels],
        difficult=image.difficult,
        truncated=image.truncated,
    )
    return text.encode()


def _drawing(
    image: AnnotatedImage, one: Suspicion, row: Mapping[str, Any], images: ImageCache
) -> bytes:
    before = f"red: {_name(row['annotated'])}  " if one.row is not None else ""
    after = "the other object" if one.kept is not None else row["suggestion"]["class"]
    caption = [f"{row['rank']} {one.kind} {one.score:.2f} {one.image}", f"{before}green: {after}"]
    drawn = draw_suspicion(images.read(image.path), image, one, caption)
    done, data = cv2.imencode(".jpg", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
    if not done:
        raise ImageError(f"{image.path}: its drawing can't be encoded")
    return data.tobytes()


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        cells = [row["rank"], row["score"], row["kind"], text_cell(row["image"])]
        cells.append(text_cell(row["file"]))
        for side in ("annotated", "suggestion"):
            one = row[side]
            cells += [text_cell(one["class"]), *one["box"]] if one else [""] * 5
        writer.writerow(cells)
    return text.getvalue().encode()


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def _name(one: Mapping[str, Any] | None) -> str:
    return one["class"] if one else "nothing"


def _box(box: Any) -> list[float]:
    return [round(float(side), 2) for side in box]

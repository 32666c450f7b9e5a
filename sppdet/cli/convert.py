"""The command `convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

_Target = Literal[
    "voc", "coco", "yolo", "csv", "jsonl", "labelme", "via", "cvat", "labelstudio",
    "json", "coco-results", "comp4",
]  # fmt: skip
_Source = Literal["voc", "coco", "xml", "yolo", "labelme", "csv", "via", "cvat"]


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FROM",
            help="A folder or file of labels; detections.json, COCO results, or a folder of comp4 files.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="TO", help="Folder for the converted set.")],
    target: Annotated[
        _Target,
        typer.Option("--format", help="Format to write; the last three hold detections alone."),
    ],
    source_format: Annotated[
        _Source | None, typer.Option("--from", help="Format of the labels; default: what is found.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The one set to convert, such as test; default: all.")
    ] = None,
    images: Annotated[
        Literal["link", "copy", "none"] | None,
        typer.Option(
            help="Put the images into TO, too; default: copy for voc and yolo, else none."
        ),
    ] = None,
    images_in: Annotated[
        Path | None, typer.Option(help="Folder of the images, if they aren't where FROM says.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Classes in their order, separated by commas; default: all.")
    ] = None,
    score: Annotated[float | None, typer.Option(help="Least score of detections.")] = None,
    scores: Annotated[
        bool, typer.Option("--scores", help="Write scores of detections into YOLO's labels.")
    ] = False,
    ids: Annotated[
        str | None,
        typer.Option(
            help="Meaning of numbers in detections, as in eval: stem, position, FILE.json."
        ),
    ] = None,
    skip_errors: Annotated[
        bool, typer.Option("--skip-errors", help="List and leave out what can't be used.")
    ] = False,
) -> None:
    """Convert labels or detections into another format; says what that format can't hold."""
    from sppdet.cli.process import start_libraries

    start_libraries()
    from sppdet.stages.convert import convert as run
    from sppdet.stages.convert_labels import Reading

    names = None if classes is None else tuple(name.strip() for name in classes.split(","))
    reading = Reading(
        format=source_format,
        split=split,
        images=images_in,
        classes=names,
        ids=ids,
        min_score=score,
        skip=skip_errors,
    )
    run(source, out, target, reading=reading, images=images, scores=scores)

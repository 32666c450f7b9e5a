"""Commands around labelling: suggest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sppdet.cli.options import DeviceOption, PathsArgument, RunArgument
from sppdet.cli.process import start_libraries
from sppdet.cli.thresholds import ProbabilityOption, ScoreOption, threshold
from sppdet.errors import SppdetError


def suggest(
    run: RunArgument,
    paths: PathsArgument,
    count: Annotated[
        int, typer.Option(min=1, max=10_000, help="Number of images to label now.")
    ] = 20,
    prelabels: Annotated[
        Literal["voc", "yolo", "coco", "labelstudio"],
        typer.Option("--format", help="Format of the pre-labels."),
    ] = "voc",
    out: Annotated[Path | None, typer.Option(help="Folder; default: RUN/suggest.")] = None,
    copy: Annotated[
        bool, typer.Option("--copy/--no-copy", help="Copy the images beside their pre-labels.")
    ] = True,
    score: ScoreOption = "auto",
    min_probability: ProbabilityOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Choose the next images to label, and write pre-labels to correct."""
    start_libraries()
    from sppdet.stages.suggest import suggest_images

    wanted = threshold(score, min_probability, None, None)
    made = suggest_images(
        *(run, paths),
        out=out,
        count=count,
        prelabels=prelabels,
        copy=copy,
        wanted=wanted,
        device=device,
    )
    if made.failed:
        total = len(made.rows) + made.labelled + len(made.failed)
        raise SppdetError(
            f"{len(made.failed)} of {total} images failed; the first: {made.failed[0]}"
        )

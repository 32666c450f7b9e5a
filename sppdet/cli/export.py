"""The command `export`: a trained detector as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sppdet.cli.options import ModelArgument
from sppdet.cli.process import show, start_libraries, suggest


def export(
    model: ModelArgument,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Model file to write, such as model.sppdet.")
    ],
) -> None:
    """Write a trained detector as one file, which `detect` takes in the place of the run."""
    start_libraries()
    from sppdet.stages.trained_model import TrainedModel, write_model

    size = write_model(TrainedModel.open(model), file)
    show(f"written to {file}: {size / 2**20:.1f} MiB")
    suggest("detect", str(file), "FOLDER", "--out", "found")

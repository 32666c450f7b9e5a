"""The command `export`: a trained detector as one file, or as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sppdet.cli.options import ModelArgument
from sppdet.cli.process import show, start_libraries, suggest
from sppdet.errors import ConfigError


def export(
    model: ModelArgument,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Model file to write, such as model.sppdet."),
    ] = None,
    onnx: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder for layers.onnx, head.onnx and detector.json."),
    ] = None,
) -> None:
    """Write a trained detector as one file, which `detect` takes in the place of the run, or as ONNX."""
    if file is None and onnx is None:
        raise ConfigError("export: expected FILE, such as model.sppdet, or --onnx FOLDER")
    if file is not None and file.name.lower().endswith(".onnx"):
        raise ConfigError(f"{file}: FILE gets sppdet's own format; expected --onnx FOLDER for ONNX")
    if onnx is not None and onnx.name.lower().endswith(".onnx"):
        raise ConfigError(f"{onnx}: --onnx writes a folder of files; expected a name without .onnx")
    if onnx is not None and onnx.exists() and not onnx.is_dir():
        raise ConfigError(f"{onnx}: is a file; --onnx writes into a folder")
    start_libraries()
    from sppdet.stages.trained_model import TrainedModel, write_model

    opened = TrainedModel.open(model)
    if file is not None:
        size = write_model(opened, file)
        show(f"written to {file}: {size / 2**20:.1f} MiB")
    if onnx is not None:
        from sppdet.stages.export_onnx import export_onnx

        for line in export_onnx(opened, onnx):
            show(line)
        show(f"written to {onnx}")
    if file is not None:
        suggest("detect", str(file), "FOLDER", "--out", "found")

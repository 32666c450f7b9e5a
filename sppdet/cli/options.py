"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

MAX_THREADS = 1024

ConfigArgument = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML settings, or the name of a packaged config.")
]
ConfigOrImagesArgument = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        help="YAML settings, the name of a packaged config, or a folder of labelled images.",
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
ModelArgument = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="Folder of a run, or a file of `sppdet export`."),
]
ClassifierArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a classifier's run.")
]
PathsArgument = Annotated[
    list[Path], typer.Argument(metavar="PATH", help="Images, or folders of them.")
]
RunOption = Annotated[
    Path | None, typer.Option(help="Folder of the run; default: runs/NAME-OF-CONFIG.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="Device of the networks.")
]


def default_run(config: Path, suffix: str = "") -> Path:
    """Return the folder of a run without `--run`."""
    name = config.resolve().name if config.is_dir() else config.name.removesuffix(".yaml")
    return Path("runs") / (name + suffix)

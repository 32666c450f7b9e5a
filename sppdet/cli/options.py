"""Arguments and options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

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
InputsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT",
        help="Images, videos, folders, patterns ('**/*.jpg'), lists (@list.txt), URLs, camera:0, or -"
        " for an image on standard input.",
    ),
]
RunOption = Annotated[
    Path | None, typer.Option(help="Folder of the run; default: runs/NAME-OF-CONFIG.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")
]


def _device(text: str) -> str:
    """Check the form of a device's name, before torch is imported."""
    if re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?|mps", text) is None:
        raise typer.BadParameter(f"{text}: expected auto, cpu, cuda, cuda:N or mps")
    return text


DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="<device>",
        callback=_device,
        help="Device of the networks: auto, cpu, cuda, cuda:N or mps.",
    ),
]


def default_run(config: Path, suffix: str = "") -> Path:
    """Return the folder of a run without `--run`."""
    name = config.resolve().name if config.is_dir() else config.name.removesuffix(".yaml")
    return Path("runs") / (name + suffix)

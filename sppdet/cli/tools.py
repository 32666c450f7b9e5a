"""Commands around runs: init, download, demo, info."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sppdet.cli.options import ModelArgument
from sppdet.cli.process import show, start_libraries, suggest
from sppdet.errors import ConfigError


def init(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name of a packaged config.")
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="List the packaged configs and exit.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="Folder of your data set; default: the config's.")
    ] = None,
) -> None:
    """Print a packaged config as commented YAML, to start your own from."""
    from sppdet.cli.init import commented_config, config_list

    if listed:
        for line in config_list():
            show(line)
    elif name is None:
        raise ConfigError("init: expected NAME or --list")
    else:
        for line in commented_config(name, data).splitlines():
            show(line)


def download(
    name: Annotated[Literal["voc2007", "voc2012"], typer.Argument(help="Data set to fetch.")],
    root: Annotated[Path, typer.Option(help="Folder that receives VOCdevkit.")] = Path("data"),
) -> None:
    """Download PASCAL VOC."""
    from sppdet.io.download import download_voc

    year: Literal["2007", "2012"] = "2007" if name == "voc2007" else "2012"
    for folder in download_voc(year, root):
        show(str(folder))


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demo.")] = Path("runs/demo"),
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Seed of the images and of training.")
    ] = 0,
) -> None:
    """Generate a data set, train on it, evaluate, and detect in new images."""
    start_libraries()
    from sppdet.demo.run import run_demo

    run_demo(out, seed=seed)
    suggest("train", "FOLDER", when="with your own labelled images")


def info(run: ModelArgument) -> None:
    """Describe a run or a model file: settings, parts, times and scores."""
    from sppdet.cli.info import describe_run

    for line in describe_run(run):
        show(line)

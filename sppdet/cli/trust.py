"""Commands about how far data and numbers can be trusted: check, compare, crossval, curve, audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sppdet.cli.detector import MetricName
from sppdet.cli.options import (
    ConfigOrImagesArgument,
    DeviceOption,
    RunArgument,
    SetOption,
    default_run,
)
from sppdet.cli.process import given_words, start_libraries, suggest
from sppdet.errors import ConfigError, DataError

_Run = "Folder of a run that was evaluated, or of a cross-validation."


def check(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="A folder of labelled images, YAML settings, or the name of a packaged config.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the page and the JSON; default: runs/NAME-check."),
    ] = None,
    proposals: Annotated[
        int,
        typer.Option(
            min=0, max=1_000_000, help="Number of images to search for proposals; 0 for none."
        ),
    ] = 100,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with status 1 at errors.")] = False,
    overrides: SetOption = None,
) -> None:
    """Look at images and labels before training: what is damaged, doubtful, or there twice."""
    from sppdet.io.settings import load_config

    settings = load_config(data, overrides or ())
    start_libraries()
    from sppdet.stages.check import check_data

    folder = default_run(data, "-check")
    result = check_data(settings, out or folder, name=default_run(data).name, sample=proposals)
    if strict and result.errors:
        said = f"{result.errors} error{'s' * (result.errors > 1)}"
        raise DataError(f"{data}: {said}; see {out or folder}")


def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help=_Run)],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help=_Run)],
    split: Annotated[str, typer.Option(help="test, train or the name of a set.")] = "test",
    metric: Annotated[
        MetricName | None, typer.Option(help="Default: the one in the settings of RUN_A.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the numbers, too.")
    ] = None,
) -> None:
    """Tell whether two runs differ by more than the chance of their test images."""
    start_libraries()
    from sppdet.stages.compare import compare_runs, show_comparison

    show_comparison(compare_runs(first, second, split=split, metric=metric), json)


def crossval(
    config: ConfigOrImagesArgument,
    folds: Annotated[
        int | None, typer.Option(min=2, max=1000, help="Number of folds; default: 5.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Folder; default: runs/NAME-OF-CONFIG-crossval.")
    ] = None,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train and test on every training image in turn; an interrupted call goes on where it stopped."""
    from sppdet.io.settings import load_config

    settings = load_config(config, overrides or ())
    start_libraries()
    from sppdet.stages.crossval import crossval as run_folds

    folder = run or default_run(config, "-crossval")
    run_folds(settings, folder, folds=folds, device=device)
    words = given_words("train", without=("--folds", "--run"))
    suggest(*words, when="a detector of all images")


def curve(
    config: ConfigOrImagesArgument,
    fractions: Annotated[
        str, typer.Option(help="Fractions of the training images, ascending.")
    ] = "0.25,0.5,1",
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Number of trainings of each size.")
    ] = 1,
    run: Annotated[
        Path | None, typer.Option(help="Folder; default: runs/NAME-OF-CONFIG-curve.")
    ] = None,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train on growing parts of the training images: would more labels help?"""
    from sppdet.io.settings import load_config

    try:
        numbers = [float(part) for part in fractions.split(",")]
    except ValueError:
        raise ConfigError(f"--fractions {fractions}: expected numbers such as 0.25,0.5,1") from None
    settings = load_config(config, overrides or ())
    start_libraries()
    from sppdet.stages.curve import curve as run_curve

    folder = run or default_run(config, "-curve")
    run_curve(settings, folder, fractions=numbers, seeds=seeds, device=device)


def audit(
    run: RunArgument,
    top: Annotated[
        int, typer.Option(min=1, max=100_000, help="Number of suspicions to draw and export.")
    ] = 50,
    out: Annotated[Path | None, typer.Option(help="Folder; default: RUN/audit.")] = None,
) -> None:
    """Find training labels that look wrong: missing objects, loose boxes, swapped classes, double boxes."""
    start_libraries()
    from sppdet.stages.audit import audit_run

    audit_run(run, top=top, out=out)

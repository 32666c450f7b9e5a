"""Commands about how far numbers can be trusted: compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sppdet.cli.detector import MetricName
from sppdet.cli.process import start_libraries

_Run = "Folder of a run that was evaluated, or of a cross-validation."


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

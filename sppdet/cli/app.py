"""The commands of `sppdet`, as a Typer application."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from sppdet.cli import classifier, detector, tools, trust
from sppdet.cli.options import MAX_THREADS
from sppdet.cli.process import state
from sppdet.errors import one_line
from sppdet.version import __version__

app = typer.Typer(
    help="SPP-net object detection: train, evaluate, detect.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(detector.train)
app.command("eval")(detector.evaluate)
app.command()(detector.diagnose)
app.command()(detector.report)
app.command()(detector.explain)
app.command()(trust.check)
app.command()(trust.compare)
app.command()(trust.crossval)
app.command()(trust.curve)
app.command()(trust.audit)
app.command()(detector.detect)
app.command()(detector.propose)
app.command()(classifier.pretrain)
app.command("pretrain-eval")(classifier.pretrain_eval)
app.command()(classifier.classify)
app.command()(classifier.probe)
app.command()(tools.init)
app.command()(tools.download)
app.command()(tools.demo)
app.command()(tools.info)


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"sppdet {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_THREADS,
            help="Threads for the networks; default: all cores, or this process's share.",
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    state.debug, state.threads = debug, threads
    state.command = context.invoked_subcommand or ""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("warning: %(message)s"))
    handler.setLevel(logging.WARNING)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    from sppdet.runs.log import log_to_console

    log_to_console()

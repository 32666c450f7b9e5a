"""The commands of `sppdet`, as a Typer application."""

from __future__ import annotations

from typing import Annotated

import typer

from sppdet.cli import classifier, convert, detector, export, labelling, service, tools, trust
from sppdet.cli.process import state
from sppdet.cli.shared import App, with_options
from sppdet.version import __version__

app = App(
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
app.command()(labelling.suggest)
app.command()(detector.detect)
app.command()(convert.convert)
app.command()(export.export)
app.command()(detector.propose)
app.command()(service.serve)
app.command()(classifier.pretrain)
app.command("pretrain-eval")(classifier.pretrain_eval)
app.command()(classifier.classify)
app.command()(classifier.probe)
app.command()(tools.init)
app.command()(tools.download)
app.command()(tools.demo)
app.command()(tools.info)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"sppdet {__version__}")
        raise typer.Exit


@app.callback()
@with_options
def _start(
    context: typer.Context,
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
    state.command = context.invoked_subcommand or ""

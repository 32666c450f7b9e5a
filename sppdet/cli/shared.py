"""Options of every command, which stand before its name or after it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from sppdet.cli.options import MAX_THREADS
from sppdet.cli.process import start_messages, state
from sppdet.errors import ConfigError


def _options(
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only results, warnings and errors.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print details, such as seconds a stage.")
    ] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Print JSON lines as in log.jsonl, nothing else.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_THREADS,
            help="Threads for the networks; default: all cores, or this process's share.",
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Keep what is given here; what was given before the command stays.

    Raises:
        ConfigError: options that contradict each other.
    """
    state.quiet |= quiet
    state.verbose |= verbose
    state.log_json |= log_json
    state.debug |= debug
    state.threads = threads or state.threads
    if state.quiet and state.verbose:
        raise ConfigError("--quiet and --verbose: expected one of them")


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options to a command's function, which doesn't get them."""
    own = inspect.signature(function, eval_str=True)
    shared = inspect.signature(_options, eval_str=True).parameters

    @wraps(function)
    def command(**values: Any) -> None:
        _options(**{name: values.pop(name) for name in shared})
        start_messages()
        function(**values)

    parameters = [*own.parameters.values(), *shared.values()]
    command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


class App(typer.Typer):
    """An application whose commands all have these options."""

    def command(self, *args: Any, **settings: Any) -> Callable[..., Any]:
        """Register a command, as `typer.Typer` does."""
        register = super().command(*args, **settings)
        return lambda function: register(with_options(function))

"""The command line as a program: `sppdet` and `python -m sppdet`."""

from __future__ import annotations

import sys

from sppdet.runs.environment import set_variables
from sppdet.runs.signals import Stopped, stopping_signals


def main() -> None:
    """Set the process up, then run the command."""
    set_variables()
    with stopping_signals(_say_stopped):
        try:
            from sppdet.cli.app import main as run  # which imports torch and takes seconds
        except Stopped as stop:
            _say_stopped(stop)
            raise SystemExit(stop.status) from None
        run()


def _say_stopped(stop: Stopped) -> None:
    """The last line of a program that was told to stop."""
    cli = sys.modules.get("sppdet.cli.app")
    say = getattr(cli, "say_stopped", None)  # missing while it is imported
    if say is not None:
        say(stop)
    else:
        print(stop, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

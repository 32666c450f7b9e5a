"""The command line as a program: `sppdet` and `python -m sppdet`."""

from __future__ import annotations

from sppdet.environment import set_variables


def main() -> None:
    """Set the process up, then run the command."""
    set_variables()
    from sppdet.cli import main as run  # which imports torch

    run()


if __name__ == "__main__":
    main()

"""Entry point of the command line: `sppdet` and `python -m sppdet`."""

from sppdet.cli.main import main

if __name__ == "__main__":
    main()

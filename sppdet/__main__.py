"""The command line as a program: `sppdet` and `python -m sppdet`."""

from sppdet.cli.main import main

if __name__ == "__main__":
    main()

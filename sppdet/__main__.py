"""`python -m sppdet` is the command line."""

from sppdet.cli import main

if __name__ == "__main__":
    main()

"""Run the commands of docs/tutorial.md in a new folder and copy the figures that they make.

    python docs/make_tutorial.py FOLDER

It prints what the commands print. The figures go to docs/figures.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent


def commands(page: str) -> list[str]:
    """List the commands of a page: the indented lines that begin with sppdet."""
    return re.findall(r"^    (sppdet .*)$", page, flags=re.MULTILINE)


def figures(page: str) -> dict[str, str]:
    """Map each figure's file in docs/ to the file that a command makes.

    The page says so in a comment behind the figure.
    """
    return dict(re.findall(r"\]\((figures/[^)]+)\)<!-- (\S+) -->", page))


def main() -> None:
    """Run all commands, then copy the figures."""
    folder = Path(sys.argv[1])
    if folder.exists():
        sys.exit(f"{folder}: exists; expected a new folder")
    folder.mkdir(parents=True)
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(DOCS.parent)}
    for command in commands(page):
        print(f"$ {command}", flush=True)
        program = command.replace("sppdet", f"{sys.executable} -m sppdet", 1)
        subprocess.run(program, shell=True, check=True, cwd=folder, env=environment)
    for target, source in figures(page).items():
        (DOCS / target).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / source, DOCS / target)


if __name__ == "__main__":
    main()

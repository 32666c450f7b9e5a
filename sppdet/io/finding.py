"""Finding of files: in folders through links but without circles, and by patterns such as `**/*.jpg`."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sppdet.errors import ImageError
from sppdet.io.images import IMAGE_SUFFIXES

_MAGIC = re.compile(r"[*?[]")


def walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder from `root` down, and the sorted names of its files; hidden ones are left out.

    Links to folders elsewhere are followed; those to a folder that is listed anyway, or above, are not,
    so that no folder comes twice and no link leads in a circle.
    """
    top = Path(os.path.realpath(root))
    seen = {top, *top.parents}

    def is_new(folder: Path) -> bool:
        target = Path(os.path.realpath(folder))
        listed = folder.is_symlink() and top in target.parents
        if listed or target in seen:
            return False
        seen.add(target)
        return True

    for parent, folders, names in os.walk(root, followlinks=True):
        shown = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in shown if is_new(Path(parent, name))]
        yield Path(parent), sorted(name for name in names if not name.startswith("."))


def find_files(root: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """Yield the files below a folder with one of the suffixes, which are in lower case; see `walk`."""
    wanted = frozenset(suffixes)
    for parent, names in walk(root):
        yield from (parent / name for name in names if Path(name).suffix.lower() in wanted)


def find_images(paths: Sequence[Path | str]) -> list[Path]:
    """Find the images in `paths`: files as they are, folders searched to any depth.

    In folders every file with a suffix of `IMAGE_SUFFIXES` (any case) counts; hidden files and
    folders are skipped, and links to folders are followed as by `walk`.

    Returns:
        Paths, relative where the one given was, sorted by name, each file once.

    Raises:
        ImageError: a path doesn't exist, or there is not one image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise ImageError(f"{path}: no such file or folder")
        found += find_files(path, IMAGE_SUFFIXES) if path.is_dir() else (path,)
    if not found:
        raise ImageError(f"{', '.join(map(str, paths)) or 'no paths given'}: no images found")
    return each_once(found)


def each_once(paths: Iterable[Path]) -> list[Path]:
    """Sort paths by name and drop those that lead to a file a second time, through linked folders.

    A link to a file is a file of its own.
    """
    found: dict[str, Path] = {}
    folders: dict[str, str] = {}  # real paths, by folder as it was named
    for path in paths:
        parent = os.path.dirname(os.path.abspath(path))  # noqa: PTH120
        if parent not in folders:
            folders[parent] = os.path.realpath(parent)
        found.setdefault(os.path.join(folders[parent], path.name), path)  # noqa: PTH118
    return sorted(found.values(), key=lambda path: path.as_posix())


def is_pattern(word: str) -> bool:
    """Check that a word has a wildcard and that no file has it for its name."""
    return _MAGIC.search(word) is not None and not os.path.lexists(word)


def expand(pattern: str) -> Iterator[Path]:
    """Yield the files and folders that a pattern matches: `*`, `?`, `[...]`, and `**` for any depth.

    Hidden ones are matched by a pattern with the dot alone. `**` goes through links as `walk` does, and at
    the end of a pattern it matches all files. Links to folders above themselves are left out.
    """
    before, deep, after = _split(pattern)
    if not deep:
        matched = map(Path, sorted(glob.glob(pattern)))
        yield from (path for path in matched if not _leads_up(path))
        return
    for top in sorted(glob.glob(before)) if before else [""]:
        for folder, names in walk(Path(top or ".")):
            if after:
                inside = glob.escape(str(folder)) if top or str(folder) != "." else ""
                yield from expand(os.path.join(inside, after))  # noqa: PTH118
            else:
                yield from (folder / name for name in names)


def _leads_up(path: Path) -> bool:
    parent = os.path.realpath(path.parent)
    return path.is_symlink() and Path(os.path.realpath(path)) in (
        Path(parent),
        *Path(parent).parents,
    )


def _split(pattern: str) -> tuple[str, bool, str]:
    """Split a pattern at its first component `**`."""
    parts = re.split(r"[/\\]" if os.sep == "\\" else "/", pattern)
    if "**" not in parts:
        return pattern, False, ""
    at = parts.index("**")
    before, after = "/".join(parts[:at]), [part for part in parts[at + 1 :] if part]
    while after[:1] == ["**"]:
        after = after[1:]
    return before or ("/" if at else ""), True, "/".join(after)

"""The images of a call of `detect`, and the names of their results and files."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sppdet.errors import ImageError
from sppdet.folders.formats import IMAGE_FORMATS
from sppdet.folders.journal import claimed_files
from sppdet.io.images import find_images
from sppdet.io.names import distinct_stems, escape_name

_ENDINGS = [kind.ending for kind in IMAGE_FORMATS.values()]


@dataclass(frozen=True, slots=True)
class Item:
    """One image: its file, its name among the results (see `escape_name`), the stem of its files."""

    path: Path
    name: str
    stem: str


@dataclass(frozen=True)
class FolderPlan:
    """The images in order, the folders that were searched, the number of outputs left out."""

    items: tuple[Item, ...]
    searched: tuple[Path, ...]
    left_out: int


def plan_images(paths: Sequence[Path]) -> FolderPlan:
    """Find the images in `paths` and name them.

    Images that `detect` has written are left out of folders that are searched; a file that is
    named by itself is taken as it is.

    Raises:
        ImageError: a path doesn't exist, or there is no image.
    """
    found = find_images(paths)
    named = {os.path.abspath(path) for path in paths if not path.is_dir()}
    claims_of = functools.cache(claimed_files)

    def is_output(image: Path) -> bool:
        path = Path(os.path.realpath(image))
        return any(path.relative_to(f).as_posix() in claims_of(f) for f in path.parents)

    kept = [p for p in found if os.path.abspath(p) in named or not is_output(p)]
    if not kept:
        where = ", ".join(map(str, paths))
        raise ImageError(f"{where}: no images besides {len(found)} that detect has written")
    names = _names(kept, paths)
    items = tuple(map(Item, kept, names, distinct_stems(names, _ENDINGS)))
    searched = tuple(path for path in paths if path.is_dir())
    return FolderPlan(items, searched, len(found) - len(kept))


def _names(images: Sequence[Path], paths: Sequence[Path]) -> list[str]:
    """Name each image by its path below the outermost folder that was given, or its file name.

    Where two are the same, all are named by their paths below the folder that they share.
    """
    whole = [Path(os.path.abspath(path)) for path in images]
    folders = [Path(os.path.abspath(path)) for path in paths if path.is_dir()]

    def short(path: Path) -> str:
        inside = [f for f in folders if path.is_relative_to(f)]
        base = min(inside, key=lambda f: len(f.parts)) if inside else path.parent
        return path.relative_to(base).as_posix()

    names = [short(path) for path in whole]
    if len({name.casefold() for name in names}) != len(names):
        shared = os.path.commonpath([path.parent for path in whole])
        names = [path.relative_to(shared).as_posix() for path in whole]
    return [escape_name(name) for name in names]

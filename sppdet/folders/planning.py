"""The images of a call of `detect`, and the names of their results and files."""

from __future__ import annotations

import functools
import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from sppdet.errors import ConfigError, ImageError
from sppdet.folders.journal import claimed_files
from sppdet.io.images import find_images
from sppdet.io.names import escape_name, fit_name

Format = Literal["images", "json", "csv", "voc", "coco"]
FORMATS: tuple[Format, ...] = ("images", "json", "csv", "voc", "coco")
# formats with a file for each image: its folder and suffix
IMAGE_FILES: dict[Format, tuple[str, str]] = {
    "images": ("images", ".jpg"),
    "voc": ("Annotations", ".xml"),
}
JOINT_FILES: dict[Format, str] = {
    "json": "detections.json",
    "csv": "detections.csv",
    "coco": "coco_results.json",
}


@dataclass(frozen=True, slots=True)
class Item:
    """One image: its file, its name among the results (see `escape_name`), the stem of its files."""

    path: Path
    name: str
    stem: str

    def file(self, kind: Format) -> str:
        """Name a file about the image, by its path below the folder of the results."""
        folder, suffix = IMAGE_FILES[kind]
        *folders, last = self.stem.split("/")
        return "/".join([folder, *map(fit_name, folders), fit_name(last, suffix)])


@dataclass(frozen=True)
class FolderPlan:
    """The images in order, the folders that were searched, the number of outputs left out."""

    items: tuple[Item, ...]
    searched: tuple[Path, ...]
    left_out: int


def parse_formats(text: str) -> tuple[Format, ...]:
    """Parse the formats of `--save`, such as "images,json"."""
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    for part in chosen or [""]:
        if part not in FORMATS:
            raise ConfigError(f"--save{part and ' '}{part}: expected some of {', '.join(FORMATS)}")
    return tuple(name for name in FORMATS if name in chosen)


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
    items = tuple(map(Item, kept, names, _stems(names)))
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


def _stems(names: Sequence[str]) -> list[str]:
    """Strip the suffixes of the names, unless two would be the same then.

    Stems differ on every file system, and no file of one stands where another needs a folder.
    """
    stems = [PurePosixPath(name).with_suffix("").as_posix() for name in names]
    if len(set(map(_folded, stems))) < len(stems):
        stems = list(names)
    counts = Counter(map(_folded, stems))
    folders = {f.as_posix() for stem in stems for f in PurePosixPath(_folded(stem)).parents}
    suffixes = [suffix for _, suffix in IMAGE_FILES.values()]

    def clashes(stem: str) -> bool:
        folded = _folded(stem)
        return counts[folded] > 1 or any(folded + suffix in folders for suffix in suffixes)

    return [
        f"{stem}~{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
        if clashes(stem)
        else stem
        for stem, name in zip(stems, names, strict=True)
    ]


def _folded(name: str) -> str:
    """Fold names that some file system takes for the same."""
    return unicodedata.normalize("NFC", name.casefold())

"""Find what a call of `detect` reads: from its words to images with names that tell them apart."""

from __future__ import annotations

import functools
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sppdet.errors import AnnotationError, ImageError
from sppdet.folders.formats import IMAGE_FORMATS
from sppdet.folders.journal import claimed_files
from sppdet.folders.planning import Item
from sppdet.folders.sources import Film, FolderPlan, Source, Still
from sppdet.io.files import read_bytes, read_foreign_text
from sppdet.io.finding import each_once, expand, find_files, is_pattern
from sppdet.io.heif import AVIF_SUFFIXES, HEIF_SUFFIXES, INSTALL, reads_avif, reads_heif
from sppdet.io.images import IMAGE_SUFFIXES
from sppdet.io.names import distinct_stems, escape_name, name_below, safe_id, short_digest
from sppdet.io.videos import VIDEO_SUFFIXES, Capture, open_camera, open_video
from sppdet.io.web import fetch, is_url

STDIN = "-"
_SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
_CAMERA = re.compile(r"camera:(\d{1,3})")


def plan_images(
    words: Sequence[Path | str], *, every: int = 1, most: int | None = None
) -> FolderPlan:
    """Find the images that `words` mean and name them.

    A word is a file, a folder, a pattern (`**/*.jpg`), a list (`@list.txt`, or a file named `.txt`) of
    files, folders, patterns and URLs below its own folder, an http or https URL, `-` for an image on
    standard input, or `camera:0`. A `Path` is a file or a folder alone. Images that `detect` has
    written are left out of folders and patterns, and so are videos of folders; a file that is named by
    itself is taken as it is.

    Args:
        every: number of frames of a video from one that counts to the next.
        most: maximum of frames of each video or camera.

    Raises:
        ImageError: a path doesn't exist, a pattern matches nothing, or there is no image.
    """
    found = _Found()
    for word in words:
        found.add(word)
    paths, left_out = found.images()
    others = list(dict.fromkeys(found.others))
    if not paths and not others:
        said = ", ".join(map(str, words)) or "no paths given"
        raise ImageError(f"{said}: no images{' found' if not left_out else ''}{_besides(left_out)}")
    names = _distinct_names(paths, found.searched, others)
    is_film = [p.suffix.lower() in VIDEO_SUFFIXES for p in paths]
    is_film += [_CAMERA.fullmatch(word) is not None for word in others]
    named = _named(names, is_film)
    sources: list[Source] = []
    for path, (name, stem) in zip(paths, named, strict=False):
        item = Item(path.as_posix(), name, stem)
        if path.suffix.lower() in VIDEO_SUFFIXES:
            opened = functools.partial(_open_video, path)
            sources.append(Film(item, opened, every=every, most=most, path=path))
        else:
            sources.append(Still(item, functools.partial(_read_file, path), path))
    for word, (name, stem) in zip(others, named[len(paths) :], strict=True):
        item = Item("standard input" if word == STDIN else word, name, stem)
        if camera := _CAMERA.fullmatch(word):
            shot = functools.partial(_open_camera, int(camera[1]))
            sources.append(Film(item, shot, every=every, most=most))
        elif word == STDIN:
            sources.append(Still(item, _read_stdin))
        else:
            sources.append(Still(item, functools.partial(_fetch, word)))
    left = tuple(f"{count} {what}" for what, count in left_out)
    return FolderPlan(tuple(sources), tuple(found.searched), left)


@dataclass
class _Found:
    """The files that are named, those of folders and patterns, the folders, and words that are no file."""

    named: list[Path] = field(default_factory=list)
    matched: list[Path] = field(default_factory=list)
    searched: list[Path] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    _patterned: set[Path] = field(default_factory=set)  # by their own names

    def add(self, word: Path | str) -> None:
        """Add what a word of the command line means."""
        if isinstance(word, Path):
            self._add_path(word)
        elif word == STDIN or is_url(word) or _CAMERA.fullmatch(word):
            self.others.append(word)
        elif listed := _list_file(word):
            self._add_list(listed)
        elif is_pattern(word):
            if not self._add_pattern(word):
                raise ImageError(f"{word}: matches no images")
        else:
            self._add_path(Path(word))

    def _add_path(self, path: Path) -> None:
        try:
            there = path.exists()
        except (OSError, ValueError):  # a name that no file can have
            there = False
        if not there:
            raise ImageError(f"{path}: no such file or folder")
        if path.is_dir():
            self.searched.append(path)
            self.matched += find_files(path, _SUFFIXES)
        else:
            self.named.append(path)

    def _add_pattern(self, pattern: str) -> bool:
        before = len(self.matched)
        for path in expand(pattern):
            if path.is_dir():
                self.matched += find_files(path, _SUFFIXES)
            elif path.suffix.lower() in _SUFFIXES:
                self.matched.append(path)
                self._patterned.add(path)
        return len(self.matched) > before

    def _add_list(self, path: Path) -> None:
        """Add the lines of a list; one that leads nowhere is an image that fails, as others may be."""
        try:
            lines = read_foreign_text(path).splitlines()
        except AnnotationError as error:
            raise ImageError(str(error)) from None
        entries = [line.strip() for line in lines]
        entries = [line for line in entries if line and not line.startswith("#")]
        if not entries:
            raise ImageError(f"{path}: lists no images, expected a path in each line")
        for entry in entries:
            inside = os.path.join(path.parent, entry)  # noqa: PTH118 - an absolute path stands
            if is_url(entry):
                self.others.append(entry)
            elif is_pattern(inside):
                if not self._add_pattern(inside):
                    self.named.append(Path(inside))
            elif os.path.isdir(inside):  # noqa: PTH112
                self._add_path(Path(inside))
            else:
                self.named.append(Path(inside))

    def images(self) -> tuple[list[Path], list[tuple[str, int]]]:
        """Return the files to detect in, and how many of which kind are left out."""
        named = {os.path.abspath(path) for path in self.named}
        claims_of = functools.cache(claimed_files)
        counts: Counter[str] = Counter()

        def reason(path: Path) -> str:
            if os.path.abspath(path) in named:
                return ""
            suffix = path.suffix.lower()
            real = Path(os.path.realpath(path))
            if any(real.relative_to(f).as_posix() in claims_of(f) for f in real.parents):
                return "images that detect has written"
            if suffix in VIDEO_SUFFIXES and path not in self._patterned:
                return "videos, which are read where they are named"
            if suffix in HEIF_SUFFIXES and not reads_heif():
                return f"HEIC images: {INSTALL}"
            if suffix in AVIF_SUFFIXES and not reads_avif():
                return "AVIF images: pip install --upgrade pillow"
            return ""

        kept = []
        for path in each_once([*self.named, *self.matched]):
            if why := reason(path):
                counts[why] += 1
            else:
                kept.append(path)
        return kept, sorted(counts.items())


def _besides(left_out: Sequence[tuple[str, int]]) -> str:
    return " besides " + ", ".join(f"{n} {what}" for what, n in left_out) if left_out else ""


def _list_file(word: str) -> Path | None:
    if word.startswith("@") and not os.path.lexists(word):
        return Path(word[1:])
    path = Path(word)
    return path if path.suffix.lower() == ".txt" and os.path.isfile(word) else None  # noqa: PTH113


# -- reading -----------------------------------------------------------------------------------------
# Looked up when they are called, so that a test can stand in for a camera.


def _read_file(path: Path, max_bytes: int) -> bytes:
    return read_bytes(path, ImageError, max_bytes=max_bytes)


def _read_stdin(max_bytes: int) -> bytes:
    data = sys.stdin.buffer.read(max_bytes + 1)
    if not data:
        raise ImageError("standard input: is empty, expected an image")
    if len(data) > max_bytes:
        raise ImageError(f"standard input: expected {max_bytes} bytes at most")
    return data


def _fetch(url: str, max_bytes: int) -> bytes:
    return fetch(url, max_bytes=max_bytes)


def _open_video(path: Path, max_pixels: int) -> Capture:
    return open_video(path, max_pixels=max_pixels)


def _open_camera(number: int, max_pixels: int) -> Capture:
    return open_camera(number, max_pixels=max_pixels)


# -- names -------------------------------------------------------------------------------------------


def _distinct_names(
    paths: Sequence[Path], searched: Sequence[Path], others: Sequence[str]
) -> list[str]:
    """Name each image: short, or longer where two would have the same name.

    Short is the path below the outermost folder that was given, or the file name; of a URL the last
    part of its path. Long is the path below the folder that all files share; of a URL host and path.
    """
    whole = [Path(os.path.abspath(path)) for path in paths]
    folders = [Path(os.path.abspath(path)) for path in searched]

    names = [
        *(name_below(path, folders) for path in whole),
        *(_other_names(word)[0] for word in others),
    ]
    if len({name.casefold() for name in names}) != len(names):
        shared = os.path.commonpath([path.parent for path in whole]) if whole else ""
        names = [path.relative_to(shared).as_posix() for path in whole]
        names += [_other_names(word)[1] for word in others]
    names = [escape_name(name) for name in names]
    counts = Counter(names)
    for row, word in enumerate(others, start=len(paths)):
        if counts[names[row]] > 1:  # two URLs may differ in their query alone
            stem, dot, suffix = names[row].rpartition(".")
            mark = f"~{short_digest(word)}"
            names[row] = f"{stem}{mark}.{suffix}" if dot else f"{suffix}{mark}"
    return names


def _other_names(word: str) -> tuple[str, str]:
    """Name what is no file, short and long."""
    if word == STDIN:
        return "stdin", "stdin"
    if camera := _CAMERA.fullmatch(word):
        # every call has frames of its own
        name = f"camera-{camera[1]}-{time.strftime('%Y%m%d-%H%M%S')}"
        return name, name
    try:
        url = urlsplit(word)
        host, below = url.hostname or "", url.path
    except ValueError:
        host, below = "", ""
    parts = [safe_id(unquote(part)) for part in below.split("/") if part] or ["image"]
    return parts[-1], "/".join([safe_id(host), *parts])


def _named(names: Sequence[str], is_film: Sequence[bool]) -> list[tuple[str, str]]:
    """Pair each name with the stem of its files; a film is named so that no image has a frame's name."""
    chosen = [
        f"{name}~{short_digest(name)}"
        if film and any(other.startswith(f"{name}#") for other in names)
        else name
        for name, film in zip(names, is_film, strict=True)
    ]
    endings = [form.ending for form in IMAGE_FORMATS.values()]
    stems = distinct_stems(chosen, endings, is_film=is_film)
    return list(zip(chosen, stems, strict=True))

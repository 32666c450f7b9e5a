"""Files below a folder, found by the names that annotations, lists and other systems give them."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from sppdet.errors import AnnotationError, one_line
from sppdet.io.finding import walk
from sppdet.io.images import IMAGE_SUFFIXES

_Parts = tuple[str, ...]  # folders and file name, in the form of `_key`
# the suffixes that a name may have and a file may not: "a.jpg" in a list, "a.jpg.txt" beside it
_SUFFIXES = frozenset((*IMAGE_SUFFIXES, ".xml", ".txt", ".json"))
_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")  # Label Studio puts it before the name of an upload
_ROUGHLY = 2  # the stem alone is the same


class FolderFiles:
    """The files below a folder, listed once; hidden ones are left out.

    Links to folders are followed as by `sppdet.io.finding.walk`.

    Attributes:
        root: the folder.
        names: paths below it with `/`, sorted.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        found: list[str] = []
        for parent, names in walk(root):
            below = parent.relative_to(root).as_posix()
            start = "" if below == "." else f"{below}/"
            found += [f"{start}{name}" for name in names]
        self.names: tuple[str, ...] = tuple(sorted(found))
        self._by_stem: dict[tuple[str, ...], dict[str, list[str]]] = {}

    @cached_property
    def images(self) -> tuple[str, ...]:
        """The names of the images, sorted."""
        return self.with_suffix(*IMAGE_SUFFIXES)

    def with_suffix(self, *suffixes: str) -> tuple[str, ...]:
        """List the names with one of the suffixes, which are in lower case."""
        wanted = frozenset(suffixes)
        return tuple(n for n in self.names if PurePosixPath(n).suffix.lower() in wanted)

    def path(self, name: str) -> Path:
        """Return the path of a name."""
        return self.root / name

    def image(self, name: str, *, near: str = "") -> str | None:
        """Find the image that `name` means; see `find`."""
        return self.find(name, near=near, suffixes=IMAGE_SUFFIXES)

    def find(self, name: str, *, near: str, suffixes: Sequence[str]) -> str | None:
        r"""Find the file that a name from elsewhere means.

        A name is a path of any system, absolute or relative, a URL, or a stem. Unicode forms (NFC, NFD),
        upper and lower case, `/` and `\` and the suffix make no difference where nothing else fits. Of
        files with this name the one wins whose folders agree furthest from the end; then one with the
        very name, then one nearest to `near`. A name whose folder is there, without such a file, is that
        of no file.

        Args:
            name: what is written elsewhere.
            near: folder below the root that the name was written in.
            suffixes: of the files that can be meant, in lower case.

        Raises:
            AnnotationError: the name fits two files equally well; both are named.
        """
        for spelling in _spellings(name):
            if found := self._candidates(spelling, near, suffixes):
                if len(found) > 1:
                    both = " or ".join(one_line(path, 80) for path in found[:2])
                    raise AnnotationError(f"{one_line(name, 80)} could be {both}")
                return found[0]
        return None

    def _candidates(self, name: str, near: str, suffixes: Sequence[str]) -> list[str]:
        wanted = _parts(name)
        if not wanted:
            return []
        raw = name.replace("\\", "/").rpartition("/")[2]
        folders = wanted[:-1]
        beside = (*_parts(near), *folders)  # where a relative name leads
        by_rank: dict[tuple[int, int, int], list[str]] = defaultdict(list)
        for path in self._of_stem(wanted[-1], suffixes):
            *own, base = _parts(path)
            tail = _common(folders[::-1], own[::-1])
            if folders and not tail and folders[-1] not in own and folders[-1] in self._folders:
                continue
            there = tuple(own) == beside
            same = path.rpartition("/")[2]
            spelt = 0 if same == raw else 1 if base == wanted[-1] else _ROUGHLY
            nearness = _common(_parts(near), own)
            by_rank[-len(wanted) if there else -tail, spelt, -nearness].append(path)
        return by_rank[min(by_rank)] if by_rank else []

    def _of_stem(self, base: str, suffixes: Sequence[str]) -> list[str]:
        key = tuple(suffixes)
        if key not in self._by_stem:
            table: dict[str, list[str]] = defaultdict(list)
            for path in self.with_suffix(*suffixes):
                table[_stem(_key(path.rpartition("/")[2]))].append(path)
            self._by_stem[key] = table
        return self._by_stem[key].get(_stem(base), [])

    @cached_property
    def _folders(self) -> frozenset[str]:
        return frozenset(part for name in self.names for part in _parts(name)[:-1])


def in_set(name: str, set_name: str) -> bool:
    """Check whether a file is of a set: "all", or the name of a folder that it lies in."""
    return set_name == ALL or set_name in name.split("/")[:-1]


ALL = "all"
"""The set of everything below a root."""


def _spellings(name: str) -> list[str]:
    """List what a name may mean, the most literal first."""
    text = name.strip()
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", text):
        try:
            url = urlsplit(text)
            text = unquote(url.path) + (f"?{url.query}" if url.query.startswith("d=") else "")
        except ValueError:
            return [text]
    if "?d=" in text:  # a file of Label Studio's local storage
        text = unquote(text.partition("?d=")[2])
    spellings = [text, unquote(text)]
    folder, slash, base = spellings[1].replace("\\", "/").rpartition("/")
    if _UPLOADED.match(base):
        spellings.append(folder + slash + _UPLOADED.sub("", base, count=1))
    return list(dict.fromkeys(spellings))


def _key(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _parts(name: str) -> _Parts:
    parts = _key(name).replace("\\", "/").split("/")
    return tuple(part for part in parts if part not in ("", ".", ".."))


def _stem(base: str) -> str:
    """Strip the suffixes of a file and of its image: "a.jpg.txt" is "a", "v1.2" stays."""
    for _ in range(2):
        stem, dot, suffix = base.rpartition(".")
        if not stem or not dot or f".{suffix}" not in _SUFFIXES:
            break
        base = stem
    return base


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Count the parts that two paths begin with alike."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count

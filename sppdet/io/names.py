r"""Names of files inside other files, and names of files made from names.

A name may hold bytes that aren't UTF-8 (Python reads them as lone surrogates) and control
characters; neither JSON, XML nor CSV carries all of them. In everything that sppdet writes such a byte
stands as `{xHH}`, two hexadecimal digits. So that every name comes back exactly, the brace of a name
that has `{x` itself stands as `{x7b}`.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

MAX_NAME_BYTES = 255  # of a file's or folder's name, on the file systems in use

# control characters, lone surrogates and the two code points that XML refuses besides
_UNFIT = re.compile("\\{(?=x)|[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_ESCAPED = re.compile(r"((?:\{x[0-9a-f]{2}\})+)")

_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|\Z)", re.IGNORECASE)  # Windows's


def escape_name(name: str) -> str:
    """Escape a name so that JSON, XML, CSV and every file system carry it."""
    return _UNFIT.sub(lambda unfit: "".join(f"{{x{b:02x}}}" for b in _bytes_of(unfit[0])), name)


def unescape_name(text: str) -> str:
    """Undo `escape_name`."""
    parts = _ESCAPED.split(text)
    parts[1::2] = [os.fsdecode(bytes.fromhex(re.sub("[{x}]", "", part))) for part in parts[1::2]]
    return "".join(parts)


def fit_name(name: str, suffix: str = "") -> str:
    """Append a suffix; where the file system has no room, a digest replaces the end of `name`."""
    room = MAX_NAME_BYTES - len(suffix.encode())
    encoded = name.encode("utf-8", "surrogatepass")
    if len(encoded) > room:
        digest = hashlib.blake2b(encoded, digest_size=8).hexdigest()
        name = encoded[: room - 1 - len(digest)].decode("utf-8", "ignore") + f"~{digest}"
    return name + suffix


def safe_id(name: str) -> str:
    """Make `name` a file name on any system and a word of a line.

    '/' becomes '__'; other forbidden characters, white space but for single spaces within the name, and
    line separators become '_'.
    """
    safe = re.sub(r"[/\\]+", "__", name)
    safe = re.sub(r'[\x00-\x1f\x7f:*?"<>|]|[^\S ]|^ | $|(?<= ) ', "_", safe)
    return f"_{safe}" if safe.startswith(".") or not safe else safe


def unique_ids(file_names: Sequence[str]) -> list[str]:
    """Make ids for images named by relative paths.

    An id is the file's stem; if two are the same, all take the path with '/' made '__', and if
    that doesn't help, the path with its suffix.
    """
    paths = [PurePosixPath(name.replace("\\", "/")) for name in file_names]
    for ids in (
        [safe_id(path.stem) for path in paths],
        [safe_id(str(path.with_suffix(""))) for path in paths],
    ):
        if len(set(ids)) == len(ids):
            return ids
    return number_repeats([safe_id(str(path)) for path in paths])


def number_repeats(ids: Sequence[str]) -> list[str]:
    """Append '__2', '__3', ... to ids that occur again, so that all differ."""
    taken: set[str] = set()
    unique: list[str] = []
    for wanted in ids:
        name, count = wanted, 1
        while name in taken:
            count += 1
            name = f"{wanted}__{count}"
        taken.add(name)
        unique.append(name)
    return unique


def class_file_names(class_names: Sequence[str]) -> list[str]:
    """Make class names parts of file names that differ also where case does not count."""
    safe = [safe_id(name) for name in class_names]
    unique = number_repeats([name.casefold() for name in safe])
    return [
        name + numbered[len(name.casefold()) :] for name, numbered in zip(safe, unique, strict=True)
    ]


def class_folders(class_names: Sequence[str]) -> list[str]:
    """Make class names names of folders that differ on every file system, Windows's included."""
    names = []
    for name in class_file_names(class_names):
        before, behind = "_" * bool(_DEVICE.match(name)), "_" * name.endswith(".")
        names.append(fit_name(before + name + behind))
    return number_repeats(names)


def distinct_stems(names: Sequence[str], endings: Sequence[re.Pattern[str]]) -> list[str]:
    """Strip the suffixes of paths of images, unless two would be the same then.

    Stems differ on every file system, and no file of one stands where another needs a folder.

    Args:
        names: paths with `/`.
        endings: what files about the images have behind their stems.
    """
    stems = [PurePosixPath(name).with_suffix("").as_posix() for name in names]
    if len(set(map(_folded, stems))) < len(stems):
        stems = list(names)
    counts = Counter(map(_folded, stems))
    folders = {f.as_posix() for stem in stems for f in PurePosixPath(_folded(stem)).parents}
    taken = {e.sub("", folder) for folder in folders for e in endings if e.search(folder)}

    def clashes(stem: str) -> bool:
        return counts[_folded(stem)] > 1 or _folded(stem) in taken

    return [
        f"{stem}~{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
        if clashes(stem)
        else stem
        for stem, name in zip(stems, names, strict=True)
    ]


def text_cell(text: str) -> str:
    """Put a `'` before text for a CSV that begins with one of = + - @ ' or white space of lines.

    Spreadsheets take such a cell for text instead of a formula. Programs that read the file strip one
    `'` from the beginning of a cell of a text column. Numbers are written as they are.
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "'")) else text


def _folded(name: str) -> str:
    """Fold names that some file system takes for the same."""
    return unicodedata.normalize("NFC", name.casefold())


def _bytes_of(character: str) -> bytes:
    try:
        return os.fsencode(character)
    except UnicodeEncodeError:  # half of a pair, which no system but Windows has in names
        return character.encode("utf-8", "surrogatepass")

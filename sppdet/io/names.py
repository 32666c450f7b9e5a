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
from pathlib import Path, PurePosixPath

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


def frame_file(name: str) -> str:
    """Name the file that a frame of a video has as an image: clip.mp4/000120.jpg for clip.mp4#000120."""
    return re.sub(r"#(\d+)\Z", r"/\1.jpg", name)


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


def distinct_stems(
    names: Sequence[str],
    endings: Sequence[re.Pattern[str]],
    *,
    is_film: Sequence[bool] | None = None,
) -> list[str]:
    """Strip the suffixes of paths of images, unless two would be the same then.

    Stems differ on every file system, and no file of one stands where another needs a folder. A film
    keeps its suffix: its stem is that of a video and the folder of its frames' files.

    Args:
        names: paths with `/`.
        endings: what files about the images have behind their stems.
        is_film: which names are films; None: none.
    """
    films = list(is_film) if is_film is not None else [False] * len(names)
    stems = [
        name if film else PurePosixPath(name).with_suffix("").as_posix()
        for name, film in zip(names, films, strict=True)
    ]
    of_stills = [_folded(stem) for stem, film in zip(stems, films, strict=True) if not film]
    if len(set(of_stills)) < len(of_stills):
        stems = list(names)
    folded = list(map(_folded, stems))
    counts = Counter(folded)
    folders = {f.as_posix() for stem in folded for f in PurePosixPath(stem).parents}
    taken = {e.sub("", folder) for folder in folders for e in endings if e.search(folder)}
    videos = Counter(s.removesuffix(".mp4") for s, film in zip(folded, films, strict=True) if film)

    def clashes(stem: str, film: bool) -> bool:
        if counts[stem] > 1:
            return True
        if film:
            return stem in folders or videos[stem.removesuffix(".mp4")] > 1
        return stem in taken

    return [
        f"{stem}~{short_digest(name)}" if clashes(fold, film) else stem
        for stem, fold, name, film in zip(stems, folded, names, films, strict=True)
    ]


def short_digest(text: str) -> str:
    """Hash a name to eight hexadecimal digits, which tell it from another that it clashes with."""
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def name_below(path: Path, folders: Sequence[Path]) -> str:
    """Name a file by its path below the outermost of `folders` that it is in, else by its own name."""
    inside = [folder for folder in folders if path.is_relative_to(folder)]
    base = min(inside, key=lambda folder: len(folder.parts)) if inside else path.parent
    return path.relative_to(base).as_posix()


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

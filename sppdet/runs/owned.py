"""Files that a command writes anew at every call, where people may edit them in between."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from sppdet.errors import ArtifactError
from sppdet.runs.artifacts import atomic_path, read_json, write_json

_Digests = dict[str, list[str]]  # by path below the folder, with forward slashes


def replace_files(folder: Path, files: Mapping[str, bytes | Path], *, command: str) -> None:
    """Write files into a folder in the place of those of the last call.

    The file `.sppdet-<command>` lists what was written, so that a call which was killed is known, too.

    Args:
        files: content by path below the folder, with forward slashes; a path stands for the content of
            the file that is there, which is copied.

    Raises:
        ArtifactError: one of these files, or of the last call's, was changed since or written by someone
            else, or can't be written; then none is.
    """
    mark = folder / f".sppdet-{command}"
    known = _read(mark)
    for name in sorted({*known, *files}):
        digest = _digest_of(folder, name)
        if digest is not None and digest not in known.get(name, []):
            raise ArtifactError(
                f"{folder / name}: `sppdet {command}` hasn't written it, or it has changed since; "
                "expected another --out"
            )
    new = {name: _digest(_content_of(data)) for name, data in files.items()}
    write_json(mark, {n: [*known.get(n, []), *([new[n]] if n in new else [])] for n in known | new})
    for name in known.keys() - files.keys():
        (folder / name).unlink(missing_ok=True)
    for name, data in files.items():
        with atomic_path(folder / name) as temporary:
            content = _content_of(data)
            new[name] = _digest(content)  # a file may have changed meanwhile
            temporary.write_bytes(content)
    write_json(mark, {name: [digest] for name, digest in new.items()})


def _read(mark: Path) -> _Digests:
    """Read the list of the last call; empty if there is none or it is damaged."""
    try:
        found = read_json(mark)
    except ArtifactError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {n: d for n, d in found.items() if isinstance(d, list) and _is_below(PurePosixPath(n))}


def _is_below(name: PurePosixPath) -> bool:
    return bool(name.parts) and not name.is_absolute() and ".." not in name.parts


def _content_of(data: bytes | Path) -> bytes:
    if isinstance(data, bytes):
        return data
    try:
        return data.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{data}: can't be read: {error.strerror}") from None


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _digest_of(folder: Path, name: str) -> str | None:
    """Hash a file; None if there is none, and a text that is no digest if it isn't a file of our own."""
    path = folder / name
    parents = [folder / parent for parent in PurePosixPath(name).parents if parent.parts]
    if any(parent.is_symlink() for parent in parents):
        return "a link"
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return "no file"
        return _digest(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ArtifactError(f"{path}: can't be read: {error.strerror}") from None

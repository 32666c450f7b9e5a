"""Files that a command writes anew at every call, where people may edit them in between."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sppdet.errors import ArtifactError
from sppdet.runs.artifacts import atomic_path, read_json, write_json

_Digests = dict[str, list[str]]  # by path below the folder, with forward slashes


@dataclass(frozen=True)
class Copied:
    """The content of a file elsewhere."""

    path: Path


@dataclass(frozen=True)
class Linked:
    """A symbolic link to a file elsewhere."""

    path: Path


Content = bytes | Copied | Linked


def replace_files(
    folder: Path, files: Mapping[str, Content], *, command: str, part: str = ""
) -> None:
    """Write files into a folder in the place of those of the last call.

    The file `.sppdet-<command>` lists what was written, so that a call which was killed is known, too.

    Args:
        files: content by path below the folder, with forward slashes.
        part: of the command's results; files of other parts stay.

    Raises:
        ArtifactError: one of these files, or of the last call's, was changed since or written by someone
            else, or can't be written; then none is.
    """
    mark = folder / "-".join([f".sppdet-{command}", *([part] if part else [])])
    known = _read(mark)
    there = {name: _digest_of(folder, name) for name in sorted({*known, *files})}
    for name, digest in there.items():
        if digest is not None and digest not in known.get(name, []):
            raise ArtifactError(
                f"{folder / name}: `sppdet {command}` hasn't written it, or it has changed since; "
                "expected another --out"
            )
    new = {name: _digest_of_content(content) for name, content in files.items()}
    write_json(mark, {n: [*known.get(n, []), *([new[n]] if n in new else [])] for n in known | new})
    for name in known.keys() - files.keys():
        (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        if there[name] != new[name]:
            _write(folder / name, content)
    write_json(mark, {name: [digest] for name, digest in new.items()})


def can_link(folder: Path) -> bool:
    """Check whether symbolic links can be made in a folder; Windows asks for a privilege."""
    try:
        with atomic_path(folder / ".sppdet-link") as temporary:
            _make_link(temporary, folder)
            raise _Undone
    except _Undone:
        return True
    except (ArtifactError, OSError, NotImplementedError):
        return False


class _Undone(Exception):
    """The temporary file isn't to be kept."""


def _write(path: Path, content: Content) -> None:
    with atomic_path(path) as temporary:
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        elif isinstance(content, Copied):
            shutil.copyfile(content.path, temporary)
        else:
            _make_link(temporary, content.path)


def _make_link(temporary: Path, target: Path) -> None:
    temporary.unlink()
    temporary.symlink_to(os.path.abspath(target))


def _digest_of_content(content: Content) -> str:
    if isinstance(content, bytes):
        return hashlib.blake2b(content, digest_size=16).hexdigest()
    if isinstance(content, Linked):
        return _digest_of_link(os.path.abspath(content.path))
    try:
        return hash_file(content.path)
    except OSError as error:
        raise ArtifactError(f"{content.path}: can't be read: {error.strerror}") from None


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


def _digest_of(folder: Path, name: str) -> str | None:
    """Hash a file; None if there is none, and a text that is no digest if it isn't a file of our own."""
    path = folder / name
    parents = [folder / parent for parent in PurePosixPath(name).parents if parent.parts]
    if any(parent.is_symlink() for parent in parents):
        return "a link"
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            return _digest_of_link(os.fspath(path.readlink()))
        return hash_file(path) if stat.S_ISREG(mode) else "no file"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ArtifactError(f"{path}: can't be read: {error.strerror}") from None


def _digest_of_link(target: str) -> str:
    return "link " + hashlib.blake2b(os.fsencode(target), digest_size=16).hexdigest()


def hash_file(path: Path, *, digest_size: int = 16) -> str:
    """Hash a file's content to two hexadecimal digits for each byte of `digest_size`."""
    digest = hashlib.blake2b(digest_size=digest_size)
    with path.open("rb") as handle:
        while block := handle.read(2**16):
            digest.update(block)
    return digest.hexdigest()

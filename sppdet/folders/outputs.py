"""The folder of results, in which files that sppdet hasn't written are never overwritten."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from sppdet.errors import ArtifactError, ConfigError, DataError
from sppdet.folders.journal import Journal, digest_of
from sppdet.folders.planning import IMAGE_FILES, JOINT_FILES, Format, Item
from sppdet.folders.sources import FolderPlan
from sppdet.runs.artifacts import atomic_path
from sppdet.runs.lock import folder_lock

# errors of one file's name or place; any other, such as a full disk, ends the call
_OF_ONE_FILE = {
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EISDIR, errno.ENOTDIR, errno.EEXIST),
    *(errno.ENOTEMPTY, errno.EACCES, errno.EPERM, errno.ELOOP),
}


class Outputs:
    """The results of one call in the folder that it holds; see `open_outputs`."""

    def __init__(self, folder: Path, formats: Sequence[Format]) -> None:
        self.folder = folder
        self.journal = Journal(folder)
        self._kinds = [kind for kind in formats if kind in IMAGE_FILES]
        self._joint = [JOINT_FILES[kind] for kind in formats if kind in JOINT_FILES]
        self._present: dict[str, str | None] = {}  # digests of the files that are there; None: none

    def check(self, plan: FolderPlan) -> None:
        """Refuse to start where a file of someone else would be overwritten.

        Files of frames, which nobody knows beforehand, are checked one by one when it is their turn.

        Raises:
            ConfigError: a file that sppdet hasn't written, or that was changed since, and the way out.
        """
        inputs = {_identity(path) for path in plan.files} - {None}
        files = [*self._joint, *(file for item in plan.stills for file in self._files(item))]
        if "images" in self._kinds:
            files += [film.file for film in plan.films]
        for file in files:
            try:
                self._present[file] = self._digest(file, inputs)
            except DataError as problem:
                raise ConfigError(f"{problem}; expected another --out") from None

    def is_done(self, item: Item, made_by: str) -> bool:
        """Check that an image's detections and files are there already, made by `made_by`."""
        entry = self.journal.entry(item.name)
        return (
            entry is not None
            and entry.made_by == made_by
            and all(entry.files.get(f, "") == self.present(f) for f in self._files(item))
        )

    def present(self, file: str) -> str | None:
        """Return the digest of a file of sppdet's that is there; None if there is none."""
        if file not in self._present:
            try:
                self._present[file] = self._digest(file, set())
            except DataError:  # the file of someone else, which `writing` refuses
                return None
        return self._present[file]

    def _files(self, item: Item) -> list[str]:
        return [item.file(kind) for kind in item.kinds(self._kinds)]

    @contextlib.contextmanager
    def writing(self, file: str, *, made_by: str = "") -> Iterator[Path]:
        """Yield a temporary path; the file gets its name, and its claim, when the block succeeds.

        `made_by` is the fingerprint of what a video is made of, for `Journal.made_by`.

        Raises:
            DataError: something that sppdet hasn't written stands there.
            ArtifactError: it can't be written; see `is_of_one_file`.
        """
        with atomic_path(self.folder / file) as temporary:
            yield temporary
            self._digest(file, set())
            digest = digest_of(temporary)
            self.journal.claim(file, digest, made_by)
            self._present[file] = digest

    def digest(self, file: str) -> str:
        """Look up the digest of a file that was written in this call."""
        digest = self._present[file]
        assert digest is not None
        return digest

    def _digest(self, file: str, inputs: set[tuple[int, int] | None]) -> str | None:
        """Hash the file that is at this path; None if there is none.

        Raises:
            DataError: sppdet hasn't written it.
        """
        path = self.folder / file
        try:
            state = path.lstat()
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise DataError(f"{path}: there is a file where a folder must be") from None
        except OSError:  # such as a name that is too long; writing fails then
            return None
        if (state.st_dev, state.st_ino) in inputs:
            raise DataError(f"{path} is one of the images to detect in")
        claims = self.journal.claims.get(file)
        if not claims or not stat.S_ISREG(state.st_mode):
            raise DataError(f"{path}: wasn't written by sppdet and isn't overwritten")
        try:
            digest = digest_of(path)
        except OSError as error:
            raise DataError(f"{path}: can't be read: {error.strerror}") from None
        if digest not in claims:
            raise DataError(f"{path}: has changed since sppdet wrote it and isn't overwritten")
        return digest


@contextlib.contextmanager
def open_outputs(folder: Path, plan: FolderPlan, formats: Sequence[Format]) -> Iterator[Outputs]:
    """Lock the folder `folder` for the results of `plan`; it is made if it isn't there.

    Raises:
        ConfigError: it is a file, it is searched for images, or a file that sppdet hasn't written
            would be overwritten.
        ArtifactError: it can't be made, or another process writes there.
    """
    tops = [IMAGE_FILES[kind][0] for kind in formats if kind in IMAGE_FILES]
    _check_place(folder, tops, plan)
    _check_links(folder, plan, formats)
    _make(folder)
    with folder_lock(folder, name=".sppdet-detect.lock", doing="writing"):
        outputs = Outputs(folder, formats)
        try:
            outputs.check(plan)
            for top in tops:
                _make(folder / top)
            yield outputs
        finally:
            outputs.journal.close()


def is_of_one_file(error: ArtifactError) -> bool:
    """Check that a failure to write concerns that file alone: its name, or what is there."""
    cause = error.__cause__ or error.__context__
    return isinstance(cause, OSError) and cause.errno in _OF_ONE_FILE


def _check_place(folder: Path, tops: Sequence[str], plan: FolderPlan) -> None:
    """Refuse a folder of results that is searched, or whose results would be."""
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), None)
    if there is not None and not there.is_dir():
        raise ConfigError(f"--out {folder}: {there} isn't a folder")
    out = _real(folder)
    for searched in plan.searched:
        place = _real(searched)
        # results below a searched folder are left out of the search, but not what else is there
        own = plan.files if out.is_relative_to(place) else ()
        inside = [path for path in own if _real(path.parent).is_relative_to(out)]
        if out == place or inside:
            which = f" ({inside[0]})" if inside and out != place else ""
            raise ConfigError(
                f"--out {folder}: is searched for images{which}; expected a folder of its own"
            )
        for top in tops:
            target = _real(folder / top)
            ours = target.is_relative_to(out) and out.is_relative_to(place)
            if place.is_relative_to(target) or (target.is_relative_to(place) and not ours):
                raise ConfigError(
                    f"--out {folder}: {folder / top} is searched for images; "
                    "expected a folder of its own"
                )


def _check_links(folder: Path, plan: FolderPlan, formats: Sequence[Format]) -> None:
    """Refuse links below the folders of the images' files, which would lead out of them."""
    files = [item.file(kind) for item in plan.stills for kind in item.kinds(formats)]
    for film in plan.films:
        files += [
            f"{IMAGE_FILES[kind][0]}/{film.whole.stem}/" for kind in formats if kind in IMAGE_FILES
        ]
    for parent in dict.fromkeys(file.rpartition("/")[0] for file in files):
        top, _, rest = parent.partition("/")
        if _real(folder / parent) != Path(os.path.normcase(_real(folder / top) / rest)):
            raise ConfigError(
                f"{folder / parent}: leads elsewhere by a link; expected another --out"
            )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ArtifactError(f"{folder}: can't be written into: {error.strerror}") from None


def _real(path: Path) -> Path:
    return Path(os.path.normcase(os.path.realpath(path)))


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file, the same under any of its names; None if it isn't there."""
    try:
        state = path.stat()
    except (OSError, ValueError):
        return None
    return (state.st_dev, state.st_ino) if state.st_ino else None

"""The folder of results, in which files that sppdet hasn't written are never overwritten."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from sppdet.errors import ArtifactError, ConfigError, DataError
from sppdet.folders.formats import IMAGE_FORMATS, JOINT_FILES, Format
from sppdet.folders.journal import Journal, digest_of
from sppdet.folders.planning import Item
from sppdet.folders.sources import FolderPlan
from sppdet.io.names import class_folders
from sppdet.runs.artifacts import atomic_path
from sppdet.runs.lock import folder_lock
from sppdet.runs.places import real_path

# errors of one file's name or place; any other, such as a full disk, ends the call
_OF_ONE_FILE = {
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EISDIR, errno.ENOTDIR, errno.EEXIST),
    *(errno.ENOTEMPTY, errno.EACCES, errno.EPERM, errno.ELOOP),
}


class Outputs:
    """The results of one call in the folder that it holds; see `open_outputs`."""

    def __init__(self, folder: Path, formats: Sequence[Format], class_names: Sequence[str]) -> None:
        self.folder = folder
        self.journal = Journal(folder)
        self._kinds = {kind: IMAGE_FORMATS[kind] for kind in formats if kind in IMAGE_FORMATS}
        self._varying = [f"{kind.folder}/" for kind in self._kinds.values() if kind.each]
        self._class_folders = class_folders(class_names)
        self._joint = [JOINT_FILES[kind] for kind in formats if kind in JOINT_FILES]
        self._present: dict[str, str | None] = {}  # digests of the files that are there; None: none

    def check(self, plan: FolderPlan) -> None:
        """Refuse to start where a file of someone else would be overwritten.

        Files of frames, which nobody knows beforehand, are checked one by one when it is their turn.

        Raises:
            ConfigError: a file that sppdet hasn't written, or that was changed since, and the way out.
        """
        inputs = {_identity(path) for path in plan.files} - {None}
        files = [*self._joint, *(file for item in plan.stills for file in self._known_files(item))]
        if "images" in self._kinds:
            files += [film.file for film in plan.films]
        for file in (*files, *self._strangers()):
            try:
                self._present[file] = self._digest(file, inputs)
            except DataError as problem:
                raise ConfigError(f"{problem}; expected another --out") from None

    def is_done(self, item: Item, made_by: str) -> bool:
        """Check that an image's detections and files are there already, made by `made_by`."""
        entry = self.journal.entry(item.name)
        if entry is None or entry.made_by != made_by:
            return False
        files = (file for *_, file in self.files(item, entry.labels))
        return all(entry.files.get(file, "") == self.present(file) for file in files)

    def present(self, file: str) -> str | None:
        """Return the digest of a file of sppdet's that is there; None if there is none."""
        if file not in self._present:
            try:
                self._present[file] = self._digest(file, set())
            except DataError:  # the file of someone else, which `writing` refuses
                return None
        return self._present[file]

    def files(self, item: Item, labels: Sequence[int]) -> Iterator[tuple[Format, int, str]]:
        """Yield the files of an image with detections of these labels.

        Returns:
            The format, the number among the image's files of that format, from 0, and the path below the
            folder.
        """
        classes = [self._class_folders[label - 1] for label in labels]
        for kind, form in self._kinds.items():
            if item.drawn or kind != "images":
                for number, file in enumerate(form.files(item.stem, classes)):
                    yield kind, number, file

    def remove_stale(self) -> None:
        """Remove files of detections that are no more, such as an earlier model's."""
        told = {file for entry in self.journal.entries() for file in entry.files}
        for file in self.journal.claims.keys() - told:
            if file.startswith(tuple(self._varying)):
                with contextlib.suppress(DataError, OSError):  # somebody else's by now
                    if self._digest(file, set()) is not None:
                        (self.folder / file).unlink()

    def _known_files(self, item: Item) -> Iterator[str]:
        """Yield the files of an image that are known before its detections are."""
        for form in self._kinds.values():
            if not form.each:
                yield from form.files(item.stem, ())
        entry = self.journal.entry(item.name)
        if entry is not None:
            yield from (f for f in entry.files if f.startswith(tuple(self._varying)))

    def _strangers(self) -> Iterator[str]:
        """Yield what stands where files of detections may, and isn't sppdet's; links are it, too."""
        for top in self._varying:
            for parent, folders, names in os.walk(self.folder / top):
                for name in sorted([*folders, *names]):
                    path = Path(parent, name)
                    file = path.relative_to(self.folder).as_posix()
                    if name.startswith("."):  # such as what a killed call has left
                        continue
                    if path.is_symlink() or (name in names and file not in self.journal.claims):
                        yield file

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
def open_outputs(
    folder: Path, plan: FolderPlan, formats: Sequence[Format], class_names: Sequence[str]
) -> Iterator[Outputs]:
    """Lock the folder `folder` for the results of `plan`; it is made if it isn't there.

    Raises:
        ConfigError: it is a file, it is searched for images, or a file that sppdet hasn't written
            would be overwritten.
        ArtifactError: it can't be made, or another process writes there.
    """
    tops = [IMAGE_FORMATS[kind].folder for kind in formats if kind in IMAGE_FORMATS]
    _check_place(folder, tops, plan)
    _check_links(folder, plan, formats)
    _make(folder)
    with folder_lock(folder, name=".sppdet-detect.lock", doing="writing"):
        outputs = Outputs(folder, formats, class_names)
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
    out = real_path(folder)
    for searched in plan.searched:
        place = real_path(searched)
        # results below a searched folder are left out of the search, but not what else is there
        own = plan.files if out.is_relative_to(place) else ()
        inside = [path for path in own if real_path(path.parent).is_relative_to(out)]
        if out == place or inside:
            which = f" ({inside[0]})" if inside and out != place else ""
            raise ConfigError(
                f"--out {folder}: is searched for images{which}; expected a folder of its own"
            )
        for top in tops:
            target = real_path(folder / top)
            ours = target.is_relative_to(out) and out.is_relative_to(place)
            if place.is_relative_to(target) or (target.is_relative_to(place) and not ours):
                raise ConfigError(
                    f"--out {folder}: {folder / top} is searched for images; "
                    "expected a folder of its own"
                )


def _check_links(folder: Path, plan: FolderPlan, formats: Sequence[Format]) -> None:
    """Refuse links below the folders of the images' files, which would lead out of them."""
    forms = [IMAGE_FORMATS[kind] for kind in formats if kind in IMAGE_FORMATS]
    files = [file for item in plan.stills for form in forms for file in form.files(item.stem, ())]
    for film in plan.films:
        files += [f"{form.folder}/{film.whole.stem}/" for form in forms if not form.each]
    for parent in dict.fromkeys(file.rpartition("/")[0] for file in files):
        top, _, rest = parent.partition("/")
        if real_path(folder / parent) != Path(os.path.normcase(real_path(folder / top) / rest)):
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


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file, the same under any of its names; None if it isn't there."""
    try:
        state = path.stat()
    except (OSError, ValueError):
        return None
    return (state.st_dev, state.st_ino) if state.st_ino else None

"""The lock that keeps a second process out of a folder, and the folder of a run at work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from sppdet.errors import ArtifactError
from sppdet.runs.artifacts import remove_leftovers
from sppdet.runs.log import log_file
from sppdet.runs.places import check_run_folder

if TYPE_CHECKING:
    from sppdet.runs.distributed import Ranks


@contextlib.contextmanager
def folder_lock(folder: Path, *, name: str = ".lock", doing: str = "training") -> Iterator[None]:
    """Hold the lock file `name` in `folder`; the system frees it when this process ends.

    Raises:
        ArtifactError: another process holds it, or the folder can't be written.
    """
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(blocking=False)
    except Timeout:
        raise ArtifactError(
            f"{folder}: another process is {doing} here; wait until it has ended"
        ) from None
    except OSError as error:
        raise ArtifactError(f"{path}: can't be locked: {error.strerror or error}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            # ours are empty, those of earlier versions have numbers; others are somebody else's
            if set(path.read_bytes()) <= set(b"0123456789abcdef \n"):
                path.unlink()  # while it is held, so that no other process can hold it
        lock.release()


@contextlib.contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold a run's folder to train in, and remove what killed processes left there.

    Raises:
        ArtifactError: another process is training in this folder, or it has other files than a run's.
    """
    check_run_folder(run)
    with folder_lock(run):
        remove_leftovers(run)
        yield


@contextlib.contextmanager
def open_run(run: Path, ranks: Ranks) -> Iterator[None]:
    """Lock a run's folder to train in and keep its log; the first process does so for all.

    Raises:
        ArtifactError: see `run_lock`.
    """
    with log_file(run, ranks), run_lock(run) if ranks.is_first else contextlib.nullcontext():
        yield

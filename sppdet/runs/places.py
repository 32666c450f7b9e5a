"""Folders that commands write into: files of others are never overwritten."""

from __future__ import annotations

import json
import os
from fnmatch import fnmatch
from pathlib import Path

from sppdet.errors import ArtifactError
from sppdet.runs.artifacts import write_text

_WRITTEN = {
    "eval": ("voc07", "voc10", "coco", "comp4_det_*.txt", "coco_results.json"),
    "propose": ("*.npz",),
    "probe": ("probe.json",),
}
_FILES_OF_A_RUN = (
    *("log.jsonl", "config.yaml", "images.json", "timings.json"),
    *(
        f"model/{name}.safetensors"
        for name in (
            *("backbone", "initial_backbone", "head", "ranking", "svm", "bbox", "calibration"),
            *("net", "last"),
        )
    ),
    *(f"folds/{name}.safetensors" for name in ("svm", "bbox", "detections")),
    "folds/folds.json",
)

PAGE_MARK = b'<meta name="generator" content="sppdet">'
"""A line near the beginning of every page that sppdet writes."""


def check_own_page(path: Path) -> None:
    """Refuse to overwrite a file that isn't a page of sppdet's.

    Raises:
        ArtifactError: such a file, a folder, or something that can't be read is there.
    """
    if not path.exists():
        return
    begin = b""
    if path.is_file():  # reading a FIFO would never end
        try:
            with path.open("rb") as handle:
                begin = handle.read(1000)
        except OSError as error:
            raise ArtifactError(f"{path}: can't be used: {error.strerror}") from None
    if PAGE_MARK not in begin:
        raise ArtifactError(
            f"{path}: is there, but isn't a page of sppdet's; expected another --out"
        )


def claim_folder(folder: Path, *, command: str, shared: bool = True) -> None:
    """Mark a folder as one that a command's files go to.

    Args:
        command: eval, propose, probe, crossval or curve.
        shared: whether files of other names may be there.

    Raises:
        ArtifactError: it has no mark, but a file of a name that the command would write, or any file
            unless `shared`; or it can't be read.
    """
    mark = folder / f".sppdet-{command}{'' if shared else '-runs'}"
    if mark.exists():
        return
    try:
        there = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise ArtifactError(f"{folder}: can't be used: {error.strerror}") from None
    for name in there:
        if not shared or any(fnmatch(name, pattern) for pattern in _WRITTEN[command]):
            raise ArtifactError(
                f"{folder}: {name} is there, but `sppdet {command}` hasn't written it;"
                " expected another folder"
            )
    write_text(mark, "")


def check_run_folder(folder: Path) -> None:
    """Refuse a folder whose files a run would overwrite though no run has written them.

    Raises:
        ArtifactError: it has a file of a run's name, but not the log of a run.
    """
    there = [name for name in _FILES_OF_A_RUN if (folder / name).exists()]
    if there and not _is_log(folder / "log.jsonl"):
        raise ArtifactError(
            f"{folder}: {there[0]} is there, but no run has written it; expected a run's folder or a"
            " new one"
        )


def _is_log(path: Path) -> bool:
    if not path.is_file():  # reading a FIFO would never end
        return False
    try:
        with path.open("rb") as handle:
            record = json.loads(handle.readline(1_000_000))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and {"time", "event"} <= record.keys()


def real_path(path: Path) -> Path:
    """Return the path behind all links, the same for every way to write it on this file system."""
    return Path(os.path.normcase(os.path.realpath(path)))

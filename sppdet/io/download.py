"""Fetching PASCAL VOC."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tarfile
from http.client import HTTPException
from pathlib import Path
from typing import Literal

from sppdet.errors import DataError
from sppdet.vision import datasets

_log = logging.getLogger("sppdet")
_SETS = {"2007": ("trainval", "test"), "2012": ("trainval",)}  # the 2012 test set is not public


def download_voc(year: Literal["2007", "2012"], root: Path) -> list[Path]:
    """Download a year of PASCAL VOC with torchvision, unless it is there already.

    2007 comes with trainval and test, 2012 with trainval. A set counts as there if every image
    and annotation that it lists is, so a download broken off halfway is taken up again.

    Args:
        year: "2007" or "2012".
        root: folder for the archives and for VOCdevkit/; it is made.

    Returns:
        The folders of the VOC layout: [root/VOCdevkit/VOC<year>].

    Raises:
        DataError: another year, or the download failed.
    """
    if year not in _SETS:
        raise DataError(f"VOC {year}: expected one of {', '.join(_SETS)}")
    folder = root / "VOCdevkit" / f"VOC{year}"
    for set_name in _SETS[year]:
        if _is_complete(folder, set_name):
            _log.info("VOC %s %s is already in %s", year, set_name, folder)
            continue
        _log.info("downloading VOC %s %s to %s", year, set_name, root)
        _fetch(year, set_name, root)
        if not _is_complete(folder, set_name):
            raise DataError(f"VOC {year} {set_name}: downloaded, but {folder} is not complete")
    return [folder]


def _fetch(year: str, set_name: str, root: Path) -> None:
    """Download a set and unpack what is missing; files that are there stay as they are."""
    unpacked = root / f"VOC{year}-{set_name}.unpacked"
    try:
        unpacked.mkdir(parents=True, exist_ok=True)
        for archive in root.glob("VOC*.tar"):  # torchvision looks for it beside what it unpacks
            with contextlib.suppress(OSError):  # else it is downloaded again
                os.link(archive, unpacked / archive.name)
        datasets.VOCDetection(unpacked, year=year, image_set=set_name, download=True)
        _move_missing(unpacked, root)
        shutil.rmtree(unpacked)
    # URLError is an OSError; torchvision raises RuntimeError at a wrong checksum
    except (RuntimeError, OSError, ValueError, EOFError, HTTPException, tarfile.TarError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"VOC {year} {set_name}: download failed: {reason}") from error


def _move_missing(source: Path, target: Path) -> None:
    for folder, _, names in os.walk(source):
        place = target / Path(folder).relative_to(source)
        place.mkdir(exist_ok=True)
        for name in names:
            if not os.path.lexists(place / name):
                os.replace(Path(folder, name), place / name)


def _is_complete(folder: Path, set_name: str) -> bool:
    set_file = folder / "ImageSets" / "Main" / f"{set_name}.txt"
    if not set_file.is_file():
        return False
    names = set_file.read_text(encoding="ascii", errors="replace").split()
    return bool(names) and all(
        (folder / "JPEGImages" / f"{name}.jpg").is_file()
        and (folder / "Annotations" / f"{name}.xml").is_file()
        for name in names
    )

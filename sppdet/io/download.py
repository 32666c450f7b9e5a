"""Fetching PASCAL VOC."""

from __future__ import annotations

import logging
import tarfile
from http.client import HTTPException
from pathlib import Path
from typing import Literal

from torchvision import datasets

from sppdet.errors import DataError

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
    try:
        root.mkdir(parents=True, exist_ok=True)
        datasets.VOCDetection(root, year=year, image_set=set_name, download=True)
    # URLError is an OSError; torchvision raises RuntimeError at a wrong checksum
    except (RuntimeError, OSError, ValueError, EOFError, HTTPException, tarfile.TarError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"VOC {year} {set_name}: download failed: {reason}") from error


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

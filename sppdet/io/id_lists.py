"""Lists of image ids: text files that choose images of a set of any format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from sppdet.errors import DataError, shorten
from sppdet.io.files import read_text
from sppdet.io.names import escape_name, unescape_name
from sppdet.io.records import ImageRecord
from sppdet.runs.artifacts import write_text


def read_id_list(path: Path) -> list[str]:
    """Read the ids in a list, one a line; empty lines are ignored.

    Raises:
        DataError: the file can't be read, lists nothing, or an id twice.
    """
    ids = [line for line in read_text(path, DataError).split("\n") if line.strip()]
    ids = [unescape_name(line.removesuffix("\r")) for line in ids]
    if not ids:
        raise DataError(f"{path}: lists no images")
    if repeated := [name for name, count in Counter(ids).items() if count > 1]:
        raise DataError(f"{path}: listed twice: {shorten(repeated, limit=3)}")
    return ids


def write_id_list(path: Path, ids: Iterable[str]) -> None:
    """Write a list of ids, atomically."""
    write_text(path, "".join(f"{escape_name(name)}\n" for name in ids))


def choose_records(
    records: Sequence[ImageRecord], path: Path, *, set_name: str
) -> list[ImageRecord]:
    """Choose the images that the list `path` has, in the order of the set.

    Raises:
        DataError: see `read_id_list`; an id is no image's of the set.
    """
    wanted = set(read_id_list(path))
    if unknown := sorted(wanted - {record.id for record in records}):
        raise DataError(f"{path}: not in {set_name}: {shorten(unknown, limit=3)}")
    return [record for record in records if record.id in wanted]

"""The journal of a folder of results: what `detect` has found and written there, line by line.

`.sppdet-detect.jsonl` grows by a JSON line as soon as an image is done, so that a call that is killed
loses nothing, and it tells the files that sppdet has written from all others: a line with a file's
digest stands there before the file has its name. A line that a kill has cut short is passed over, and
so is one whose checksum is wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sppdet.errors import ArtifactError, ConfigError
from sppdet.runs.artifacts import atomic_path
from sppdet.types import Detections

JOURNAL = ".sppdet-detect.jsonl"
_log = logging.getLogger("sppdet")
_HEADER = {"sppdet": "detect", "version": 1}
_START = b'{"check": "'  # then 16 hexadecimal digits, of the rest of the line
_REST = len(_START) + 16


class JournalError(ArtifactError):
    """The journal can't be read or written: without it nothing that is done is kept."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where an image's line stands, what made it, how many detections it has, its files' digests."""

    offset: int
    made_by: str
    count: int
    files: dict[str, str]


@dataclass(frozen=True, slots=True)
class Result:
    """One image's line: its size in pixels, boxes (xyxy, 0-based, half-open), scores and labels."""

    width: int
    height: int
    boxes: list[list[float]]
    scores: list[float]
    labels: list[int]


class Journal:
    """The journal of one folder; detections stay on disk and are read image by image.

    `claims` has the digests of what sppdet has written, or was about to write, by the file's path
    below the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self.claims: dict[str, set[str]] = defaultdict(set)
        self._entries: dict[str, Entry] = {}
        self._end = 0  # of the last whole line
        self._out: BinaryIO | None = None
        damaged = 0
        for offset, raw, record in _lines(self.path):
            self._end = offset + len(raw)
            try:
                self._note(offset, record)
            except (TypeError, KeyError, AttributeError):
                damaged += 1
        if damaged:
            _log.warning("%s: %d damaged lines; these images are done again", self.path, damaged)

    def _note(self, offset: int, record: Any) -> None:
        if "image" in record:
            _check_image(record)
            files = record["files"]
            entry = Entry(offset, record["made_by"], len(record["scores"]), files)
            self._entries[record["image"]] = entry
            for file, digest in files.items():
                self.claims[file].add(digest)
        elif "file" in record:
            _check_texts(record["file"], record["digest"])
            self.claims[record["file"]].add(record["digest"])

    def entry(self, name: str) -> Entry | None:
        """The last line of an image; None if there is none."""
        return self._entries.get(name)

    def claim(self, file: str, digest: str) -> None:
        """Say that the file is about to get this content."""
        self._append({"file": file, "digest": digest})
        self.claims[file].add(digest)

    def add(
        self, name: str, found: Detections, *, width: int, height: int,
        made_by: str, files: dict[str, str],
    ) -> None:  # fmt: skip
        """Keep the detections of an image whose files (path to digest) are written."""
        record = {
            "image": name,
            "made_by": made_by,
            "width": width,
            "height": height,
            "files": files,
            "boxes": found.boxes.tolist(),
            "scores": found.scores.tolist(),
            "labels": found.labels.tolist(),
        }
        self._entries[name] = Entry(self._append(record), made_by, len(found), files)

    def results(self, names: Iterable[str]) -> Iterator[Result]:
        """Read what was found in images that have an entry, one after another."""
        with self._reading() as handle:
            for name in names:
                record = _parsed(_line_at(handle, self._entries[name].offset))
                if record is None:
                    raise JournalError(f"{self.path}: has changed while it was read")
                keys = ("width", "height", "boxes", "scores", "labels")
                yield Result(*(record[key] for key in keys))

    def compact(self, names: Iterable[str]) -> None:
        """Rewrite the journal without what is out of date; the images `names` come first, in order.

        The same results of the same images give the same bytes, however they came about. Nothing
        can be added or read afterwards.
        """
        first = list(names)
        others = sorted(self._entries.keys() - set(first))
        told: dict[str, set[str]] = defaultdict(set)
        with atomic_path(self.path) as temporary:
            with self._reading() as old, temporary.open("wb") as new:
                new.write(_line(_HEADER))
                for name in (*first, *others):
                    entry = self._entries[name]
                    new.write(_line_at(old, entry.offset))
                    for file, digest in entry.files.items():
                        told[file].add(digest)
                for file in sorted(self.claims):
                    digests = self._digests_left(file, told[file])
                    new.writelines(_line({"file": file, "digest": d}) for d in digests)
            self.close()  # Windows replaces no file that is open

    def _digests_left(self, file: str, told: set[str]) -> list[str]:
        """What must still be told of a file that is there."""
        if self.claims[file] <= told:
            return []
        try:
            digest = digest_of(self.path.parent / file)
        except OSError:
            return []  # gone, or on its way
        return [digest] if digest in self.claims[file] - told else []

    def close(self) -> None:
        """Let go of the file."""
        if self._out is not None:
            self._out.close()
            self._out = None

    @contextlib.contextmanager
    def _reading(self) -> Iterator[BinaryIO]:
        try:
            if self._out is None:
                self._begin()
            with self.path.open("rb") as handle:
                yield handle
        except OSError as error:
            raise JournalError(f"{self.path}: can't be read: {error.strerror}") from None

    def _append(self, record: dict[str, Any]) -> int:
        """Write a line, at once; returns its offset."""
        line = _line(record)
        try:
            out = self._out or self._begin()
            offset = self._end
            written = out.write(line)
            if written != len(line):  # the disk is full
                out.write(line[written:])
        except OSError as error:
            raise JournalError(f"{self.path}: can't be written: {error.strerror}") from error
        self._end += len(line)
        return offset

    def _begin(self) -> BinaryIO:
        """Open the file to write on, behind its last whole line."""
        out = self.path.open("ab", buffering=0)
        if self.path.stat().st_size > self._end:
            os.truncate(self.path, self._end)
        if self._end == 0:
            self._end = out.write(_line(_HEADER))
        self._out = out
        return out


def claimed_files(folder: Path) -> frozenset[str]:
    """Paths below `folder` of all files that sppdet has written there by its journal, if there is one."""
    try:
        return frozenset(Journal(folder).claims)
    except (ConfigError, JournalError):
        return frozenset()


def digest_of(path: Path) -> str:
    """16 hexadecimal digits that name a file's content."""
    digest = hashlib.blake2b(digest_size=8)
    with path.open("rb") as handle:
        while block := handle.read(2**16):
            digest.update(block)
    return digest.hexdigest()


def _line(record: dict[str, Any]) -> bytes:
    rest = b'", ' + json.dumps(record, allow_nan=False).encode()[1:]
    return _START + hashlib.blake2b(rest, digest_size=8).hexdigest().encode() + rest + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None if it isn't as it was written."""
    rest = line[_REST:-1]
    check = hashlib.blake2b(rest, digest_size=8).hexdigest().encode()
    if line[:_REST] != _START + check or not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _check_image(record: dict[str, Any]) -> None:
    """Refuse, by TypeError or KeyError, an image's line that has anything else than `add` writes."""
    files, boxes, scores, labels = (record[key] for key in ("files", "boxes", "scores", "labels"))
    if not isinstance(files, dict) or not all(isinstance(x, list) for x in (boxes, scores, labels)):
        raise TypeError("not lists")
    _check_texts(record["image"], record["made_by"], *files, *files.values())
    whole = [record["width"], record["height"], *labels]
    if not all(type(n) is int and n > 0 for n in whole):
        raise TypeError("no whole numbers above 0")
    numbers = [*scores, *(value for box in boxes for value in box)]
    if not all(type(n) in (int, float) and abs(n) < math.inf for n in numbers):
        raise TypeError("no finite numbers")
    if not len(boxes) == len(scores) == len(labels) or any(len(box) != 4 for box in boxes):
        raise TypeError("of several lengths")


def _check_texts(*values: object) -> None:
    if not all(isinstance(value, str) for value in values):
        raise TypeError("not text")


def _line_at(handle: BinaryIO, offset: int) -> bytes:
    handle.seek(offset)
    return handle.readline()


def _lines(path: Path) -> Iterator[tuple[int, bytes, dict[str, Any] | None]]:
    """Offset, bytes and record of every whole line but the header.

    Raises:
        ConfigError: the file is something else, or of another version.
    """
    try:
        if not path.is_file():  # a FIFO would be waited for
            if os.path.lexists(path):
                raise ConfigError(f"{path}: no regular file; expected another --out")
            return
        handle = path.open("rb")
    except OSError as error:
        raise JournalError(f"{path}: can't be read: {error.strerror}") from None
    with handle:
        header = _line(_HEADER)
        offset = 0
        for raw in handle:
            if offset == 0 and raw != header and not header.startswith(raw):
                raise ConfigError(
                    f"{path}: no journal of this version of sppdet; expected another --out"
                )
            if not raw.endswith(b"\n"):
                return
            if offset == 0:
                yield offset, raw, {}
            else:
                yield offset, raw, _parsed(raw)
            offset += len(raw)

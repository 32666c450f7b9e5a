"""The journal of a folder of results: what `detect` has found and written there, line by line.

`.sppdet-detect.jsonl` grows by a JSON line as soon as an image is done, so that a killed call loses
nothing. It also tells the files that sppdet has written from all others: a line with a file's digest
is written before the file gets its name. A line that a kill has cut short is ignored, and so is one
whose checksum is wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, model_validator

from sppdet.errors import ArtifactError, ConfigError
from sppdet.io.finding import JOURNAL
from sppdet.runs.artifacts import atomic_path
from sppdet.runs.owned import hash_file
from sppdet.types import Detections

_log = logging.getLogger("sppdet")
_HEADER = {"sppdet": "detect", "version": 1}
_START = b'{"check": "'  # then 16 hexadecimal digits, of the rest of the line
_REST = len(_START) + 16


class JournalError(ArtifactError):
    """The journal can't be read or written: without it no result is kept."""


class Result(BaseModel):
    """The line of an image: its size in pixels, boxes (xyxy, 0-based, half-open), scores, labels.

    `made_by` is the fingerprint of its inputs, `files` the digests of its files by path.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    image: str
    made_by: str
    width: PositiveInt
    height: PositiveInt
    files: dict[str, str]
    boxes: list[Annotated[list[float], Field(min_length=4, max_length=4)]]
    scores: list[float]
    labels: list[PositiveInt]
    probabilities: list[float] | None = None

    @model_validator(mode="after")
    def _check_lengths(self) -> Result:
        counts = {len(self.boxes), len(self.scores), len(self.labels)}
        if self.probabilities is not None:
            counts.add(len(self.probabilities))
        if len(counts) > 1:
            raise ValueError("boxes, scores, labels and probabilities of several lengths")
        return self


class _Claim(BaseModel):
    """The line of a file that is about to be written, and of a video what made it."""

    model_config = ConfigDict(strict=True)

    file: str
    digest: str
    made_by: str = ""


_LINES: TypeAdapter[Result | _Claim] = TypeAdapter(Result | _Claim)


@dataclass(frozen=True, slots=True)
class Entry:
    """The line of an image in short: its offset in the file, the rest as in `Result`."""

    offset: int
    made_by: str
    labels: tuple[int, ...]
    files: dict[str, str]


class Journal:
    """The journal of one folder; detections stay on disk and are read image by image.

    `claims` has the digests of all that sppdet has written, or was about to write, by the file's path
    below the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self.claims: dict[str, set[str]] = defaultdict(set)
        self._made_by: dict[tuple[str, str], str] = {}  # of a file's content, by path and digest
        self._entries: dict[str, Entry] = {}
        self._end = 0  # of the last whole line
        self._out: BinaryIO | None = None
        damaged = 0
        for raw in _whole_lines(self.path):
            try:
                if self._end > 0:  # behind the header
                    self._note(_parse(raw))
            except ValueError:
                damaged += 1
            self._end += len(raw)
        if damaged:
            _log.warning("%s: %d damaged lines; these images are done again", self.path, damaged)

    def _note(self, line: Result | _Claim) -> None:
        if isinstance(line, _Claim):
            self.claims[line.file].add(line.digest)
            if line.made_by:
                self._made_by[line.file, line.digest] = line.made_by
            return
        entry = Entry(self._end, line.made_by, tuple(line.labels), line.files)
        self._entries[line.image] = entry
        for file, digest in line.files.items():
            self.claims[file].add(digest)

    def entry(self, name: str) -> Entry | None:
        """Look up the last line of an image; None if there is none."""
        return self._entries.get(name)

    def made_by(self, file: str, digest: str) -> str:
        """Look up what has made a file of this content; empty if nothing is known."""
        return self._made_by.get((file, digest), "")

    def claim(self, file: str, digest: str, made_by: str = "") -> None:
        """Record that the file is about to get this content."""
        self._append(_claim(file, digest, made_by))
        self.claims[file].add(digest)
        if made_by:
            self._made_by[file, digest] = made_by

    def add(
        self, name: str, found: Detections, *, width: int, height: int,
        made_by: str, files: dict[str, str],
    ) -> None:  # fmt: skip
        """Record the detections of an image whose files (path to digest) are written."""
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
        if found.probabilities is not None:
            record["probabilities"] = found.probabilities.tolist()
        labels = tuple(found.labels.tolist())
        self._entries[name] = Entry(self._append(record), made_by, labels, files)

    def entries(self) -> Iterator[Entry]:
        """Yield the last line of every image."""
        yield from self._entries.values()

    def results(self, names: Iterable[str]) -> Iterator[Result]:
        """Read the results of images that have an entry, one after another."""
        with self._reading() as handle:
            for name in names:
                try:
                    line = _parse(_line_at(handle, self._entries[name].offset))
                except ValueError:
                    line = None
                if not isinstance(line, Result):
                    raise JournalError(f"{self.path}: has changed while it was read")
                yield line

    def compact(self, names: Iterable[str]) -> None:
        """Rewrite the journal without stale lines; the images `names` come first, in order.

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
                    if untold := self.claims[file] - told[file]:
                        with contextlib.suppress(OSError):  # the file is gone, or on its way
                            digest = digest_of(self.path.parent / file)
                            if digest in untold:
                                made_by = self.made_by(file, digest)
                                new.write(_line(_claim(file, digest, made_by)))
            self.close()  # Windows replaces no file that is open

    def close(self) -> None:
        """Close the file."""
        if self._out is not None:
            self._out.close()
            self._out = None

    @contextlib.contextmanager
    def _reading(self) -> Iterator[BinaryIO]:
        try:
            if self._out is None:
                self._open()
            with self.path.open("rb") as handle:
                yield handle
        except OSError as error:
            raise JournalError(f"{self.path}: can't be read: {error.strerror}") from None

    def _append(self, record: dict[str, Any]) -> int:
        """Write a line at once; returns its offset."""
        line = _line(record)
        try:
            out = self._out or self._open()
            offset = self._end
            written = out.write(line)
            if written != len(line):  # the disk is full
                out.write(line[written:])
        except OSError as error:
            raise JournalError(f"{self.path}: can't be written: {error.strerror}") from error
        self._end += len(line)
        return offset

    def _open(self) -> BinaryIO:
        """Open the file for appending behind its last whole line."""
        out = self.path.open("ab", buffering=0)
        if self.path.stat().st_size > self._end:
            os.truncate(self.path, self._end)
        if self._end == 0:
            self._end = out.write(_line(_HEADER))
        self._out = out
        return out


def claimed_files(folder: Path) -> frozenset[str]:
    """List the paths below `folder` of all files that its journal claims; none without a journal."""
    try:
        return frozenset(Journal(folder).claims)
    except (ConfigError, JournalError):
        return frozenset()


def digest_of(path: Path) -> str:
    """Hash a file's content to 16 hexadecimal digits."""
    return hash_file(path, digest_size=8)


def _claim(file: str, digest: str, made_by: str) -> dict[str, str]:
    made = {"made_by": made_by} if made_by else {}
    return {"file": file, "digest": digest, **made}


def _line(record: dict[str, Any]) -> bytes:
    rest = b'", ' + json.dumps(record, allow_nan=False).encode()[1:]
    return _START + _checksum(rest) + rest + b"\n"


def _parse(line: bytes) -> Result | _Claim:
    """Parse a line; ValueError if it isn't as it was written."""
    if line[:_REST] != _START + _checksum(line[_REST:-1]) or not line.endswith(b"\n"):
        raise ValueError("wrong checksum")
    return _LINES.validate_json(line)


def _checksum(rest: bytes) -> bytes:
    return hashlib.blake2b(rest, digest_size=8).hexdigest().encode()


def _line_at(handle: BinaryIO, offset: int) -> bytes:
    handle.seek(offset)
    return handle.readline()


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a journal, the header first, up to one that is cut short.

    Raises:
        ConfigError: the file is something else, or of another version.
    """
    try:
        if not path.is_file():  # opening a FIFO would block
            if os.path.lexists(path):
                raise ConfigError(f"{path}: no regular file; expected another --out")
            return
        handle = path.open("rb")
    except OSError as error:
        raise JournalError(f"{path}: can't be read: {error.strerror}") from None
    with handle:
        header = _line(_HEADER)
        raw = handle.readline()
        if not header.startswith(raw):
            raise ConfigError(
                f"{path}: no journal of this version of sppdet; expected another --out"
            )
        while raw.endswith(b"\n"):
            yield raw
            raw = handle.readline()

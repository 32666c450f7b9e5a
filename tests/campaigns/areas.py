"""An area of the fuzz campaign: one kind of input, its seeds, its generator and its judge."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from campaigns.mutation import mutants
from campaigns.verdict import judge


@dataclass(frozen=True)
class Area:
    """One kind of input.

    Attributes:
        name: of the area, and of its folder in the corpus.
        suffix: of its files in the corpus.
        seeds: valid input, which byte-level mutation starts from.
        check: what is wrong with the program's answer to an input, in one line; None if nothing is.
        documents: almost valid input; None where there is only byte-level mutation.
        tokens: what byte-level mutation puts in.
        weight: share of the time, relative to the others.
        memory_mb: what a case may take.
        seconds: what a case may take.
    """

    name: str
    suffix: str
    seeds: Sequence[bytes]
    check: Callable[[bytes], str | None]
    documents: st.SearchStrategy[bytes] | None = None
    tokens: Sequence[bytes] = ()
    weight: float = 1.0
    memory_mb: int = 300
    seconds: float = 20.0


def reader(
    path: Path, read: Callable[[], object], *, name: str | None = None
) -> Callable[[bytes], str | None]:
    """Judge `read` with the input in the file `path`; `name` is what errors must name, or the file's."""

    def check(data: bytes) -> str | None:
        path.write_bytes(data)
        return judge(read, path.name if name is None else name)

    return check


def placed(
    path: Path,
    use: Callable[[], object],
    *,
    name: str | None = None,
    before: Callable[[], object] | None = None,
) -> Callable[[bytes], str | None]:
    """Judge `use` with the input in place of a file of the run, which comes back afterwards."""
    original = path.read_bytes() if path.exists() else None

    def check(data: bytes) -> str | None:
        path.write_bytes(data)
        try:
            return judge(use, path.name if name is None else name)
        finally:
            if original is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(original)

    return check


def all_of(*readers: Callable[[], object]) -> Callable[[], None]:
    """Call all of them, the later ones also after an error; raises the first error."""

    def read() -> None:
        errors: list[Exception] = []
        for one in readers:
            try:
                one()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    return read


def json_bytes(value: Any) -> bytes:
    """JSON as other programs write it, with NaN and lone surrogates."""
    try:
        return json.dumps(value, default=str).encode()
    except (TypeError, ValueError):  # a key of a wrong type
        return repr(value).encode("utf-8", "surrogatepass")


def json_documents(*documents: Any) -> st.SearchStrategy[bytes]:
    """Mutants of JSON documents."""
    return mutants(documents).map(json_bytes)


JSON_TOKENS = (
    *(
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b":",
        b'"',
        b"null",
        b"true",
        b"NaN",
        b"Infinity",
        b"-",
        b"1e999",
    ),
    *(
        b"[" * 3000,
        b'{"a":' * 3000,
        b"9" * 5000,
        b'"\\ud800"',
        b'"\\u0000"',
        b"\\",
        b"\x00",
        b"\xff",
    ),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xe2\x80\xa8", b'"id"', b'"images"', b"0", b"-1", b"1.5"),
)

"""Generate almost valid input: mutated documents, and mutated bytes."""

from __future__ import annotations

import copy
import math
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from xml.sax.saxutils import escape

from hypothesis import strategies as st

NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 7, 255, 65535, 2**31 - 1, 2**31, -(2**31), 2**63, -(2**63), 10**30, 10**400),
    *(-0.0, 0.5, 1.5, -1.0001, 1e-320, 1e9, 1e38, 1e300, -1e300, math.inf, -math.inf, math.nan),
)
WORDS = (
    *(
        "",
        " ",
        "0",
        "1",
        "false",
        "true",
        "no",
        "null",
        "None",
        "nan",
        "inf",
        "-1",
        "1e400",
        "0x10",
    ),
    *("a", "b", "a.jpg", "a ", " a", "a\nb", "a\r\nb", "a\tb", "\x00", "a\x00b", "\x1b[31mred"),
    *("\ud800", "\udcff", "é", "日本", "\u202eab", "\u2028", "\ufeff", "²", "١"),
    *("a" * 250, "a" * 5000, "a/b", "a\\b", ".", "..", "/", "//", "con", "=1+1", "@a", "+1", "-rf"),
    *("%s", "%n", "{}", "{0}", "'", '"', "<a>", "&amp;", "*", "?", "[a]", "$HOME", "~nosuchuser"),
    *("9" * 5000, "2020-99-99", "12:99", "1_000", "1,5", "٣"),
)


_LEAVES = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(WORDS),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
)
_NESTED = st.one_of(
    st.lists(_LEAVES, max_size=4),
    st.dictionaries(st.sampled_from(WORDS[:20]), _LEAVES, max_size=3),
    st.lists(st.lists(_LEAVES, max_size=2), max_size=2),
)
NASTY: st.SearchStrategy[Any] = st.one_of(_LEAVES, _LEAVES, _LEAVES, _NESTED)
"""Values that a reader may not expect where another stood."""
_CHANGES = st.sampled_from(("replace", "replace", "remove", "repeat", "rename", "copy", "top"))
_NAMES = st.sampled_from(WORDS)
_ANY = st.integers(0, 2**16)


def mutants(documents: Sequence[Any], *, most: int = 4) -> st.SearchStrategy[Any]:
    """One of the documents (dicts, lists and plain values) with a few changes anywhere in it.

    A change replaces, removes, repeats or renames an entry, or copies one entry over another.
    """

    count = st.integers(1, most)

    @st.composite
    def changed(draw: st.DrawFn) -> Any:
        document = copy.deepcopy(documents[draw(_ANY) % len(documents)])
        for _ in range(draw(count)):
            document = _change(draw, document)
        return document

    return changed()


def _change(draw: st.DrawFn, document: Any) -> Any:
    places = list(_places(document))
    if not places:
        return draw(NASTY)
    holder, key = places[draw(_ANY) % len(places)]
    change = draw(_CHANGES)
    if change == "top" and draw(_ANY) % 10 == 0:
        return draw(NASTY)
    if change == "remove":
        del holder[key]
    elif change == "repeat" and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif change == "rename" and isinstance(holder, dict):
        holder[draw(_NAMES)] = holder.pop(key)
    elif change == "copy":
        other, name = places[draw(_ANY) % len(places)]
        if (isinstance(other, dict) and name in other) or (
            isinstance(other, list) and name < len(other)
        ):
            holder[key] = copy.deepcopy(other[name])
    else:
        holder[key] = draw(NASTY)
    return document


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key) of a document."""
    items: Any = ()
    if isinstance(document, dict):
        items = document.items()
    elif isinstance(document, list):
        items = enumerate(document)
    for key, value in list(items):
        yield document, key
        yield from _places(value)


def xml_text(node: Any) -> str:
    """A tree {"tag", "attributes", "text", "children"} as XML; whatever else stands there, as text."""
    if not isinstance(node, dict):
        return escape(str(node))
    tag = str(node.get("tag", "object")) or "x"
    children = node.get("children", [])
    inner = "".join(
        xml_text(child) for child in (children if isinstance(children, list) else [children])
    )
    text = node.get("text", "")
    return f"<{tag}{node.get('attributes', '')}>{escape(str(text))}{inner}</{tag}>"


# what byte-level mutation writes over fields of 1, 2, 4 and 8 bytes
_INTERESTING = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
)


def mutated_bytes(
    rng: random.Random, seeds: Sequence[bytes], tokens: Sequence[bytes] = ()
) -> bytes:
    """One of the seeds with a few changes: flips, cuts, repeats, splices, fields, tokens."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        rng.choice(_OPERATIONS)(rng, data, seeds, tokens)
    return bytes(data)


def _span(rng: random.Random, data: bytearray, longest: int = 64) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 2, 4, rng.randrange(1, longest + 1))))


def _flip(
    rng: random.Random, data: bytearray, seeds: Sequence[bytes], tokens: Sequence[bytes]
) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _byte(
    rng: random.Random, data: bytearray, seeds: Sequence[bytes], tokens: Sequence[bytes]
) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice((0, 0xFF, 0x80, 0x20, rng.randrange(256)))


def _cut(
    rng: random.Random, data: bytearray, seeds: Sequence[bytes], tokens: Sequence[bytes]
) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _remove(
    rng: random.Random, data: bytearray, seeds: Sequence[bytes], tokens: Sequence[bytes]
) -> None:
    start, end = _span(rng, data)
    del data[start:end]


def _repeat(
    rng: random.Random, data: bytearray, seeds: Sequence[bytes], tokens: Sequence[bytes]
) -> None:
    start, end = _span(rng, data, 400)
    data[start:start] = data[start:end] * rng.choice((1, 1, 2, 10))


def _insert(
    rng: random.Random, data: bytearray, seeds: Sequence[bytes], tokens: Sequence[bytes]
) -> None:
    start = rng.randrange(len(data) + 1)
    data[start:start] = rng.randbytes(rng.randrange(1, 9))


def _token(
    rng: random.Random, data: bytearray, seeds: Sequence[bytes], tokens: Sequence[bytes]
) -> None:
    if tokens:
        start, end = _span(rng, data, 12)
        data[start : rng.choice((start, end))] = rng.choice(tokens)


def _splice(
    rng: random.Random, data: bytearray, seeds: Sequence[bytes], tokens: Sequence[bytes]
) -> None:
    other = rng.choice(seeds)
    data[rng.randrange(len(data) + 1) :] = other[rng.randrange(len(other) + 1) :]


def _field(
    rng: random.Random, data: bytearray, seeds: Sequence[bytes], tokens: Sequence[bytes]
) -> None:
    size, code = rng.choice(((2, "H"), (4, "I"), (8, "Q")))
    if len(data) >= size:
        start = rng.randrange(min(len(data) - size, rng.choice((64, len(data)))) + 1)
        value = rng.choice(_INTERESTING) & (256**size - 1)
        struct.pack_into(rng.choice("<>") + code, data, start, value)


_Operation = Callable[[random.Random, bytearray, Sequence[bytes], Sequence[bytes]], None]
_OPERATIONS: tuple[_Operation, ...] = (
    *(_flip, _byte, _cut, _remove, _repeat, _insert, _token, _token, _splice, _field),
)

"""Names in files: text for every name, and every name back; names that are too long; CSV cells."""

from __future__ import annotations

import csv
import io
import os
import sys
from xml.etree import ElementTree

import pytest

from sppdet.io.names import MAX_NAME_BYTES, escape_name, fit_name, text_cell, unescape_name

NAMES = {
    b"plain name.jpg": "plain name.jpg",
    "Größe 50%25 \\x41 {y} ½.png".encode(): "Größe 50%25 \\x41 {y} ½.png",
    b"caf\xe9.jpg": "caf{xe9}.jpg",
    b"\xff\xfe/\xe9t\xe9.jpg": "{xff}{xfe}/{xe9}t{xe9}.jpg",
    b"{xe9}.jpg": "{x7b}xe9}.jpg",
    b"{x": "{x7b}x",
    b"tab\tline\nescape\x1b.jpg": "tab{x09}line{x0a}escape{x1b}.jpg",
    "next line\u0085.jpg".encode(): "next line{xc2}{x85}.jpg",
    "no character \ufffe.jpg".encode(): "no character {xef}{xbf}{xbe}.jpg",
    "café 😀".encode() + b"\xf0\x9f": "café 😀{xf0}{x9f}",
}


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are text here")
@pytest.mark.parametrize("raw", NAMES)
def test_names_are_text_and_come_back(raw: bytes) -> None:
    name = os.fsdecode(raw)
    text = escape_name(name)
    assert text == NAMES[raw]
    assert unescape_name(text) == name
    assert text.encode("utf-8").decode() == text
    element = ElementTree.Element("filename")
    element.text = text
    assert ElementTree.fromstring(ElementTree.tostring(element)).text == text


def test_half_of_a_pair_is_text_too() -> None:
    assert escape_name("\ud83d.jpg") == "{xed}{xa0}{xbd}.jpg"


def test_names_that_are_too_long_end_in_a_digest() -> None:
    assert fit_name("a" * 251, ".jpg") == "a" * 251 + ".jpg"
    names = [fit_name("a" * 252 + end, ".jpg") for end in "bc"] + [fit_name("ä" * 200, ".jpg")]
    assert all(len(name.encode()) in (MAX_NAME_BYTES, MAX_NAME_BYTES - 1) for name in names)
    assert len(set(names)) == 3
    assert names[0].startswith("a" * 230) and names[0].endswith(".jpg")


def test_cells_that_a_spreadsheet_takes_for_formulas() -> None:
    texts = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "'=1", "a=1", "", 'plain, "quoted"']
    written = io.StringIO()
    csv.writer(written).writerow(map(text_cell, texts))
    (cells,) = csv.reader(io.StringIO(written.getvalue(), newline=""))
    assert cells == ["'=1+1", "'+1", "'-1", "'@x", "'\tx", "'\rx", "''=1", *texts[7:]]
    assert [cell.removeprefix("'") for cell in cells] == texts

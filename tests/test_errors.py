"""Foreign text in messages: one line, of bounded length, without characters that a terminal obeys."""

from __future__ import annotations

import io
import logging
import os
import random
import sys
from pathlib import Path

import pytest

from runs import CommandLine, log_of, printed_to
from sppdet.errors import did_you_mean, one_line, printable
from sppdet.runs.log import LOGGER, JsonLinesHandler, handler_added


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("a.xml, object 3: xmax 140 < xmin 152", "a.xml, object 3: xmax 140 < xmin 152"),
        ("Bücher/画像 1 × 2 🐈.jpg", "Bücher/画像 1 × 2 🐈.jpg"),
        (r"C:\new\table", r"C:\new\table"),
        ("two\nlines\r\nand\ttab", r"two\nlines\r\nand\ttab"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x00 \x7f \x85 \x9b", r"\x00 \x7f \x85 \x9b"),
        ("line\u2028paragraph\u2029end", r"line\u2028paragraph\u2029end"),
        ("cod\u202egpj.exe\u2066", r"cod\u202egpj.exe\u2066"),
        ("\ufeffbom zero\u200bwidth", r"\ufeffbom zero\u200bwidth"),
        ("lone \ud800 \udcff", r"lone \ud800 \udcff"),
    ],
)
def test_printable(text: str, expected: str) -> None:
    assert printable(text) == one_line(text) == expected


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    where, expected = "settings.yaml: svm.C: ", ": expected a number"
    line = one_line(where + "9" * 10_000_000 + expected)
    assert len(line) == 300
    assert line.startswith(where) and line.endswith(expected) and line.count("…") == 1
    assert one_line("a" * 300) == "a" * 300
    assert one_line("a" * 301) == "a" * 150 + "…" + "a" * 149
    assert one_line("a" * 300, limit=11) == "aaaaa…aaaaa"


def test_no_escape_is_cut() -> None:
    for before in range(8):
        line = one_line("a" * before + "\u202e" * 300)
        assert 289 <= len(line) <= 300
        assert set(line.lstrip("a").replace("…", "").split(r"\u202e")) == {""}


def test_any_text_is_one_bounded_line() -> None:
    rng = random.Random(0)
    for _ in range(300):
        codes = [rng.randrange(rng.choice((256, 0x110000))) for _ in range(rng.randrange(700))]
        text = "".join(map(chr, codes))
        whole, line = printable(text), one_line(text)
        assert line.isprintable() and len(line) <= 300
        if len(whole) <= 300:
            assert line == whole
        else:
            assert whole.startswith(line[:140]) and whole.endswith(line[-140:])


def test_the_command_line_prints_foreign_text_in_one_line(
    sppdet: CommandLine, tmp_path: Path
) -> None:
    folder = tmp_path / ("evil\n\x1b[31m\u202e" + "x" * 200)
    status, _, err = sppdet("info", folder)
    assert status == 1
    assert len(err) <= 301 and err.endswith("\n") and err[:-1].isprintable()
    assert err.startswith("error: ") and r"evil\n\x1b[31m\u202ex" in err
    name = os.fsdecode(b"bytes\xff.yaml")
    status, _, err = sppdet("train", tmp_path / name)
    assert (status, err) == (1, f"error: {tmp_path}/bytes\\udcff.yaml: no such file\n")


def test_warnings_are_one_line(sppdet: CommandLine, capfd: pytest.CaptureFixture[str]) -> None:
    sppdet("--help")  # does not start
    sppdet("info", "nowhere")
    logging.getLogger("sppdet.test").warning("%s: left out", "a\nb\x1b" + "c" * 400)
    sys.stderr.flush()
    err = capfd.readouterr().err
    assert err.startswith(r"warning: a\nb\x1bccc") and err.endswith("c: left out\n")
    assert len(err) == 301


def test_a_message_is_shown_in_one_line_and_logged_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOGGER, "propagate", False)  # workers of pytest send no lone surrogates
    shown, log = io.StringIO(), JsonLinesHandler(tmp_path / "log.jsonl")
    text = "skipped: \x1b[31m\n\udcff" + "x" * 1000 + ": can't be decoded"
    with printed_to(shown), handler_added(log):
        LOGGER.info(text)
    line = shown.getvalue()
    assert line.startswith(r"skipped: \x1b[31m\n\udcffxxx") and len(line) == 301
    assert line.endswith("x: can't be decoded\n")
    assert log_of(tmp_path)[-1]["text"] == text


@pytest.mark.parametrize(
    ("name", "most", "expected"),
    [
        ("scales", 1, "; did you mean scale?"),
        ("SCALES", 1, "; did you mean scale?"),
        ("c", 1, "; did you mean C?"),
        ("scale1", 3, "; did you mean scale or scale_16?"),
        ("banana", 3, ""),
        ("", 1, ""),
    ],
)
def test_the_nearest_names_are_asked_for(name: str, most: int, expected: str) -> None:
    assert did_you_mean(name, ["C", "scale", "scale_16", "width"], most=most) == expected


def test_names_are_asked_for_in_full() -> None:
    assert did_you_mean("Hed", iter(["head"]), prefix="a.b.") == "; did you mean a.b.head?"
    assert did_you_mean("hxxd", ["head"]) == "" != did_you_mean("hxxd", ["head"], cutoff=0.5)

"""Text in CSV files that a spreadsheet must not take for a formula."""

from __future__ import annotations

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'")


def text_cell(text: str) -> str:
    """`text` with a `'` before it where it begins with one of = + - @ ' or white space of lines.

    Spreadsheets show such a cell as text. Whoever reads the file by a program takes one `'` off the
    beginning of a cell of a text column. Numbers are written as they are.
    """
    return f"'{text}" if text.startswith(_FORMULA) else text

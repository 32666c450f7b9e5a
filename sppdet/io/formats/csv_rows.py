"""Rows of CSV files made by anyone."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from sppdet.errors import AnnotationError, one_line
from sppdet.io.files import read_foreign_text


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and cells of each row that isn't empty; `,` or `;` separates cells.

    Raises:
        AnnotationError: the file can't be read or is no CSV.
    """
    text = read_foreign_text(path)
    first = text.partition("\n")[0]
    separator = ";" if first.count(";") > first.count(",") else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, row
    except csv.Error as error:
        reason = one_line(str(error), 120)
        raise AnnotationError(f"{path}, line {reader.line_num}: not CSV: {reason}") from None

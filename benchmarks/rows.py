"""Rows of a table that are measured one after another, each within its time, and kept on disk."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import before_torch  # noqa: F401
import torch
from train import peak_bytes

from sppdet.runs.artifacts import read_json, write_text


@dataclass(frozen=True)
class Outcome:
    """What a row has measured: texts of the table's columns, and all else for the file."""

    ours: str
    other: str = ""
    ratio: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A measurement by name; `limit` are the seconds that it may take."""

    name: str
    limit: float
    work: Callable[[], Outcome]


class TookTooLong(BaseException):
    """The limit of a row, which no `except Exception` on the way may swallow."""


def measure(
    rows: Sequence[Row], file: Path, *, minutes: float, machine: Mapping[str, Any], go_on: bool
) -> list[dict[str, Any]]:
    """Measure the rows in turn, print each as a line of a Markdown table, and write `file` after each.

    A row that raises doesn't end the table. One that finds its limit beyond the minutes left is skipped.
    After an error that leaves a GPU unusable the program starts again, with --go-on, at the next row.

    Args:
        go_on: keep the rows that `file` has, and count its seconds.

    Returns:
        The records of all rows, in their order.
    """
    report: dict[str, Any] = {"machine": dict(machine), "seconds": 0.0, "rows": []}
    if go_on and file.exists():
        report = read_json(file)
    else:
        print("| what | sppdet | the other side | ratio | GPU GiB | host GiB | s |")
        print("|---|---|---|---|---|---|---|", flush=True)
    before, start = report["seconds"], time.perf_counter()
    known = {record["row"] for record in report["rows"]}
    for row in rows:
        if row.name in known:
            continue
        left = 60 * minutes - before - (time.perf_counter() - start)
        record = _skipped(row, left) if left < row.limit else _measured(row)
        report["rows"].append(record)
        report["seconds"] = before + time.perf_counter() - start
        write_text(file, json.dumps(report, indent=1) + "\n")
        print(line_of(record), flush=True)
        if record.get("gpu_lost"):
            arguments = [a for a in sys.argv if a != "--go-on"]
            os.execv(sys.executable, [sys.executable, *arguments, "--go-on"])
    records: list[dict[str, Any]] = report["rows"]
    return records


def _skipped(row: Row, left: float) -> dict[str, Any]:
    reason = f"may take {row.limit:.0f} s, and {max(0, left):.0f} s are left"
    return {"row": row.name, "state": "skipped", "reason": reason}


def _measured(row: Row) -> dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    start = time.perf_counter()
    try:
        _forget_peaks()
        with _at_most(row.limit):
            found = asdict(row.work())
        record = {"row": row.name, "state": "done", **found}
    except (Exception, TookTooLong) as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
        record = {"row": row.name, "state": "failed", "reason": reason}
        record["traceback"] = traceback.format_exc()
        # every call on the GPU would fail from now on
        record["gpu_lost"] = any(t in str(error) for t in ("CUDA error", "[CUDA]"))
        if record["gpu_lost"]:
            return record
    record["seconds"] = time.perf_counter() - start
    record["host_bytes"] = peak_bytes()
    record["gpu_bytes"] = torch.cuda.max_memory_allocated() if on_gpu else 0
    return record


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise `TookTooLong` in a block that takes longer, once the call into C that it is in returns."""

    def stop(*_: object) -> None:
        raise TookTooLong(f"took more than {seconds:.0f} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _forget_peaks() -> None:
    """Let the peaks of memory count from now on."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak becomes what is held now


def line_of(record: Mapping[str, Any]) -> str:
    """Format a row of the table."""
    if record["state"] != "done":
        return f"| {record['row']} | {record['state']}: {record['reason']} | | | | | |"
    ratio = "" if record["ratio"] is None else f"{record['ratio']:.1f}"
    sizes = [f"{record[name] / 2**30:.1f}" for name in ("gpu_bytes", "host_bytes")]
    cells = [record["row"], record["ours"], record["other"], ratio, *sizes]
    return f"| {' | '.join(cells)} | {record['seconds']:.1f} |"

"""The campaigns: inputs that failed once, a few cases of every area, a few kills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from campaigns.areas import Area
from campaigns.fuzz import fuzz, generate, keep, kept
from campaigns.minimise import minimised
from campaigns.mutation import mutants
from campaigns.verdict import judge, kind_of
from campaigns.workspace import Snapshot
from sppdet.errors import DataError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the campaigns fork")


def _campaign(*arguments: str) -> str:
    """The output of a campaign that found nothing."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_inputs_that_failed_once() -> None:
    table = _campaign("campaigns.fuzz", "--replay")
    stored = sum(1 for path in (Path(__file__).parent / "corpus").rglob("*") if path.is_file())
    name, cases, failed = table.splitlines()[-1].split()
    assert (name, failed) == ("all", "0") and int(cases) > stored > 0


def test_a_few_kills() -> None:
    table = _campaign("campaigns.killtest", "--kills", "2", "--disks", "0", "--command", "eval")
    assert "eval        going on" in table


def test_the_verdict_on_a_reader() -> None:
    def raising(error: BaseException) -> str | None:
        def read() -> None:
            raise error

        return judge(read, "a.json")

    assert judge(lambda: 1) is None
    assert raising(DataError("a.json: no object")) is None
    assert "doesn't name a.json" in str(raising(DataError("no object")))
    assert "without a message" in str(raising(DataError("")))
    assert str(raising(KeyError("b"))).startswith("KeyError")
    assert str(raising(RecursionError())).startswith("RecursionError")
    assert kind_of(str(raising(KeyError("b")))) == kind_of(str(raising(KeyError("c"))))


def _faulty(data: bytes) -> str | None:
    """A reader that can't take some letters."""
    if b"K" in data:
        os.kill(os.getpid(), 11)
    if b"M" in data:
        assert len(b"x" * (400 * 2**20)) > len(data)
    if b"H" in data:
        time.sleep(600)
    return judge(lambda: json.loads("{}")["E"]) if b"E" in data else None


def test_fuzzing_finds_what_fails_and_goes_on(tmp_path: Path) -> None:
    seeds = [b"ab", b"xKx", b"cd", b"xHx", b"xEx", b"yyEyyEyy", b"xMx", b"ef"]
    area = Area("faulty", ".txt", seeds, _faulty, seconds=5)
    result = fuzz(area, tmp_path / "work", seconds=60, cases=len(seeds), seed=0)
    kinds = {kind.split(" [")[0]: data for kind, (_, data) in result.failures.items()}
    assert kinds == {
        "killed by SIGSEGV": b"xKx",
        "ran past the limit": b"xHx",
        "KeyError": b"xEx",
        "took more than 300 MB": b"xMx",
    }
    assert result.cases == len(seeds) and result.failed == 5
    kind, (problem, data) = next(i for i in result.failures.items() if i[0].startswith("Key"))
    assert minimised(area, problem, data, tmp_path / "minimise") == b"E"
    assert keep(area, data, tmp_path / "corpus") is not None
    assert kept(area, tmp_path / "corpus") == [data] and kind_of(problem) == kind


def test_mutants_differ_and_leave_the_document_alone() -> None:
    document = {"a": [1, {"b": "c"}], "d": 2.5}
    seen: list[bytes] = []
    documents = mutants([document]).map(lambda value: ascii(value).encode())
    generate(Area("a", ".txt", [], lambda data: None, documents), seen.append, 60, 0)
    assert document == {"a": [1, {"b": "c"}], "d": 2.5}
    assert len(set(seen) - {ascii(document).encode()}) > 20


def test_a_snapshot_tells_and_undoes_changes(tmp_path: Path) -> None:
    folder = tmp_path / "space"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "b").write_text("b")
    (folder / "link").symlink_to("a")
    os.mkfifo(folder / "fifo")
    snapshot = Snapshot(folder)
    assert snapshot.changes() == (set(), set())
    (folder / "a" / "b").write_text("c")
    (folder / "fifo").unlink()
    (folder / "new").mkdir()
    (folder / "new" / "d").write_text("d")
    assert snapshot.changes() == ({"new", "new/d"}, {"a/b", "fifo"})
    snapshot.restore()
    assert snapshot.changes() == (set(), set()) and (folder / "a" / "b").read_text() == "b"

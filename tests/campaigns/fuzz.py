"""`scripts/fuzz`: damaged and hostile input for every reader and every command."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import logging
import mmap
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import hypothesis

from campaigns.areas import Area
from campaigns.catalogue import make_areas
from campaigns.fork import Child, name_of, start, warm_up
from campaigns.minimise import minimised
from campaigns.mutation import NASTY, mutated_bytes
from campaigns.verdict import kind_of
from campaigns.workspace import Workspace, make_workspace

CORPUS = Path(__file__).parents[1] / "corpus"
_CHUNK = 100  # cases of a kind before the other kind has its turn
_MOST_BYTES = 20_000  # of a file in the corpus


@dataclass
class Result:
    """What came out of one area; `failures` maps each kind of failure to its first input."""

    cases: int = 0
    failed: int = 0
    seconds: float = 0.0
    failures: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def add(self, problem: str, data: bytes) -> None:
        """Count a failure; keep the shortest input of its kind."""
        self.failed += 1
        kind = kind_of(problem)
        if kind not in self.failures or len(data) < len(self.failures[kind][1]):
            self.failures[kind] = (problem, data)


def fuzz(area: Area, folder: Path, *, seconds: float, cases: int, seed: int) -> Result:
    """Try an area for some time, in a child that may crash, hang or eat memory.

    Args:
        folder: for the child's files.
        cases: the maximum.
    """
    result, began = Result(), time.monotonic()
    folder.mkdir(parents=True)
    with (folder / "progress").open("w+b") as handle:
        handle.write(bytes(8))
        handle.flush()
        progress = mmap.mmap(handle.fileno(), 8)
        while result.cases < cases and (left := began + seconds - time.monotonic()) > 0:
            progress[:] = bytes(8)
            work = _work(area, folder, progress, left, cases, result.cases, seed)
            child = start(work, folder, memory=2**32)
            ended = _watch(child, progress, area.seconds)
            result.cases += _count(progress)
            for line in (folder / "failures").read_text().splitlines():
                problem, data = json.loads(line)
                result.add(problem, base64.b64decode(data))
            if ended is not None:
                error = (folder / "err").read_text(errors="replace")
                result.add(f"{ended} [{_place(error)}]", (folder / "case").read_bytes())
    result.seconds = time.monotonic() - began
    return result


def _work(
    area: Area,
    folder: Path,
    progress: mmap.mmap,
    seconds: float,
    cases: int,
    tried: int,
    seed: int,
) -> Callable[[], None]:
    """The child's part: make cases, judge them, note failures; children before it tried some."""

    def work() -> None:
        until = time.monotonic() + seconds
        case_file = folder / "case"
        with (folder / "failures").open("w") as failures:
            number = 0

            def one(data: bytes) -> None:
                nonlocal number
                if tried + number >= cases or time.monotonic() > until:
                    return
                case_file.write_bytes(data)
                number += 1
                progress[:] = struct.pack("<Q", number)
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                problem = area.check(data)
                taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
                if problem is None and taken > area.memory_mb:
                    problem = f"took more than {area.memory_mb} MB [memory]"
                if problem is not None:
                    failures.write(json.dumps([problem, base64.b64encode(data).decode()]) + "\n")
                    failures.flush()

            rng = random.Random(seed + tried)
            for data in area.seeds[tried:]:
                one(data)
            while tried + number < cases and time.monotonic() < until:
                if area.documents is not None:
                    generate(area, one, _CHUNK, seed + tried + number)
                for _ in range(_CHUNK):
                    one(mutated_bytes(rng, area.seeds, area.tokens))

    return work


def generate(area: Area, one: Callable[[bytes], None], count: int, seed: int) -> None:
    """Hand some of the area's documents to `one`."""
    assert area.documents is not None

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(area.documents)
    def cases(data: bytes) -> None:
        one(data)

    cases()


def _pass(data: bytes) -> None:
    """Do nothing with a document."""


def _watch(child: Child, progress: mmap.mmap, limit: float) -> str | None:
    """Wait for the child; in words how it ended, None if well. A case may take `limit` seconds."""
    while True:
        seen = _count(progress)
        if (status := child.poll(limit)) is not None:
            return None if status == 0 else name_of(status)
        if _count(progress) == seen:
            child.stop()
            return name_of(None)


def _count(progress: mmap.mmap) -> int:
    return int(struct.unpack("<Q", progress[:])[0])


def _place(error: str) -> str:
    """The innermost function of sppdet in a faulthandler's or a traceback's text."""
    lines = [line.strip() for line in error.splitlines() if "/sppdet/" in line]
    ours = [line for line in lines if line.startswith("File")]
    if not ours:
        return "?"
    most_recent_first = "most recent call first" in error
    path, _, place = ours[0 if most_recent_first else -1].partition(", line ")
    return f"{Path(path.strip('File ').strip(chr(34))).name}:{place.split(' in ')[-1]}"


def keep(area: Area, data: bytes, corpus: Path = CORPUS) -> Path | None:
    """Store a failing input in the corpus; None if it is too large for that."""
    if len(data) > _MOST_BYTES:
        return None
    name = hashlib.blake2b(data, digest_size=6).hexdigest()
    path = corpus / area.name / f"{name}{area.suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def kept(area: Area, corpus: Path = CORPUS) -> list[bytes]:
    """The inputs of the corpus in one area."""
    return [path.read_bytes() for path in sorted((corpus / area.name).glob("*"))]


def main() -> int:
    """The command; returns its exit status: 1 if there was a failure."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="time for all areas together")
    parser.add_argument("--cases", type=int, default=10**9, help="maximum for each area")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--area", action="append", help="only areas whose names begin so")
    parser.add_argument("--replay", action="store_true", help="only the inputs in the corpus")
    parser.add_argument("--keep", type=Path, default=CORPUS, help="where failing inputs are stored")
    arguments = parser.parse_args()
    warm_up()
    logging.getLogger("sppdet").addHandler(logging.NullHandler())
    # what hypothesis needs is made once, before forks
    generate(Area("", "", (), lambda data: None, NASTY.map(ascii).map(str.encode)), _pass, 5, 0)
    scratch = Path(tempfile.mkdtemp(prefix="sppdet-fuzz-"))
    try:
        return _campaign(arguments, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _campaign(arguments: argparse.Namespace, scratch: Path) -> int:
    space: Workspace = make_workspace(scratch / "space")
    areas, before = make_areas(space, scratch / "printed")
    if arguments.area:
        areas = [a for a in areas if any(a.name.startswith(name) for name in arguments.area)]
    total = sum(area.weight for area in areas)
    results = {}
    print(f"{'area':22}{'cases':>9}{'failures':>10}{'kinds':>7}{'seconds':>9}", flush=True)
    for area in areas:
        seconds, cases = 60 * arguments.minutes * area.weight / total, arguments.cases
        if arguments.replay:
            if area.documents is not None:  # the generator at least works
                generate(area, _pass, 3, arguments.seed)
            # a command takes longer than a reader
            own = area.seeds[:1] if area.name != "commands" else ()
            area = replace(area, seeds=[*own, *kept(area)], documents=None)
            seconds, cases = 600.0, len(area.seeds)
        else:
            area = replace(area, seeds=[*area.seeds, *kept(area)])
        folder = scratch / "areas" / area.name
        result = fuzz(area, folder, seconds=seconds, cases=cases, seed=arguments.seed)
        before.restore()  # a child that was killed left its case
        results[area.name] = result
        print(
            f"{area.name:22}{result.cases:9}{result.failed:10}{len(result.failures):7}"
            f"{result.seconds:9.1f}",
            flush=True,
        )
        for problem, data in result.failures.values():
            path = None
            if not arguments.replay:
                data = minimised(area, problem, data, scratch / "minimise")
                path = keep(area, data, arguments.keep)
            print(f"    {problem}\n        {path or f'{len(data)} bytes, not kept'}", flush=True)
    cases, failed = (
        sum(getattr(r, name) for r in results.values()) for name in ("cases", "failed")
    )
    print(f"{'all':22}{cases:9}{failed:10}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

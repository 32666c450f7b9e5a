"""`scripts/killtest`: kill commands at random moments, fill disks, and compare what comes out."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from campaigns.areas_commands import problem_with_end
from campaigns.fork import Child, Ended, command, name_of, start, warm_up
from campaigns.workspace import Workspace, make_workspace
from sppdet.io.finding import JOURNAL

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LIMIT = 300.0  # seconds that a command may take
_STARTING = 0.15  # seconds; a signal before the command line is at work has no line yet
_INPUTS = ("set", "shapes")  # compared like all other files
_MEANS = ("disk full", "read-only", "file size")
_DIFFER = ("log.jsonl", "timings.json", "report.html")  # times, and one line more for every call


@dataclass(frozen=True)
class Command:
    """A command whose result must not depend on how often it was interrupted.

    Its arguments are relative to the workspace; `out` is the folder that it writes.
    """

    name: str
    arguments: tuple[str, ...]
    out: str


COMMANDS = (
    Command("train", ("train", "small.yaml", "--run", "small/new"), "small/new"),
    Command(
        "detect",
        ("detect", "run", "set/fresh", "set/JPEGImages", "--out", "small/new", "--score", "-1.5",
         "--save", "images,json,csv,voc,coco", "--workers", "1"),
        "small/new",
    ),
    Command("pretrain", ("pretrain", "shapes.yaml", "--run", "small/new"), "small/new"),
    Command("eval", ("eval", "evaluated"), "evaluated"),
)  # fmt: skip


@dataclass
class Table:
    """How often each (command, means) was tried, and what failed."""

    tried: Counter[tuple[str, str]] = field(default_factory=Counter)
    failed: Counter[tuple[str, str]] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    def note(self, name: str, means: str, problems: Sequence[str]) -> None:
        """Count one try and its problems."""
        self.tried[name, means] += 1
        if problems:
            self.failed[name, means] += 1
            self.lines += [f"{name}, {means}: {problem}" for problem in problems]
            print(*self.lines[-len(problems) :], sep="\n", flush=True)

    def rows(self) -> Iterator[str]:
        """The printed table."""
        yield f"{'command':12}{'means':16}{'tried':>7}{'failures':>10}"
        for name, means in self.tried:
            count, failed = self.tried[name, means], self.failed[name, means]
            yield f"{name:12}{means:16}{count:7}{failed:10}"
        yield f"{'all':28}{self.tried.total():7}{self.failed.total():10}"


class Bench:
    """A template of the workspace, and the place where commands run on fresh copies of it."""

    def __init__(self, scratch: Path) -> None:
        self.template, self.place, self._said = (
            scratch / "template",
            scratch / "work",
            scratch / "said",
        )
        space: Workspace = make_workspace(self.template)
        (self.template / "small").mkdir()
        evaluated = Path(shutil.copytree(space.run, self.template / "evaluated"))
        shutil.rmtree(evaluated / "eval")
        for folder in evaluated.glob("store/detections-*"):
            shutil.rmtree(folder)

    def renew(self) -> None:
        """Make the place a fresh copy, but for the inputs, whose times and inodes caches look at."""
        self.place.mkdir(exist_ok=True)
        for path in self.template.iterdir():
            target = self.place / path.name
            if path.name in _INPUTS and target.exists():
                continue
            shutil.rmtree(target, ignore_errors=True)
            if path.is_dir():
                shutil.copytree(path, target, symlinks=True)
            else:
                shutil.copy2(path, target)

    def begin(
        self, what: Command, *, out: Path | None = None, limit: Callable[[], None] | None = None
    ) -> Child:
        """Start the command in a child."""
        work = command(["--threads", "1", *what.arguments])

        def limited() -> None:
            if limit is not None:
                limit()
            work()

        return start(limited, self._said, cwd=self.place, out=out)

    def finish(self, what: Command) -> tuple[list[str], float]:
        """Run the command to its end: what went wrong, and the seconds that it took."""
        ended = self.begin(what).ended(_LIMIT)
        problem = problem_with_end(ended)
        if problem is None and ended.status != 0:
            problem = f"{name_of(ended.status)}: {ended.err.strip():.300}"
        return ([f"when it went on: {problem}"] if problem else []), ended.seconds

    def contents(self) -> dict[str, bytes]:
        """Every file by its path, but for those that tell of times."""
        return {
            str(path.relative_to(self.place)): path.read_bytes()
            for path in sorted(self.place.rglob("*"))
            if path.is_file() and path.name not in _DIFFER
        }

    def leftovers(self) -> list[str]:
        """Temporary files, and locks."""
        return [
            f"left {path.relative_to(self.place)}"
            for path in sorted(self.place.rglob(".*"))
            if path.is_file() and path.name != JOURNAL  # which stays until the work is done
        ]


def differences(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """What is different, in a line each."""
    lines = [f"missing: {name}" for name in expected if name not in found]
    lines += [f"left over: {name}" for name in found if name not in expected]
    return lines + [f"other bytes: {n}" for n in expected if n in found and found[n] != expected[n]]


def kill_often(
    bench: Bench,
    what: Command,
    table: Table,
    *,
    kills: int,
    rng: random.Random,
    numbers: Sequence[signal.Signals],
) -> None:
    """Interrupt a command at random moments, some times in a row, let it go on, and compare."""
    bench.renew()
    problems, seconds = bench.finish(what)
    table.note(what.name, "undisturbed", problems)
    expected = bench.contents()
    done = 0
    while done < kills:
        bench.renew()
        last, in_a_row = "", rng.randint(1, 4)
        for _ in range(in_a_row):
            number = rng.choice(numbers)
            moment = rng.uniform(0, seconds)
            before = bench.leftovers()  # of a SIGKILL
            child = bench.begin(what)
            ended = _killed(child, number, moment)
            if ended is None:  # it was done before
                continue
            done += 1
            last = number.name
            found = _problems_with_kill(what, ended, number, moment)
            if number != signal.SIGKILL:
                found += [line for line in bench.leftovers() if line not in before]
            table.note(what.name, number.name, [f"at {moment:.2f} s: {line}" for line in found])
        found, _ = bench.finish(what)
        found = found or differences(bench.contents(), expected)
        table.note(what.name, "going on", [f"after {last}: {line}" for line in found])


def _killed(child: Child, number: signal.Signals, moment: float) -> Ended | None:
    """How it ended by the signal; None if it had ended before."""
    status = child.poll(moment)
    if status is not None:
        return None
    child.kill(number)
    return child.ended(60)


def _problems_with_kill(
    what: Command, ended: Ended, number: signal.Signals, moment: float
) -> list[str]:
    if ended.status == -number and (number == signal.SIGKILL or moment < _STARTING):
        return []
    if ended.status == 0:
        return []  # it was past the last moment at which it could stop
    expected, lines = 128 + number, ended.err.splitlines()
    found = []
    if ended.status != expected:
        found.append(f"{name_of(ended.status)}, expected {expected}: {ended.err.strip():.300}")
    if len([line for line in lines if not line.startswith("warning: ")]) != 1:
        found.append(f"{len(lines)} lines on stderr: {'|'.join(lines):.300}")
    elif what.name in ("detect", "eval") and "training" in ended.err:
        found.append(f"a line about training: {lines[-1]}")
    return found


def fill_disks(
    bench: Bench, what: Command, table: Table, *, times: int, rng: random.Random
) -> None:
    """Run into a full disk, a limit of file sizes and a read-only folder; go on; compare."""
    bench.renew()
    problems, _ = bench.finish(what)
    table.note(what.name, "undisturbed", problems)
    expected = bench.contents()
    written = sum(p.stat().st_size for p in (bench.place / what.out).rglob("*") if p.is_file())
    can = ["file size"] if what.out == "evaluated" or not can_mount() else list(_MEANS)
    for means in can * times:
        bench.renew()
        with _hindrance(means, bench.place / "small", rng.randrange(4096, written)) as relieve:
            limit = _file_limit(rng.randrange(1, 60_000)) if means == "file size" else None
            ended = bench.begin(what, limit=limit).ended(_LIMIT)
            problem = problem_with_end(ended)
            found = [problem] if problem else []
            found += bench.leftovers()
            relieve()
            more, _ = bench.finish(what)
            table.note(what.name, means, found + (more or differences(bench.contents(), expected)))


def _file_limit(size: int) -> Callable[[], None]:
    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def can_mount() -> bool:
    """Whether a disk of our own can be had."""
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


@contextmanager
def _hindrance(means: str, folder: Path, size: int) -> Iterator[Callable[[], None]]:
    """A disk of `size` bytes or a read-only one on `folder`; yields what makes it a good one."""
    if means == "file size":  # which concerns the process alone
        yield lambda: None
        return
    option, good = (f"size={size}", "size=256m") if means == "disk full" else ("ro,size=256m", "rw")
    subprocess.run(["mount", "-t", "tmpfs", "-o", option, "none", str(folder)], check=True)
    try:
        yield lambda: _remount(folder, good)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def main() -> int:
    """The command; returns its exit status: 1 if there was a failure."""
    parser = argparse.ArgumentParser(prog="scripts/killtest", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of all commands together")
    parser.add_argument(
        "--disks", type=int, default=2, help="full and read-only disks for each command"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", action="append", choices=[c.name for c in COMMANDS])
    parser.add_argument("--signal", action="append", choices=[s.name for s in SIGNALS])
    arguments = parser.parse_args()
    warm_up()
    scratch, began = Path(tempfile.mkdtemp(prefix="sppdet-kill-")), time.monotonic()
    table, rng = Table(), random.Random(arguments.seed)
    numbers = [signal.Signals[name] for name in arguments.signal] if arguments.signal else SIGNALS
    chosen = [c for c in COMMANDS if not arguments.command or c.name in arguments.command]
    if arguments.disks and not can_mount():
        print("full and read-only disks are left out: they need the right to mount")
    try:
        bench = Bench(scratch)
        for what in chosen:
            if arguments.kills:
                kills = -(-arguments.kills // len(chosen))
                kill_often(bench, what, table, kills=kills, rng=rng, numbers=numbers)
            if arguments.disks:
                fill_disks(bench, what, table, times=arguments.disks, rng=rng)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(*table.rows(), f"{time.monotonic() - began:.0f} s", sep="\n")
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())

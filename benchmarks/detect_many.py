"""Memory and time of `sppdet detect` over thousands of images, and what a SIGKILL in the middle costs.

    python benchmarks/detect_many.py RUN [--images FOLDER] [--count 5000] [--every 1000]
                                     [--save json,csv,coco] [--work FOLDER]

The images are hard links to those of a folder (data/frk5/JPEGImages below $SPPDET_DATA), again and again
under other names. One call runs undisturbed; another is killed after half of the images, and the same
command does the rest. Prints resident memory and CPU seconds an image after every 1,000 images, and whether
the files of both are the same bytes. Needs Linux.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sppdet.io.finding import JOURNAL, find_images

_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--every", type=int, default=1000)
    parser.add_argument("--save", default="json,csv,coco")
    parser.add_argument("--work", type=Path)
    args = parser.parse_args()
    images = args.images or Path(os.environ["SPPDET_DATA"]) / "data" / "frk5" / "JPEGImages"
    with tempfile.TemporaryDirectory(dir=args.work) as temporary:
        folder = Path(temporary)
        link_images(find_images([images]), folder / "in", args.count)
        command = [sys.executable, "-m", "sppdet", "--threads", "1", "--quiet", "detect"]
        command += [str(args.run), str(folder / "in"), "--save", args.save, "--workers", "1"]
        print(f"{args.count} images, --save {args.save}\n")
        print(
            "| call | images done | resident memory, MB | CPU s an image since |\n|---|---|---|---|"
        )
        watch(
            "undisturbed", [*command, "--out", str(folder / "whole")], folder / "whole", args.every
        )
        killed = [*command, "--out", str(folder / "killed")]
        watch("killed", killed, folder / "killed", args.every, kill_at=args.count // 2)
        watch("the rest", killed, folder / "killed", args.every)
        whole, rest = files_of(folder / "whole"), files_of(folder / "killed")
        same = sorted(name for name in whole if whole[name] == rest.get(name))
        print(f"\nthe same bytes: {len(same)} of {len(whole)} files ({', '.join(same[:6])})")


def link_images(images: list[Path], folder: Path, count: int) -> None:
    """Fill a folder with links to the images, or copies on another disk."""
    folder.mkdir()
    for number, image in zip(range(count), itertools.cycle(images), strict=False):
        target = folder / f"{number:06d}{image.suffix}"
        try:
            target.hardlink_to(image)
        except OSError:
            shutil.copyfile(image, target)


@dataclass(frozen=True)
class Usage:
    """What a process has used so far."""

    resident_mb: float
    cpu_s: float


def usage_of(process: int) -> Usage:
    """Read the memory and CPU time of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    numbers = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return Usage(int(resident.split()[1]) / 1024, (int(numbers[11]) + int(numbers[12])) / _TICKS)


def watch(
    what: str, command: list[str], out: Path, every: int, *, kill_at: int | None = None
) -> None:
    """Run a command and print a row after every so many images; kill it after `kill_at`."""
    journal = out / JOURNAL
    done = before = sum(1 for _ in lines_from(journal, 0)) - 1 if journal.exists() else 0
    at = journal.stat().st_size if journal.exists() else 0
    start, inode = time.monotonic(), journal.stat().st_ino if journal.exists() else 0
    with subprocess.Popen(command) as process:
        last, last_done, due = Usage(0, 0), done, (done // every + 1) * every
        while process.poll() is None:
            time.sleep(0.05)
            if not journal.exists() or process.poll() is not None:
                continue
            if done and journal.stat().st_ino != inode:
                continue  # rewritten at the end
            inode = journal.stat().st_ino
            for line in lines_from(journal, at):
                at += len(line)
                done += line.startswith(b'{"check"') and b'"image"' in line
            if kill_at is not None and done >= kill_at:
                process.send_signal(signal.SIGKILL)
                kill_at = None
            elif done >= due:
                now = usage_of(process.pid)
                each = (now.cpu_s - last.cpu_s) / (done - last_done)
                print(f"| {what} | {done} | {now.resident_mb:.0f} | {each:.3f} |", flush=True)
                last, last_done, due = now, done, due + every
    passed = time.monotonic() - start
    print(f"| {what}: status {process.returncode}, {passed:.0f} s, {done - before} images | | | |")


def lines_from(journal: Path, at: int) -> Iterator[bytes]:
    """Yield the whole lines of the journal behind an offset."""
    with journal.open("rb") as handle:
        handle.seek(at)
        for line in handle:
            if line.endswith(b"\n"):
                yield line


def files_of(folder: Path) -> dict[str, bytes]:
    """Read all files of a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


if __name__ == "__main__":
    main()

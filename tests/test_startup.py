"""The command line starts without its heavy libraries, and says what is missing where they can't load."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "torchvision", "cv2", "numba", "matplotlib", "sklearn", "pycocotools")
# the command line with these arguments, then the heavy libraries that it has imported
PROBE = f"""
import sys
from sppdet.__main__ import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(" ".join(["imported:", *sorted(set({HEAVY!r}) & set(sys.modules))]))
"""


def imported_by(*arguments: str | Path) -> str:
    command = [sys.executable, "-c", PROBE, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["info", "--help"],
        ["train", "--help"],
        ["serve", "--help"],
        ["compare", "--help"],
        ["init", "--list"],
    ],
    ids=" ".join,
)
def test_light_commands(arguments: list[str]) -> None:
    assert imported_by(*arguments) == "imported:"


def test_a_packaged_config_is_printed_without_heavy_libraries() -> None:
    assert imported_by("init", "squeezenet_small") == "imported:"


def test_info_imports_no_heavy_library(trained: Path, classified: Path) -> None:
    assert imported_by("info", trained) == "imported:"
    assert imported_by("info", classified) == "imported:"


def test_help_takes_little_time() -> None:
    """A bound for busy machines: importing torch alone takes some 4 CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "sppdet", "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


def test_opencv_without_its_system_library(tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text(
        "raise ImportError('libGL.so.1: cannot open shared object file: No such file or directory')\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "-m", "sppdet", "detect", "run", "a", "--out", "b"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        "error: OpenCV needs libGL.so.1: install libgl1 and libglib2.0-0 (apt-get), or put "
        "opencv-contrib-python-headless in the place of opencv-contrib-python (pip)\n"
    )


def test_another_import_error_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('libtorch.so: no such file')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "-m", "sppdet", "detect", "run", "a", "--out", "b"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert ended.returncode == 1 and "Traceback" in ended.stderr


def test_garbage_is_collected_again_once_the_libraries_are_imported() -> None:
    probe = (
        "import gc; from sppdet.cli.process import start_libraries; start_libraries(); "
        "print(gc.isenabled(), gc.get_freeze_count() > 100_000)"
    )
    ended = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert ended.stdout.split() == ["True", "True"], ended.stderr

"""Importing and using the library leaves the process as it was; the command line sets it up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sppdet
from sppdet.runs.environment import set_variables

# what other libraries do when they are imported is theirs, hence first; Numba's first answer starts its
# threads, and sets those of torch
STATE = """
import os, signal, warnings
import cv2, matplotlib.pyplot, numba, numpy, pycocotools.mask, sklearn.svm, torch, torchvision, yaml
numba.get_num_threads()
cv2.setNumThreads(3)
torch.set_num_threads(3)
def state():
    return {
        "variables": dict(os.environ),
        "opencv": cv2.getNumThreads(),
        "torch": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "numba": numba.get_num_threads(),
        "type": torch.get_default_dtype(),
        "random": (hash(torch.get_rng_state().numpy().tobytes()), hash(str(numpy.random.get_state()))),
        "log": cv2.utils.logging.getLogLevel(),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "warnings": len(warnings.filters),
        "gradients": torch.is_grad_enabled(),
    }
before = state()
def compare(when):
    after = state()
    for key in before:
        assert before[key] == after[key], (when, key, before[key], after[key])
"""


def said_by(code: str) -> str:
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_importing_the_package_is_light_and_leaves_no_trace() -> None:
    code = """
import os, sys
before = dict(os.environ)
import sppdet
assert dict(os.environ) == before
print(sorted({"torch", "cv2", "numpy", "numba"} & set(sys.modules)))
from sppdet import SppdetError
print(sorted({"torch", "cv2", "numba"} & set(sys.modules)))
"""
    assert said_by(code).splitlines() == ["[]", "[]"]


def test_the_library_leaves_no_trace(
    trained: Path, classified: Path, demo_root: Path, settings: Path, tmp_path: Path
) -> None:
    """All modules are imported, models loaded and used, stages run."""
    use = f"""
import importlib, pkgutil
from pathlib import Path
import sppdet
for module in pkgutil.walk_packages(sppdet.__path__, "sppdet."):
    if not module.name.endswith(("__main__", "spp_triton")):
        importlib.import_module(module.name)
compare("imports")
detector = sppdet.Detector.load({str(trained)!r}, device="cpu")
assert len(detector({str(demo_root / "fresh" / "000019.jpg")!r}))
from sppdet.classification.classifier import load_classifier
load_classifier(Path({str(classified)!r}))
compare("models")
config = sppdet.load_config(Path({str(settings)!r}), ["store={tmp_path}/s"])
sppdet.train(config, Path({str(tmp_path / "run")!r}), device="cpu", until="proposals")
compare("training")
print("same")
"""
    assert said_by(STATE + use).splitlines()[-1] == "same"


def test_the_command_line_sets_the_process_up_before_torch() -> None:
    code = """
import os, sys, runpy
for name in ("OMP_WAIT_POLICY", "THP_MEM_ALLOC_ENABLE"):
    os.environ.pop(name, None)
class Finder:
    def find_spec(self, name, *rest):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("THP_MEM_ALLOC_ENABLE"))
            sys.meta_path.remove(self)
sys.meta_path.insert(0, Finder())
sys.argv = ["sppdet", "detect", "run", "image", "--out", "out"]
try:
    runpy.run_module("sppdet", run_name="__main__")
except SystemExit as stop:
    assert stop.code == 1  # there is no such run
"""
    assert said_by(code).splitlines()[0] == "PASSIVE 1"


def test_the_users_own_variables_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    set_variables()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"


def test_the_installed_command_is_the_module() -> None:
    text = (Path(sppdet.__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert 'sppdet = "sppdet.__main__:main"' in text


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_freed_memory_goes_back_to_the_system() -> None:
    code = """
from pathlib import Path
from sppdet.runs.environment import release_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
blocks = [bytearray(60_000) for _ in range(3000)]
last = bytearray(60_000)  # holds the end of the heap
del blocks
before = resident()
release_memory()
print((before - resident()) // 10**8)
"""
    assert said_by(code) == "1"

"""The dry run of `benchmarks/gpu.py`, and what it does with wrong, failing and slow rows."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu
import gpu_checks
import gpu_pooling
import pytest
import rows
import torch
from bounds import BeyondBound
from rows import Outcome, Row

from sppdet.features.spp import spp_windows

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
# imported only by commands and for settings that these rows don't have
ELSEWHERE = {
    *("huggingface_hub", "onnx", "onnxruntime", "pycocotools", "timm", "triton", "typer"),
    *("anyio", "fastapi", "pandas", "pillow_heif", "psutil", "starlette", "supervision", "uvicorn"),
}
BLOCKED = """
import runpy, sys
for name in {names}:
    sys.modules[name] = None
sys.argv = {arguments}
runpy.run_path({program!r}, run_name="__main__")
"""


def run_program(*arguments: str | Path, without: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """Call the benchmark in a process that lacks some modules: its exit status, stdout and stderr."""
    program = str(ROOT / "benchmarks" / "gpu.py")
    code = BLOCKED.format(names=without, arguments=[program, *map(str, arguments)], program=program)
    path = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )
    return ended.returncode, ended.stdout, ended.stderr


def test_a_dry_run_measures_every_row(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    without = ("typer", "pycocotools", "huggingface_hub", "pillow_heif", "starlette")
    status, out, err = run_program("--dry", "--threads", "1", "--json", file, without=without)
    assert status == 0, out + err
    found = json.loads(file.read_text())
    assert {record["state"] for record in found["rows"]} == {"done"}
    names = [record["row"] for record in found["rows"]]
    assert len(set(names)) == len(names) >= 23
    assert all(f"| {name} | " in out for name in names)
    checks = [record for record in found["rows"] if record["row"].startswith("check:")]
    assert len(checks) == len(gpu_checks.CHECKS)
    assert all(c["facts"] and all("bound" in f for f in c["facts"].values()) for c in checks)
    assert all(record["host_bytes"] > 2**26 for record in found["rows"])
    assert list(tmp_path.iterdir()) == [file]  # nothing else is left


def test_a_missing_package_is_named_before_anything_else(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    status, out, err = run_program("--dry", "--json", file, without=("pydantic", "rich"))
    assert (status, out) == (1, "")
    wheels = "pydantic rich markdown-it-py mdurl pygments"
    assert err == f"missing here, bring their wheels: {wheels}\n"
    assert not file.exists()


def test_all_that_is_imported_has_a_wheel() -> None:
    files = [*(ROOT / "sppdet").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    local = {"sppdet", *(path.stem for path in files)}
    imported = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    missing = imported - set(sys.stdlib_module_names) - local - ELSEWHERE - set(gpu.WHEELS)
    assert missing == set()


def test_a_wrong_kernel_breaks_a_bound(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton isn't installed")
    wrong = """
import os
os.environ["TRITON_INTERPRET"] = "1"
import sppdet.features.spp_triton as kernel
genuine = kernel.pool_into
def pool_into(out, *rest):
    genuine(out, *rest)
    out[-1:, -1] += 0.01
kernel.pool_into = pool_into
"""
    (tmp_path / "sitecustomize.py").write_text(wrong)
    file = tmp_path / "gpu.json"
    program = ROOT / "benchmarks" / "gpu.py"
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    ended = subprocess.run(
        [sys.executable, program, "--dry", "--only", "check: pooling", "--json", file],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    (record,) = json.loads(file.read_text())["rows"]
    assert record["reason"].startswith("BeyondBound: float32, 5×7×8: 0.00")
    assert record["reason"].endswith("off, beyond the bound of 0")
    assert f"failed: {record['reason']} |" in ended.stdout


def otherwise(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Any], None]) -> None:
    """Let every second call of what the checks compare, that of the device, end in something else."""
    genuine, calls = getattr(gpu_checks, name), []

    def call(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        result = genuine(*arguments, **more)
        if len(calls) % 2 == 0:
            change(result)
        return result

    monkeypatch.setattr(gpu_checks, name, call)


def shifted_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = gpu_checks.backbone_on

    def backbone_on(device: torch.device) -> Any:
        here, there = genuine(device)
        with torch.no_grad():
            next(there.layers.parameters()).mul_(1.2)
        return here, there

    monkeypatch.setattr(gpu_checks, "backbone_on", backbone_on)


def shifted_pooling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_pooling, "pooled_there", lambda *a: 1.001 * spp_windows(*a))


def shifted_fine_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(tuner: Any) -> None:
        tuner.head.fc6.weight.data.mul_(1.02)

    otherwise(monkeypatch, "FineTuner", change)


def shifted_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(fits: list[Any]) -> None:
        fits[0] = replace(fits[0], svm=replace(fits[0].svm, weight=1.1 * fits[0].svm.weight))

    otherwise(monkeypatch, "solve", change)


def shifted_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(regression: Any) -> None:
        regression._ridge._products.mul_(1.01)

    otherwise(monkeypatch, "BoxRegression", change)


def shifted_nms(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(found: Any) -> None:
        found.boxes[0] += 30.0

    otherwise(monkeypatch, "suppress", change)


@pytest.mark.parametrize(
    ("check", "shift", "broken"),
    [
        ("pooling", shifted_pooling, "float32, 5×7×8"),
        ("gradients of pooling", shifted_pooling, "float32"),
        ("maps", shifted_backbone, "float32, 96 px"),
        ("fine-tuning of fc", shifted_fine_tuning, "fc6.weight"),
        ("fine-tuning through the pyramid", shifted_backbone, "0.weight"),
        ("SVMs", shifted_solver, "objective of class 0"),
        ("box regression", shifted_regression, "80 × 200"),
        ("scores, NMS, box regression", shifted_backbone, "scores"),
        ("scores, NMS, box regression", shifted_nms, "IoU of boxes after NMS"),
    ],
)
def test_other_values_break_the_bound_of_their_check(
    check: str,
    shift: Callable[[pytest.MonkeyPatch], None],
    broken: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shift(monkeypatch)
    with pytest.raises(BeyondBound, match=f"^{broken}: .* off, beyond the bound of "):
        gpu_checks.CHECKS[f"check: {check}"](CPU)


def fails() -> Outcome:
    raise ValueError("no such net\nand more")


def waits() -> Outcome:
    try:
        time.sleep(5)
    except Exception:  # as code on the way might
        return Outcome("went on")
    return Outcome("slept")


def measured(table: list[Row], file: Path, *, minutes: float = 1, go_on: bool = False) -> Any:
    return rows.measure(table, file, minutes=minutes, machine={"on": "this"}, go_on=go_on)


def test_the_rows_after_a_failing_one_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gpu.json"
    seen: list[str] = []

    def last() -> Outcome:
        seen.extend(record["state"] for record in json.loads(file.read_text())["rows"])
        return Outcome("2 ms", "R-CNN: 4 ms", 2.0)

    table = [Row("a", 9, lambda: Outcome("1 s")), Row("b", 9, fails), Row("c", 0.2, waits)]
    found = measured([*table, Row("d", 9, last)], file)
    assert seen == ["done", "failed", "failed"]  # on disk before the next row begins
    assert [record["state"] for record in found] == [*seen, "done"]
    assert found == json.loads(file.read_text())["rows"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == "| b | failed: ValueError: no such net | | | | | |"
    assert lines[4] == "| c | failed: TookTooLong: took more than 0 s | | | | | |"
    assert lines[5].startswith("| d | 2 ms | R-CNN: 4 ms | 2.0 | ")


def test_a_row_beyond_the_minutes_left_is_skipped_and_a_later_call_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gpu.json"
    table = [Row("long", 100, fails), Row("short", 10, lambda: Outcome("1 s"))]
    first = measured(table, file)
    assert [record["state"] for record in first] == ["skipped", "done"]
    assert "| long | skipped: may take 100 s, and 60 s are left |" in capsys.readouterr().out
    again = measured([*table, Row("new", 1, lambda: Outcome("3 s"))], file, go_on=True)
    assert again[:2] == first and again[2]["ours"] == "3 s"
    report = json.loads(file.read_text())
    report["seconds"] = 58
    file.write_text(json.dumps(report))
    later = measured([*table, Row("later", 10, fails)], file, go_on=True)
    assert later[3]["reason"] == "may take 10 s, and 2 s are left"


@pytest.mark.parametrize("text", ["CUDA error: misaligned address", "Triton Error [CUDA]: bad"])
def test_a_lost_gpu_is_left_for_another_process(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Replaced(Exception):
        pass

    def lost() -> Outcome:
        raise RuntimeError(text)

    def execv(program: str, arguments: list[str]) -> None:
        assert arguments == [sys.executable, "gpu.py", "--dry", "--go-on"]
        raise Replaced

    monkeypatch.setattr("os.execv", execv)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry"])
    file = tmp_path / "gpu.json"
    table = [Row("a", 9, lost), Row("b", 9, lambda: Outcome("1 s"))]
    with pytest.raises(Replaced):
        measured(table, file)
    found = measured(table, file, go_on=True)
    assert [record["state"] for record in found] == ["failed", "done"]

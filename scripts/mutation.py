"""Plant bugs one at a time in a copy of the sources and run the tests that should find them.

The mutations are cosmic-ray's; a sample of the places is drawn by a seed, and one mutation at each.
Every mutant's tests run in a fork of this process, which has imported the libraries but not sppdet.
Results are appended to a file as they come, so that the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mutation_places import AREAS, Mutant, diff, mutated, sample

# modules by area, and the tests of each, the quick ones first; a pattern without files is passed over
TESTS = {
    "stages/svm.py": "test_stage_svm test_pipeline test_resume",
    "stages/bbox.py": "test_stage_bbox test_pipeline test_resume",
    "stages/finetune.py": "test_stage_finetune test_pipeline test_resume",
    "stages/proposer.py": "test_proposals test_stage_maps test_stored_files test_pipeline",
    "stages/evaluate.py": "test_evaluation_files test_stage_run test_pipeline",
    "classification/stage.py": "test_pretrain test_pretrain_resume",
    "stages/pipeline.py": "test_stage_run test_pipeline test_resume",
    "stages/plan.py": "test_pipeline",
    "training/bbox.py": "test_bbox test_stage_bbox",
    "training/dual.py": "test_dual test_svm",
    "training/svm.py": "test_svm test_stage_svm",
    "training/pool.py": "test_svm test_dual",
    "training/finetune.py": "test_finetune test_stage_finetune",
    "training/finetune_windows.py": "test_finetune test_stage_finetune",
    "training/sgd.py": "test_finetune test_trainer test_stage_finetune",
    "stages/training_data.py": "test_stage_svm test_stage_bbox test_pipeline",
    "training/sampling.py": "test_sampling test_stage_svm test_stage_finetune",
    "features/backbones.py": "test_backbones test_backbone_weights test_stage_maps",
    "features/geometry.py": "test_geometry test_scales",
    "features/graph.py": "test_graph test_backbones",
    "features/head.py": "test_head test_stage_finetune",
    "stages/map_memory.py": "test_map_memory test_stage_maps",
    "features/nets.py": "test_norms_nets test_backbones",
    "features/norms.py": "test_norms_nets",
    "features/pyramid.py": "test_pyramid",
    "features/regions.py": "test_detector test_stage_svm",
    "stages/map_cache.py": "test_stage_maps test_stored_files test_pipeline",
    "features/rounding.py": "test_rounding test_stage_maps",
    "features/sparse.py": "test_rounding test_stage_maps",
    "stages/map_files.py": "test_rounding test_stage_maps",
    "features/spp.py": "test_spp test_pyramid",
    "features/spp_triton.py": "test_spp_triton",
    "features/levels.py": "test_spp test_pyramid",
    "training/processes.py": "test_finetune test_svm",
    "stages/detector.py": "test_detector test_stage_run",
    "stages/check*.py": "test_check",
    "features/*.py": "test_backbones test_backbone_weights test_stage_maps test_info",
    "training/*.py": "test_stage_*",
    "drawing/*.py": "test_drawing",
    "folders/*.py": "test_detect_*",
    "detection/*.py": "test_detect_* test_detector",
    "stages/evaluate_files.py": "test_evaluation_ids test_detect_then_eval test_cli",
    "stages/export_proposals.py": "test_cli",
    "stages/model*.py": "test_model_files test_pipeline",
    "stages/*.py": "test_stage_run test_pipeline test_resume",
    "evaluation/*.py": "test_evaluation_*",
    "io/matlab.py": "test_stored_files",
    "io/npz.py": "test_stored_files",
    "io/stored*.py": "test_stored_* test_proposals",
    "io/formats/*.py": "test_formats*",
    "io/writing/*.py": "test_convert* test_yolo_writing test_detect_*",
    "io/*.py": "test_data_* test_names test_digests test_config* test_evaluation_*",
    "proposals/*.py": "test_segmentation test_grouping test_proposals test_edge_boxes",
}
LIBRARIES = [
    "numpy",
    "torch",
    "torchvision.models",
    "torchvision.ops",
    "cv2",
    "numba",
    "pytest",
    "scipy.io",
    "scipy.sparse",
    "sklearn.svm",
    "sklearn.linear_model",
    "matplotlib.pyplot",
    "pydantic",
    "yaml",
    "rich.progress",
    "safetensors.torch",
    "safetensors.numpy",
    "pycocotools.cocoeval",
    "defusedxml.ElementTree",
    "typer",
]


# -- running ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How the tests of a mutant ended: survived, killed, time-out, or an error (not imported)."""

    status: str
    cpu_seconds: float
    test: str  # that found it


class Workshop:
    """A copy of the sources in which modules are replaced and tests are run."""

    def __init__(self, folder: Path, revision: str | None) -> None:
        self.folder = folder
        self.tree = folder / "tree"
        self.package = self.tree / "sppdet"
        self.sources = folder / "sources"  # never changed
        if not self.tree.exists():
            self._copy(revision)
            shutil.rmtree(self.sources, ignore_errors=True)
        if not self.sources.exists():
            shutil.copytree(self.package, self.sources)
        for path in self.sources.rglob("*.py"):  # one was replaced when this was interrupted
            there = self.package / path.relative_to(self.sources)
            if there.read_bytes() != path.read_bytes():
                shutil.copy2(path, there)

    def _copy(self, revision: str | None) -> None:
        temporary = self.folder / "tree.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        if revision:
            archive = subprocess.run(["git", "archive", revision], check=True, capture_output=True)
            subprocess.run(["tar", "x", "-C", temporary], input=archive.stdout, check=True)
        else:
            named = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
            listed = subprocess.run(named, check=True, capture_output=True).stdout
            for name in filter(None, listed.decode().split("\0")):
                if Path(name).is_file():
                    (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(name, temporary / name)
        temporary.rename(self.tree)

    def tests_of(self, module: str) -> list[str]:
        """The test files of a module: of its row, or of its name, its imports and its folder's row."""
        folder, files = self.tree / "tests", list[Path]()
        pattern = next((p for p in TESTS if Path(module).match(p)), None)
        if module != pattern:
            stem, dotted = Path(module).stem, module.removesuffix(".py").replace("/", ".")
            imported = re.compile(rf"sppdet\.{re.escape(dotted)} import")
            for name in (f"test_{stem}.py", f"test_{stem.split('_')[0]}_*.py"):
                files += sorted(folder.glob(name))
            files += [p for p in sorted(folder.glob("test_*.py")) if imported.search(p.read_text())]
        for name in TESTS[pattern].split() if pattern else []:
            files += sorted(folder.glob(f"{name}.py"))
        if not files:
            raise SystemExit(f"{module}: no tests are named for it in scripts/mutation.py")
        return list(dict.fromkeys(path.relative_to(self.tree).as_posix() for path in files))

    def run(
        self, module: str, code: str | None, tests: Sequence[str], *, cpu_limit: float
    ) -> Outcome:
        """The tests with a module's source replaced by `code`, up to the first that fails."""
        # numba doesn't notice a change in another file than the function's own: a cache for each module
        cache = self.folder / "numba" / ("base" if code is None else module.replace("/", "."))
        if code is not None and not cache.exists() and (self.folder / "numba" / "base").exists():
            shutil.copytree(self.folder / "numba" / "base", cache)
        with self._replaced(self.package / module, code):
            return _in_fork(self.tree, tests, cache, self.folder, cpu_limit)

    @contextlib.contextmanager
    def _replaced(self, path: Path, code: str | None) -> Iterator[None]:
        if code is None:
            yield
            return
        kept, state = path.read_bytes(), path.stat()
        try:
            path.write_text(code, encoding="utf-8")
            # another time than any before, or Python would take the compiled original
            os.utime(path, (time.time(), 1e9 + time.monotonic_ns() // 10**6 % 10**9))
            yield
        finally:
            path.write_bytes(kept)
            os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def _in_fork(
    tree: Path, tests: Sequence[str], cache: Path, folder: Path, cpu_limit: float
) -> Outcome:
    output = folder / "output.txt"
    child = os.fork()
    if child == 0:
        os.setsid()
        status = 70
        try:
            status = _test(tree, tests, cache, folder, output, cpu_limit)
        finally:
            os._exit(status)
    start, waited, ended = time.monotonic(), 0, 0
    while not waited:
        waited, ended, used = os.wait4(child, os.WNOHANG)
        if not waited:
            time.sleep(0.05)
            if time.monotonic() - start > 20 * cpu_limit + 60:  # waits for something
                os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):  # what a test has started and left
        os.killpg(child, signal.SIGKILL)
    seconds = used.ru_utime + used.ru_stime
    said = output.read_text(errors="replace") if output.exists() else ""
    failed = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
    test = failed[0].split(" - ")[0] if failed else ""
    if os.WIFSIGNALED(ended):
        by = os.WTERMSIG(ended)
        late = by in (signal.SIGXCPU, signal.SIGKILL)
        return Outcome("time-out" if late else "killed", seconds, f"signal {by}")
    known = {0: "survived", 1: "killed"}
    return Outcome(known.get(os.WEXITSTATUS(ended), "error"), seconds, test)


def _test(
    tree: Path, tests: Sequence[str], cache: Path, folder: Path, output: Path, cpu_limit: float
) -> int:
    import numba
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_limit) + 1, int(cpu_limit) + 10))
    resource.setrlimit(resource.RLIMIT_AS, (48 * 2**30, 48 * 2**30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.chdir(tree)
    numba.config.CACHE_DIR = str(cache)  # type: ignore[attr-defined]
    os.environ |= {
        "NUMBA_CACHE_DIR": str(cache),
        "PYTHONPATH": str(tree),
        "OMP_NUM_THREADS": "1",
        "SPPDET_DATA": "/nonexistent",
    }
    sys.path.insert(0, str(tree))
    # tests in a browser are skipped: it reserves more addresses than the limit
    sys.modules["playwright"] = None  # type: ignore[assignment]
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    arguments = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", f"--basetemp={scratch}", *tests]
    return int(pytest.main(arguments))


# -- the command -----------------------------------------------------------------------------------


def table(results: Sequence[dict[str, Any]]) -> str:
    """Per area the mutants, those killed and those that survived."""
    lines = ["| area | mutants | killed | survived | score |", "|---|---|---|---|---|"]
    for area in (*AREAS, "all"):
        here = [r for r in results if area in (r["area"], "all")]
        alive = sum(r["status"] == "survived" for r in here)
        killed = len(here) - alive
        score = f"{killed / len(here):.0%}" if here else "–"
        lines.append(f"| {area} | {len(here)} | {killed} | {alive} | {score} |")
    return "\n".join(lines)


class Results:
    """What is known of mutants and of the tests without any, appended to files as it comes."""

    def __init__(self, folder: Path, hints: Sequence[Path]) -> None:
        self._path = folder / "results.jsonl"
        self._plain = folder / "plain.jsonl"
        self.of_mutants = {r["key"]: r for r in _lines(self._path)}
        self.seconds: dict[str, float] = {r["tests"]: r["seconds"] for r in _lines(self._plain)}
        earlier = [r for hint in hints for r in _lines(hint)]
        self.hints: dict[str, str] = {r["key"]: r["test"].split()[-1] for r in earlier if r["test"]}

    def add(self, mutant: Mutant, outcome: Outcome) -> None:
        """Keep how a mutant's tests ended."""
        self.of_mutants[mutant.key] = {**asdict(mutant), **asdict(outcome)}
        _append(self._path, self.of_mutants[mutant.key])

    def add_plain(self, tests: Sequence[str], seconds: float) -> None:
        """Keep how long tests take without a mutant."""
        self.seconds[" ".join(tests)] = seconds
        _append(self._plain, {"tests": " ".join(tests), "seconds": seconds})


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a") as handle:
        handle.write(json.dumps(record) + "\n")


def tried(
    workshop: Workshop, mutant: Mutant, results: Results, *, cpu_limit: float, trusted: bool
) -> Outcome:
    """Test a mutant: by the test that found it elsewhere, then by all tests of its module."""
    code = mutated(workshop.sources, mutant)
    hint = results.hints.get(mutant.key, "")
    if hint and (workshop.tree / hint.split("::")[0]).exists():
        outcome = workshop.run(mutant.module, code, [hint], cpu_limit=cpu_limit)
        if outcome.status == "killed":
            return outcome
    tests = workshop.tests_of(mutant.module)
    if not trusted and " ".join(tests) not in results.seconds:
        plain = workshop.run(mutant.module, None, tests, cpu_limit=900)
        if plain.status != "survived":
            raise SystemExit(f"{' '.join(tests)}: {plain.status} without a mutant: {plain.test}")
        results.add_plain(tests, plain.cpu_seconds)
    limit = results.seconds.get(" ".join(tests), 0.0) + cpu_limit
    return workshop.run(mutant.module, code, tests, cpu_limit=limit)


def main() -> None:
    """Run the mutants that have no result yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, prog="scripts/mutants")
    add = parser.add_argument
    add("--sample", type=int, default=40, help="mutants of each area")
    add("--seed", type=int, default=0, help="of the sample")
    add("--rev", help="a git revision; the working tree without it")
    add("--areas", nargs="+", choices=AREAS, default=list(AREAS))
    add("--out", type=Path, required=True, help="folder of the copy and of the results")
    add("--cpu-limit", type=float, default=60.0, help="seconds beyond the unmutated tests'")
    add("--again", action="store_true", help="copy the sources again and test the survivors again")
    add("--trusted", action="store_true", help="the tests pass: don't run them unmutated first")
    add("--hints", type=Path, nargs="+", default=[], help="results.jsonl of runs to learn from")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.again:
        for name in ("tree", "sources", "numba", "plain.jsonl"):
            path = given.out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    workshop = Workshop(given.out.resolve(), given.rev)
    drawn = sample(workshop.sources, count=given.sample, seed=given.seed)
    chosen = [mutant for mutant in drawn if mutant.area in given.areas]
    results = Results(given.out, given.hints)
    # idle threads that spin would cost most of the time
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for library in LIBRARIES:
        __import__(library)
    for number, mutant in enumerate(chosen, start=1):
        known = results.of_mutants.get(mutant.key)
        if known and not (given.again and known["status"] == "survived"):
            continue
        outcome = tried(workshop, mutant, results, cpu_limit=given.cpu_limit, trusted=given.trusted)
        results.add(mutant, outcome)
        where = f"{mutant.module}:{mutant.line} {mutant.operator}"
        done = f"{number}/{len(chosen)} {outcome.status} {where}"
        print(f"{done} ({outcome.cpu_seconds:.0f} s) {outcome.test}", flush=True)
    found = [results.of_mutants[mutant.key] for mutant in chosen]
    alive = {r["key"] for r in found if r["status"] == "survived"}
    survivors = [mutant for mutant in chosen if mutant.key in alive]
    text = "\n".join(diff(workshop.sources, m, mutated(workshop.sources, m)) for m in survivors)
    (given.out / "survivors.diff").write_text(text)
    print(table(found))
    print(f"the survivors are in {given.out / 'survivors.diff'}")


if __name__ == "__main__":
    main()

"""Files of a run: whole or not at all, fingerprinted, the same bytes from the same content."""

from __future__ import annotations

import ast
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import sppdet
from sppdet.errors import ArtifactError
from sppdet.runs.artifacts import (
    atomic_path,
    fingerprint,
    fingerprint_of,
    is_intact,
    read_json,
    read_tensors,
    remove_leftovers,
    write_json,
    write_tensors,
    write_text,
)
from sppdet.runs.processes import place, start_of

SOURCES = sorted(Path(sppdet.__file__).parent.rglob("*.py"))
WRITER = """
import sys; from pathlib import Path; import torch; from sppdet.runs.artifacts import write_tensors
names = {"b", "a", "weights", "biases", "refs0"}
about = {key: 1 for key in {"done", "image", "batch", "x"}}
write_tensors(Path(sys.argv[1]), {n: torch.arange(5.0) for n in names}, made_by="f", about=about)
"""


def test_an_exception_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyError), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyError("interrupted")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_of_tensors_leaves_the_old_content(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.zeros(2)}, made_by="old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # as where the disk is full
    try:
        with pytest.raises(
            ArtifactError, match=r"a\.safetensors: can't be written: File too large"
        ):
            write_tensors(path, {"x": torch.ones(2000)}, made_by="new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert is_intact(path, "old")
    assert list(tmp_path.iterdir()) == [path]


def temporaries(folder: Path) -> list[Path]:
    return [p for p in folder.rglob(".*") if p.is_file()]


def test_every_name_that_the_file_system_takes_can_be_written(tmp_path: Path) -> None:
    for name in ("n" * 255, "ü" * 127, "-" * 251 + ".jpg"):
        write_text(tmp_path / "sub" / name, "x")
    assert len(list((tmp_path / "sub").iterdir())) == 3
    with pytest.raises(ArtifactError, match="can't be written: File name too long"):
        write_text(tmp_path / ("n" * 256), "x")
    assert not temporaries(tmp_path)


# two processes that write into a folder
WAITING = """
import os, sys, time; from pathlib import Path; from sppdet.runs.artifacts import atomic_path
name = "a" if os.fork() else "b"
with atomic_path(Path(sys.argv[1]) / name) as temporary:
    temporary.write_text("half"); line = f"{name} {os.getpid()} {temporary}\\n"
    os.write(1, line.encode()); time.sleep(300)  # whole, also beside the other's and unbuffered
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", WAITING, str(tmp_path / "one")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    started = [parent.stdout.readline().split() for _ in range(2)]
    temporary = {name: Path(path) for name, _, path in started}
    child = next(int(pid) for name, pid, _ in started if name == "b")
    try:
        parent.kill()
        os.waitid(os.P_PID, parent.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
        write_text(tmp_path / "one" / "c", "x")
        assert not temporary["a"].exists() and temporary["b"].read_text() == "half"
        names = {p.name for p in (tmp_path / "one").iterdir()}
        assert names == {temporary["b"].name, "c"}
    finally:
        os.kill(child, signal.SIGKILL)
        parent.kill()
        parent.communicate()  # waits for the child too, which has the same output
    for _ in range(100):
        remove_leftovers(tmp_path)  # also below
        if not temporary["b"].exists():
            break
        time.sleep(0.1)
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["c"]


def test_only_what_is_certainly_left_over_is_removed(tmp_path: Path) -> None:
    own, elsewhere, day = f"{place()}-{os.getpid()}", "0123abcd-4194305", 25 * 3600
    assert not own.startswith("0123abcd")
    names = {
        f".tmp-{own}-{start_of(os.getpid())}-999999": (
            day,
            True,
        ),  # another thread of ours writes it
        f".tmp-{own}-1-0": (
            0,
            not Path("/proc/self/stat").exists(),
        ),  # an earlier one of this number
        f".tmp-{place()}-4194305-17-0": (0, False),  # no such process
        f".tmp-{elsewhere}-17-0": (23 * 3600, True),  # of another machine, which may be at work
        f".tmp-{elsewhere}-17-1": (day, False),
        ".svm.safetensors.12-34.tmp": (day, False),  # by an earlier version
        ".svm.safetensors.12-34.tm": (day, True),
        ".config.yaml.5-6.tmp": (0, True),
        ".tmp-notes": (day, True),  # somebody else's
        ".tmpAb3xYz": (day, True),
        "tmp-0123abcd-1-1-1": (day, True),
    }
    for name, (age, _) in names.items():
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    (tmp_path / f".tmp-{elsewhere}-17-2").mkdir()
    linked = tmp_path / f".tmp-{place()}-4194305-17-3"
    linked.symlink_to(tmp_path / ".tmp-notes")
    remove_leftovers(tmp_path, tmp_path / "nowhere")
    left = {p.name for p in tmp_path.iterdir() if p.is_file() and not p.is_symlink()}
    assert left == {name for name, (_, stays) in names.items() if stays}
    assert (tmp_path / f".tmp-{elsewhere}-17-2").is_dir() and linked.is_symlink()


def test_an_unwritable_place_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ArtifactError, match="a: can't be written: Is a directory"):
        write_text(tmp_path / "a", "x")


def test_fingerprints_change_with_their_input() -> None:
    parts = [("a", 1), ("a", 2), ("b", 1), ("a", "1"), ("a", 1, None), ({"k": 1.0},), ({"k": 2.0},)]
    assert len({fingerprint(*p) for p in parts}) == len(parts)
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert len(fingerprint()) == 16


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"x": [0.1 + 0.2, 1e-300, -0.0], "é": None}
    write_json(tmp_path / "sub" / "a.json", value)
    assert read_json(tmp_path / "sub" / "a.json") == value
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", math.nan)
    with pytest.raises(ArtifactError, match=r"b\.json: no such file"):
        read_json(tmp_path / "b.json")
    (tmp_path / "c.json").write_text('{"x": ')
    with pytest.raises(ArtifactError, match=r"c\.json: damaged"):
        read_json(tmp_path / "c.json")


def test_tensors_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {
        "half": torch.randn(2, 3).half(),
        "view": torch.arange(12).view(3, 4).T[1:],
        "none": torch.zeros(0, 4),
        "number": torch.tensor(3),
    }
    write_tensors(path, tensors, made_by="abc", about={"done": 7, "loss": math.inf})
    found, about = read_tensors(path)
    assert about == {"done": 7, "loss": math.inf}
    assert fingerprint_of(path) == "abc"
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def damaged(path: Path) -> Iterator[bytes]:
    whole = path.read_bytes()
    yield b""
    yield whole[:5]
    yield whole[:40]
    yield whole[:-1]
    yield b"\xff" * 8 + whole[8:]
    yield whole.replace(b'{\\"about\\"', b'[\\"about\\"')
    yield b"PK\x03\x04 something else altogether"


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0)])
def test_empty_tensors_of_any_strides_round_trip(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """NumPy hands out empty arrays with strides that torch wouldn't choose."""
    empty = torch.zeros(0, dtype=torch.int64).as_strided(shape, (0,) * len(shape))
    write_tensors(tmp_path / "empty", {"labels": empty, "one": torch.ones(1)}, made_by="x")
    tensors, _ = read_tensors(tmp_path / "empty")
    assert tensors["labels"].shape == shape
    assert tensors["labels"].dtype == torch.int64


def test_damaged_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.arange(100.0)}, made_by="f")
    for content in list(damaged(path)):
        path.write_bytes(content)
        assert fingerprint_of(path) is None
        with pytest.raises(ArtifactError, match=r"a\.safetensors: (damaged|has no checksum)"):
            read_tensors(path)
    path.unlink()
    assert fingerprint_of(path) is None
    with pytest.raises(ArtifactError, match=r"a\.safetensors: no such file"):
        read_tensors(path)


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    """Of names, types, shapes, facts and content: all that the file says is under the checksum."""
    path = tmp_path / "a.safetensors"
    tensors = {"x": torch.arange(6, dtype=torch.int16).view(2, 3), "y": torch.zeros(2, 3).short()}
    write_tensors(path, tensors, made_by="f", about={"done": 7})
    whole = path.read_bytes()
    unnoticed = []
    for position in range(len(whole)):
        for change in (0x01, 0x80):
            other = bytearray(whole)
            other[position] ^= change
            path.write_bytes(other)
            try:
                found, about = read_tensors(path)
            except ArtifactError:
                continue
            unnoticed.append((position, found, about))
    # only white space of the header may change without a change of what is read
    for position, found, about in unnoticed:
        assert whole[position : position + 1] in b" \n", position
        assert about == {"done": 7} and all(torch.equal(found[k], tensors[k]) for k in tensors)


def test_exchanged_shapes_and_names_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.zeros(2, 3), "y": torch.zeros(4)}, made_by="f")
    whole = path.read_bytes()
    for old, new in ((b"[2,3]", b"[3,2]"), (b'"x"', b'"z"'), (b'"F32"', b'"I32"')):
        assert old in whole
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(ArtifactError, match="damaged: its content doesn't match its checksum"):
            read_tensors(path)
        assert fingerprint_of(path) == "f" and not is_intact(path, "f")
    path.write_bytes(whole)
    assert is_intact(path, "f") and not is_intact(path, "g")


def test_a_file_without_a_checksum_is_stale(tmp_path: Path) -> None:
    """As versions before the checksum wrote them, and as others do."""
    path, old = tmp_path / "a.safetensors", json.dumps({"fingerprint": "f", "about": {}})
    for metadata in (None, {"sppdet": old}, {"sppdet": "[" * 3000}, {"sppdet": "3"}):
        save_file({"x": torch.zeros(1)}, str(path), metadata=metadata)
        assert fingerprint_of(path) is None
        with pytest.raises(
            ArtifactError, match=r"has no checksum: .*earlier version|damaged: .*recu"
        ):
            read_tensors(path)


def test_the_same_content_gives_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", WRITER, str(tmp_path / seed)]
        subprocess.run(command, check=True, env=environment)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def problems_of(tree: ast.AST) -> Iterator[str]:
    """What could run code that a file holds."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            if name.split(".")[0] in ("pickle", "cPickle", "dill", "joblib", "shelve", "marshal"):
                yield f"imports {name}"
        if not isinstance(node, ast.Call):
            continue
        called, keywords = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
        if called in ("eval", "exec", "pickle.load", "pickle.loads"):
            yield called
        if called == "torch.load" and ast.unparse(keywords.get("weights_only", node)) != "True":
            yield "torch.load without weights_only"
        if called in ("yaml.unsafe_load", "yaml.full_load", "yaml.load_all"):
            yield called
        loader = ast.unparse(keywords.get("Loader", node))
        if called in ("yaml.load", "yaml.parse") and loader != "yaml.SafeLoader":
            yield "yaml.load with another loader"
        if called == "np.load" and ast.unparse(keywords.get("allow_pickle", node)) != "False":
            yield "np.load without allow_pickle=False"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(SOURCES[0].parent)))
def test_no_source_runs_what_a_file_holds(path: Path) -> None:
    assert list(problems_of(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_the_search_for_such_code_finds_it() -> None:
    code = "import pickle\ntorch.load(f)\nyaml.load(f, Loader=yaml.Loader)\nnp.load(f)\neval(s)"
    assert len(list(problems_of(ast.parse(code)))) == 5


def test_yaml_loader_makes_no_objects(tmp_path: Path) -> None:
    from sppdet.errors import ConfigError
    from sppdet.io.settings import read_yaml

    path = tmp_path / "a.yaml"
    path.write_text(f"x: !!python/object/apply:os.mkdir [{tmp_path / 'made'}]\n")
    with pytest.raises(
        ConfigError, match=r"line 1: !!python/object/apply:os\.mkdir: tags are refused"
    ):
        read_yaml(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "timings.json")
    with pytest.raises(ArtifactError, match="is no regular file"):
        read_json(tmp_path / "timings.json")

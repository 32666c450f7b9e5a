"""Files of a run: whole or not at all, fingerprinted, the same bytes from the same content."""

from __future__ import annotations

import ast
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

import sppdet
from sppdet.artifacts import (
    ItemStore,
    atomic_path,
    fingerprint,
    fingerprint_of,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
    write_text,
)
from sppdet.errors import ArtifactError

SOURCES = sorted(Path(sppdet.__file__).parent.rglob("*.py"))
WRITER = """
import sys; from pathlib import Path; import torch; from sppdet.artifacts import write_tensors
names = {"b", "a", "weights", "biases", "refs0"}
about = {key: 1 for key in {"done", "picture", "batch", "x"}}
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


def test_a_failed_write_of_tensors_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.zeros(2)}, made_by="old")

    def full(_: object, name: str, **__: object) -> None:
        Path(name).write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("sppdet.artifacts.save_file", full)
    with pytest.raises(ArtifactError, match=r"can't be written: .*No space"):
        write_tensors(path, {"x": torch.ones(2)}, made_by="new")
    assert fingerprint_of(path) == "old"
    assert list(tmp_path.iterdir()) == [path]


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


def test_damaged_tensors(tmp_path: Path) -> None:
    store = ItemStore(tmp_path, "maps", "s")
    store.write("one", "d", {"x": torch.arange(100.0)})
    (path,) = store.folder.iterdir()
    assert store.has("one", "d") and torch.equal(store.read("one", "d")["x"], torch.arange(100.0))
    for content in list(damaged(path)):
        path.write_bytes(content)
        assert not store.has("one", "d")
        with pytest.raises(ArtifactError, match=r"one-d\.safetensors: damaged"):
            store.read("one", "d")
    path.unlink()
    assert not store.has("one", "d")
    with pytest.raises(ArtifactError, match=r"one-d\.safetensors: no such file"):
        store.read("one", "d")


def test_a_file_without_our_header_has_no_fingerprint(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, str(tmp_path / "a.safetensors"))
    assert fingerprint_of(tmp_path / "a.safetensors") is None
    assert read_tensors(tmp_path / "a.safetensors")[1] == {}


def test_items_are_of_their_picture_and_settings(tmp_path: Path) -> None:
    store = ItemStore(tmp_path, "maps", "s")
    store.write("one", "digest", {"x": torch.zeros(1)})
    assert store.has("one", "digest")
    assert not store.has("one", "another digest")
    assert not store.has("two", "digest")
    other = ItemStore(tmp_path, "maps", "t")
    assert not other.has("one", "digest")
    other.folder.mkdir()
    (path,) = store.folder.iterdir()
    path.rename(other.folder / path.name)
    assert not other.has("one", "digest")


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
    from sppdet.config_file import read_yaml
    from sppdet.errors import ConfigError

    path = tmp_path / "a.yaml"
    path.write_text(f"x: !!python/object/apply:os.mkdir [{tmp_path / 'made'}]\n")
    with pytest.raises(
        ConfigError, match=r"line 1: !!python/object/apply:os\.mkdir: tags are refused"
    ):
        read_yaml(path)
    assert not (tmp_path / "made").exists()

"""Digests of files by content: what is read again, what is remembered, and what has the same name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from images import shape_sets
from sppdet.classification.data import read_folder
from sppdet.config import FeaturesConfig, ProposalsConfig
from sppdet.errors import ImageError
from sppdet.features.backbones import Backbone
from sppdet.io.digests import FileDigests
from sppdet.io.image_cache import ImageCache
from sppdet.parallel import arithmetic
from sppdet.stages.map_cache import MapCache
from sppdet.stages.proposer import Proposer


def digests_of(root: Path, cache: FileDigests | None = None) -> dict[str, str]:
    paths = sorted(p for p in root.rglob("*") if p.is_file())
    found = (cache or FileDigests(root)).of(paths, workers=2)
    return {p.relative_to(root).as_posix(): d for p, d in zip(paths, found, strict=True)}


def keep_times(path: Path, content: bytes) -> None:
    """Other content of the same size at the same mtime."""
    state = path.stat()
    assert state.st_size == len(content)
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_unchanged_files_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, stored = tmp_path / "a", tmp_path / "digests.json"
    for number in range(600):  # more than a thread takes at once
        path = root / f"c{number % 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(str(number % 7).encode())
    cache = FileDigests(root)
    first = digests_of(root, cache)
    assert len(first) == 600 and len(set(first.values())) == 7
    cache.save(stored)
    cache.save(tmp_path / "again.json")
    assert stored.read_bytes() == (tmp_path / "again.json").read_bytes()

    read: list[str] = []

    def noted(path: Path, error: type[Exception]) -> bytes:
        read.append(path.name)
        return path.read_bytes()

    monkeypatch.setattr("sppdet.io.digests.read_bytes", noted)
    assert digests_of(root, FileDigests.load(stored, root)) == first and not read
    root.rename(tmp_path / "moved")
    root = tmp_path / "moved"
    assert digests_of(root, FileDigests.load(stored, root)) == first and not read
    keep_times(root / "c0" / "3.jpg", b"x")
    os.utime(root / "c1" / "1.jpg")
    changed = digests_of(root, FileDigests.load(stored, root))
    assert sorted(read) == ["1.jpg", "3.jpg"]
    assert {name for name in first if changed[name] != first[name]} == {"c0/3.jpg"}


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"version": 1}', '{"version": 1, "files": []}', '{"version": 2, "files": 3}',
     '{"version": 1, "files": {"x": 1}}', '{"version": 1, "files": {"x": [1, 2, 3, 4]}}',
     '{"version": 1, "files": {"x": ["1", 2, 3, "d"]}}', "[" * 5000],
)  # fmt: skip
def test_a_damaged_memory_of_digests_is_read_as_empty(tmp_path: Path, content: str) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "x").write_text("x")
    (tmp_path / "digests.json").write_text(content)
    cache = FileDigests.load(tmp_path / "digests.json", tmp_path / "set")
    assert digests_of(tmp_path / "set", cache) == digests_of(tmp_path / "set")
    with pytest.raises(ImageError, match="nothing: can't be read: No such file"):
        list(cache.of([tmp_path / "nothing"], workers=1))


def test_a_classifiers_data_is_its_content_labels_and_names(tmp_path: Path) -> None:
    def digest(root: Path) -> str:
        return read_folder(root / "train").digest(FileDigests(root), workers=2)

    root = shape_sets(tmp_path / "sets", train=3, val=1)
    first = digest(root)
    moved = Path(shutil.copytree(root, tmp_path / "elsewhere" / "set"))
    assert digest(moved) == first
    (moved / "train").rename(moved / "val2")
    assert read_folder(moved / "val2").digest(FileDigests(moved), workers=1) == first
    (moved / "val2").rename(moved / "train")
    one, two, *_ = sorted((moved / "train").rglob("*.*"))
    other = sorted((moved / "train").rglob("*.*"))[-1]
    assert one.parent == two.parent != other.parent
    seen = {first}

    def changed() -> None:
        seen.add(digest(moved))

    data = one.read_bytes()
    keep_times(one, data[:-1] + bytes([data[-1] ^ 1]))
    changed()
    one.write_bytes(data)
    assert digest(moved) == first
    one.rename(one.with_name("zzz" + one.suffix))  # another order
    changed()
    one.with_name("zzz" + one.suffix).rename(one)
    one.rename(other.parent / ("new" + one.suffix))  # another label
    changed()
    (other.parent / ("new" + one.suffix)).rename(one)
    one.parent.rename(one.parent.with_name("renamed"))  # another name of a class
    changed()
    assert len(seen) == 5


def test_stored_proposals_are_told_by_their_content(tmp_path: Path) -> None:
    folder = tmp_path / "boxes"
    (folder / "sub").mkdir(parents=True)
    for name in ("1", "sub/2"):
        np.savez(folder / f"{name}.npz", boxes=np.zeros((1, 4)))
    np.savez(tmp_path / "all.npz", one=np.zeros((1, 4)))

    def told(*paths: Path) -> str:
        return Proposer(ProposalsConfig(engine="stored", path=list(paths))).fingerprint

    first, both = told(folder), told(folder, tmp_path / "all.npz")
    os.utime(folder / "1.npz")
    (folder / "notes.txt").write_text("nothing of interest")
    moved = folder.rename(tmp_path / "moved")
    (tmp_path / "all.npz").rename(tmp_path / "other.npz")
    assert told(moved) == first and told(moved, tmp_path / "other.npz") == both
    assert told(tmp_path / "other.npz", moved) != both  # the first that names an image wins
    data = (moved / "sub" / "2.npz").read_bytes()
    changed = data.replace(b"\0" * 8, b"\0" * 7 + b"@", 1)
    assert changed != data
    keep_times(moved / "sub" / "2.npz", changed)
    assert told(moved) != first
    (moved / "sub" / "2.npz").write_bytes(data)
    assert told(moved) == first
    (moved / "1.npz").rename(moved / "3.npz")
    assert told(moved) != first


def test_maps_are_told_by_the_arithmetic_that_made_them(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(precision: str) -> str:
        config = FeaturesConfig.model_validate({"precision": precision})
        return MapCache(tiny, [96], config, ImageCache()).fingerprint

    assert told("auto") == told("float32")  # on a CPU
    assert len({told(p) for p in ("float32", "float16", "bfloat16")}) == 3

    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert arithmetic("auto", gpu) == arithmetic("float16", gpu) == arithmetic("float16", cpu)
    assert arithmetic("auto", cpu) == arithmetic("float32", cpu) == "float32"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert arithmetic("float32", gpu) == "tf32" and arithmetic("float32", cpu) == "float32"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert arithmetic("float32", gpu) == "float32"

"""Stores of one file an image: names by digest, arrays checked, damage said and made again."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sppdet.errors import ArtifactError
from sppdet.runs.artifacts import read_tensors, write_tensors
from sppdet.runs.items import ItemStore
from sppdet.tensor_types import TensorType, Types
from sppdet.types import Proposals

BOXES = torch.arange(8.0).view(2, 4)
Change = Callable[[Path], object]


def expected(_: Types) -> Types:
    return {"boxes": TensorType(torch.float32, (None, 4))}


@pytest.fixture
def store(tmp_path: Path) -> ItemStore:
    return ItemStore(tmp_path, "proposals", "s", expected)


def test_items_are_of_their_image_and_settings(store: ItemStore, tmp_path: Path) -> None:
    store.write("one", "digest", {"boxes": BOXES})
    assert store.has("one", "digest")
    assert not store.has("one", "another digest")
    assert not store.has("two", "digest")
    assert not store.has("one\0digest", "")
    other = ItemStore(tmp_path, "proposals", "t", expected)
    assert not other.has("one", "digest")
    other.folder.mkdir()
    (path,) = store.folder.iterdir()
    path.rename(other.folder / path.name)
    assert not other.has("one", "digest")


@pytest.mark.parametrize("name", ["n" * 250, "ü" * 125, "a/b/../c", "sur\udcffrogate", "", "a\0b"])
def test_any_id_has_a_file_and_stands_in_its_header(store: ItemStore, name: str) -> None:
    store.write(name, "digest", {"boxes": BOXES})
    found = store.get(name, "digest", dict)
    assert found is not None and torch.equal(found["boxes"], BOXES)
    (path,) = store.folder.iterdir()
    assert path == store.path(name, "digest") and len(path.name) == 32 + len(".safetensors")
    assert read_tensors(path)[1] == {"id": name, "source": "digest"}


def rewritten(path: Path, **tensors: torch.Tensor) -> None:
    """With a checksum that is right."""
    from sppdet.runs.artifacts import fingerprint_of

    made_by = fingerprint_of(path)
    assert made_by is not None
    write_tensors(path, tensors, made_by=made_by)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-3]), "damaged"),
        (lambda p: p.write_bytes(b""), "damaged"),
        (lambda p: p.write_bytes(p.read_bytes() + b"more"), "damaged"),
        (lambda p: rewritten(p), "tensor boxes is missing, expected float32 (any, 4)"),
        (lambda p: rewritten(p, boxes=BOXES, more=BOXES), "tensor more isn't expected"),
        (
            lambda p: rewritten(p, boxes=BOXES.view(4, 2)),
            "boxes is float32 (4, 2), expected float3",
        ),
        (
            lambda p: rewritten(p, boxes=BOXES.double()),
            "boxes is float64 (2, 4), expected float32 (",
        ),
        (lambda p: rewritten(p, boxes=BOXES[0]), "boxes is float32 (4), expected float32 (any, 4)"),
    ],
)
def test_an_item_that_isnt_whole_is_not_there(
    store: ItemStore, change: Change, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.write("one", "digest", {"boxes": BOXES})
    path = store.path("one", "digest")
    whole = path.read_bytes()
    change(path)
    with caplog.at_level(logging.WARNING):
        assert not store.has("one", "digest")
        (said,) = [record.getMessage() for record in caplog.records]
        assert said.startswith(f"{path} (image one): ") and why in said
        caplog.clear()
        assert store.get("one", "digest", dict) is None
        assert len(caplog.records) == 1
    store.write("one", "digest", {"boxes": BOXES})
    assert path.read_bytes() == whole and store.has("one", "digest")


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_content_is_verified_where_it_is_read(
    store: ItemStore, broken: float, caplog: pytest.LogCaptureFixture
) -> None:
    store.write("one", "digest", {"boxes": BOXES})
    path = store.path("one", "digest")
    path.write_bytes(path.read_bytes()[:-4] + torch.tensor(broken).numpy().tobytes())
    assert store.has("one", "digest")  # the header is what it was
    assert store.get("one", "digest", dict) is None
    assert "its content doesn't match its checksum" in caplog.text
    caplog.clear()
    boxes = torch.cat([BOXES, torch.full((1, 4), broken)])
    rewritten(path, boxes=boxes)
    assert store.get("one", "digest", dict) is None
    assert "tensor boxes has values that aren't finite; it is made again" in caplog.text
    with pytest.raises(ArtifactError, match=r"image one.*boxes has values that aren't finite"):
        store.write("one", "digest", {"boxes": boxes})


def test_a_store_refuses_what_it_would_not_read(store: ItemStore) -> None:
    with pytest.raises(ValueError, match=r"boxes is float64 \(2, 4\), expected float32 \(any, 4\)"):
        store.write("one", "digest", {"boxes": BOXES.double()})


def test_values_that_cannot_be_are_damage(
    store: ItemStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A checksum that holds doesn't say that the values make sense."""
    good = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    for boxes in (good, good.flip(1)):
        store.write("one", "digest", {"boxes": boxes})
        found = store.get("one", "digest", lambda t: Proposals(t["boxes"].numpy()))
        assert (found is not None) == (boxes is good)
    assert "has no area; it is made again" in caplog.text

"""Areas of arrays that others made: proposals and weights."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.io import savemat

from campaigns.areas import JSON_TOKENS, Area, reader
from campaigns.mutation import WORDS, mutants
from campaigns.verdict import judge
from campaigns.workspace import Workspace
from sppdet.io.backbone_weights import load_backbone
from sppdet.io.stored_proposals import StoredProposals


def proposal_areas(space: Workspace) -> list[Area]:
    mat, npz, folder = space.root / "fuzz.mat", space.root / "fuzz.npz", space.root / "fuzz-npz"
    folder.mkdir()

    def look_up(path: Path) -> None:
        stored = StoredProposals(path)
        found = stored.look_up("a", width=60, height=40, max_boxes=10).boxes
        inside = (found >= 0).all() and (found <= [60, 40, 60, 40]).all()
        if found.dtype != np.float32 or found.shape[1:] != (4,) or len(found) > 10 or not inside:
            raise ValueError(f"proposals {found.dtype} {found.shape}")

    return [
        Area(
            "mat", ".mat", list(_matlab_files()), reader(mat, lambda: look_up(mat)),
            _matlab(), [b"MATLAB 7.3", b"\x0e\x00\x00\x00", b"\x0f\x00\x00\x00", b"\xff\xff\xff\xff"],
            seconds=60,
        ),
        Area(
            "npz", ".npz", [_npz({"a": np.ones((3, 4)), "b": np.zeros((0, 4), np.float32)})],
            reader(npz, lambda: look_up(npz)), _arrays("a"),
            [b"PK\x03\x04", b"'O'", b"|O", b"(9999999999,4)"],
        ),
        Area(
            "npz-folder", ".npz", [_npz({"boxes": np.ones((3, 4), np.float32)})],
            reader(folder / "a.npz", lambda: look_up(folder), name=folder.name), _arrays("boxes"),
            [b"PK\x05\x06", b"\x93NUMPY"],
        ),
    ]  # fmt: skip


def _cells(values: Sequence[Any]) -> NDArray[Any]:
    cells = np.empty((1, len(values)), dtype=object)
    for k, value in enumerate(values):
        cells[0, k] = value
    return cells


def _mat(content: dict[str, Any], **more: Any) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, content, **more)
    return buffer.getvalue()


def _matlab_files() -> Iterator[bytes]:
    boxes = np.array([[1.0, 1, 20, 30], [5, 5, 40, 60]])
    content = {"images": _cells(["a", "b"]), "boxes": _cells([boxes, boxes[:0]])}
    yield _mat(content)
    yield _mat(content, do_compression=True)
    yield _mat({"images": np.array(["a"]), "boxes": boxes})
    yield _mat({"images": np.array(["a"]), "boxes": boxes}, format="4")
    yield _mat({"images": {"a": 1, "b": _cells(["c"])}, "boxes": boxes.astype(np.uint8)})


_DTYPES = ("f4", "f8", "f2", "i4", "i8", "u1", "u8", "c8", "?", "U3", "S3", "M8[s]", "V4", "f16")


@st.composite
def _array(draw: st.DrawFn) -> NDArray[Any]:
    shape = draw(
        st.lists(st.sampled_from((0, 1, 2, 4, 5)), max_size=3).map(tuple) | st.just((3, 4))
    )
    kind = draw(st.sampled_from(_DTYPES))
    count = int(np.prod(shape, dtype=int))
    data = draw(st.binary(min_size=64, max_size=64)) * (1 + count)
    dtype = np.dtype(kind)
    if draw(st.booleans()) and dtype.kind in "fiu":
        numbers = draw(
            st.lists(st.sampled_from((0, 1, 2, 30, -5, 100, 2**31 - 1)), min_size=4, max_size=4)
        )
        with np.errstate(all="ignore"):
            return np.resize(np.array(numbers), shape).astype(dtype)
    if dtype.kind in "U?":
        return np.zeros(shape, dtype)
    return np.frombuffer(data, dtype, count).reshape(shape)


@st.composite
def _matlab(draw: st.DrawFn) -> bytes:
    def cell() -> Any:
        kind = draw(st.integers(0, 4))
        if kind == 0:
            return draw(
                st.sampled_from([w for w in WORDS if "\ud800" not in w and "\udcff" not in w])
            )
        if kind == 1:
            return {"a": 1.0}
        if kind == 2:
            return _cells(["a"])
        return draw(_array())

    names = [draw(st.sampled_from(("a", "b"))) if draw(st.booleans()) else cell() for _ in range(2)]
    content = {
        "images": _cells(names),
        "boxes": _cells([cell() for _ in range(draw(st.integers(0, 3)))]),
    }
    if draw(st.integers(0, 5)) == 0:
        content["boxes"] = draw(_array())
    try:
        return _mat(content, do_compression=draw(st.booleans()))
    except Exception:  # what scipy doesn't write
        return _mat({"images": _cells(["a"])})


def _npz(arrays: dict[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _arrays(name: str) -> st.SearchStrategy[bytes]:
    pickled = np.empty(1, dtype=object)
    whole = st.one_of(_array(), st.just(pickled))
    return whole.map(lambda array: _npz({name: array}))


def tensor_file(header: Any, data: bytes) -> bytes:
    """The bytes of a safetensors file with this header, whether it fits the data or not."""
    text = json.dumps(header, default=str).encode()
    return struct.pack("<Q", len(text)) + text + data


def split_tensor_file(content: bytes) -> tuple[Any, bytes]:
    """The header and the data of a safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def tensor_documents(content: bytes) -> st.SearchStrategy[bytes]:
    """Mutants of a safetensors file's header, with its data."""
    header, data = split_tensor_file(content)
    return mutants([header], most=2).map(lambda changed: tensor_file(changed, data))


def weight_areas(space: Workspace) -> list[Area]:
    tiny = load_backbone("tiny", "none")
    state = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in tiny.layers.state_dict().items()
    }
    from safetensors.torch import save

    content = save(state)
    safe, torch_file = space.root / "fuzz.safetensors", space.root / "fuzz.pth"
    buffer = io.BytesIO()
    torch.save(state, buffer)

    def use(path: Path) -> None:
        backbone = load_backbone("tiny", str(path))
        if not all(torch.isfinite(p).all() for p in backbone.layers.parameters()):
            raise ValueError("weights that aren't finite were accepted")

    net = space.classifier / "model" / "net.safetensors"
    original = net.read_bytes()
    settings = space.classifier / "config.yaml"

    def check_run(data: bytes) -> str | None:
        net.write_bytes(data)
        try:
            return judge(lambda: use(space.classifier), "classifier")
        finally:
            net.write_bytes(original)

    assert settings.is_file()
    nan = split_tensor_file(content)
    values = st.binary(min_size=4, max_size=4).map(
        lambda word: tensor_file(nan[0], word + nan[1][4:])
    )
    return [
        Area(
            "weights-safetensors", ".safetensors", [content], reader(safe, lambda: use(safe)),
            st.one_of(tensor_documents(content), values), JSON_TOKENS,
        ),
        Area("weights-torch", ".pth", [buffer.getvalue()], reader(torch_file, lambda: use(torch_file)),
             tokens=[b"PK\x03\x04", b"cos\nsystem\n", b"\x80\x02", b"ctorch\n", b"R.", b"\xff\xff"]),
        Area("weights-run", ".safetensors", [original], check_run, tensor_documents(original), JSON_TOKENS),
    ]  # fmt: skip

"""Files of a run: written whole or not at all, each with the fingerprint of what made it.

Arrays are safetensors, the rest JSON; nothing here is ever executed on loading.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sppdet.errors import ArtifactError

# one key: the order of several would differ from write to write, and files are compared by bytes
HEADER_KEY = "sppdet"


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits that name the JSON-able `parts` (settings, versions, input digests)."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the block ends well, removed otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        ordinary = temporary.stat().st_mode
        yield temporary
        temporary.chmod(ordinary)  # safetensors makes files that only their owner may read
        _flush_to_disk(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise ArtifactError(f"{path}: can't be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed have left in `folder`, while nobody writes there."""
    for pattern in (".*.tmp", ".tmp*"):  # ours; those of safetensors
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    # without this a power cut could leave the new name with none of its content
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; floats round-trip exactly, NaN is refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; ArtifactError if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: damaged: {error}") from None


def write_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    made_by: str,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write named tensors atomically.

    Args:
        made_by: the fingerprint of the settings and inputs.
        about: JSON-able facts kept in the file's header.
    """
    header = {"fingerprint": made_by, "about": dict(about or {})}
    metadata = {HEADER_KEY: json.dumps(header, sort_keys=True)}
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    try:
        with atomic_path(path) as temporary:
            save_file(plain, str(temporary), metadata=metadata)
    except SafetensorError as error:  # also a full disk: safetensors wraps the system's errors
        raise ArtifactError(f"{path}: can't be written: {error}") from None


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a file and the facts in its header; ArtifactError if missing or damaged."""
    try:
        with safe_open(str(path), framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            return tensors, _header(handle.metadata()).get("about", {})
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(f"{path}: damaged: {error}") from None


def fingerprint_of(path: Path) -> str | None:
    """The fingerprint in a tensor file's header; None if there is no such file or it is damaged."""
    try:
        with safe_open(str(path), framework="pt") as handle:
            return _header(handle.metadata()).get("fingerprint")
    except (OSError, ValueError, SafetensorError):
        return None


def _header(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    header = json.loads((metadata or {}).get(HEADER_KEY, "{}"))
    return header if isinstance(header, dict) else {}


class ItemStore:
    """One tensor file a picture, in a folder named by the settings that make them.

    A file's name has the picture's id and the beginning of its digest: pictures of other sets with
    the same id stay apart, and a changed picture is noticed.
    """

    def __init__(self, folder: Path, kind: str, settings: str) -> None:
        self.folder = folder / f"{kind}-{settings}"
        self._settings = settings

    def _path(self, name: str, source: str) -> Path:
        return self.folder / f"{name}-{source[:8]}.safetensors"

    def has(self, name: str, source: str) -> bool:
        """Whether the item is there, whole, and made from the picture with digest `source`."""
        return fingerprint_of(self._path(name, source)) == fingerprint(self._settings, source)

    def write(self, name: str, source: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Store an item made from the picture with digest `source`."""
        made_by = fingerprint(self._settings, source)
        write_tensors(self._path(name, source), tensors, made_by=made_by)

    def read(self, name: str, source: str) -> dict[str, torch.Tensor]:
        """The tensors of an item; ArtifactError if it is missing or damaged."""
        return read_tensors(self._path(name, source))[0]

"""Atomic files that carry a fingerprint of their inputs and a checksum of their content.

Arrays are safetensors, the rest JSON; nothing here is ever executed on loading.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import re
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from sppdet.errors import ArtifactError
from sppdet.runs.processes import place, start_of
from sppdet.runs.signals import raise_if_requested

if TYPE_CHECKING:  # `sppdet info` reads headers and JSON without waiting for torch
    import torch

    from sppdet.tensor_types import TensorType

_log = logging.getLogger("sppdet")
_DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}

# the one key of the files' metadata: safetensors takes only texts there
HEADER_KEY = "sppdet"


def fingerprint(*parts: Any) -> str:
    """Hash JSON-able `parts` (settings, versions, input digests) to 16 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that is renamed to it when the block succeeds.

    The temporary file is removed when the block fails. Its name is short and doesn't depend on
    `path`, so that every name that the file system takes can be written. The first write into a
    folder also removes what killed processes have left there, see `remove_leftovers`.
    """
    temporary = path.with_name(_temporary_name())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep_once(path.parent)
        temporary.touch()
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise ArtifactError(f"{path}: can't be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


_counter = itertools.count()
_swept: set[str] = set()  # folders that this process has written into
# .tmp-<place>-<process>-<its start>-<number>, with a suffix where a library wants one
_TEMPORARY = re.compile(r"\.tmp-([0-9a-f]{8})-([0-9]+)-([0-9]+)-[0-9]+(?:\.mp4)?")
_OLD_TEMPORARY = re.compile(r"\..+\.[0-9]+-[0-9]+\.tmp")  # of versions up to 0.1
_DAY = 86_400.0  # seconds


def _temporary_name() -> str:
    pid = os.getpid()
    return f".tmp-{place()}-{pid}-{start_of(pid) or 0}-{next(_counter)}"


def _sweep_once(folder: Path) -> None:
    key = os.path.abspath(folder)
    if key not in _swept:
        _swept.add(key)
        _remove_leftovers_in(folder)


def remove_leftovers(*folders: Path) -> None:
    """Remove temporary files of killed processes from `folders` and all folders below them.

    Safe while others write there: a temporary file goes only if the process of this machine that
    made it has ended, or if it is older than a day (processes of other machines can't be asked).
    Other files and links are left alone.
    """
    for folder in folders:
        for parent, _, _ in os.walk(folder):
            _remove_leftovers_in(Path(parent))


def _remove_leftovers_in(folder: Path) -> None:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and _is_leftover(entry):
                with contextlib.suppress(OSError):  # another process was faster, or it isn't ours
                    Path(entry.path).unlink()


def _is_leftover(entry: os.DirEntry[str]) -> bool:
    ours = _TEMPORARY.fullmatch(entry.name)
    if not ours and not _OLD_TEMPORARY.fullmatch(entry.name):
        return False
    if not entry.is_file(follow_symlinks=False):
        return False
    if ours and ours[1] == place():
        return start_of(int(ours[2])) != ours[3]
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > _DAY


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
    """Read a JSON file; ArtifactError if it is missing or damaged, or has NaN."""
    if path.exists() and not path.is_file():  # reading a FIFO would never end
        raise ArtifactError(f"{path}: is no regular file")
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: damaged: {error}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def write_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    made_by: str,
    about: Mapping[str, Any] | None = None,
    room: int | None = None,
) -> int:
    """Write named tensors atomically as safetensors, with a checksum of its whole content.

    Args:
        made_by: the fingerprint of the settings and inputs.
        about: JSON-able facts kept in the file's header.
        room: maximum bytes of the file; returns its bytes, or 0 where it has more and isn't written.
    """
    # large elements first, so that each tensor begins at a multiple of its elements' size; not
    # by safetensors' own writer, which leaves temporary files that nobody can ascribe to a process
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    names = sorted(plain, key=lambda name: (-plain[name].element_size(), name))
    facts = {"fingerprint": made_by, "about": dict(about or {})}
    facts["crc32"] = checksum(facts, plain)
    header: dict[str, Any] = {"__metadata__": {HEADER_KEY: json.dumps(facts, sort_keys=True)}}
    end = 0
    for name in names:
        start, end = end, end + plain[name].nbytes
        header[name] = {
            "dtype": _DTYPES[str(plain[name].dtype)],
            "shape": list(plain[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if room is not None and 8 + len(text) + end > room:
        return 0
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        handle.writelines(_bytes(plain[name]) for name in names)
    return 8 + len(text) + end


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a tensor file whole and verify its checksum.

    Returns:
        the tensors, and the facts in the header.

    Raises:
        ArtifactError: the file is missing, damaged, or has no checksum.
    """
    try:
        with safe_open(str(path), framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            facts = _facts(handle.metadata())
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file") from None
    except (OSError, ValueError, SafetensorError, RecursionError) as error:
        raise_if_requested()
        raise ArtifactError(f"{path}: damaged: {error}; {_WAY_OUT}") from None
    if facts is None:
        raise ArtifactError(
            f"{path}: has no checksum: not by sppdet, or by an earlier version; {_WAY_OUT}"
        )
    if facts.pop("crc32") != checksum(facts, tensors):
        raise ArtifactError(f"{path}: damaged: its content doesn't match its checksum; {_WAY_OUT}")
    return tensors, facts["about"]


_WAY_OUT = "the command that made it makes it again"


@dataclass(frozen=True)
class TensorHeader:
    """The header of a tensor file.

    Attributes:
        about: the facts given to `write_tensors`.
        layout: dtype, as safetensors names it, and shape of every tensor.
    """

    fingerprint: str
    checksum: str
    about: dict[str, Any]
    layout: dict[str, tuple[str, tuple[int, ...]]]

    @property
    def types(self) -> dict[str, TensorType]:
        """Return the types of the tensors; imports torch."""
        import torch

        from sppdet.tensor_types import TensorType

        dtypes = {code: getattr(torch, name[6:]) for name, code in _DTYPES.items()}
        return {
            name: TensorType(dtypes.get(code), shape) for name, (code, shape) in self.layout.items()
        }


def read_header(path: Path) -> TensorHeader | None:
    """Read the header of a file of the right length; None if it is missing, damaged or not ours.

    The content isn't verified, which `read_tensors` does.
    """
    try:
        with safe_open(str(path), framework="numpy") as handle:
            facts = _facts(handle.metadata())
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
            layout = {n: (s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}
    except (OSError, ValueError, SafetensorError, RecursionError):
        raise_if_requested()
        return None
    if facts is None:
        return None
    return TensorHeader(facts["fingerprint"], facts["crc32"], facts["about"], layout)


def fingerprint_of(path: Path) -> str | None:
    """Read the fingerprint in a tensor file's header; None as for `read_header`."""
    header = read_header(path)
    return header.fingerprint if header else None


def is_intact(path: Path, made_by: str) -> bool:
    """Check that a tensor file has this fingerprint and a content that matches its checksum."""
    if fingerprint_of(path) != made_by:
        return False
    try:
        read_tensors(path)
    except ArtifactError:
        return False
    return True


def why_made_again(path: Path, made_by: str) -> str:
    """Say why a tensor file that isn't intact is replaced by one with the fingerprint `made_by`."""
    if fingerprint_of(path) in (None, made_by):
        return "damaged, or written by an earlier version"
    return "made by other settings or data"


def read_checkpoint(
    path: Path, made_by: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Read an unfinished stage's checkpoint with this fingerprint, as `read_tensors` does.

    None if there is no such checkpoint or, with a warning, if it is damaged: the stage begins again.
    """
    if fingerprint_of(path) != made_by:
        return None
    try:
        return read_tensors(path)
    except ArtifactError as error:
        _log.warning("%s", error)
        return None


def _facts(metadata: Mapping[str, str] | None) -> dict[str, Any] | None:
    """Read the facts in the header; None if they aren't as `write_tensors` writes them."""
    facts = json.loads((metadata or {}).get(HEADER_KEY, "null"))
    if not isinstance(facts, dict) or facts.keys() != {"fingerprint", "about", "crc32"}:
        return None
    texts = isinstance(facts["fingerprint"], str) and isinstance(facts["crc32"], str)
    return facts if texts and isinstance(facts["about"], dict) else None


def _bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU."""
    if tensor.numel() == 0:  # its strides may be anything, which torch refuses to view as bytes
        return memoryview(b"")
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy().data


def checksum(facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Compute the CRC-32 of the header's facts and the tensors' names, types, shapes and bytes.

    It is to find what disks and copies do to files, not forgery. Measured on one core on 18 MiB,
    the maps of an image at five scales: zlib's crc32 9 ms (1.9 GiB/s), SHA-256 25 ms, BLAKE2b
    48 ms.
    """
    crc = zlib.crc32(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        line = f"{name} {_DTYPES.get(str(tensor.dtype))} {list(tensor.shape)}"
        crc = zlib.crc32(line.encode(errors="surrogatepass"), crc)
        crc = zlib.crc32(_bytes(tensor), crc)
    return f"{crc:08x}"

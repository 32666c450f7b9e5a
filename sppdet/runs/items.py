"""Stores of one tensor file per image, shared by runs and processes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

from sppdet.errors import ArtifactError
from sppdet.runs.artifacts import fingerprint, read_header, read_tensors, write_tensors
from sppdet.runs.room import Room
from sppdet.tensor_types import Types, misfit, not_finite, types_of

T = TypeVar("T")
_log = logging.getLogger("sppdet")


class ItemStore:
    """One tensor file per image, in a folder named by the settings that produced them.

    A file is named by a digest of the image's id and of its content: ids of any length have a name,
    images of other sets with the same id stay apart, and a changed image is noticed. The id stands
    in the file's header.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        settings: str,
        expected: Callable[[Types], Types],
        *,
        room: Room | None = None,
    ) -> None:
        """Name the store; its folder is made by the first write.

        Args:
            expected: given the types of an item's tensors, the types that they must have.
            room: on the disk; None: all.
        """
        self.folder = folder / f"{kind}-{settings}"
        self._settings = settings
        self._expected = expected
        self._room = room

    def path(self, name: str, source: str) -> Path:
        """Return the path of the item of the image with id `name` and digest `source`."""
        key = f"{name}\0{source}".encode(errors="surrogatepass")
        return self.folder / f"{hashlib.blake2b(key, digest_size=16).hexdigest()}.safetensors"

    def has(self, name: str, source: str) -> bool:
        """Check that the item exists with all its arrays; its content isn't verified.

        A file that isn't what it should be is said in a warning.
        """
        path = self.path(name, source)
        if not path.exists():
            return False
        header = read_header(path)
        if header is None:
            problem: str | None = "damaged"
        elif header.fingerprint != self._made_by(name, source):
            problem = "made by something else"
        else:
            problem = misfit(header.types, self._expected(header.types))
        if problem:
            _log.warning("%s (image %s): %s; it is made again", path, name, problem)
        return problem is None

    def get(
        self, name: str, source: str, build: Callable[[dict[str, torch.Tensor]], T]
    ) -> T | None:
        """Build an object from an item's verified tensors; None if it is missing or damaged.

        Args:
            build: may raise ValueError for values that can't be; a damaged item is said in a warning.
        """
        if not self.has(name, source):
            return None
        path = self.path(name, source)
        try:
            tensors, _ = read_tensors(path)
        except ArtifactError as error:
            reason = str(error).removeprefix(f"{path}: ")
            _log.warning("%s (image %s): %s", path, name, reason)
            return None
        problem = misfit(types_of(tensors), self._expected(types_of(tensors)))
        if broken := not_finite(tensors):
            problem = f"tensor {broken} has values that aren't finite"
        if problem:
            _log.warning("%s (image %s): %s; it is made again", path, name, problem)
            return None
        try:
            return build(tensors)
        except ValueError as error:
            _log.warning("%s (image %s): %s; it is made again", path, name, error)
            return None

    def write(self, name: str, source: str, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Store an item made from the image with digest `source`; returns False without room for it.

        Raises:
            ArtifactError: it can't be written, or has values that aren't finite.
        """
        path = self.path(name, source)
        found = types_of(tensors)
        if problem := misfit(found, self._expected(found)):
            raise ValueError(problem)  # a store that would never read what it writes
        if broken := not_finite(tensors):
            raise ArtifactError(
                f"{path} (image {name}): not written: {broken} has values that aren't finite"
            )
        about = {"id": name, "source": source}
        made_by = self._made_by(name, source)
        if self._room is None:
            return write_tensors(path, tensors, made_by=made_by, about=about) > 0
        return self._room.write(
            path, lambda left: write_tensors(path, tensors, made_by=made_by, about=about, room=left)
        )

    def _made_by(self, name: str, source: str) -> str:
        return fingerprint(self._settings, name, source)

"""Files of trained weights: finite, and of the names, dtypes and shapes that are expected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppdet.errors import ArtifactError, TrainingError
from sppdet.runs.artifacts import read_tensors, write_tensors
from sppdet.tensor_types import Types, misfit, not_finite, types_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Part:
    """One part of a model: its tensors and the facts beside them; `where` begins messages about it."""

    tensors: dict[str, torch.Tensor]
    about: dict[str, Any]
    where: str


def write_weights(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    made_by: str,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a part of a model; see `write_tensors`.

    Raises:
        TrainingError: a tensor has values that aren't finite.
    """
    if broken := not_finite(tensors):
        raise TrainingError(
            f"{path}: not written: tensor {broken} has values that aren't finite; the training went "
            "astray or its weights did"
        )
    write_tensors(path, tensors, made_by=made_by, about=about)


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a part of a model; see `read_tensors`.

    Raises:
        ArtifactError: missing, damaged, or a tensor has values that aren't finite.
    """
    tensors, about = read_tensors(path)
    if broken := not_finite(tensors):
        raise ArtifactError(f"{path}: tensor {broken} has values that aren't finite; train again")
    return tensors, about


def read_part(path: Path) -> Part:
    """Read a part of a model from a file of its own; errors are those of `read_weights`."""
    return Part(*read_weights(path), str(path))


def check_types(tensors: Mapping[str, torch.Tensor], expected: Types, where: Path | str) -> None:
    """Refuse the tensors of `where` if a name, dtype or shape isn't the one expected."""
    if problem := misfit(types_of(tensors), expected):
        raise ArtifactError(f"{where}: doesn't fit the run's settings: {problem}")


def fill(module: torch.nn.Module, tensors: dict[str, torch.Tensor], where: Path | str) -> None:
    """Load the tensors of `where` into a module; ArtifactError where they don't fit."""
    check_types(tensors, types_of(module.state_dict()), where)
    module.load_state_dict(tensors)


def class_names_in(about: dict[str, Any], where: Path | str) -> tuple[str, ...]:
    """Read the distinct class names, one or more, in the header of `where`."""
    names = about.get("class_names")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ArtifactError(f"{where}: damaged: expected the names of the classes in its header")
    if len(set(names)) < len(names):
        raise ArtifactError(f"{where}: damaged: its header has a class name twice")
    return tuple(names)

"""Files of trained weights: finite, and of the names, dtypes and shapes that are expected."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppdet.errors import ArtifactError, TrainingError
from sppdet.runs.artifacts import read_tensors, write_tensors
from sppdet.tensor_types import Types, misfit, not_finite, types_of

if TYPE_CHECKING:
    import torch


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


def check_types(tensors: Mapping[str, torch.Tensor], expected: Types, path: Path) -> None:
    """Refuse the tensors of `path` where a name, dtype or shape isn't the one expected."""
    if problem := misfit(types_of(tensors), expected):
        raise ArtifactError(f"{path}: doesn't fit the run's settings: {problem}")


def fill(module: torch.nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Load the tensors of `path` into a module; ArtifactError where they don't fit."""
    check_types(tensors, types_of(module.state_dict()), path)
    module.load_state_dict(tensors)


def class_names_in(about: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Read the distinct class names, one or more, in the header of `path`."""
    names = about.get("class_names")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ArtifactError(f"{path}: damaged: expected the names of the classes in its header")
    if len(set(names)) < len(names):
        raise ArtifactError(f"{path}: damaged: its header has a class name twice")
    return tuple(names)

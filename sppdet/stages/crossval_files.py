"""The files of a cross-validation in its folder."""

from __future__ import annotations

from pathlib import Path

from sppdet.errors import ArtifactError
from sppdet.runs.artifacts import read_json


class CrossvalFiles:
    """The files of a cross-validation.

    Fold k is tested by the run `fold<k>`, which was trained on all other folds.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"
        self.images = folder / "images.json"
        self.store = folder / "store"
        self.results = folder / "crossval.json"
        self.scores = folder / "eval" / "folds"

    def run(self, fold: int) -> Path:
        """Return the folder of a fold's run."""
        return self.folder / f"fold{fold}"

    def tested(self, fold: int) -> Path:
        """Return the list of the images that a fold is tested on."""
        return self.folder / "folds" / f"fold{fold}.txt"

    def trained(self, fold: int) -> Path:
        """Return the list of the images that a fold's detector is trained on."""
        return self.folder / "folds" / f"rest{fold}.txt"

    def is_one(self) -> bool:
        """Check whether the folder is that of a cross-validation."""
        return self.tested(0).is_file()

    def class_names(self) -> tuple[str, ...]:
        """Read the class names in the order of their labels.

        Raises:
            ArtifactError: the cross-validation isn't finished, or the file of its results is damaged.
        """
        found = read_json(self.results)
        names = found.get("classes") if isinstance(found, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ArtifactError(f"{self.results}: damaged: expected a list of classes")
        return tuple(names)

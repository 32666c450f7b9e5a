"""Look at an image without labels: its detections, their standard errors, a vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.config import Config
from sppdet.detection.committee import committee_margins
from sppdet.detection.detect import Classifiers, select
from sppdet.evaluation.selection import jackknife_errors
from sppdet.features.regions import whole_image_vector
from sppdet.io.image_cache import ImageCache
from sppdet.runs.artifacts import fingerprint, fingerprint_of
from sppdet.runs.items import ItemStore
from sppdet.stages.crossfit import read_fold_classifiers
from sppdet.stages.detector import Detector
from sppdet.stages.model_files import ModelFiles
from sppdet.stages.proposer import Proposer
from sppdet.tensor_types import TensorType, Types
from sppdet.types import AnnotatedImage, Detections, Proposals

_VERSION = 1  # raise it when the same model and image give another look


@dataclass(frozen=True)
class Look:
    """One image as a detector sees it.

    `errors` are the standard errors of the scores by the models of the folds; zeros without folds.
    """

    detections: Detections
    errors: NDArray[np.float32]  # (N,)
    vector: NDArray[np.float32]  # (C,) the map's maximum of each channel


class Looker:
    """Looks at images by a run's detector and the models of its folds; what it sees is stored."""

    def __init__(
        self,
        run: Path,
        config: Config,
        detector: Detector,
        images: ImageCache,
        *,
        maps: Path | None = None,
    ) -> None:
        """Read the models of the folds.

        Args:
            images: the images that are looked at.
            maps: folder to store feature maps in; None: they aren't stored.
        """
        store = config.store or run / "store"
        self._detector = detector
        self._images = images
        self._maps = detector.maps.over(images, maps)
        self._proposer = Proposer(config.proposals, store)
        self._committee = _committee(run, config, detector)
        made_by = fingerprint(
            "look", _VERSION, detector.made_by, fingerprint_of(ModelFiles(run).fold_svm)
        )
        self._store = ItemStore(store, "looks", made_by, _expected)

    @property
    def has_committee(self) -> bool:
        """Whether there are models of folds."""
        return self._committee is not None

    def known(self, image: AnnotatedImage) -> Look | None:
        """Return what is stored of an image with these bytes."""
        names, digest = self._detector.class_names, self._images.digest(image.path)
        return self._store.get(image.id, digest, lambda tensors: _from_tensors(tensors, names))

    def proposals(self, image: AnnotatedImage) -> Proposals:
        """Load or compute the proposals of an image; thread-safe."""
        return self._proposer.of_image(image, self._images)

    def look(self, image: AnnotatedImage, proposals: Proposals) -> Look:
        """Detect in an image, and store what is seen."""
        flip = self._detector.config.flip
        maps = self._maps.of_image(image)
        mirrored = self._maps.of_image(image, mirrored=True) if flip else None
        scored = self._detector.score_in(maps, proposals, width=image.width, mirrored=mirrored)
        chosen = select([scored], self._detector.config, width=image.width, height=image.height)
        found = chosen.detections
        errors = np.zeros(len(found), dtype=np.float32)
        if self._committee is not None and len(found):
            margins = committee_margins(scored, self._committee, chosen.rows, found.labels)
            errors = jackknife_errors(margins).astype(np.float32)
        seen = Look(found, errors, whole_image_vector(maps))
        self._store.write(image.id, self._images.digest(image.path), _to_tensors(seen))
        return seen

    def vector(self, image: AnnotatedImage) -> NDArray[np.float32]:
        """Compute the whole-image vector alone."""
        return whole_image_vector(self._maps.of_image(image))


def _committee(run: Path, config: Config, detector: Detector) -> Classifiers | None:
    """Read the SVMs of the folds as one set of classifiers; None where there are none."""
    path = ModelFiles(run).fold_svm
    if config.calibrate is None or config.classifier != "svm" or not path.is_file():
        return None
    folds = read_fold_classifiers(path, config, classes=len(detector.class_names))
    weights = torch.cat([one.weights for one in folds])
    if len(folds) < 2 or weights.shape[1] != detector.classifiers.weights.shape[1]:
        return None
    biases = torch.cat([one.biases for one in folds])
    return Classifiers(folds[0].layer, weights, biases).to(detector.maps.device)


def _expected(found: Types) -> Types:
    """Return the types of a stored look: as many scores, labels and errors as boxes."""
    boxes = found.get("boxes")
    count = boxes.shape[0] if boxes is not None and boxes.shape else None
    return {
        "boxes": TensorType(torch.float32, (count, 4)),
        "scores": TensorType(torch.float32, (count,)),
        "labels": TensorType(torch.int64, (count,)),
        "errors": TensorType(torch.float32, (count,)),
        "vector": TensorType(torch.float32, (None,)),
    }


def _to_tensors(seen: Look) -> dict[str, torch.Tensor]:
    found = seen.detections
    arrays = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels}
    arrays |= {"errors": seen.errors, "vector": seen.vector}
    return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}


def _from_tensors(tensors: Mapping[str, torch.Tensor], names: tuple[str, ...]) -> Look:
    """Build a look; ValueError for labels that can't be."""
    arrays = {key: value.numpy() for key, value in tensors.items()}
    labels = arrays["labels"]
    if ((labels < 1) | (labels > len(names))).any():
        raise ValueError("labels of no class")
    found = Detections(arrays["boxes"], arrays["scores"], labels, names)
    return Look(found, arrays["errors"], arrays["vector"])

"""Input of every training stage: images, proposals and feature maps, image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from sppdet.config import Layer, SvmConfig
from sppdet.features.head import Head
from sppdet.features.regions import Extractor
from sppdet.io.dataset_digest import dataset_digest
from sppdet.io.image_cache import ImageCache
from sppdet.parallel import ordered_map
from sppdet.randomness import rng
from sppdet.runs.artifacts import fingerprint
from sppdet.runs.distributed import Ranks
from sppdet.runs.log import track
from sppdet.stages.map_source import MapSource
from sppdet.stages.proposer import Proposer
from sppdet.training.processes import Tensors
from sppdet.types import AnnotatedImage, Dataset, FeatureMaps, Proposals

T = TypeVar("T")


@dataclass(frozen=True)
class Sight:
    """One image with all that a training stage needs of it."""

    position: int  # in the data set
    image: AnnotatedImage
    proposals: Proposals
    maps: FeatureMaps


@dataclass(frozen=True)
class Material:
    """A training set ready for use.

    `folder` is the run's; checkpoints of unfinished stages go to its subfolder `state`.
    """

    dataset: Dataset
    images: ImageCache
    proposer: Proposer
    maps: MapSource
    extractor: Extractor
    folder: Path
    seed: int
    checkpoint_seconds: float
    ranks: Ranks = field(default_factory=Ranks)

    def fingerprint(self) -> str:
        """Fingerprint of everything that training reads."""
        return fingerprint(
            dataset_digest(self.dataset, self.images),
            self.proposer.fingerprint,
            self.maps.fingerprint,
            self.extractor.levels,
            self.extractor.canonical_size,
            self.seed,
        )

    def with_head(self, head: Head | None) -> Material:
        """Return a copy that also computes features beyond pool5."""
        return replace(self, extractor=replace(self.extractor, head=head))

    def proposals(self, position: int) -> Proposals:
        """The proposals of an image."""
        image = self.dataset.images[position]
        return self.proposer.of_image(image, self.images)

    def sight(self, position: int) -> Sight:
        """One image."""
        image = self.dataset.images[position]
        return Sight(position, image, self.proposals(position), self.maps.of_image(image))

    def sights(self, positions: Iterable[int]) -> Iterator[Sight]:
        """Iterate over images in order, with prefetch."""
        return ordered_map(self.sight, positions, workers=1, ahead=2)

    def gather(
        self,
        positions: Sequence[int],
        compute: Callable[[Sight], T],
        pick: Callable[[T], Tensors],
        *,
        label: str,
    ) -> Iterator[Tensors]:
        """`pick(compute(sight))` of images, in order and in every process of `ranks`.

        `compute` runs in several processes at once, each with its share of the images; `pick`
        runs when what came of the images before has been taken.
        """
        own = map(compute, self.sights(self.ranks.share(positions)))
        found = self.ranks.in_turn(own, len(positions), pick)
        return track(found, total=len(positions), label=label)

    def state_path(self, stage: str) -> Path:
        """Path of the checkpoint of an unfinished stage."""
        return self.folder / "state" / f"{stage}.safetensors"


def feature_scale(material: Material, layer: Layer, config: SvmConfig) -> float:
    """Factor that gives features the mean norm `target_norm`.

    The mean is taken over up to `norm_images` images × `norm_windows` windows.
    """
    order = rng(material.seed, "images of the feature norm").permutation(len(material.dataset))

    def norms(sight: Sight) -> Tensors:
        windows = material.extractor.windows(sight.maps, sight.proposals.boxes)
        shuffled = rng(material.seed, "windows of the feature norm", sight.position)
        drawn = np.sort(shuffled.permutation(len(windows))[: config.norm_windows])
        pooled = material.extractor.pool(sight.maps, windows.cells[drawn])
        features = material.extractor.layer(pooled, layer)
        return {"norms": torch.linalg.vector_norm(features, dim=1).double()}

    chosen = np.sort(order[: config.norm_images]).tolist()
    found = material.gather(chosen, norms, lambda made: made, label=f"norm of {layer}")
    total, windows_seen = 0.0, 0
    for made in found:
        total += float(made["norms"].sum())
        windows_seen += len(made["norms"])
    mean = total / windows_seen if windows_seen else 0.0
    return config.target_norm / mean if mean > 0 else 1.0

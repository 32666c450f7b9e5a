"""The training data of the stages: images with their proposals and feature maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from sppdet.features.head import Head
from sppdet.features.regions import FeatureExtractor
from sppdet.io.dataset_digest import dataset_digest
from sppdet.io.image_cache import ImageCache
from sppdet.parallel import ordered_map
from sppdet.randomness import rng
from sppdet.runs.artifacts import fingerprint
from sppdet.runs.distributed import Ranks
from sppdet.runs.progress import track
from sppdet.stages.map_cache import MapCache
from sppdet.stages.proposer import Proposer
from sppdet.training.processes import Tensors
from sppdet.training_config import Layer, SvmConfig
from sppdet.types import AnnotatedImage, Dataset, FeatureMaps, Proposals

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One image with its proposals and feature maps."""

    position: int  # in the data set
    image: AnnotatedImage
    proposals: Proposals
    maps: FeatureMaps


@dataclass(frozen=True)
class TrainingData:
    """A training set, and what computes or loads its proposals, feature maps and features.

    `folder` is the run's; checkpoints of unfinished stages go to its subfolder `state`.
    """

    dataset: Dataset
    images: ImageCache
    proposer: Proposer
    maps: MapCache
    extractor: FeatureExtractor
    folder: Path
    seed: int
    checkpoint_seconds: float
    ranks: Ranks = field(default_factory=Ranks)
    _mean_norms: dict[tuple[Layer, int, int], float] = field(  # which a copy with other parts lacks
        default_factory=dict, init=False, repr=False, compare=False
    )

    def fingerprint(self) -> str:
        """Return the fingerprint of everything that features are computed from."""
        return fingerprint(
            dataset_digest(self.dataset, self.images),
            self.proposer.fingerprint,
            self.maps.fingerprint,
            self.extractor.levels,
            self.extractor.canonical_size,
            self.seed,
        )

    def with_head(self, head: Head | None) -> TrainingData:
        """Return the same data with a head, for features beyond pool5."""
        return replace(self, extractor=replace(self.extractor, head=head))

    def proposals(self, position: int) -> Proposals:
        """Load or compute the proposals of an image."""
        image = self.dataset.images[position]
        return self.proposer.of_image(image, self.images)

    def sample(self, position: int) -> Sample:
        """Load or compute all of an image."""
        image = self.dataset.images[position]
        return Sample(position, image, self.proposals(position), self.maps.of_image(image))

    def samples(self, positions: Iterable[int]) -> Iterator[Sample]:
        """Iterate over images in order; the next ones are loaded meanwhile."""
        return ordered_map(self.sample, positions, workers=1, ahead=2)

    def gather(
        self,
        positions: Sequence[int],
        compute: Callable[[Sample], T],
        pick: Callable[[T], Tensors],
        *,
        label: str,
        done: int = 0,
    ) -> Iterator[Tensors]:
        """Yield `pick(compute(sample))` of images, in order and in every process of `ranks`.

        `compute` runs in several processes at once, each with its share of the images; `pick`
        runs when the caller has consumed the results of the images before. `done` images more,
        of an earlier call, count in the progress.
        """
        own = map(compute, self.samples(self.ranks.share(positions)))
        found = self.ranks.in_turn(own, len(positions), pick)
        return track(found, total=done + len(positions), label=label, done=done)

    def state_path(self, stage: str) -> Path:
        """Return the file of an unfinished stage's checkpoint."""
        return self.folder / "state" / f"{stage}.safetensors"


def feature_scale(data: TrainingData, layer: Layer, config: SvmConfig) -> float:
    """Compute the factor that brings the mean norm of features to `target_norm`.

    The mean is taken over up to `norm_images` images × `norm_windows` windows, once for all stages.
    """
    sample = (layer, config.norm_images, config.norm_windows)
    if sample not in data._mean_norms:
        data._mean_norms[sample] = _mean_norm(data, *sample)
    mean = data._mean_norms[sample]
    return config.target_norm / mean if mean > 0 else 1.0


def _mean_norm(data: TrainingData, layer: Layer, images: int, of_each: int) -> float:
    order = rng(data.seed, "images of the feature norm").permutation(len(data.dataset))

    def norms(sample: Sample) -> Tensors:
        windows = data.extractor.windows(sample.maps, sample.proposals.boxes)
        shuffled = rng(data.seed, "windows of the feature norm", sample.position)
        drawn = np.sort(shuffled.permutation(len(windows))[:of_each])
        pooled = data.extractor.pool(sample.maps, windows.cells[drawn])
        features = data.extractor.layer(pooled, layer)
        return {"norms": torch.linalg.vector_norm(features, dim=1).double()}

    chosen = np.sort(order[:images]).tolist()
    found = data.gather(chosen, norms, lambda made: made, label=f"norm of {layer} features")
    total, windows_seen = 0.0, 0
    for made in found:
        total += float(made["norms"].sum())
        windows_seen += len(made["norms"])
    return total / windows_seen if windows_seen else 0.0

"""Feature maps of a data set's pictures: from the store, or computed when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from sppdet.artifacts import ItemStore, fingerprint
from sppdet.config import FeaturesConfig
from sppdet.data.cache import PictureCache
from sppdet.data.images import read_image
from sppdet.errors import DataError
from sppdet.features.backbones import VERSION, Backbone
from sppdet.features.memory import MapMemory
from sppdet.run import Reporter
from sppdet.types import AnnotatedImage, FeatureMaps, Picture


class MapSource:
    """Conv5 maps at every scale, as float16 wherever they come from.

    Rounding also what isn't stored makes a run's result independent of `features.store`.
    """

    def __init__(
        self,
        backbone: Backbone,
        scales: list[int],
        config: FeaturesConfig,
        pictures: PictureCache,
        folder: Path | None = None,
    ) -> None:
        self._backbone = backbone
        self._scales = scales
        self._config = config
        self._pictures = pictures
        self.channels = backbone.channels
        self.device = next(backbone.layers.parameters()).device
        self.fingerprint = fingerprint(
            "maps", VERSION, weights_digest(backbone.layers), scales, config.max_side
        )
        self.store = ItemStore(folder, "maps", self.fingerprint) if folder else None
        self._memory: MapMemory | None = None

    def keep_in_memory(self, memory: MapMemory | None) -> None:
        """Hold what is read from the store in `memory` too; None lets go of what is held."""
        self._memory = memory

    def compute(self, picture: Picture) -> FeatureMaps:
        """The maps (float16, on the backbone's device) of a picture (H, W, 3) RGB."""
        maps = self._backbone.feature_maps(picture, self._scales, self._config)
        halves = tuple(m.half() for m in maps.maps)
        if not all(bool(torch.isfinite(h).all()) for h in halves):
            raise DataError(
                "a feature map has values beyond float16: are the weights the right ones?"
            )
        return FeatureMaps(halves, maps.scale_factors, maps.stride, maps.offset)

    def of_image(self, image: AnnotatedImage, *, mirrored: bool = False) -> FeatureMaps:
        """Maps in float32 on the backbone's device; with a store they are read or put there."""
        return self._half_maps(image, mirrored).to(self.device)

    def _half_maps(self, image: AnnotatedImage, mirrored: bool) -> FeatureMaps:
        if self.store is None:
            return self._computed(image, mirrored)
        name = f"{image.id}.mirrored" if mirrored else image.id
        digest = self._pictures.digest(image.path)
        held = self._memory.get(f"{name}-{digest}") if self._memory else None
        if held is not None:
            return held
        maps = self._stored(image, mirrored, name, digest)
        if self._memory:
            self._memory.put(f"{name}-{digest}", maps)
        return maps

    def _stored(self, image: AnnotatedImage, mirrored: bool, name: str, digest: str) -> FeatureMaps:
        """From the store, or put there."""
        assert self.store is not None
        if self.store.has(name, digest):
            tensors = self.store.read(name, digest)
            factors = tensors.pop("scale_factors").numpy()
            maps = tuple(tensors[f"map{s}"] for s in range(len(factors)))
            return FeatureMaps(maps, factors, self._backbone.stride, self._backbone.offset)
        made = self._computed(image, mirrored)
        named = {f"map{s}": m for s, m in enumerate(made.maps)}
        named["scale_factors"] = torch.from_numpy(made.scale_factors)
        self.store.write(name, digest, named)
        return made

    def _computed(self, image: AnnotatedImage, mirrored: bool) -> FeatureMaps:
        picture = read_image(image.path)
        return self.compute(np.ascontiguousarray(picture[:, ::-1]) if mirrored else picture)

    def fill(self, images: Iterable[AnnotatedImage], *, mirrored: bool, reporter: Reporter) -> int:
        """Store what is missing of the pictures' maps; returns how many were made."""
        if self.store is None:
            return 0
        wanted = [
            (image, flip) for image in images for flip in ((False, True) if mirrored else (False,))
        ]
        made = 0
        for image, flip in reporter.track(wanted, total=len(wanted), label="feature maps"):
            name = f"{image.id}.mirrored" if flip else image.id
            if not self.store.has(name, self._pictures.digest(image.path)):
                self._half_maps(image, flip)
                made += 1
        return made


def weights_digest(layers: torch.nn.Module) -> str:
    """16 hexadecimal digits that name a module's tensors."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(layers.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

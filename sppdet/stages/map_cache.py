"""Feature maps of a data set's images: computed once, then cached on disk or on the GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from sppdet.config import FeaturesConfig
from sppdet.errors import ConfigError, DataError
from sppdet.features.backbones import VERSION, Backbone, ScaledImage
from sppdet.features.joined import JoinedMaps
from sppdet.features.onnx_layers import Layers, is_installed, onnx_layers
from sppdet.features.preprocessing import IMAGENET
from sppdet.features.timm_nets import PREFIX as TIMM
from sppdet.io.image_cache import ImageCache
from sppdet.parallel import arithmetic, compute_type, ordered_map
from sppdet.runs.artifacts import fingerprint
from sppdet.runs.distributed import process_count
from sppdet.runs.items import ItemStore
from sppdet.runs.progress import track
from sppdet.stages.map_memory import MapMemory
from sppdet.tensor_types import TensorType, Types
from sppdet.types import AnnotatedImage, FeatureMaps, ImageArray


class MapCache:
    """Conv5 maps at every scale, rounded to float16 wherever they come from.

    Rounding also what isn't stored makes a run's result independent of `features.store`.
    """

    def __init__(
        self,
        backbone: Backbone,
        scales: list[int],
        config: FeaturesConfig,
        images: ImageCache,
        folder: Path | None = None,
    ) -> None:
        self._backbone = backbone
        self._scales = scales
        self._config = config
        self._images = images
        self.channels = backbone.channels
        self.device = next(backbone.layers.parameters()).device
        self._precision = compute_type(config.precision, self.device)
        self.arithmetic = arithmetic(config.precision, self.device)
        self.fingerprint = fingerprint(
            "maps",
            VERSION,
            weights_digest(backbone.layers),
            scales,
            config.max_side,
            self.arithmetic,
            # layers without weights, such as a blurred pooling, show in the name alone
            *([backbone.name] if backbone.name.startswith(TIMM) else []),
            *([backbone.geometries] if isinstance(backbone.layers, JoinedMaps) else []),
            *([] if backbone.preprocessing == IMAGENET else [asdict(backbone.preprocessing)]),
        )
        stored = config.store
        if stored == "auto":
            # what a GPU makes in minutes isn't worth a disk's tens of gigabytes; of several processes
            # each needs maps that another has made
            alone = self.device.type == "cuda" and process_count() == 1
            stored = "overflow" if alone else True
        self.store = None
        if folder and stored:
            self.store = ItemStore(folder, "maps", self.fingerprint, self._expected)
        self._memory_first = stored == "overflow"
        self._memory: MapMemory | None = None

    def keep_in_memory(self, memory: MapMemory | None) -> None:
        """Cache maps in `memory` as well; None releases those that are in it."""
        self._memory = memory

    def scaled(self, image: ImageArray) -> ScaledImage:
        """Resize an image (H, W, 3) RGB to every scale, for `compute`; thread-safe."""
        return self._backbone.scaled(image, self._scales, self._config)

    @cached_property
    def _layers(self) -> Layers | None:
        """Layers by another runtime than torch, made when they are first needed."""
        on_cpu = self.device.type == "cpu" and self._precision == torch.float32
        if not on_cpu or self._config.runtime == "torch":
            return None
        if not is_installed():
            if self._config.runtime == "onnxruntime":
                raise ConfigError(
                    "features.runtime: onnxruntime isn't installed: pip install 'sppdet[onnx]'"
                )
            return None
        multiple = self._backbone.preprocessing.multiple
        return onnx_layers(self._backbone.layers, multiple=multiple)

    def compute(self, image: ScaledImage) -> FeatureMaps:
        """Compute the maps of an image, float16, on the backbone's device."""
        maps = self._backbone.feature_maps(image, self._precision, self._layers)
        halves = tuple(m.half() for m in maps.maps)
        if not bool(torch.stack([torch.isfinite(h).all() for h in halves]).all()):
            raise DataError(
                "a feature map has values beyond float16: are the weights the right ones?"
            )
        return FeatureMaps(halves, maps.scale_factors, maps.stride, maps.offset)

    def of_image(self, image: AnnotatedImage, *, mirrored: bool = False) -> FeatureMaps:
        """Return the maps, float16, on the backbone's device: from a cache, or computed and cached."""
        return self._half_maps(image, mirrored).to(self.device)

    def _half_maps(self, image: AnnotatedImage, mirrored: bool) -> FeatureMaps:
        name, digest = _name(image, mirrored), self._images.digest(image.path)
        held = self._memory.get(f"{name}-{digest}") if self._memory else None
        if held is not None:
            return held
        read = self.store.get(name, digest, self._from_tensors) if self.store else None
        if read is None:
            made = self.compute(self._scaled_image(image, mirrored))
            self._keep(name, digest, made)
            return made
        if self._memory:
            self._memory.put(f"{name}-{digest}", read)
        return read

    def _from_tensors(self, tensors: dict[str, torch.Tensor]) -> FeatureMaps:
        factors = tensors["scale_factors"].numpy()
        maps = tuple(tensors[f"map{s}"].permute(2, 0, 1) for s in range(len(factors)))
        return FeatureMaps(maps, factors, self._backbone.stride, self._backbone.offset)

    def _expected(self, found: Types) -> Types:
        """Return the expected types of an item's tensors: as many maps as scale factors."""
        factors = found.get("scale_factors", TensorType(None, ())).shape
        count = factors[0] if factors and factors[0] else len(self._scales)
        of_map = TensorType(torch.float16, (None, None, self.channels))
        expected = {f"map{s}": of_map for s in range(min(count, len(self._scales)))}
        return expected | {"scale_factors": TensorType(torch.float64, (len(expected),))}

    def _is_kept(self, name: str, digest: str) -> bool:
        held = self._memory is not None and self._memory.get(f"{name}-{digest}") is not None
        return held or (self.store is not None and self.store.has(name, digest))

    def _keep(self, name: str, digest: str, made: FeatureMaps) -> None:
        """Put maps into memory and into the store, as the settings say."""
        held = self._memory is not None and self._memory.put(f"{name}-{digest}", made)
        if self.store is None or (held and self._memory_first):
            return
        # channels last, as the layers make them and pooling wants them
        named = {f"map{s}": m.permute(1, 2, 0) for s, m in enumerate(made.maps)}
        named["scale_factors"] = torch.from_numpy(made.scale_factors)
        self.store.write(name, digest, named)

    def _scaled_image(self, image: AnnotatedImage, mirrored: bool) -> ScaledImage:
        pixels = self._images.read(image.path)
        return self.scaled(np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels)

    def fill(
        self,
        images: Iterable[AnnotatedImage],
        *,
        mirrored: bool,
        workers: int,
    ) -> int:
        """Compute and cache the maps that are missing; returns how many they were.

        Args:
            workers: threads that decode and resize images meanwhile.
        """
        if self.store is None:
            return 0
        wanted = [
            (image, flip) for image in images for flip in ((False, True) if mirrored else (False,))
        ]

        def prepare(item: tuple[AnnotatedImage, bool]) -> ScaledImage | None:
            image, flip = item
            there = self._is_kept(_name(image, flip), self._images.digest(image.path))
            return None if there else self._scaled_image(image, flip)

        made = 0
        prepared = ordered_map(prepare, wanted, workers=workers)
        tracked = track(
            prepared, total=len(wanted), label="feature maps", made=lambda one: one is not None
        )
        for (image, flip), scaled in zip(wanted, tracked, strict=True):
            if scaled is not None:
                digest = self._images.digest(image.path)
                self._keep(_name(image, flip), digest, self.compute(scaled))
                made += 1
        return made


def _name(image: AnnotatedImage, mirrored: bool) -> str:
    return f"{image.id}.mirrored" if mirrored else image.id


def weights_digest(layers: torch.nn.Module) -> str:
    """Hash a module's tensors to 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(layers.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

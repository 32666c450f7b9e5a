"""Feature maps of a data set's images: computed once, then cached on disk or on the GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.config import FeaturesConfig
from sppdet.errors import ConfigError, DataError
from sppdet.features.backbones import VERSION, Backbone, ScaledImage
from sppdet.features.joined import JoinedMaps
from sppdet.features.onnx_export import is_installed
from sppdet.features.onnx_layers import Layers, onnx_layers
from sppdet.features.preprocessing import IMAGENET
from sppdet.features.rounding import VERSION as ROUNDING_VERSION
from sppdet.features.rounding import to_eight_bits
from sppdet.features.timm_nets import PREFIX as TIMM
from sppdet.io.image_cache import ImageCache
from sppdet.parallel import arithmetic, compute_type, ordered_map
from sppdet.runs.artifacts import fingerprint
from sppdet.runs.distributed import process_count
from sppdet.runs.items import ItemStore
from sppdet.runs.log import LOGGER, event
from sppdet.runs.progress import track
from sppdet.runs.room import Room
from sppdet.stages.map_files import RoundedMap, expected_types, from_tensors, to_tensors
from sppdet.stages.map_memory import MapMemory
from sppdet.tensor_types import Types, not_finite
from sppdet.types import AnnotatedImage, FeatureMaps, ImageArray

_GB = 10**9


class MapCache:
    """Conv5 maps at every scale, rounded by `features.rounding` wherever they come from.

    Rounding also what isn't stored makes a run's result independent of `features.store` and of
    `features.max_disk`. Rounded maps are float16, whatever form they have in a file.
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
        self.origin = backbone.origin  # of the weights, with their licence
        self.device = next(backbone.layers.parameters()).device
        self._precision = compute_type(config.precision, self.device)
        self.arithmetic = arithmetic(config.precision, self.device)
        of_timm = backbone.name.startswith(TIMM)
        self.fingerprint = fingerprint(
            "maps",
            VERSION,
            weights_digest(backbone.layers),
            scales,
            config.max_side,
            self.arithmetic,
            # layers without weights, such as a blurred pooling, show in the name alone
            *([backbone.name] if of_timm else []),
            *([backbone.geometries] if of_timm or isinstance(backbone.layers, JoinedMaps) else []),
            *([] if backbone.preprocessing == IMAGENET else [asdict(backbone.preprocessing)]),
            *(["int8", ROUNDING_VERSION] if config.rounding == "int8" else []),
        )
        stored = config.store
        if stored == "auto":
            # what a GPU makes in minutes isn't worth a disk's tens of gigabytes; of several processes
            # each needs maps that another has made
            alone = self.device.type == "cuda" and process_count() == 1
            stored = "overflow" if alone else True
        self.store, self._room = None, None
        if folder and stored:
            if config.max_disk is not None:
                most = int(config.max_disk * _GB)
                self._room = Room(folder, "maps-*", most=most, processes=process_count())
            self.store = ItemStore(
                folder, "maps", self.fingerprint, self._expected, room=self._room
            )
        self._room_said = False
        self._memory_first = stored == "overflow"
        self._memory: MapMemory | None = None

    def over(self, images: ImageCache, folder: Path | None = None) -> MapCache:
        """Return maps of the same layers and settings of other images, stored in another folder."""
        return MapCache(self._backbone, self._scales, self._config, images, folder)

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
        """Compute the maps of an image, rounded, as float16, on the backbone's device."""
        return self._computed(image)[0]

    def _computed(self, image: ScaledImage) -> tuple[FeatureMaps, list[RoundedMap]]:
        """Compute maps, and the form of them that is stored."""
        maps = self._backbone.feature_maps(image, self._precision, self._layers)
        eight_bits = self._config.rounding == "int8"
        rounded = [to_eight_bits(m) if eight_bits else m.half() for m in maps.maps]
        try:
            return self._halves(rounded, maps.scale_factors), rounded
        except ValueError as error:
            raise DataError(f"{error}: are the weights the right ones?") from None

    def _halves(self, rounded: list[RoundedMap], factors: NDArray[np.float64]) -> FeatureMaps:
        """Return rounded maps as float16; ValueError for values that aren't finite."""
        halves = tuple(m.half() for m in rounded)
        if not_finite({str(s): half for s, half in enumerate(halves)}):
            raise ValueError("a feature map has values beyond float16")
        return FeatureMaps(halves, factors, self._backbone.stride, self._backbone.offset)

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
            made, rounded = self._computed(self._scaled_image(image, mirrored))
            self._keep(name, digest, made, rounded)
            return made
        if self._memory:
            self._memory.put(f"{name}-{digest}", read)
        return read

    def _from_tensors(self, tensors: dict[str, torch.Tensor]) -> FeatureMaps:
        return self._halves(*from_tensors(tensors, self.channels))

    def _expected(self, found: Types) -> Types:
        eight_bits = self._config.rounding == "int8"
        count = len(self._scales)
        return expected_types(found, scales=count, channels=self.channels, eight_bits=eight_bits)

    def _is_kept(self, name: str, digest: str) -> bool:
        held = self._memory is not None and self._memory.get(f"{name}-{digest}") is not None
        return held or (self.store is not None and self.store.has(name, digest))

    def _keep(self, name: str, digest: str, made: FeatureMaps, rounded: list[RoundedMap]) -> None:
        """Put maps into memory and into the store, as the settings say."""
        held = self._memory is not None and self._memory.put(f"{name}-{digest}", made)
        if self.store is None or (held and self._memory_first):
            return
        if not self._is_full():
            self.store.write(name, digest, to_tensors(rounded, made.scale_factors))
            self._is_full()  # then it is said

    def _is_full(self) -> bool:
        """Check whether no more maps are stored, which is said once."""
        if self._room is None or not self._room.is_full:
            return False
        if not self._room_said:
            self._room_said = True
            used, most = self._room.used() / _GB, self._config.max_disk
            text = "%s has %.3g GB of feature maps (features.max_disk: %g); others are recomputed"
            facts = event("maps full", used=used, most=most)
            LOGGER.info(text, self._room.folder, used, most, extra=facts)
        return True

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
            return None if there or self._is_full() else self._scaled_image(image, flip)

        made = 0
        prepared = ordered_map(prepare, wanted, workers=workers)
        tracked = track(
            prepared, total=len(wanted), label="feature maps", made=lambda one: one is not None
        )
        for (image, flip), scaled in zip(wanted, tracked, strict=True):
            if scaled is not None and not self._is_full():
                digest = self._images.digest(image.path)
                self._keep(_name(image, flip), digest, *self._computed(scaled))
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

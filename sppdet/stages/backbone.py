"""The network of a training: load its layers, fit what joins their maps, build the head on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.config import Config
from sppdet.errors import ConfigError
from sppdet.features.backbones import Backbone
from sppdet.features.cost import describe_cost
from sppdet.features.folding import folded
from sppdet.features.head import Head, build_head, check_start
from sppdet.features.joined import VERSION as JOIN_VERSION
from sppdet.features.joined import JoinedMaps, fit_joined
from sppdet.io.backbone_weights import load_backbone
from sppdet.io.dataset_digest import dataset_digest
from sppdet.randomness import rng
from sppdet.runs.artifacts import fingerprint
from sppdet.runs.log import LOGGER, event
from sppdet.runs.progress import track
from sppdet.runs.weights import fill, read_weights
from sppdet.stages.context import Context
from sppdet.stages.map_cache import weights_digest
from sppdet.stages.model import holds_backbone, save_backbone
from sppdet.training.finetune_images import conv_parameters

_FILE_VERSION = 2  # raise it when the file of a backbone has another form
_FIT_IMAGES, _FIT_CELLS = 100, 200  # cells of each image that the joining is fitted to


def load(context: Context) -> Backbone:
    """Load the convolutional layers by the settings; keep them in the run unless they are to be tuned."""
    config, files = context.config, context.files
    path = files.initial_backbone if config.tunes_conv() else files.backbone
    stages = config.backbone.stages
    backbone = load_unfitted(config)
    check_start(backbone, config)
    if config.finetune is not None and config.tunes_conv():
        try:
            conv_parameters(backbone, config.finetune.layers)
        except ValueError as error:
            raise ConfigError(f"finetune.layers: {error}") from None
    digest = weights_digest(backbone.layers)
    made_by = fingerprint("backbone", _FILE_VERSION, config.backbone.name, digest)
    backbone.layers.to(context.ranks.device)
    layers = backbone.layers
    if isinstance(layers, JoinedMaps):
        inputs = dataset_digest(context.training_set, context.images)
        sides = [config.scales, config.features.max_side]
        made_by = fingerprint(made_by, JOIN_VERSION, stages, sides, inputs, config.seed)
    there = holds_backbone(path, backbone, made_by=made_by)
    if isinstance(layers, JoinedMaps):
        if there:
            fill(layers, read_weights(path)[0], path)
        else:
            fit_joined(layers, _cells(context, backbone, layers))
    # without fitting, an initial backbone is as quickly loaded by the settings
    needed = isinstance(layers, JoinedMaps) or not config.tunes_conv()
    if context.ranks.is_first and path != files.initial_backbone:
        files.initial_backbone.unlink(missing_ok=True)  # of other settings
    if context.ranks.is_first and needed and not there:
        save_backbone(path, backbone, made_by=made_by)
    cost = describe_cost(backbone, config.scales, config.spp_levels)
    LOGGER.info("backbone: %s", cost, extra=event("backbone", cost=cost, origin=backbone.origin))
    return backbone


def load_unfitted(config: Config) -> Backbone:
    """Load the convolutional layers by the settings; what joins several maps isn't fitted to images yet."""
    return folded(
        load_backbone(
            config.backbone.name,
            config.backbone.weights,
            seed=config.seed,
            stages=config.backbone.strides,
            project=config.features.project,
        )
    )


def untrained_head(backbone: Backbone, config: Config, *, classes: int) -> Head | None:
    """Build the head before fine-tuning, for `classes` and the background; None where there is none."""
    if config.head is None:
        return None
    return build_head(
        backbone,
        config.spp_levels,
        config.head,
        outputs=classes + 1,
        seed=config.seed,
        boxes=config.learns_boxes(),
    )


@torch.inference_mode()
def _cells(
    context: Context, backbone: Backbone, layers: JoinedMaps
) -> Iterator[Sequence[NDArray[np.float32]]]:
    """Yield cells of training images at the middle scale: (n, C) of each map."""
    config, images = context.config, context.training_set.images
    scales = config.scales[len(config.scales) // 2 :][:1]
    order = rng(config.seed, "images of the joined maps").permutation(len(images))
    drawn = np.sort(order[:_FIT_IMAGES]).tolist()
    for position in track(drawn, total=len(drawn), label="fitting the joined maps"):
        pixels = context.images.read(images[position].path)
        scaled = backbone.scaled(pixels, scales, config.features)
        x = backbone.preprocessing.padded_input(scaled.pixels[0].to(context.ranks.device))
        maps = [m[0].flatten(1).T.float().cpu().numpy() for m in layers.maps(x)]
        shuffled = rng(config.seed, "cells of the joined maps", position).permutation(len(maps[0]))
        rows = np.sort(shuffled[:_FIT_CELLS])
        yield [m[rows] for m in maps]

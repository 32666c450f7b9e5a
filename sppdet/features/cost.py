"""Describe the cost of a backbone: multiplications, channels, length of the pooled vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from sppdet.features.backbones import Backbone
from sppdet.features.levels import spp_width

_SIDE = 224  # pixels of the probe, whose operations are scaled to the area of the image


def describe_cost(backbone: Backbone, scales: Sequence[int], levels: Sequence[int]) -> str:
    """Describe in one line what the layers take for an image of 4:3 at all scales.

    A multiplication and its addition count as two operations. They are counted on a small image and
    grow with the area; of a transformer the attention grows faster than that.
    """
    weight = next(backbone.layers.parameters())
    multiple = backbone.preprocessing.multiple
    side = -(-_SIDE // multiple) * multiple
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        backbone.layers(torch.zeros(1, 3, side, side, device=weight.device, dtype=weight.dtype))
    pixels = sum(scale * scale * 4 / 3 for scale in scales)
    operations = counter.get_total_flops() * pixels / side**2
    return (
        f"{backbone.name}, {backbone.channels} channels at stride {backbone.stride}, "
        f"{operations / 1e9:.3g} GFLOPs for an image of 4:3 at {len(scales)} "
        f"{'scale' if len(scales) == 1 else 'scales'}, "
        f"vectors of {spp_width(backbone.channels, levels):,} values"
    )

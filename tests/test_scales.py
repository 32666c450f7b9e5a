"""Image scales that the cap on the longer side makes coincide."""

from __future__ import annotations

import numpy as np
import pytest

from samples import random_boxes, random_image
from sppdet.config import FeaturesConfig
from sppdet.features.backbones import Backbone
from sppdet.features.regions import find_windows
from sppdet.types import FeatureMaps


@pytest.mark.parametrize(("width", "height"), [(600, 60), (60, 600)])
def test_a_panorama_goes_through_the_layers_once(
    tiny: Backbone, rng: np.random.Generator, width: int, height: int
) -> None:
    """The cap gives all of its scales the same factor; windows are the same as with five maps."""
    scales, seen = [96, 115, 137, 172, 240], []
    scaled = tiny.scaled(
        random_image(rng, width=width, height=height), scales, FeaturesConfig(max_side=480)
    )
    hook = tiny.layers.register_forward_hook(lambda _m, _x, made: seen.append(made.shape))
    with hook:
        maps = tiny.feature_maps(scaled)
    assert len(seen) == len(maps.maps) == len(scaled.pixels) == 1
    assert maps.scale_factors.tolist() == [0.8]
    five = FeatureMaps(maps.maps * 5, np.full(5, 0.8), maps.stride, maps.offset)
    boxes = random_boxes(rng, 50, width=width, height=height)
    one, all_five = (find_windows(m, boxes, canonical_size=224) for m in (maps, five))
    assert np.array_equal(one.cells, all_five.cells) and np.array_equal(one.index, all_five.index)


def test_some_scales_coincide(tiny: Backbone, rng: np.random.Generator) -> None:
    image = random_image(rng, width=200, height=50)
    config = FeaturesConfig(max_side=360)
    scaled = tiny.scaled(image, [40, 60, 90, 120, 200], config)
    assert scaled.scale_factors.tolist() == [0.8, 1.2, 1.8]
    assert [tuple(one.shape[:2]) for one in scaled.pixels] == [(40, 160), (60, 240), (90, 360)]

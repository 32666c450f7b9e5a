"""Resizing against slow loops; whoever shrinks images smooths them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samples import random_image
from sppdet.classification.config import AugmentConfig, ProbeConfig
from sppdet.classification.crops import CropConfig, cut_crop
from sppdet.classification.data import augmented
from sppdet.classification.probe import Features
from sppdet.classification.views import centre_crop
from sppdet.config import FeaturesConfig, ProposalsConfig
from sppdet.errors import ImageError
from sppdet.features.backbones import Backbone
from sppdet.proposals import sppdet_engine
from sppdet.proposals.modes import Mode
from sppdet.proposals.selective_search import selective_search
from sppdet.resizing import resized, resized_to
from sppdet.types import ImageArray


def texture(*, width: int, height: int) -> ImageArray:
    """Noise of standard deviation 40 about 128, a value a pixel."""
    noise = np.random.default_rng(7).normal(128, 40, (height, width, 3))
    return np.asarray(np.clip(noise, 0, 255), dtype=np.uint8)


def weights(count: int, made: int, factor: float) -> NDArray[np.float64]:
    """(made, count) what each pixel takes of each original one along an axis, from the definition.

    Shrinking: the part of the original pixel under the resized one, of all there is under it. Growing:
    linear between the two nearest centres.
    """
    table = np.zeros((made, count))
    for i in range(made):
        if factor < 1:
            for j in range(count):
                table[i, j] = max(0.0, min((i + 1) / factor, j + 1) - max(i / factor, j))
            table[i] /= table[i].sum()
        else:
            place = min(max((i + 0.5) / factor - 0.5, 0.0), count - 1.0)
            left = min(int(place), count - 2)
            table[i, left], table[i, left + 1] = left + 1 - place, place - left
    return table


def slow(
    image: ImageArray, size: tuple[int, int], factors: tuple[float, float]
) -> NDArray[np.float64]:
    across = weights(image.shape[1], size[0], factors[0])
    down = weights(image.shape[0], size[1], factors[1])
    rows = np.tensordot(down, image.astype(np.float64), axes=(1, 0))  # [h, W, 3]
    made: NDArray[np.float64] = np.tensordot(rows, across, axes=(1, 1)).transpose(0, 2, 1)
    return made


@pytest.mark.parametrize("factor", [0.05, 0.23, 0.25, 0.5, 0.77, 0.97, 1.0, 1.13, 2.15])
def test_against_the_definition(factor: float) -> None:
    image = texture(width=91, height=67)
    found = resized(image, factor)
    assert found.shape == (round(67 * factor), round(91 * factor), 3) and found.dtype == np.uint8
    expected = slow(image, (found.shape[1], found.shape[0]), (factor, factor))
    assert np.abs(found - expected).max() <= 1.01  # OpenCV's weights have 11 bits


@pytest.mark.parametrize("size", [(40, 30), (40, 90), (200, 30), (91, 67), (91, 20), (182, 134)])
def test_each_axis_by_its_own_factor(size: tuple[int, int]) -> None:
    image = texture(width=91, height=67)
    found = resized_to(image, *size)
    assert found.shape == (size[1], size[0], 3) and found.dtype == np.uint8
    expected = slow(image, size, (size[0] / 91, size[1] / 67))
    assert np.abs(found - expected).max() <= 1.51  # rounded twice


def test_a_fine_texture_is_averaged_away() -> None:
    image = texture(width=3000, height=300)
    assert image.std() == pytest.approx(40, rel=0.01)
    assert resized(image, 480 / 3000).std() == pytest.approx(40 * 480 / 3000, rel=0.06)
    assert resized_to(image, 480, 48).std() == pytest.approx(40 * 480 / 3000, rel=0.06)


@pytest.mark.parametrize("factor", [0.3, 0.515, 0.9749, 1.0149, 2.15])
@pytest.mark.parametrize("width", [83, 101, 117])
def test_positions_are_not_stretched_to_the_rounded_size(width: int, factor: float) -> None:
    """Pixel i shows what is at (i + 0.5) / factor; the last ones reach beyond the image."""
    ramp = np.repeat(np.arange(width, dtype=np.float64)[None, :, None], 3, axis=2) * 2
    image = np.repeat(ramp, width, axis=0).astype(np.uint8)
    row = resized(image, factor)[2, :, 0]
    at = (np.arange(len(row)) + 0.5) / factor - 0.5
    inside = (at - 0.5 / factor > 0) & (at + 0.5 / factor < width - 1)
    assert np.abs(row - 2 * at)[inside].max() <= 1.01


def test_one_pixel_is_left() -> None:
    assert resized(texture(width=300, height=2), 0.1).shape == (1, 30, 3)
    assert resized(texture(width=3, height=4), 0.01).shape == (1, 1, 3)


def test_mirrored_and_cut_images(rng: np.random.Generator) -> None:
    """Views with strides of their own; mirroring and shrinking change places."""
    image = random_image(rng, width=80, height=60)
    assert np.array_equal(resized(image[:, ::-1], 0.5), resized(image, 0.5)[:, ::-1])
    assert np.array_equal(resized(image[10:50, 20:60], 0.5), resized(image, 0.5)[5:25, 10:30])


def by_proposals(image: ImageArray) -> ImageArray:
    seen: list[ImageArray] = []
    search = sppdet_engine.hierarchies

    def spy(pixels: ImageArray, mode: Mode) -> list[NDArray[np.int32]]:
        seen.append(pixels)
        return search(pixels, mode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sppdet_engine, "hierarchies", spy)
        selective_search(image, ProposalsConfig(image_width=100))
    return seen[0]


def by_crops(image: ImageArray) -> ImageArray:
    config = CropConfig(scales=(100,), canonical_size=40, side=56, max_side=2400)
    box = np.array([[300, 200, 600, 450]], np.float32)
    return cut_crop(image, box, config, rng=np.random.default_rng(0))


def by_augmentation(image: ImageArray) -> ImageArray:
    config = AugmentConfig(resize=100, crop=80, colour=0)
    found = augmented(image, config, size=80, rng=np.random.default_rng(0))
    return found.astype(np.uint8)


def by_second_resizing(image: ImageArray) -> ImageArray:
    config = AugmentConfig(resize=600, crop=500, colour=0)
    found = augmented(image, config, size=83, rng=np.random.default_rng(0))
    return found.astype(np.uint8)


def by_views(image: ImageArray) -> ImageArray:
    return centre_crop(image, side=100, crop=80, size=80)


def by_cropped_views(image: ImageArray) -> ImageArray:
    return centre_crop(image, side=600, crop=480, size=80)


def by_warping_probe(image: ImageArray) -> ImageArray:
    config = ProbeConfig.model_validate(
        {
            "data": {"root": Path(), "train_per_class": 1},
            "backbone": {"name": "tiny", "weights": "none"},
            "image": "warp",
            "side": 100,
            "layer": "spp",
        }
    )
    x = Features(config, device=torch.device("cpu"))._input(image)[0].permute(1, 2, 0).numpy()
    values = 255 * (x * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406])
    return np.asarray(np.rint(values), dtype=np.uint8)


@pytest.mark.parametrize(
    "shrink",
    [
        by_proposals,
        by_crops,
        by_augmentation,
        by_second_resizing,
        by_views,
        by_cropped_views,
        by_warping_probe,
    ],
)
def test_everybody_smooths(shrink: Callable[[ImageArray], ImageArray]) -> None:
    """Sides of 900 × 600 shrink to a sixth or less: noise of 40 falls to 7; without, 25 are left."""
    assert 3 < shrink(texture(width=900, height=600)).std() < 9


def test_maps_are_of_smoothed_images(tiny: Backbone) -> None:
    scaled = tiny.scaled(texture(width=900, height=600), [100, 1200], FeaturesConfig())
    assert [one.float().std() < 9 for one in scaled.pixels] == [True, False]


def test_what_opencv_can_not_resize_is_an_image_error() -> None:
    strip = np.zeros((1, 100_000, 3), np.uint8)
    with pytest.raises(ImageError, match="100000x1 pixels can't be resized by 224000"):
        resized(strip, 224_000.0)
    with pytest.raises(ImageError, match="can't be resized to 2000000000x1000000000"):
        resized_to(strip, 2_000_000_000, 1_000_000_000)

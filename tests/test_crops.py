"""Training on crops: what a crop shows, that it learns, that chance comes from the seed alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sppdet.boxes import box_iou
from sppdet.data.dataset import load_dataset
from sppdet.data.demo_set import make_demo_set
from sppdet.data.images import read_image
from sppdet.errors import TrainingError
from sppdet.features.backbones import PIXEL_MEAN, geometry_of
from sppdet.features.tiny import Tiny
from sppdet.training import crops
from sppdet.training.crops import CropConfig, cut_crop, draw_crops, pool_crops, train_on_crops
from sppdet.types import Boxes, Dataset

SMALL = CropConfig(scales=(120, 200), canonical_size=40, crop_side=56)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("demo")
    make_demo_set(root, seed=0, train_images=24, test_images=1, fresh_images=0)
    return load_dataset(
        format="voc",
        roots=[root],
        sets=["trainval"],
        images=None,
        class_names=None,
        on_error="stop",
        read_pictures=True,
        known=None,
    )


def train(dataset: Dataset, *, seed: int = 0, steps: int = 3, lr: float = 3e-3) -> nn.Module:
    return train_on_crops(Tiny(), 128, dataset, seed=seed, steps=steps, lr=lr, config=SMALL)


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


def test_tiny_has_stride_8_and_centred_cells() -> None:
    network = Tiny().eval()
    assert geometry_of(network.features) == (8, 0.5)
    with torch.inference_mode():
        maps = network(torch.randn(2, 3, 65, 40))
    assert maps.shape == (2, network.channels, 9, 5)
    assert maps.min() >= 0


def test_loss_falls(dataset: Dataset) -> None:
    losses: list[float] = []
    steps_seen: list[tuple[int, int]] = []

    def note(step: int, steps: int, loss: float) -> None:
        steps_seen.append((step, steps))
        losses.append(loss)

    network = train_on_crops(Tiny(), 128, dataset, seed=0, steps=60, config=SMALL, on_progress=note)
    assert steps_seen == [(step, 60) for step in range(1, 61)]
    assert np.mean(losses[-10:]) < 1.35 < 1.6 < np.mean(losses[:5])
    assert not network.training


def test_same_seed_same_weights_whatever_the_global_state(dataset: Dataset) -> None:
    torch.manual_seed(1)
    first = weights(train(dataset))
    torch.manual_seed(2)
    assert torch.equal(first, weights(train(dataset)))
    assert not torch.equal(first, weights(train(dataset, seed=1)))


def test_global_state_is_left_alone(dataset: Dataset) -> None:
    network, threads = Tiny(), torch.get_num_threads()
    state = torch.get_rng_state()
    train_on_crops(network, 128, dataset, seed=0, steps=1, config=SMALL)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_a_loss_that_is_not_finite_stops(dataset: Dataset) -> None:
    with pytest.raises(TrainingError, match=r"step [0-9]+ of 5: loss (nan|inf)"):
        train(dataset, lr=1e30, steps=5)


def test_no_objects_is_an_error(dataset: Dataset) -> None:
    images = tuple(
        replace(image, difficult=np.ones(len(image.gt_boxes), dtype=np.bool_))
        for image in dataset.images
    )
    with pytest.raises(TrainingError, match="24 pictures without an object"):
        train(replace(dataset, images=images))
    with pytest.raises(ValueError, match="steps: 0"):
        train(dataset, steps=0)


def test_crops_of_one_picture(dataset: Dataset) -> None:
    image = max(dataset.images, key=lambda image: len(image.gt_boxes))
    picture = read_image(image.path)
    drawn = draw_crops(image, picture, SMALL, rng=np.random.default_rng(0))
    assert [crop.label > 0 for crop in drawn] == [True] * 3 + [False]
    for crop in drawn:
        assert crop.pixels.shape == (56, 56, 3) and crop.pixels.dtype == np.uint8
        x1, y1, x2, y2 = crop.window
        assert 0 <= x1 < x2 <= 56 and 0 <= y1 < y2 <= 56


def test_jitter_and_background_keep_to_their_iou() -> None:
    rng = np.random.default_rng(0)
    target: Boxes = np.array([[60, 50, 160, 120]], dtype=np.float32)
    for _ in range(100):
        near = crops._near_object(target, (320, 240), rng)
        assert box_iou(near, target)[0, 0] >= 0.6
        background = crops._background(target, (320, 240), rng)
        assert background is not None and box_iou(background, target)[0, 0] < 0.3


def test_no_place_for_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crops, "_BACKGROUND_IOU", 0.0)  # so that every box is too near
    whole: Boxes = np.array([[0, 0, 320, 240]], dtype=np.float32)
    assert crops._background(whole, (320, 240), np.random.default_rng(0)) is None


def test_the_window_lies_on_the_object() -> None:
    """A bright box: its pixels are inside the window, mirrored or not, at every scale."""
    picture = np.zeros((240, 320, 3), dtype=np.uint8)
    picture[100:140, 30:70] = 255
    box: Boxes = np.array([[30, 100, 70, 140]], dtype=np.float32)
    rng = np.random.default_rng(0)
    for _ in range(20):
        crop = cut_crop(picture, box, 1, SMALL, rng=rng)
        bright = crop.pixels[:, :, 1] > 180
        rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
        seen = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert np.abs(seen - crop.window).max() <= 1.01
        area = np.prod(crop.window[2:] - crop.window[:2])
        # at the scale 200 the side is 33.3 px, nearer to 40 than the 20 px at the scale 120
        assert 33.3 * np.exp(-0.16) <= np.sqrt(area) <= 33.3 * np.exp(0.16)


def test_outside_the_picture_the_network_sees_zero() -> None:
    picture = np.zeros((60, 60, 3), dtype=np.uint8)
    box: Boxes = np.array([[0, 0, 60, 60]], dtype=np.float32)
    config = CropConfig(scales=(40,), canonical_size=40, crop_side=120)
    crop = cut_crop(picture, box, 0, config, rng=np.random.default_rng(0))
    expected = np.rint(255 * np.array(PIXEL_MEAN))
    assert np.abs(crop.pixels[[0, 0, -1, -1], [0, -1, 0, -1]] - expected).max() <= 1


def test_pooling_takes_the_window_alone() -> None:
    maps = torch.zeros(1, 1, 7, 7)
    maps[0, 0, 2, 2], maps[0, 0, 6, 6] = 1.0, 9.0  # inside, outside
    pooled = pool_crops(maps, torch.tensor([[8.0, 8.0, 31.0, 31.0]]), crop_side=56)
    assert pooled.shape == (1, 10)
    assert pooled.max() == 1.0 and pooled[0, -1] == 1.0

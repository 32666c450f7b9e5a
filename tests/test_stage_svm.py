"""The SVM stage on four images against a slow loop: positives, candidates, mining, checkpoints."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC

from sppdet.detection.detect import Classifiers
from sppdet.features.backbones import Backbone
from sppdet.stages.svm import train_svms
from sppdet.stages.training_data import TrainingData, feature_scale
from sppdet.training_config import Layer, SvmConfig
from stages import (
    NAMES,
    Box,
    Scene,
    Vector,
    Window,
    World,
    make_world,
    scenes,
    slow_iou,
    slow_nms,
    slow_scale,
    slow_window,
    small_head,
    until_done,
)

EXACT: dict[str, Any] = {"C": 0.1, "tolerance": 1e-6}
Key = tuple[int, Window]


def slow_negatives(world: World, position: int, label: int, config: SvmConfig) -> dict[Window, Box]:
    """One image's negatives of a class, by window: far from its objects, thinned, none ambiguous."""
    scene, maps = world.scenes[position], world.map_of(position)
    targets = [b for b, k in zip(scene.boxes, scene.labels, strict=True) if k == label]
    is_far = [
        all(slow_iou(box, target) < config.negative_iou for target in targets)
        for box in scene.proposals
    ]
    far = [box for box, yes in zip(scene.proposals, is_far, strict=True) if yes]
    near = {
        slow_window(maps, box) for box, yes in zip(scene.proposals, is_far, strict=True) if not yes
    }
    kept = [far[i] for i in slow_nms(far, config.negative_nms)]
    windows = {slow_window(maps, box): box for box in kept}
    return {window: box for window, box in windows.items() if window not in near}


class SlowMining:
    """One class: mining image by image, solved by liblinear."""

    def __init__(
        self, world: World, label: int, layer: Layer, config: SvmConfig, scale: float
    ) -> None:
        self.config, self.history = config, list[tuple[int, int]]()
        self.positives = [
            world.feature(i, box, layer) * scale
            for i, scene in enumerate(world.scenes)
            for box, k, difficult in zip(scene.boxes, scene.labels, scene.difficult, strict=True)
            if k == label and not difficult
        ]
        self.weight: Vector = np.zeros(len(self.positives[0]))
        self.bias = 0.0
        cache: dict[Key, Vector] = {}
        added, trained = 0, False
        for position in [*range(len(world.scenes))] * config.passes:
            for window, box in slow_negatives(world, position, label, config).items():
                x = world.feature(position, box, layer) * scale
                hard = self.weight @ x + self.bias > config.hard_threshold
                if hard and (position, window) not in cache:
                    cache[position, window] = x
                    added += 1
            if added >= config.retrain_after:
                self.train(cache)
                added, trained = 0, True
        if added or not trained:
            self.train(cache)

    def train(self, cache: dict[Key, Vector]) -> None:
        """Fit, then evict."""
        config = self.config
        x = np.stack([*self.positives, *cache.values()])
        y = np.array([1] * len(self.positives) + [-1] * len(cache))
        machine = LinearSVC(
            loss="hinge",
            C=config.C,
            class_weight={1: config.positive_weight},
            intercept_scaling=config.bias,
            tol=1e-6,
            max_iter=100_000,
        ).fit(x, y)
        self.weight, self.bias = machine.coef_[0], float(machine.intercept_[0])
        before = len(cache)
        for key in [k for k, v in cache.items() if self.score(v) < config.evict_threshold]:
            del cache[key]
        self.history.append((before, before - len(cache)))

    def score(self, x: Vector) -> float:
        """The margin of scaled features."""
        return float(self.weight @ x + self.bias)


def assert_as_slow(world: World, found: Classifiers, layer: Layer, config: SvmConfig) -> None:
    """Raw features × saved weights are the margins of the slow loop's SVMs on scaled features."""
    scale = slow_scale(world, layer, target=config.target_norm)
    said = world.events("svm trained")
    for k, name in enumerate(NAMES):
        slow = SlowMining(world, k + 1, layer, config, scale)
        own = [(r["negatives"], r["evicted"]) for r in said if r["class_name"] == name]
        assert own == slow.history
        raw = [
            world.feature(i, box, layer)
            for i, scene in enumerate(world.scenes)
            for box in scene.proposals[:10] + scene.boxes
        ]
        weight, bias = found.weights[k].numpy(), float(found.biases[k])
        margins = np.array([weight @ x + bias for x in raw])
        assert margins.std() > 0.04
        np.testing.assert_allclose(margins, [slow.score(x * scale) for x in raw], atol=0.02)


@pytest.mark.parametrize("layer", ["pool5", "fc6", "fc7"])
def test_raw_features_times_saved_weights_are_the_scaled_svms_margins(
    layer: Layer, tiny: Backbone, tmp_path: Path
) -> None:
    world = make_world(tmp_path, tiny, scenes(), head=small_head(tiny))
    config = SvmConfig(**EXACT)
    [found] = train_svms(world.data, layer, config, made_by="x")
    assert found.layer == layer
    assert_as_slow(world, found, layer, config)
    assert len(world.events("svm trained")) == len(NAMES)


@pytest.mark.parametrize(
    "more",
    [
        {"retrain_after": 8},
        {"retrain_after": 8, "passes": 2, "hard_threshold": -0.9, "evict_threshold": -1.05},
        {"retrain_after": 15, "negative_iou": 0.15, "negative_nms": 0.4, "target_norm": 5.0},
        {"retrain_after": 15, "negative_nms": 1.0, "positive_weight": 8.0, "bias": 1.0},
    ],
)
def test_mining_image_by_image(more: dict[str, Any], tiny: Backbone, tmp_path: Path) -> None:
    world = make_world(tmp_path, tiny, scenes())
    config = SvmConfig(**{**EXACT, **more})
    [found] = train_svms(world.data, "pool5", config, made_by="x")
    assert len(world.events("svm trained")) > len(NAMES)  # some were trained more than once
    assert_as_slow(world, found, "pool5", config)


@pytest.mark.parametrize(("layer", "target"), [("pool5", 20.0), ("fc7", 3.0)])
def test_the_mean_norm_is_the_one_asked_for(
    layer: Layer, target: float, tiny: Backbone, tmp_path: Path
) -> None:
    world = make_world(tmp_path, tiny, scenes(), head=small_head(tiny))
    train_svms(world.data, layer, SvmConfig(target_norm=target), made_by="x")
    scale = world.events("svm positives")[0]["scale"]
    assert scale == pytest.approx(slow_scale(world, layer, target=target), rel=1e-4)
    assert abs(np.log(scale)) > 0.1  # else neither the scale nor its inverse would show


def test_the_norm_is_measured_on_a_sample(tiny: Backbone, tmp_path: Path) -> None:
    world = make_world(tmp_path, tiny, scenes())
    found = []
    for images, windows in ((4, 1000), (2, 1000), (4, 3)):
        config = SvmConfig(norm_images=images, norm_windows=windows)
        train_svms(world.data, "pool5", config, made_by="x")
        found.append(world.events("svm positives")[-1]["scale"])
    assert len(set(found)) == 3
    np.testing.assert_allclose(found, found[0], rtol=0.5)


def test_the_norm_is_measured_once_for_all_stages(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_world(tmp_path, tiny, scenes(), head=small_head(tiny)).data
    config = SvmConfig()
    first = feature_scale(data, "pool5", config)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingData, "sample", lambda *_: pytest.fail("an image is read again"))
        assert feature_scale(data, "pool5", config) == first
        twice = config.model_copy(update={"target_norm": 2 * config.target_norm})
        assert feature_scale(data, "pool5", twice) == 2 * first
    tuned = data.with_head(small_head(tiny, seed=4))
    assert feature_scale(tuned, "fc7", config) != feature_scale(data, "fc7", config)


OBJECT: Box = (40.0, 40.0, 80.0, 80.0)  # of class 1 in the images by hand
AWAY: Box = (84.0, 4.0, 120.0, 40.0)
# two boxes on the same cells, of IoU 0.43 and 0.33 with the object
NEARER, FARTHER = (44.0, 54.0, 84.0, 92.0), (47.0, 56.0, 87.0, 95.0)


def by_hand(proposals: list[Box], *, difficult: bool = False) -> list[Scene]:
    """An image with these proposals, and one without proposals that has a positive of each class."""
    objects = [OBJECT, (0.0, 0.0, 24.0, 24.0), (100.0, 70.0, 128.0, 96.0)]
    first = replace(
        scenes()[0],
        boxes=objects,
        labels=[1, 2, 3],
        difficult=[difficult, False, False],
        proposals=proposals,
    )
    return [first, replace(first, difficult=[False] * 3, proposals=[])]


def negatives_by_hand(world: World, **settings: float) -> list[int]:
    """How many negatives each class was trained with."""
    train_svms(world.data, "pool5", SvmConfig.model_validate(settings), made_by="x")
    return [record["negatives"] for record in world.events("svm trained")]


@pytest.mark.parametrize("difficult", [False, True])
@pytest.mark.parametrize("order", [[NEARER, FARTHER], [FARTHER, NEARER]])
def test_a_window_of_a_near_and_a_far_proposal_is_no_negative(
    order: list[Box], difficult: bool, tiny: Backbone, tmp_path: Path
) -> None:
    world = make_world(tmp_path, tiny, by_hand([AWAY, *order], difficult=difficult))
    maps = world.map_of(0)
    assert slow_iou(FARTHER, OBJECT) < 0.4 < slow_iou(NEARER, OBJECT)
    assert slow_window(maps, NEARER) == slow_window(maps, FARTHER) != slow_window(maps, AWAY)
    # of the other classes it is one, once
    assert negatives_by_hand(world, negative_iou=0.4, negative_nms=1.0) == [1, 2, 2]


def test_two_proposals_on_one_window_are_one_negative(tiny: Backbone, tmp_path: Path) -> None:
    world = make_world(tmp_path, tiny, by_hand([AWAY, NEARER, FARTHER]))
    assert negatives_by_hand(world, negative_iou=0.5, negative_nms=1.0) == [2, 2, 2]


def test_negatives_are_thinned_among_those_of_the_class(tiny: Backbone, tmp_path: Path) -> None:
    first, second, third = ((x, 40.0, x + 44, 80.0) for x in (42.0, 46.0, 50.0))
    assert slow_iou(first, OBJECT) > 0.8 > slow_iou(second, OBJECT)
    assert slow_iou(first, second) > 0.7 > slow_iou(first, third)
    assert slow_iou(second, third) > 0.7
    world = make_world(tmp_path, tiny, by_hand([first, second, third]))
    windows = {slow_window(world.map_of(0), box) for box in (first, second, third)}
    assert len(windows) == 3
    # class 1: the first is no negative, the second suppresses the third; others: first and third
    assert negatives_by_hand(world, negative_iou=0.8) == [1, 2, 2]


def test_an_iou_of_exactly_the_bound_is_no_negative(tiny: Backbone, tmp_path: Path) -> None:
    half: Box = (40.0, 40.0, 60.0, 80.0)
    assert slow_iou(half, OBJECT) == 0.5
    world = make_world(tmp_path, tiny, by_hand([half, AWAY]))
    assert negatives_by_hand(world, negative_iou=0.5) == [1, 2, 2]


def test_an_iou_of_exactly_the_nms_bound_is_kept(tiny: Backbone, tmp_path: Path) -> None:
    wide, narrow = (84.0, 4.0, 124.0, 44.0), (84.0, 4.0, 112.0, 44.0)
    assert slow_iou(wide, narrow) == 0.7
    world = make_world(tmp_path, tiny, by_hand([wide, narrow]))
    assert negatives_by_hand(world) == [2, 2, 2]


@pytest.mark.parametrize("passes", [1, 2])
def test_a_stage_that_is_interrupted_at_every_image_ends_in_the_same_bits(
    passes: int, tiny: Backbone, tmp_path: Path
) -> None:
    config = SvmConfig(retrain_after=8, passes=passes, hard_threshold=-0.9, evict_threshold=-1.0)
    whole = make_world(tmp_path / "whole", tiny, scenes())
    [expected] = train_svms(whole.data, "pool5", config, made_by="x")

    world = make_world(tmp_path / "parts", tiny, scenes(), checkpoint_seconds=0)
    before = 2 * len(world.scenes)  # requests for the norm and for the positives
    found = until_done(
        lambda data: train_svms(data, "pool5", config, made_by="x")[0],
        world,
        stops=[before + n for n in range(1, 14)],
    )
    resumed = [re.findall(r"\d+", r["text"]) for r in world.events("svm resumed")]
    done, total = [int(r[0]) for r in resumed], len(world.scenes) * passes
    assert done == sorted(set(done)) and len(done) >= total - 2 and done[0] == 1
    assert all(int(r[1]) == total for r in resumed)
    assert np.array_equal(found.weights.numpy(), expected.weights.numpy())
    assert np.array_equal(found.biases.numpy(), expected.biases.numpy())


def test_a_checkpoint_of_something_else_is_not_used(tiny: Backbone, tmp_path: Path) -> None:
    world = make_world(tmp_path, tiny, scenes(), checkpoint_seconds=0)
    config = SvmConfig(retrain_after=8)
    [first] = train_svms(world.data, "pool5", config, made_by="x")
    assert world.data.state_path("svm").is_file()
    other = SvmConfig(retrain_after=8, C=0.05)
    train_svms(world.data, "pool5", other, made_by="y")
    assert not world.events("svm resumed")
    [again] = train_svms(world.data, "pool5", config, made_by="y")
    assert len(world.events("svm resumed")) == 1
    assert not np.array_equal(again.weights.numpy(), first.weights.numpy())


def test_svms_without_some_images_are_those_of_the_others(tiny: Backbone, tmp_path: Path) -> None:
    # every negative is kept, so that nothing hangs on the order of mining
    config = SvmConfig(hard_threshold=-100, evict_threshold=-100, tolerance=1e-5)
    world = make_world(tmp_path, tiny, scenes())
    masks = [np.arange(4) == 1, np.arange(4) == 3]
    whole, *without = train_svms(world.data, "pool5", config, masks, made_by="x")
    scale = feature_scale(world.data, "pool5", config)
    for mask, found in zip(masks, without, strict=True):
        kept = tuple(i for i, out in zip(world.data.dataset.images, mask, strict=True) if not out)
        others = replace(world.data, dataset=replace(world.data.dataset, images=kept))
        # in units of the same scale, which is the only thing that all images share
        factor = scale / feature_scale(others, "pool5", config)
        same = config.model_copy(update={"target_norm": config.target_norm * factor})
        [expected] = train_svms(others, "pool5", same, made_by="y")
        tolerance = 5e-3 * float(expected.weights.abs().max())
        assert torch.allclose(found.weights, expected.weights, atol=tolerance)
        assert torch.allclose(found.biases, expected.biases, atol=2e-3)
        assert not torch.allclose(found.weights, whole.weights, atol=10 * tolerance)

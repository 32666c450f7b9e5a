"""The box regression stage on four images against a slow loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from sppdet.detection.detect import Regressors
from sppdet.features.backbones import Backbone
from sppdet.stages.bbox import train_box_regressors
from sppdet.stages.training_data import TrainingData
from sppdet.training_config import BboxConfig, Layer, SvmConfig
from stages import (
    NAMES,
    Box,
    Vector,
    World,
    close,
    make_world,
    scenes,
    slow_deltas,
    slow_iou,
    slow_moved,
    slow_scale,
    small_head,
    until_done,
)

Example = tuple[int, Box, Box]  # position, proposal, target


def slow_examples(world: World, label: int, min_iou: float) -> list[Example]:
    """Proposals whose nearest object is of the class, not difficult and near enough."""
    found = []
    for position, scene in enumerate(world.scenes):
        for box in scene.proposals:
            ious = [slow_iou(box, target) for target in scene.boxes]
            best = max(range(len(ious)), key=lambda i: ious[i])
            usable = ious[best] >= min_iou and not scene.difficult[best]
            if usable and scene.labels[best] == label:
                found.append((position, box, scene.boxes[best]))
    return found


def slow_prediction(x: Vector, targets: Vector, config: BboxConfig, wanted: Vector) -> Vector:
    """Whiten the deltas, fit with a constant feature, predict for `wanted`, undo."""
    mean = targets.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(targets.T, bias=True))
    whiten = vectors @ np.diag(1 / np.sqrt(values + config.whiten_epsilon)) @ vectors.T
    machine = Ridge(alpha=config.ridge, fit_intercept=False)
    machine.fit(np.hstack([x, np.ones((len(x), 1))]), (targets - mean) @ whiten)
    found = machine.predict(np.hstack([wanted, np.ones((len(wanted), 1))]))
    moved: Vector = found @ np.linalg.inv(whiten) + mean
    return moved


def predictions(world: World, found: Regressors, k: int, examples: list[Example]) -> Vector:
    """Deltas by the saved regressors from raw features."""
    x = np.stack([world.feature(i, box, found.layer) for i, box, _ in examples])
    deltas: Vector = x @ found.weights[k].double().numpy() + found.biases[k].double().numpy()
    return deltas


def train(data: TrainingData, config: BboxConfig, *, made_by: str = "x") -> Regressors:
    [found] = train_box_regressors(data, config, SvmConfig(), made_by=made_by)
    return found


@pytest.mark.parametrize(
    ("layer", "strength", "min_iou"), [("pool5", 50.0, 0.5), ("fc7", 2.0, 0.6), ("pool5", 1e3, 0.3)]
)
def test_raw_features_times_saved_weights_are_the_deltas_of_scaled_ones(
    layer: Layer, strength: float, min_iou: float, tiny: Backbone, tmp_path: Path
) -> None:
    world = make_world(tmp_path, tiny, scenes(), head=small_head(tiny))
    config = BboxConfig(layer=layer, ridge=strength, min_iou=min_iou)
    found = train(world.data, config)
    assert found.layer == layer
    scale = slow_scale(world, layer)
    assert abs(np.log(scale)) > 0.1
    said = {r["class_name"]: r["examples"] for r in world.events("bbox trained")}
    for k, name in enumerate(NAMES):
        examples = slow_examples(world, k + 1, min_iou)
        assert said[name] == len(examples) > 5
        x = np.stack([world.feature(i, box, layer) * scale for i, box, _ in examples])
        targets = np.array([slow_deltas(box, target) for _, box, target in examples])
        close(predictions(world, found, k, examples), slow_prediction(x, targets, config, x))


def test_regressors_without_some_images(tiny: Backbone, tmp_path: Path) -> None:
    world = make_world(tmp_path, tiny, scenes())
    config = BboxConfig(ridge=20.0)
    masks = [np.arange(4) == 2, np.ones(4, dtype=bool)]
    _, found, nothing = train_box_regressors(world.data, config, SvmConfig(), masks, made_by="x")
    scale = slow_scale(world, "pool5")
    fewer = 0
    for k in range(len(NAMES)):
        examples = slow_examples(world, k + 1, 0.5)
        kept = [e for e in examples if e[0] != 2]
        assert len(kept) > 5
        x = np.stack([world.feature(i, box) * scale for i, box, _ in kept])
        targets = np.array([slow_deltas(box, target) for _, box, target in kept])
        wanted = np.stack([world.feature(i, box) * scale for i, box, _ in examples])
        close(predictions(world, found, k, examples), slow_prediction(x, targets, config, wanted))
        fewer += len(kept) < len(examples)
    assert fewer >= 2
    assert not nothing.weights.any() and not nothing.biases.any()


def test_deltas_move_boxes_nearer(tiny: Backbone, tmp_path: Path) -> None:
    world = make_world(tmp_path, tiny, scenes())
    found = train(world.data, BboxConfig(ridge=1.0, min_iou=0.4))
    for k in range(len(NAMES)):
        examples = slow_examples(world, k + 1, 0.4)
        before = np.array([slow_iou(box, target) for _, box, target in examples])
        moved = [
            slow_moved(box, deltas)
            for (_, box, _), deltas in zip(
                examples, predictions(world, found, k, examples).tolist(), strict=True
            )
        ]
        after = [slow_iou(box, target) for box, (*_, target) in zip(moved, examples, strict=True)]
        assert np.mean(after) > 0.9 > 0.8 > before.mean()


def test_proposals_between_objects_regress_to_the_nearest_one(
    tiny: Backbone, tmp_path: Path
) -> None:
    """Two objects of one class side by side: each example has two possible targets."""
    given = scenes()[:1]
    scene = given[0]
    scene.boxes[:] = [(20.0, 30.0, 60.0, 70.0), (44.0, 30.0, 84.0, 70.0), (90.0, 0.0, 120.0, 30.0)]
    scene.labels[:], scene.difficult[:] = [1, 1, 2], [False, False, False]
    scene.proposals[:] = [(24.0 + d, 30.0, 64.0 + d, 70.0) for d in range(0, 20, 2)]
    world = make_world(tmp_path, tiny, given)
    config = BboxConfig(ridge=0.1, min_iou=0.3)
    found = train(world.data, config)
    examples = slow_examples(world, 1, 0.3)
    assert {target for *_, target in examples} == set(scene.boxes[:2])
    x = np.stack([world.feature(0, box) * slow_scale(world, "pool5") for _, box, _ in examples])
    targets = np.array([slow_deltas(box, target) for _, box, target in examples])
    expected = slow_prediction(x, targets, config, x)
    close(predictions(world, found, 0, examples), expected, tolerance=0.01)


def test_difficult_objects_and_classes_without_examples(tiny: Backbone, tmp_path: Path) -> None:
    given = scenes()[:1]
    scene = given[0]
    scene.boxes[:] = [(20.0, 20.0, 60.0, 60.0), (70.0, 20.0, 110.0, 60.0)]
    scene.labels[:], scene.difficult[:] = [1, 2], [True, False]
    scene.proposals[:] = [(20.0 + d, 20.0, 60.0 + d, 60.0) for d in range(0, 60, 5)]
    world = make_world(tmp_path, tiny, given)
    found = train(world.data, BboxConfig(ridge=10.0))
    said = {r["class_name"]: r["examples"] for r in world.events("bbox trained")}
    assert said == {NAMES[1]: len(slow_examples(world, 2, 0.5))}
    for k in (0, 2):  # their boxes stay as proposed
        assert not found.weights[k].any() and not found.biases[k].any()
    assert found.weights[1].any()


def test_examples_are_bounded(tiny: Backbone, tmp_path: Path) -> None:
    world = make_world(tmp_path, tiny, scenes())
    found = train(world.data, BboxConfig(ridge=1e-4, max_examples=5))
    assert {r["examples"] for r in world.events("bbox trained")} == {5}
    for k in range(len(NAMES)):
        examples = slow_examples(world, k + 1, 0.5)
        targets = np.array([slow_deltas(box, target) for _, box, target in examples])
        wrong = np.abs(predictions(world, found, k, examples) - targets).max(axis=1)
        # those that were drawn, windows that several share apart, are fitted nearly exactly, and
        # the rest isn't
        assert 3 <= (wrong < 0.03).sum() < len(examples)


def test_an_interrupted_stage_goes_on_after_the_classes_that_are_finished(
    tiny: Backbone, tmp_path: Path
) -> None:
    config = BboxConfig(ridge=50.0)
    expected = train(make_world(tmp_path / "whole", tiny, scenes()).data, config)
    world = make_world(tmp_path / "parts", tiny, scenes())
    per_class = [len({i for i, *_ in slow_examples(world, k + 1, 0.5)}) for k in range(3)]
    stops = [4 + per_class[0], 4 + per_class[1]]  # after the norm and one class
    found = until_done(lambda data: train(data, config), world, stops)
    assert len(world.maps.asked) == 4 + per_class[2]
    assert np.array_equal(found.weights.numpy(), expected.weights.numpy())
    assert np.array_equal(found.biases.numpy(), expected.biases.numpy())
    world.maps.asked.clear()
    train(world.data, config, made_by="y")  # what something else has made isn't used
    assert len(world.maps.asked) == 4 + sum(per_class)

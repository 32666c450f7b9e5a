"""The fine-tuning stage on a few images against slow loops: windows, mirror images, snapshots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sppdet.features.backbones import Backbone
from sppdet.features.head import Head, build_head
from sppdet.stages.finetune import PoolMaker, finetune
from sppdet.training.finetune_windows import Pool
from sppdet.training_config import FinetuneConfig, HeadConfig
from stages import (
    LEVELS,
    NAMES,
    Interrupted,
    Vector,
    World,
    close,
    make_world,
    scenes,
    slow_cells,
    slow_labels,
    slow_pool,
    slow_window,
)

ALL: dict[str, Any] = {"pool_windows": 2000, "positive_fraction": 0.5}  # every window is drawn


def rows_of(pool: Pool) -> list[tuple[float, ...]]:
    """The windows of a pool, label first, in an order of their own."""
    labels = pool.labels.astype(np.float64)[:, None]
    return sorted(map(tuple, np.hstack([labels, pool.features.double().numpy()]).tolist()))


def assert_same_windows(pool: Pool, expected: list[tuple[int, Vector]]) -> None:
    wanted = sorted((float(label), *x.tolist()) for label, x in expected)
    found = rows_of(pool)
    assert len(found) == len(wanted)
    close(np.array(found), np.array(wanted), tolerance=1e-5)


@pytest.mark.parametrize(
    "more", [{}, {"positive_iou": 0.6, "negative_iou": [0.0, 0.4]}, {"negative_iou": [0.3, 0.5]}]
)
def test_windows_and_labels_of_a_image(
    more: dict[str, Any], tiny: Backbone, tmp_path: Path
) -> None:
    world = make_world(tmp_path, tiny, scenes())
    config = FinetuneConfig(**ALL, **more)
    labels: set[int] = set()
    for position, scene in enumerate(world.scenes):
        pool = PoolMaker(world.data, config).make([(position, False)], number=0)
        expected = [(k, world.feature(position, box)) for box, k, _ in slow_labels(scene, config)]
        assert_same_windows(pool, expected)
        labels |= {label for label, _ in expected}
    assert labels == {0, 1, 2, 3}


def test_a_mirrored_image_equals_the_flipped_file(tiny: Backbone, tmp_path: Path) -> None:
    plain = make_world(tmp_path / "plain", tiny, scenes())
    flipped = make_world(tmp_path / "flipped", tiny, [scene.mirrored() for scene in scenes()])
    config = FinetuneConfig(**ALL)
    for i in range(len(plain.scenes)):
        mirrored = PoolMaker(plain.data, config).make([(i, True)], number=0)
        as_file = PoolMaker(flipped.data, config).make([(i, False)], number=0)
        unturned = PoolMaker(plain.data, config).make([(i, False)], number=0)
        assert rows_of(mirrored) == rows_of(as_file) != rows_of(unturned)
    assert plain.maps.asked == [(f"im{i}", flip) for i in range(4) for flip in (True, False)]


def test_a_pool_has_its_images_windows_in_the_asked_numbers(tiny: Backbone, tmp_path: Path) -> None:
    world = make_world(tmp_path, tiny, scenes())
    config = FinetuneConfig(pool_windows=8, positive_fraction=0.25)
    maker = PoolMaker(world.data, config)
    pool = maker.make([(2, False), (0, False)], number=5)
    assert [int((pool.labels[part] > 0).sum()) for part in (slice(8), slice(8, 16))] == [2, 2]
    assert len(pool.labels) == 16 and pool.rows.tolist() == list(range(16))
    for position, part in ((2, slice(8)), (0, slice(8, 16))):
        candidates = {
            (k, tuple(world.feature(position, box).astype(np.float32).tolist()))
            for box, k, _ in slow_labels(world.scenes[position], config)
        }
        labels, features = pool.labels[part].tolist(), pool.features[part].tolist()
        assert all((k, tuple(x)) in candidates for k, x in zip(labels, features, strict=True))
    other = maker.make([(2, False), (0, False)], number=6)
    again = maker.make([(2, False), (0, False)], number=5)
    assert rows_of(pool) == rows_of(again) != rows_of(other)


def test_random_scales(tiny: Backbone, tmp_path: Path) -> None:
    world = make_world(tmp_path, tiny, scenes())
    config = FinetuneConfig(**ALL, scale="random")
    maps = world.map_of(0)
    pool = PoolMaker(world.data, config).make([(0, False)], number=0)
    boxes = [(box, label) for box, label, _ in slow_labels(world.scenes[0], config)]
    assert len(pool.labels) == len(boxes)

    def key(label: int, x: Vector) -> tuple[float, ...]:
        return (label, *x.astype(np.float32).tolist())

    by_scale: list[set[tuple[float, ...]]] = [
        {key(k, slow_pool(maps, (s, *slow_cells(maps, box, s)))) for box, k in boxes}
        for s in range(2)
    ]
    best = {key(k, slow_pool(maps, slow_window(maps, box))) for box, k in boxes}
    found = {
        key(int(k), x.double().numpy()) for k, x in zip(pool.labels, pool.features, strict=True)
    }
    assert found <= by_scale[0] | by_scale[1]
    for part in (*by_scale, best):
        assert 0.2 < len(found & part) / len(found) < 0.9


# -- the stage -------------------------------------------------------------------------------------


def new_head(backbone: Backbone, *, width: int = 24, dropout: float = 0.0) -> Head:
    config = HeadConfig(widths=[width], dropout=dropout)
    return build_head(backbone, LEVELS, config, outputs=len(NAMES) + 1, seed=3)


SMALL: dict[str, Any] = {
    "batches": 24,
    "batch_size": 16,
    "lr": 0.01,
    "snapshots": 6,
    "pool_images": 3,
    "pool_windows": 24,
}


def two_of_each(folder: Path, backbone: Backbone, **more: Any) -> World:
    """Eight images; the second four are other ones."""
    return make_world(folder, backbone, [*scenes(seed=0), *scenes(seed=1)], **more)


def slow_loss(world: World, positions: list[int], head: Head, config: FinetuneConfig) -> float:
    """Mean cross-entropy over the windows of images."""
    losses = []
    for position in positions:
        for box, label, _ in slow_labels(world.scenes[position], config):
            x = torch.from_numpy(world.feature(position, box)).float()
            scores = head.fc8(torch.relu(head.fc6(x)))
            losses.append(float(F.cross_entropy(scores[None], torch.tensor([label]))))
    return float(np.mean(losses))


def test_the_snapshot_is_chosen_on_images_that_are_not_trained_on(
    tiny: Backbone, tmp_path: Path
) -> None:
    world = two_of_each(tmp_path, tiny)
    config = FinetuneConfig(**{**SMALL, "lr": 0.05, "pool_windows": 2000}, val_fraction=0.25)
    head = finetune(world.data, new_head(tiny), config, pretrained=False, made_by="x")
    held_out = [int(name[2:]) for name, _ in world.maps.asked[:2]]
    trained_on = world.maps.asked[2:]
    assert not {f"im{i}" for i in held_out} & {name for name, _ in trained_on}
    assert {name for name, _ in trained_on} == {f"im{i}" for i in range(8) if i not in held_out}
    assert {flip for _, flip in trained_on} == {False, True}
    assert not any(flip for _, flip in world.maps.asked[:2])
    records = world.events("finetune")
    assert [r["batch"] for r in records] == [4, 8, 12, 16, 20, 24]
    best = min(reversed(records), key=lambda r: float(r["val_error"]))
    others = [i for i in range(8) if i not in held_out]
    on_validation = slow_loss(world, held_out, head, config)
    assert on_validation == pytest.approx(best["val_loss"], rel=1e-3)
    assert abs(slow_loss(world, others, head, config) / on_validation - 1) > 0.01
    assert f"batch {best['batch']:.0f}" in world.events("message")[-1]["text"]
    assert not head.training and not any(p.requires_grad for p in head.parameters())


def test_training_lowers_the_loss_on_its_windows(tiny: Backbone, tmp_path: Path) -> None:
    world = two_of_each(tmp_path, tiny, store=True)
    more = {"batches": 200, "val_fraction": 0.0, "lr": 0.02, "pool_images": 8, "flip": False}
    config = FinetuneConfig(**{**SMALL, **more, "pool_windows": 60})
    start = new_head(tiny, width=64)
    head = finetune(world.data, start, config, pretrained=False, made_by="x")
    losses = [record["train_loss"] for record in world.events("finetune")]
    assert losses[-1] < 0.5 * losses[0]
    assert slow_loss(world, [*range(8)], head, config) < 0.5
    right = total = 0
    for position, scene in enumerate(world.scenes):
        for box, label, _ in slow_labels(scene, config):
            x = torch.from_numpy(world.feature(position, box)).float()
            right += int(head.fc8(torch.relu(head.fc6(x))).argmax()) == label
            total += 1
    assert right / total > 0.85


@pytest.mark.parametrize("flip", [False, True])
def test_flips_are_a_setting(flip: bool, tiny: Backbone, tmp_path: Path) -> None:
    world = two_of_each(tmp_path, tiny)
    config = FinetuneConfig(**SMALL, flip=flip)
    finetune(world.data, new_head(tiny), config, pretrained=False, made_by="x")
    assert {mirrored for _, mirrored in world.maps.asked[1:]} == {False, flip}


@pytest.mark.parametrize("pretrained", [False, True])
def test_only_a_random_head_starts_from_the_windows_statistics(
    pretrained: bool, tiny: Backbone, tmp_path: Path
) -> None:
    world = two_of_each(tmp_path, tiny)
    start = new_head(tiny)
    before = {k: v.clone() for k, v in start.state_dict().items()}
    config = FinetuneConfig(**{**SMALL, "batches": 1, "lr": 1e-9})
    head = finetune(world.data, start, config, pretrained=pretrained, made_by="x")
    same = torch.allclose(head.fc6.weight, before["fc6.weight"], rtol=1e-4)
    assert same == pretrained


def test_an_interrupted_stage_ends_in_the_same_bits(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sppdet.runs.progress.INTERVAL_S", 0)  # a line an item
    config = FinetuneConfig(**SMALL)
    whole = two_of_each(tmp_path / "whole", tiny)
    start = new_head(tiny, dropout=0.3)
    expected = finetune(whole.data, start, config, pretrained=False, made_by="x")
    world = two_of_each(tmp_path / "parts", tiny, checkpoint_seconds=0)
    for stop in (10, 14, 18):
        world.maps.asked.clear()
        world.maps.stop_at = stop
        again = new_head(tiny, dropout=0.3)
        with pytest.raises(Interrupted):
            finetune(world.data, again, config, pretrained=False, made_by="x")
    world.maps.stop_at = None
    again = new_head(tiny, dropout=0.3)
    found = finetune(world.data, again, config, pretrained=False, made_by="x")
    said = [r["text"] for r in world.events("message") if "going on" in r["text"]]
    assert len(said) >= 2
    # the progress of the last call begins with what those before have done
    lines = [r for r in world.events("progress") if r["label"] == "fine-tuning, batches"]
    done = int(said[-1].split()[5])
    rest = [(number, config.batches) for number in range(done + 1, config.batches)]
    assert [(r["done"], r["total"]) for r in lines[-len(rest) :]] == rest
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)


def test_images_without_proposals_teach_by_their_objects(tiny: Backbone, tmp_path: Path) -> None:
    given = [replace(scene, proposals=[]) for scene in scenes()]
    world = make_world(tmp_path, tiny, given)
    config = FinetuneConfig(**ALL)
    pool = PoolMaker(world.data, config).make([(i, False) for i in range(4)], number=0)
    assert sorted(pool.labels.tolist()) == sorted(
        k for scene in given for k, d in zip(scene.labels, scene.difficult, strict=True) if not d
    )

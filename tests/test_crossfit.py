"""The folds of the training images: similar images stay together, and folds are dealt once."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sppdet.config import Config
from sppdet.data_config import DataConfig
from sppdet.evaluation.folds import leave_out_folds
from sppdet.features.backbones import Backbone
from sppdet.stages.crossfit import Folds, fold_count
from sppdet.training_config import CalibrateConfig
from stages import World, make_world, scenes


def config(folds: int | None = 2, **more: object) -> Config:
    made = None if folds is None else CalibrateConfig(folds=folds)
    return Config(data=DataConfig(root=[Path()], train=["a"]), calibrate=made, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "images", "folds"),
    [("auto", 12, 12), ("auto", 49, 20), ("auto", 50, 10), ("auto", 200, 5), (7, 40, 7), (7, 3, 3)],
)
def test_the_number_of_folds(setting: int | str, images: int, folds: int) -> None:
    assert fold_count(setting, images) == folds


def test_groups_stay_together_and_no_class_is_left_out() -> None:
    random = np.random.default_rng(0)
    for seed in range(20):
        classes = random.random((30, 4)) < [0.5, 0.2, 0.1, 0.05]
        groups = random.integers(12, size=30)
        folds = leave_out_folds(classes, groups, 5, np.random.default_rng(seed))
        for group in range(12):
            own = folds[groups == group]
            assert len(set(own[own >= 0].tolist())) <= 1
        for fold in range(5):
            rest = classes[folds != fold]
            assert (rest.any(axis=0) == classes.any(axis=0)).all()


@pytest.fixture
def world(tiny: Backbone, tmp_path: Path) -> World:
    return make_world(tmp_path, tiny, scenes())


def test_similar_images_are_in_one_fold(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def groups(*_: object, **__: object) -> NDArray[np.int64]:
        calls.append(1)
        return np.array([0, 1, 0, 2])

    monkeypatch.setattr("sppdet.stages.crossfit.similar_groups", groups)
    path = world.data.folder / "folds" / "folds.json"
    for seed in range(6):
        found = Folds.of(config(), replace(world.data, seed=seed))
        assert found is not None and found.count == 2
        assert found.of_image[0] == found.of_image[2]
        assert [mask.tolist() for mask in found.masks()] == [
            (found.of_image == fold).tolist() for fold in (0, 1)
        ]
        again = Folds.of(config(), replace(world.data, seed=seed))
        assert again is not None and again.of_image.tolist() == found.of_image.tolist()
    assert len(calls) == 6  # what is there is read
    assert found is not None and found.of_image.max() >= 0
    for text in ("{", "[]", path.read_text().replace("[", "[0.5, "), path.read_text()[:-9]):
        path.write_text(text)
        again = Folds.of(config(), replace(world.data, seed=5))
        assert again is not None and again.of_image.tolist() == found.of_image.tolist()
    assert len(calls) == 10


def test_models_of_other_folds_are_others() -> None:
    one, other = (Folds(np.array(of_image), 2) for of_image in ([0, 1, 0, 1], [0, 1, 1, 0]))
    assert len({one.made_by("a"), one.made_by("b"), other.made_by("a")}) == 3
    assert one.made_by("a") == Folds(one.of_image.copy(), 2).made_by("a")


def test_a_set_of_one_scene_is_dealt_image_by_image(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        "sppdet.stages.crossfit.similar_groups", lambda *_, **__: np.array([3, 3, 3, 0])
    )
    with caplog.at_level(logging.WARNING, "sppdet"):
        found = Folds.of(config(4), world.data)
    assert found is not None and len(set(found.of_image[found.of_image >= 0].tolist())) >= 2
    assert "3 of 4 images show nearly the same and are in several folds" in caplog.text


def test_no_folds_where_none_are_needed(world: World) -> None:
    assert Folds.of(config(None), world.data) is None
    one = replace(world.data.dataset, images=world.data.dataset.images[:1])
    assert Folds.of(config(), replace(world.data, dataset=one)) is None
    assert not (world.data.folder / "folds").exists()

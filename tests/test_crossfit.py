"""The folds of the training images: how they are dealt, the models without each, what these detect."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import sppdet.stages.bbox as bbox_stage
import sppdet.stages.calibrate as stage
import sppdet.stages.svm as svm_stage
from runs import contents, train_quietly
from sppdet.config import Config
from sppdet.data_config import DataConfig
from sppdet.detection.detect import DetectionParts
from sppdet.errors import ArtifactError
from sppdet.evaluation.folds import leave_out_folds
from sppdet.features.backbones import Backbone
from sppdet.runs.artifacts import read_tensors, write_tensors
from sppdet.stages.crossfit import Folds, fold_count, read_cross_fitted, save_detections
from sppdet.stages.model_files import ModelFiles
from sppdet.training_config import CalibrateConfig
from sppdet.types import Detections
from stages import World, make_world, scenes


def config(folds: int | None = 2, **more: object) -> Config:
    made = None if folds is None else CalibrateConfig(folds=folds)
    return Config(data=DataConfig(root=[Path()], train=["a"]), calibrate=made, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "images", "folds"),
    [
        ("auto", 12, 12),
        ("auto", 49, 20),
        ("auto", 50, 10),
        ("auto", 200, 5),
        (7, 40, 7),
        (7, 3, 3),
        ("auto", 1, 0),
    ],
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


# -- the stages ------------------------------------------------------------------------------------


def test_no_image_is_detected_in_by_what_has_seen_it(
    settings: Path, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, tuple[Any, Any]] = {}  # masks of left-out images, and the models without them
    detected: dict[int, DetectionParts] = {}
    genuine = svm_stage.train_svms, bbox_stage.train_box_regressors, stage._detect

    def train(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            whole, *folds = function(*arguments, **named)
            made[name] = (arguments[3], folds)
            return whole, *folds

        return wrapped

    def detect(context: Any, parts_of: Any, positions: list[int]) -> Any:
        detected.update((p, parts_of(p)) for p in positions)
        return genuine[2](context, parts_of, positions)

    monkeypatch.setattr(svm_stage, "train_svms", train("svm", genuine[0]))
    monkeypatch.setattr(bbox_stage, "train_box_regressors", train("bbox", genuine[1]))
    monkeypatch.setattr(stage, "_detect", detect)
    _, said = train_quietly(settings, run_copy, "calibrate={folds: 3}", until="calibrate")
    assert "svm: there already, but not those of the folds; made again" in said
    assert sorted(detected) == list(range(12))
    for name, (masks, models) in made.items():
        assert len(masks) == len(models) == 3 and np.sum(masks, axis=0).tolist() == [1] * 12
        for position, parts in detected.items():
            used = parts.classifiers if name == "svm" else parts.regressors
            assert used is not None
            same = [torch.equal(used.weights, model.weights) for model in models]
            assert sum(same) == 1 and masks[same.index(True)][position]
    # what was detected is kept
    found = read_cross_fitted(run_copy)
    assert len(found) == 12
    assert all(len(d) and d.scores.dtype == np.float32 for d in found.values())


@pytest.mark.parametrize("lost", ["svm", "bbox"])
def test_models_of_the_folds_that_are_missing_are_made_again(
    lost: str, settings: Path, run_copy: Path
) -> None:
    before = contents(run_copy / "model")
    folds = run_copy / "folds"
    kept = contents(folds)
    (folds / f"{lost}.safetensors").unlink()
    _, said = train_quietly(settings, run_copy, until="calibrate")
    assert "there already, but" not in said  # the calibration that was made with them is there
    (run_copy / "model" / "calibration.safetensors").unlink()
    _, said = train_quietly(settings, run_copy, until="calibrate")
    other = {"svm": "bbox", "bbox": "svm"}[lost]
    assert f"{lost}: there already, but not those of the folds; made again" in said
    assert f"{other}: there already\n" in said
    assert contents(run_copy / "model") == before and contents(folds) == kept


@pytest.mark.parametrize("counts", [[3, 0, 5], [0], [], [0, 0, 2, 0]])
def test_detections_in_training_images_are_kept(tmp_path: Path, counts: list[int]) -> None:
    rng, names = np.random.default_rng(0), ("a", "b", "c")
    given = {}
    for k, count in enumerate(counts):
        low = rng.uniform(0, 50, (count, 2))
        boxes = np.hstack([low, low + rng.uniform(1, 50, (count, 2))]).astype(np.float32)
        scores = np.sort(rng.normal(size=count).astype(np.float32))[::-1].copy()
        given[f"im{k}"] = Detections(boxes, scores, rng.integers(1, 4, count), names)
    save_detections(ModelFiles(tmp_path).cross_fitted, given, names, made_by="x")
    found = read_cross_fitted(tmp_path)
    assert list(found) == list(given)
    for image, expected in given.items():
        assert found[image].class_names == names and len(found[image]) == len(expected)
        for key in ("boxes", "scores", "labels"):
            assert np.array_equal(getattr(found[image], key), getattr(expected, key))


def test_lost_detections_in_training_images_are_made_again(settings: Path, run_copy: Path) -> None:
    path = run_copy / "folds" / "detections.safetensors"
    whole = path.read_bytes()
    path.unlink()
    train_quietly(settings, run_copy, until="calibrate")
    assert path.read_bytes() == whole
    train_quietly(settings, run_copy, "calibrate=none", until="calibrate")
    assert not path.parent.exists()


def test_damaged_detections_in_training_images(run_copy: Path) -> None:
    path = run_copy / "folds" / "detections.safetensors"
    tensors, about = read_tensors(path)
    for broken in (
        {"labels": torch.full_like(tensors["labels"], 9)},
        {"counts": tensors["counts"] + 1},
        {"boxes": tensors["boxes"][1:]},
    ):
        write_tensors(path, {**tensors, **broken}, made_by="x", about=about)
        with pytest.raises(ArtifactError, match=r"detections\.safetensors"):
            read_cross_fitted(run_copy)
    write_tensors(path, tensors, made_by="x", about={**about, "ids": None})
    with pytest.raises(ArtifactError, match="expected the ids of the images"):
        read_cross_fitted(run_copy)
    path.unlink()
    with pytest.raises(ArtifactError, match="no detections in its training images by models that"):
        read_cross_fitted(run_copy)

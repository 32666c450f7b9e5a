"""The learned ranking of windows: its fit, its choice, and detection in the windows that it lets pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from runs import results, train_quietly
from samples import random_boxes, random_image
from sppdet.boxes import box_iou
from sppdet.config import Config, DetectConfig
from sppdet.detection.ranking import Ranking, coarse_levels
from sppdet.errors import ArtifactError, ConfigError
from sppdet.features.backbones import Backbone
from sppdet.features.regions import Windows, find_windows, pool_windows
from sppdet.io.backbone_weights import load_backbone
from sppdet.io.images import read_image
from sppdet.io.settings import check_config
from sppdet.runs.artifacts import read_header
from sppdet.runs.weights import read_part
from sppdet.stages.detector import Detector
from sppdet.stages.model import read_ranking, save_ranking
from sppdet.stages.ranking import fitted
from sppdet.training.ranking import fit_ranking, nearest_iou
from sppdet.types import FeatureMaps, Proposals
from stages import close, make_world, scenes, slow_iou, slow_pool, slow_window
from test_detector import HEIGHT, WIDTH, make_detector

SETTING = "detect.max_windows=30"


def test_coarse_levels() -> None:
    assert coarse_levels([6, 3, 2, 1]) == (2, 1)
    assert coarse_levels([1]) == (1,)
    assert coarse_levels([7, 4]) == (4,)


def test_the_fit_against_scikit_learn() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(200, 12)).astype(np.float32) * np.arange(1, 13, dtype=np.float32)
    y = rng.uniform(size=200)
    parts = [
        (torch.from_numpy(x[a:b]), torch.from_numpy(y[a:b])) for a, b in ((0, 150), (150, 200))
    ]
    weights, bias = fit_ranking([*parts, (torch.zeros(0, 12), torch.zeros(0))], width=12)
    strength = 1e-2 * np.square(x.astype(np.float64)).sum(axis=0).mean()
    reference = Ridge(alpha=strength).fit(x.astype(np.float64), y)
    np.testing.assert_allclose(weights.numpy(), reference.coef_, rtol=1e-4)
    assert bias == pytest.approx(reference.intercept_, rel=1e-6)


def test_a_fit_to_no_window() -> None:
    weights, bias = fit_ranking([], width=3)
    assert not weights.any() and bias == 0


def test_the_largest_iou_of_a_window() -> None:
    rng = np.random.default_rng(2)
    boxes, objects = (random_boxes(rng, n, width=90, height=60) for n in (40, 3))
    windows = Windows(np.zeros((7, 5), dtype=np.int64), rng.permutation(np.arange(40) % 7))
    found = nearest_iou(windows, boxes, objects)
    for row in range(7):
        of_window = boxes[windows.index == row]
        expected = max(float(box_iou(a[None], b[None])[0, 0]) for a in of_window for b in objects)
        assert found[row] == pytest.approx(expected)
    assert not nearest_iou(windows, boxes, objects[:0]).any()


def cell_values(values: list[float]) -> tuple[FeatureMaps, Windows]:
    """A map of one row of cells of 10 pixels, and a window of one cell each, of two proposals."""
    feature_map = torch.tensor(values)[None, None]
    maps = FeatureMaps((feature_map,), np.array([1.0]), 10, 5.0)
    cells = np.array([[0, k, 0, k, 0] for k in range(len(values))])
    return maps, Windows(cells, np.tile(np.arange(len(values)), 2))


def test_the_windows_with_the_largest_estimates_come_first() -> None:
    maps, windows = cell_values([3.0, 1.0, 5.0, 3.0, 4.0])
    up = Ranking((1,), torch.tensor([2.0]), 0.5)
    assert up.best(maps, windows, 2).tolist() == [2, 4, 7, 9]  # both proposals of a window
    assert up.best(maps, windows, 3).tolist() == [0, 2, 4, 5, 7, 9]  # of equal ones the first
    down = Ranking((1,), torch.tensor([-1.0]), 0.5)
    assert down.best(maps, windows, 1).tolist() == [1, 6]
    assert up.best(maps, windows, 5).tolist() == list(range(10))


def test_estimates_are_the_same_from_vectors_of_more_levels() -> None:
    """Two channels at 3, 1 and 2 bins a side, of which the ranking has 2 and 1."""
    ranking = Ranking((2, 1), torch.arange(10.0), 0.5)
    pooled = torch.randn(4, 28, generator=torch.Generator().manual_seed(3))
    wanted = torch.cat([pooled[:, 20:], pooled[:, 18:20]], dim=1) @ torch.arange(10.0) + 0.5
    torch.testing.assert_close(ranking.of_pooled(pooled, (3, 1, 2)), wanted)


@pytest.mark.parametrize("flip", [False, True])
def test_detection_in_the_first_windows(flip: bool) -> None:
    backbone_detector, maps, mirrored, proposals = sample_detector(flip)
    detector = replace(
        backbone_detector,
        config=backbone_detector.config.model_copy(update={"max_windows": 20, "flip": flip}),
    )
    ranking = detector.ranking
    assert ranking is not None
    other = mirrored if flip else None
    found = detector.detect_in(maps, proposals, width=WIDTH, height=HEIGHT, mirrored=other)
    windows = find_windows(maps, proposals.boxes, canonical_size=96)
    assert len(windows) > 40
    estimates = pool_windows(maps, windows.cells, ranking.levels) @ ranking.weights
    first = set(torch.argsort(-estimates, stable=True)[:20].tolist())
    rows = [row for row, window in enumerate(windows.index.tolist()) if window in first]
    everything = replace(detector, config=detector.config.model_copy(update={"max_windows": None}))
    expected = everything.detect_in(
        maps, Proposals(proposals.boxes[rows]), width=WIDTH, height=HEIGHT, mirrored=other
    )
    assert len(expected) > 5
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    at_all = everything.detect_in(maps, proposals, width=WIDTH, height=HEIGHT, mirrored=other)
    assert len(at_all) > len(found)


def sample_detector(flip: bool) -> tuple[Detector, FeatureMaps, FeatureMaps, Proposals]:
    backbone: Backbone = load_backbone("tiny", "none", seed=2)
    detector = make_detector(
        backbone, layer="pool5", bbox="pool5", config=DetectConfig(min_score=-9)
    )
    image = random_image(np.random.default_rng(8), width=WIDTH, height=HEIGHT)
    maps = detector.maps.compute(detector.maps.scaled(image))
    mirrored = detector.maps.compute(detector.maps.scaled(np.ascontiguousarray(image[:, ::-1])))
    boxes = random_boxes(np.random.default_rng(9), 120, width=WIDTH, height=HEIGHT)
    weights = torch.randn(5 * backbone.channels, generator=torch.Generator().manual_seed(1))
    return (
        replace(detector, ranking=Ranking((2, 1), weights, 0.0)),
        maps,
        mirrored,
        Proposals(boxes),
    )


def test_a_run_with_a_ranking(settings: Path, run_copy: Path, demo_root: Path) -> None:
    before = results(run_copy)
    _, said = train_quietly(settings, run_copy, SETTING)
    path = run_copy / "model" / "ranking.safetensors"
    assert "svm: there already" in said and "head: there already" in said
    after = results(run_copy)
    changed = {name for name in before if before[name] != after.get(name)}
    weights = {name for name in changed if name.endswith("safetensors")}
    assert "trained.json" in changed and weights == {
        "calibration.safetensors",
        "detections.safetensors",
    }
    detector = Detector.load(run_copy, device="cpu")
    assert detector.ranking is not None
    image = read_image(demo_root / "JPEGImages" / "000013.jpg")
    assert len(detector(image)) > 0

    modified, made = path.stat().st_mtime_ns, read_header(path)
    train_quietly(settings, run_copy, "detect.max_windows=40")
    assert (path.stat().st_mtime_ns, read_header(path)) == (modified, made)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=r"ranking\.safetensors: damaged"):
        Detector.load(run_copy, device="cpu")
    train_quietly(settings, run_copy, SETTING)
    assert path.read_bytes() == whole

    path.unlink()
    with pytest.raises(ArtifactError, match="have changed since it was trained"):
        Detector.load(run_copy, device="cpu")
    train_quietly(settings, run_copy)
    assert not path.exists() and results(run_copy) == before


def test_a_ranking_of_another_pyramid_is_refused(run_copy: Path, tmp_path: Path) -> None:
    path = tmp_path / "ranking.safetensors"
    save_ranking(path, Ranking((2, 1), torch.zeros(20), 0.25), made_by="x")
    assert read_ranking(read_part(path), levels=[3, 2, 1], channels=4).bias == 0.25
    with pytest.raises(ArtifactError, match="it is for other levels"):
        read_ranking(read_part(path), levels=[3, 1], channels=4)
    with pytest.raises(ArtifactError, match=r"weights .*20"):
        read_ranking(read_part(path), levels=[3, 2, 1], channels=5)


def test_windows_are_those_of_the_stage(tmp_path: Path) -> None:
    """The stage against a slow computation of features, IoUs and the solution."""
    world = make_world(tmp_path, load_backbone("tiny", "none", seed=2), scenes(seed=4))
    ranking = fitted(world.data)
    assert ranking.levels == (2, 1)
    assert all(len(scene.proposals) < 300 for scene in world.scenes)  # so that none is left out
    x, y = [], []
    channels = world.maps.channels
    for position, scene in enumerate(world.scenes):
        rows: dict[tuple[int, ...], list[float]] = {}
        maps = world.map_of(position)
        for box in scene.proposals:
            key = tuple(np.ravel(slow_window(maps, box)).tolist())
            whole = slow_pool(maps, slow_window(maps, box))
            rows.setdefault(key, [0.0, *whole[-5 * channels :]])
            best = max((slow_iou(box, target) for target in scene.boxes), default=0.0)
            rows[key][0] = max(rows[key][0], best)
        y += [row[0] for row in rows.values()]
        x += [row[1:] for row in rows.values()]
    features = np.array(x, dtype=np.float64)
    strength = 1e-2 * np.square(features).sum(axis=0).mean()
    reference = Ridge(alpha=strength).fit(features, y)
    close(ranking.weights, reference.coef_)
    assert ranking.bias == pytest.approx(reference.intercept_, abs=1e-3)


def test_windows_on_objects_are_ranked_first(tmp_path: Path) -> None:
    data = make_world(tmp_path, load_backbone("tiny", "none", seed=2), scenes(seed=4)).data
    ranking = fitted(data)
    found, chance = 0.0, 0.0
    for position in range(len(data.dataset)):
        sample = data.sample(position)
        windows = data.extractor.windows(sample.maps, sample.proposals.boxes)
        iou = nearest_iou(windows, sample.proposals.boxes, sample.image.gt_boxes)
        first = ranking.best(sample.maps, windows, len(windows) // 4)
        found += iou[windows.index[first]].mean()
        chance += iou.mean()
    assert found > 1.2 * chance


def test_settings_of_the_ranking() -> None:
    def read(given: object) -> int | None:
        return check_config(
            {"data": {"root": "x"}, "detect": {"max_windows": given}}, "x", Config
        ).detect.max_windows

    assert read("none") is None and read(None) is None and read(300) == 300
    with pytest.raises(ConfigError, match=r"detect\.max_windows"):
        read(0)

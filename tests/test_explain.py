"""Explanations: exact shares of scores, fates by a slow NMS, answers at points, and the page."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from campaigns.workspace import QUICK
from causes_samples import Scored, boxes_of
from pages import HOSTILE, check_page, opened
from runs import CommandLine, train_quietly, write_settings
from sppdet.config import DetectConfig, ProposalsConfig
from sppdet.detection.detect import DetectionParts, select
from sppdet.detection.explain import Scene, answer, contributions
from sppdet.detection.trace import suppressors
from sppdet.errors import ConfigError
from sppdet.pages.render import number
from sppdet.proposals.modes import MODES
from sppdet.proposals.selective_search import first_merges
from sppdet.proposals.sppdet_engine import grow, hierarchies
from sppdet.stages.detector import Detector
from sppdet.stages.explain import choose, explain, look
from stages import Box, slow_iou

SIDE = 200


@pytest.fixture(scope="session")
def linear_run(demo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose SVMs are on pool5; not to be changed."""
    folder = tmp_path_factory.mktemp("linear")
    more = {"head": "none", "finetune": "none", "spp_levels": [3, 2, 1], "scales": [96, 140]}
    settings = write_settings(folder / "s.yaml", demo_root, **{**QUICK, **more})
    train_quietly(settings, folder / "run")
    return folder / "run"


@pytest.fixture(scope="session")
def image(demo_root: Path) -> Path:
    """An image that the runs haven't seen."""
    return sorted((demo_root / "fresh").iterdir())[0]


def with_detect(run: Path, target: Path, **values: Any) -> Path:
    """A copy of a run with other settings of detection."""
    shutil.copytree(run, target)
    config = yaml.safe_load((target / "config.yaml").read_text())
    config["detect"] |= values
    (target / "config.yaml").write_text(yaml.safe_dump(config))
    return target


def scene_of(
    boxes: Sequence[Box] | NDArray[np.float32],
    scores: Sequence[Sequence[float]] | NDArray[np.float32],
    *,
    thresholds: Sequence[float],
    moved: NDArray[np.float32] | None = None,
    unscored: Sequence[Box] = (),
    **config: Any,
) -> Scene:
    """The package's NMS on windows with these scores (P, K), and boxes that regression makes of them."""
    settings = DetectConfig(**config)
    rows = boxes_of([tuple(row) for row in np.asarray(boxes).reshape(-1, 4).tolist()])
    given = np.array(scores, np.float32).reshape(len(rows), -1)
    names = tuple("abc"[: len(thresholds)])
    parts = SimpleNamespace(
        class_names=names, classifiers=SimpleNamespace(kind="svm"), config=settings
    )
    after = np.repeat(rows[:, None], len(names), axis=1) if moved is None else moved
    scored = Scored(cast(DetectionParts, parts), rows, given, (), after)
    selection = select([scored], settings, width=SIDE, height=SIDE)
    suppressor = suppressors(scored, selection, settings)
    proposals = np.concatenate([rows, boxes_of(unscored)])
    return Scene(proposals, scored, selection, suppressor, np.array(thresholds))


@pytest.mark.parametrize("flip", [False, True])
def test_shares_add_up_to_the_score(
    linear_run: Path, image: Path, tmp_path: Path, flip: bool
) -> None:
    run = with_detect(linear_run, tmp_path / "run", flip=flip)
    detector = Detector.load(run, device="cpu")
    pixels = detector.read(image)
    maps, scene = look(detector, pixels, thresholds=np.full(4, -9.0))
    for row in range(0, len(scene.scored.boxes), 3):
        shares = contributions(scene.scored, row)
        assert shares is not None and shares.levels == (3, 2, 1)
        total = shares.by_level.sum(axis=0) + shares.bias
        np.testing.assert_allclose(total, scene.scored.scores[row], rtol=1e-5, atol=1e-5)
    if flip:
        return
    # a bin by a loop from the definition: its maxima times the weights of its columns
    weights = detector.classifiers.weights.double().numpy()
    channels = maps.maps[0].shape[0]
    for row in (0, len(scene.scored.boxes) // 2):
        shares = contributions(scene.scored, row)
        windows = detector.extractor.windows(maps, scene.scored.boxes[[row]])
        scale, left, top, right, bottom = windows.cells[0].tolist()
        window = maps.maps[scale].double().numpy()[:, top : bottom + 1, left : right + 1]
        _, down, across = window.shape
        start = 0
        for level, n in enumerate((3, 2, 1)):
            for i in range(n):
                for j in range(n):
                    rows = slice(i * down // n, -(-(i + 1) * down // n))
                    columns = slice(j * across // n, -(-(j + 1) * across // n))
                    maxima = window[:, rows, columns].max(axis=(1, 2))
                    own = weights[:, start : start + channels] @ maxima
                    assert shares is not None
                    np.testing.assert_allclose(shares.bins[level][i, j], own, atol=1e-6)
                    start += channels


def test_bins_of_the_mirror_image_are_mirrored_back(
    linear_run: Path, image: Path, tmp_path: Path
) -> None:
    """In a symmetric image the shares of a centred window are symmetric only if they are."""
    detector = Detector.load(with_detect(linear_run, tmp_path / "run", flip=True), device="cpu")
    half = detector.read(image)[:, :100]
    pixels = np.ascontiguousarray(np.concatenate([half, half[:, ::-1]], axis=1))
    _, scene = look(detector, pixels, thresholds=np.full(4, -9.0))
    boxes = scene.scored.boxes
    (centred,) = np.flatnonzero((boxes == [0, 0, 200, half.shape[0]]).all(axis=1))[:1]
    shares = contributions(scene.scored, int(centred))
    assert shares is not None
    for one in shares.bins:
        np.testing.assert_allclose(one, one[:, ::-1], atol=1e-6)
    assert np.abs(shares.bins[0][:, 0] - shares.bins[0][:, 1]).max() > 1e-3


def test_no_shares_behind_a_head(trained: Path, image: Path) -> None:
    detector = Detector.load(trained, device="cpu")
    _, scene = look(detector, detector.read(image), thresholds=np.zeros(4))
    assert contributions(scene.scored, 0) is None


def test_detections_are_those_of_the_detector(linear_run: Path, image: Path) -> None:
    detector = Detector.load(linear_run, device="cpu")
    _, scene = look(detector, detector.read(image), thresholds=np.full(4, -0.5))
    found = detector(image)
    assert scene.selection.detections.boxes.tolist() == found.boxes.tolist()
    assert len(scene.counted) == (found.scores >= -0.5).sum()


@pytest.mark.parametrize("seed", range(6))
def test_fates_by_a_slow_nms(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 60, (40, 2))
    boxes = np.hstack([low, low + rng.integers(10, 50, (40, 2))]).astype(np.float32)
    scores = rng.normal(0, 1, (40, 2)).astype(np.float32)
    scene = scene_of(boxes, scores, thresholds=[0.2, -0.4], max_per_class=4)
    states = set()
    for k, threshold in enumerate((0.2, -0.4)):
        kept: list[int] = []
        for row in sorted(range(40), key=lambda r: -float(scores[r, k])):
            over = [
                one
                for one in kept
                if slow_iou(tuple(boxes[row].tolist()), tuple(boxes[one].tolist())) > 0.3
            ]
            fate = scene.fate(row, k + 1)
            if scores[row, k] >= -1.5:
                assert fate.by == (over[0] if over else -1)
            wanted = "suppressed by NMS" if over else "detected"
            if not over and len(kept) == 4:
                wanted = "over max_per_class"
            elif not over and scores[row, k] >= -1.5:
                kept.append(row)
            if scores[row, k] < threshold:
                wanted = "scored below the threshold"
            assert fate.state == wanted
            assert (fate.detection >= 0) == (row in kept)
            states.add(wanted)
    assert len(states) == 4


A, NEAR, FAR = (10.0, 10.0, 50.0, 50.0), (12.0, 10.0, 60.0, 50.0), (100.0, 100.0, 150.0, 150.0)


def test_answers() -> None:
    scene = scene_of([A, NEAR, FAR], [[1.0], [0.9], [-0.5]], thresholds=[0.0])
    there = answer(scene, 20, 20)
    assert (there.reason, there.proposals, len(there.best)) == ("detected", 2, 2)
    assert there.detected is not None and there.detected.row == 0
    below = answer(scene, 120, 120)
    assert below.reason == "scored below the threshold" and below.detected is None
    assert (below.best[0].score, below.best[0].threshold) == (-0.5, 0.0)
    dropped = answer(scene, 55, 20)
    assert dropped.reason == "suppressed by NMS"
    assert (dropped.best[0].row, dropped.best[0].by) == (1, 0)
    assert answer(scene, 50, 20).reason == "suppressed by NMS"  # A's right side is outside
    assert answer(scene, 190, 190).reason == "not proposed" and not answer(scene, 190, 190).best
    few = scene_of([A], [[1.0]], thresholds=[0.0], unscored=[FAR])
    assert answer(few, 120, 120).reason == "not scored"
    limited = scene_of([A, FAR], [[1.0], [0.5]], thresholds=[0.0], max_per_class=1)
    assert answer(limited, 120, 120).reason == "over max_per_class"
    off = np.array([[(60.0, 60.0, 90.0, 90.0)]], np.float32)
    moved = scene_of([A], [[1.0]], thresholds=[0.0], moved=off)
    assert answer(moved, 20, 20).reason == "moved off by regression"
    assert answer(moved, 70, 70).reason == "detected"  # the final box counts
    assert answer(moved, 70, 70).best == []


def test_the_best_window_is_the_nearest_to_its_own_threshold() -> None:
    scene = scene_of([A, NEAR, FAR], [[0.2, 0.8], [0.4, -2.0], [-1.0, -0.6]], thresholds=[0.5, 1.0])
    best = scene.best(np.arange(3), 2)
    assert [(one.row, one.label) for one in best] == [(1, 1), (0, 2)]
    why, subject = choose(scene, at=None, detection=None)
    assert why is None and subject == best[0]
    assert scene.best(np.zeros(0, np.int64), 3) == []
    nothing = scene_of([A], [[-1.0]], thresholds=[0.0])
    with pytest.raises(ConfigError, match="--detection 1: nothing is detected"):
        choose(nothing, at=None, detection=1)


def test_soft_nms_lowers_below_the_threshold() -> None:
    scene = scene_of([A, NEAR], [[1.0], [0.3]], thresholds=[0.0], soft_nms=2.0)
    fate = scene.fate(1, 1)
    assert (fate.state, fate.by) == ("suppressed by NMS", 0) and fate.detection >= 0


def test_first_merges(image: Path, linear_run: Path) -> None:
    pixels = Detector.load(linear_run, device="cpu").read(image)
    config = ProposalsConfig(image_width=pixels.shape[1], mode="fast")
    found = first_merges(pixels, config, count=3, most=5)
    trees = list(grow(pixels, MODES["fast"]))[:5]
    assert len(found) == 5 and found[0].name == "hsv, k = 50, by colour + texture + size + fill"
    for one, tree, boxes in zip(found, trees, hierarchies(pixels, MODES["fast"]), strict=False):
        parts, regions = tree.hierarchy.parts[:3], one.regions
        assert 2 * regions - 1 == len(boxes)
        initial = tree.hierarchy.boxes
        for m, (a, b) in enumerate(parts.tolist()):
            union = [
                *np.minimum(initial[a, :2], initial[b, :2]),
                *np.maximum(initial[a, 2:], initial[b, 2:]),
            ]
            assert one.boxes[m].tolist() == union
            assert initial[regions + m].tolist() == union


def test_the_page_of_a_linear_detector(
    sppdet: CommandLine, linear_run: Path, image: Path, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    status, said, _ = sppdet("explain", linear_run, image, "--score", "-1.4", "--out", out)
    assert (status, said) == (0, f"written to {out}\n")
    page = check_page(out)
    assert out.stat().st_size < 1_000_000
    detector = Detector.load(linear_run, device="cpu")
    _, scene = look(detector, detector.read(image), thresholds=np.full(4, -1.4))
    _, subject = choose(scene, at=None, detection=None)
    assert subject is not None and subject.detection == 0
    assert f"This page follows window {subject.row + 1}, " in page.text
    shares = contributions(scene.scored, subject.row)
    assert shares is not None
    row = [*shares.by_level[:, subject.label - 1], shares.bias[subject.label - 1], subject.score]
    name = detector.class_names[subject.label - 1]
    assert name + "".join(number(float(value), 3) for value in row) in page.text
    assert f"{len(scene.proposals)} boxes" in page.text and "linear" in page.text
    dropped = (scene.suppressor[:, subject.label - 1] == subject.row).sum()
    assert f"was kept and has suppressed {dropped} others" in page.text
    arrows = [a for a in page.all("line") if a.get("class") == "arrow"]
    assert len(arrows) == 5
    before, after = scene.scored.boxes[subject.row], scene.selection.detections.boxes[0]
    for end, box in (("1", before), ("2", after)):
        x, y = (float(arrows[0][f"{axis}{end}"]) for axis in "xy")
        assert (x, y) == pytest.approx(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), abs=0.1)
    bins = [a for a in page.all("rect") if a.get("class", "").startswith("bin")]
    assert len(bins) == 9 + 4 + 1
    # the second detection, by its number
    assert (
        sppdet("explain", linear_run, image, "--score", "-1.4", "--detection", "2", "--out", out)[0]
        == 0
    )
    again = scene.selection.rows[1]
    assert f"This page follows window {again + 1}, " in check_page(out).text


def test_the_page_names_the_suppressor(
    sppdet: CommandLine, linear_run: Path, image: Path, tmp_path: Path
) -> None:
    detector = Detector.load(linear_run, device="cpu")
    pixels = detector.read(image)
    _, lowest = look(detector, pixels, thresholds=np.full(4, -1.5))
    level, scene, x, y = next(
        (level, scene, x, y)
        for level in np.arange(-1.4, 1.0, 0.05).round(2).tolist()
        for scene in [replace(lowest, thresholds=np.full(4, level))]
        for x in range(0, pixels.shape[1], 7)
        for y in range(0, pixels.shape[0], 7)
        if answer(scene, x, y).reason == "suppressed by NMS"
    )
    out = tmp_path / "page.html"
    options = ("--at", f"{x},{y}", f"--score={level}", "--out", out)
    assert sppdet("explain", linear_run, image, *options)[0] == 0
    page, first = check_page(out), answer(scene, x, y).best[0]
    rival = number(float(scene.scored.scores[first.by, first.label - 1]))
    assert f"Suppressed by NMS. Of {answer(scene, x, y).proposals} proposals" in page.text
    assert f"suppressed by NMS, by window {first.by + 1} of score {rival}" in page.text
    assert f"Window {first.row + 1} was suppressed by window {first.by + 1}" in page.text
    assert "isn't kept" in page.text


def test_nothing_at_a_point(
    sppdet: CommandLine, trained: Path, image: Path, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    arguments = ("explain", trained, image, "--at", "30,40", "--score", "99", "--out", out)
    assert sppdet(*arguments)[0] == 0
    page = check_page(out)
    detector = Detector.load(trained, device="cpu")
    _, scene = look(detector, detector.read(image), thresholds=np.full(4, 99.0))
    best = answer(scene, 30, 40).best
    assert "There is no detection with scores >= 99" in page.text
    assert "At (30.0, 40.0). Scored below the threshold." in page.text
    for one in best:
        assert f"{number(99 - one.score)} below the threshold 99.00" in page.text
    assert len(best) == 8
    # the head's scores have no shares of bins
    assert "can't be told here: the score is linear in fc6" in page.text
    assert not re.search(r'class="bin (up|down)"', out.read_text())


def test_the_default_page_and_errors(
    sppdet: CommandLine, run_copy: Path, image: Path, tmp_path: Path
) -> None:
    status, said, _ = sppdet("explain", run_copy, image)
    page = run_copy / "explain" / f"{image.stem}.html"
    assert (status, said) == (0, f"written to {page}\n")
    check_page(page)
    page.write_text("mine")
    for arguments, words in (
        ((image,), "isn't a page of sppdet's"),
        (
            (image, "--at", "9999,3", "--out", tmp_path / "a"),
            "--at 9999,3: outside the image, which",
        ),
        ((image, "--at", "3", "--out", tmp_path / "a"), "--at 3: expected x,y in pixels"),
        ((image, "--at", "nan,3", "--out", tmp_path / "a"), "--at nan,3: expected x,y"),
        ((image, "--detection", "999", "--out", tmp_path / "a"), "--detection 999: expected 1 to"),
        ((image, "--detection", "0", "--out", tmp_path / "a"), "--detection 0: expected 1 to"),
        ((image, "--at", "3,3", "--detection", "1"), "expected one of --at and --detection"),
        ((tmp_path / "none.jpg", "--out", tmp_path / "a"), "none.jpg: no such file"),
    ):
        status, _, err = sppdet("explain", run_copy, *arguments)
        assert status == 1 and words in err and len(err.splitlines()) == 1
    assert page.read_text() == "mine"
    status, _, err = sppdet("explain", tmp_path, image)
    assert status == 1 and "not a run" in err


@pytest.mark.parametrize(
    "values",
    [{"soft_nms": 0.5, "box_voting": 0.5, "flip": True}, {"max_windows": None, "max_per_class": 1}],
    ids=str,
)
def test_other_settings(linear_run: Path, image: Path, tmp_path: Path, values: Any) -> None:
    run = with_detect(linear_run, tmp_path / "run", **values)
    check_page(explain(run, image, device="cpu"))
    check_page(explain(run, image, at=(20.0, 20.0), device="cpu"))


def test_an_image_of_one_colour(linear_run: Path, tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "grey.png"), np.full((80, 100, 3), 99, np.uint8))
    page = check_page(
        explain(linear_run, tmp_path / "grey.png", out=tmp_path / "p.html", device="cpu")
    )
    assert "proposes 1 boxes" in page.text


def test_names_are_escaped_in_a_browser(linear_run: Path, image: Path, tmp_path: Path) -> None:
    path = tmp_path / f"{HOSTILE.replace('/', '')}.jpg"
    shutil.copy(image, path)
    out = explain(linear_run, path, out=tmp_path / "p.html", device="cpu")
    check_page(out)
    with opened(out, viewport={"width": 390, "height": 800}) as page:
        assert path.name in page.get_by_role("heading", level=1).inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.get_by_role("img", name="The feature map as a heat map").count() == 1
        assert page.get_by_role("table", name="Scores by class").locator("tbody tr").count() == 4
        assert page.get_by_role("heading", level=2).count() == 8

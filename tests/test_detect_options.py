"""Box voting, soft-NMS, flips and combined models against slow computations, proposal by proposal."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from runs import CommandLine, contents
from samples import random_boxes, random_image
from sppdet.boxes import box_iou, clip_boxes, decode_deltas
from sppdet.config import DetectConfig
from sppdet.detection.detect import ScoredProposals, weigh
from sppdet.errors import ConfigError
from sppdet.features.backbones import Backbone
from sppdet.folders.folder import detect_folder
from sppdet.stages.combined import CombinedDetector
from sppdet.stages.detector import Detector
from sppdet.types import Boxes, Detections, FeatureMaps, ImageArray, Proposals
from test_detector import HEIGHT, NAMES, WIDTH, make_detector, normalised, slow_features

Candidate = tuple[float, list[float], list[float]]  # score, proposal, regressed box


@pytest.fixture(scope="module")
def image() -> ImageArray:
    return random_image(np.random.default_rng(5), width=WIDTH, height=HEIGHT)


@pytest.fixture(scope="module")
def proposals() -> Proposals:
    rng = np.random.default_rng(6)
    boxes = random_boxes(rng, 40, width=WIDTH, height=HEIGHT)
    near = boxes + rng.normal(size=boxes.shape).astype(np.float32)
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    return Proposals(np.concatenate([boxes, clip_boxes(near, width=WIDTH, height=HEIGHT)]))


def maps_of(detector: Detector, image: ImageArray, *, mirrored: bool = False) -> FeatureMaps:
    pixels = np.ascontiguousarray(image[:, ::-1]) if mirrored else image
    return detector.maps.compute(detector.maps.scaled(pixels)).to(detector.maps.device)


def ready(tiny: Backbone, image: ImageArray, **settings: Any) -> Detector:
    config = DetectConfig.model_validate({"min_score": -0.5, **settings})
    detector = make_detector(tiny, bbox="pool5", config=config)
    return normalised(detector, maps_of(detector, image))


def slow_candidates(
    detector: Detector, image: ImageArray, boxes: Boxes, label: int, *, flip: bool = False
) -> list[Candidate]:
    """Score and regressed box of every proposal for one class, each alone."""
    c, r = detector.classifiers, detector.regressors
    assert r is not None
    found = []
    views = [
        maps_of(detector, image, mirrored=side) for side in ((False, True) if flip else (False,))
    ]
    for x1, y1, x2, y2 in boxes.tolist():
        seen = [(x1, y1, x2, y2), (WIDTH - x2, y1, WIDTH - x1, y2)]
        scores, deltas = [], []
        for side, view in enumerate(views):
            box = np.array(seen[side], np.float32)
            x = slow_features(detector, view, box, c.layer)
            scores.append(float(c.weights[label - 1] @ x + c.biases[label - 1]))
            y = slow_features(detector, view, box, r.layer)
            d = (r.weights[label - 1].T @ y + r.biases[label - 1]).tolist()
            deltas.append([-d[0] if side else d[0], *d[1:]])
        mean = np.mean(deltas, axis=0).astype(np.float32)[None]
        whole = np.array([[x1, y1, x2, y2]], np.float32)
        moved = clip_boxes(decode_deltas(whole, mean), width=WIDTH, height=HEIGHT)
        found.append((float(np.mean(scores)), [x1, y1, x2, y2], moved[0].tolist()))
    return found


def iou(a: list[float], b: list[float]) -> float:
    return float(box_iou(np.array([a], np.float32), np.array([b], np.float32))[0, 0])


def sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score))


def slow_kept(candidates: list[Candidate], config: DetectConfig) -> list[tuple[float, list[float]]]:
    """Score and box of what NMS or soft-NMS keeps of one class, after the votes."""
    those = [c for c in candidates if c[0] >= config.lowest_score("svm")]
    kept: list[tuple[float, Candidate]] = []
    if config.soft_nms is None:
        for one in sorted(those, key=lambda c: -c[0]):
            if all(iou(one[1], other[1]) <= config.nms for _, other in kept):
                kept.append((one[0], one))
    else:
        left = [(sigmoid(c[0]), c) for c in those]
        while left:
            left.sort(key=lambda item: -item[0])
            p, best = left.pop(0)
            if math.log(p / (1 - p)) < config.lowest_score("svm"):
                break
            kept.append((math.log(p / (1 - p)), best))
            left = [
                (q * math.exp(-(iou(c[1], best[1]) ** 2) / config.soft_nms), c) for q, c in left
            ]
    if config.box_voting is None:
        return [(score, one[2]) for score, one in kept]
    voted = []
    for score, one in kept:
        near = [c for c in those if iou(c[2], one[2]) >= config.box_voting]
        total = sum(sigmoid(c[0]) for c in near)
        mean = [sum(sigmoid(c[0]) * c[2][i] for c in near) / total for i in range(4)]
        voted.append((score, mean))
    return voted


def assert_found(found: Detections, of_class: list[list[Candidate]], config: DetectConfig) -> None:
    """Compare with the slow detections of all classes."""
    for label, candidates in enumerate(of_class, start=1):
        expected = slow_kept(candidates, config)
        mine = found.labels == label
        assert 5 < len(expected) == mine.sum()
        np.testing.assert_allclose(found.scores[mine], [e[0] for e in expected], atol=2e-4)
        np.testing.assert_allclose(found.boxes[mine], [e[1] for e in expected], atol=1e-2)
    assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"box_voting": 0.5},
        {"soft_nms": 0.3},
        {"flip": True},
        {"box_voting": 0.4, "soft_nms": 0.6, "flip": True},
    ],
    ids=lambda settings: "+".join(settings),
)
def test_options_against_a_slow_computation(
    settings: dict[str, Any], tiny: Backbone, image: ImageArray, proposals: Proposals
) -> None:
    detector = ready(tiny, image, **settings)
    flip = detector.config.flip
    mirrored = maps_of(detector, image, mirrored=True) if flip else None
    found = detector.detect_in(
        maps_of(detector, image), proposals, width=WIDTH, height=HEIGHT, mirrored=mirrored
    )
    boxes = proposals.boxes
    slow = [slow_candidates(detector, image, boxes, k, flip=flip) for k in (1, 2, 3)]
    assert_found(found, slow, detector.config)
    plain = replace(detector, config=DetectConfig(min_score=-0.5))
    before = plain.detect_in(maps_of(detector, image), proposals, width=WIDTH, height=HEIGHT)
    assert before.boxes.shape != found.boxes.shape or np.abs(before.boxes - found.boxes).max() > 0.5


def test_mirrored_maps_are_given_with_flip_alone(
    tiny: Backbone, image: ImageArray, proposals: Proposals
) -> None:
    for flip in (True, False):
        detector = ready(tiny, image, flip=flip)
        maps = maps_of(detector, image)
        wrong = None if flip else maps
        with pytest.raises(ValueError, match=f"mirrored maps with detect.flip {flip}: expected"):
            detector.detect(maps, proposals, image, mirrored=wrong)


def test_a_mirrored_image_has_mirrored_detections(tiny: Backbone, image: ImageArray) -> None:
    """With flip both images are looked at, whichever is given."""
    boxes = random_boxes(np.random.default_rng(2), 50, width=WIDTH, height=HEIGHT, whole=True)
    detector = ready(tiny, image, flip=True, min_score=-1e9)
    views = [maps_of(detector, image, mirrored=side) for side in (False, True)]
    other = boxes.copy()
    other[:, [0, 2]] = WIDTH - boxes[:, [2, 0]]
    a, b = (
        detector.detect_in(
            views[side], Proposals(own), width=WIDTH, height=HEIGHT, mirrored=views[1 - side]
        )
        for side, own in enumerate((boxes, other))
    )
    assert len(a) > 10 and np.array_equal(a.scores, b.scores)
    b.boxes[:, [0, 2]] = WIDTH - b.boxes[:, [2, 0]]
    np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-3)


def test_no_proposals_with_all_options(tiny: Backbone, image: ImageArray) -> None:
    detector = ready(tiny, image, box_voting=0.5, soft_nms=0.5, flip=True)
    maps = maps_of(detector, image)
    none = Proposals(np.zeros((0, 4), np.float32))
    assert len(detector.detect(maps, none, image, mirrored=maps)) == 0
    assert len(CombinedDetector.of([detector, detector]).class_names) == 3


def test_calls_and_folders_use_all_options(
    tiny: Backbone, image: ImageArray, tmp_path: Path
) -> None:
    from PIL import Image

    path = tmp_path / "in" / "a.png"
    path.parent.mkdir()
    Image.fromarray(image).save(path)
    plain = ready(tiny, image, min_score=-1.0)
    settings = {"box_voting": 0.5, "soft_nms": 0.5, "flip": True}
    detector = replace(plain, config=plain.config.model_copy(update=settings))
    found = detector(path)
    own = Proposals(detector.proposer.of(image).boxes)
    views = [maps_of(detector, image, mirrored=side) for side in (False, True)]
    expected = detector.detect(views[0], own, image, mirrored=views[1])
    assert len(found) > 5 and np.array_equal(found.boxes, expected.boxes)
    assert np.array_equal(found.scores, expected.scores)
    assert not np.array_equal(plain(path).boxes, found.boxes)
    # a higher score of the folder's drops detections, but moves none: the same boxes vote
    bound = float(found.scores[len(found) // 2])
    detect_folder(
        detector, [path.parent], tmp_path / "out", min_score=bound, formats=["json"], workers=1
    )
    rows = json.loads((tmp_path / "out" / "detections.json").read_text())["annotations"]
    kept = found.above(bound)
    assert [row["score"] for row in rows] == pytest.approx(kept.scores.tolist())
    corners = [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in rows)]
    np.testing.assert_allclose(corners, kept.boxes, atol=1e-4)


# -- combined models -------------------------------------------------------------------------------


def other_model(detector: Detector) -> Detector:
    """A detector of the same classes in another order, with other SVMs and regressors."""
    r = detector.regressors
    assert r is not None
    generator = torch.Generator().manual_seed(11)
    c = detector.classifiers
    noise = torch.randn(c.weights.shape, generator=generator) * c.weights.std()
    return replace(
        detector,
        class_names=("zebra", "cat", "dog"),
        classifiers=replace(c, weights=c.weights + noise, biases=c.biases + 0.2),
        regressors=replace(r, biases=r.biases.flip(0) + 0.1),
    )


def test_combined_models_against_a_slow_computation(
    tiny: Backbone, image: ImageArray, proposals: Proposals
) -> None:
    a = ready(tiny, image)
    b = other_model(a)
    of_a, of_b = proposals, Proposals(proposals.boxes[::2] + np.float32(0.25))
    found = {}
    for voting in (None, 0.5):
        first = replace(a, config=a.config.model_copy(update={"box_voting": voting}))
        both = CombinedDetector.of([first, b])
        assert both.class_names == NAMES
        found[voting] = both.detect_prepared(
            both.prepare(image), [of_a, of_b], width=WIDTH, height=HEIGHT
        )
        slow = [
            slow_candidates(a, image, of_a.boxes, k)
            + slow_candidates(b, image, of_b.boxes, b.class_names.index(name) + 1)
            for k, name in enumerate(NAMES, start=1)
        ]
        assert_found(found[voting], slow, first.config)
    assert not np.array_equal(found[None].boxes, found[0.5].boxes)


def test_a_model_combined_with_itself_is_itself(tiny: Backbone, image: ImageArray) -> None:
    one = ready(tiny, image, min_score=-1.0)
    both = CombinedDetector.of([one, one], weights=[1, 1])
    assert isinstance(both, CombinedDetector)
    alone, found = one(image), both(image)
    assert len(alone) > 5
    for field in ("boxes", "scores", "labels"):
        assert np.array_equal(getattr(alone, field), getattr(found, field))


def test_a_combination_computes_what_is_shared_once(
    tiny: Backbone, image: ImageArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ready(tiny, image, flip=True)
    calls = {"maps": 0, "proposals": 0}
    maps, proposer = type(one.maps), type(one.proposer)
    compute, search = maps.compute, proposer.of

    def counted_maps(self: Any, view: Any) -> FeatureMaps:
        calls["maps"] += 1
        return compute(self, view)

    def counted_search(self: Any, pixels: ImageArray) -> Proposals:
        calls["proposals"] += 1
        return search(self, pixels)

    monkeypatch.setattr(maps, "compute", counted_maps)
    monkeypatch.setattr(proposer, "of", counted_search)
    plain = replace(one, config=one.config.model_copy(update={"flip": False}))
    for detectors in ([one, other_model(one)], [plain, one], [one, plain]):
        calls.update(maps=0, proposals=0)
        CombinedDetector.of(detectors)(image)
        assert calls == {"maps": 2, "proposals": 1}


def test_weights_stretch_scores_above_the_minimum() -> None:
    scores = np.array([[-2, -1.5, 0.5]], np.float32)
    parts: Any = None
    scored = ScoredProposals(parts, np.zeros((1, 4), np.float32), scores, ())
    assert weigh(scored, 3, min_score=-1.5).scores.tolist() == [[-3, -1.5, 4.5]]
    assert weigh(scored, 1, min_score=-1.5) is scored


def test_models_that_cannot_be_combined(tiny: Backbone, image: ImageArray) -> None:
    one = ready(tiny, image)
    other = replace(one, class_names=("cat", "cow", "dog"))
    with pytest.raises(
        ConfigError,
        match=r"expected the classes cat, dog, zebra of the first one, not cat, cow, dog",
    ):
        CombinedDetector.of([one, other])
    with pytest.raises(ValueError, match="detectors: 1, expected two or more"):
        CombinedDetector.of([one])
    with pytest.raises(ValueError, match=r"detectors: str, expected what `Detector.load` returns"):
        CombinedDetector.of(["runs/a", "runs/b"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="detectors: 1, expected two or more"):
        CombinedDetector.of(one)  # type: ignore[arg-type]
    assert len(CombinedDetector.of(iter([one, one])).detectors) == 2  # type: ignore[arg-type]
    numbers: Any = np.array([1, 2], np.float32)
    assert CombinedDetector.of([one, one], weights=numbers).weights == (1, 2)
    wrong: list[Any] = [
        [1.0],
        [1.0, 0.0],
        [1.0, math.nan],
        [1.0, math.inf],
        ["1", "2"],
        [1, None],
        2,
    ]
    for weights in wrong:
        with pytest.raises(ValueError, match="expected 2 positive numbers"):
            CombinedDetector.of([one, one], weights=weights)


def test_eval_of_several_runs(sppdet: CommandLine, trained: Path, tmp_path: Path) -> None:
    runs = [Path(shutil.copytree(trained, tmp_path / name)) for name in ("a", "b")]
    out = tmp_path / "out"
    status, said, _ = sppdet("eval", *runs, "--out", out, "--device", "cpu")
    assert status == 0 and f"reports are in {out}" in said
    # a model beside itself changes nothing
    expected = contents(trained / "eval" / "test", "co*")
    assert contents(out, "co*") == expected and "coco_results.json" in expected
    metrics = [
        json.loads((folder / "voc07" / "metrics.json").read_text())
        for folder in (out, trained / "eval" / "test")
    ]
    assert metrics[0]["mAP"] == metrics[1]["mAP"]
    assert metrics[0]["signature"].startswith("nets:tiny+tiny|settings:")
    stored = {path: path.stat().st_mtime_ns for path in out.glob("store/*/*")}
    assert len(stored) == 6
    assert sppdet("eval", *runs, "--out", out, "--metric", "voc10")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("store/*/*")} == stored
    # other settings of the first run: soft-NMS is detected again
    settings = yaml.safe_load((runs[0] / "config.yaml").read_text())
    settings["detect"]["soft_nms"] = 0.5
    (runs[0] / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    assert sppdet("eval", *runs, "--out", out)[0] == 0
    assert contents(out, "coco_results.json") != contents(trained / "eval" / "test", "coco*")


def test_eval_of_several_runs_refuses(sppdet: CommandLine, trained: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    for arguments, message in (
        (("--out", taken), "notes.txt is there, but `sppdet eval` hasn't written it"),
        (("--out", trained), "is there, but `sppdet eval` hasn't written it"),
        ((), "eval: expected --out, a folder for the reports of several RUNs"),
        (("--out", tmp_path / "o", "--ids", "stem"), "eval: expected RUN, or --config"),
    ):
        status, _, err = sppdet("eval", trained, trained, *arguments)
        assert status == 1 and message in err
    assert not (trained / ".sppdet-eval-runs").exists()

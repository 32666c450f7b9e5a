"""The detector against a slow computation, window by window."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samples import random_boxes, random_image
from sppdet.boxes import box_iou, clip_boxes, decode_deltas
from sppdet.config import DetectConfig, FeaturesConfig, ProposalsConfig
from sppdet.detection.detect import Classifiers, Regressors
from sppdet.errors import DataError, ImageError
from sppdet.features.backbones import Backbone
from sppdet.features.geometry import choose_scales, project
from sppdet.features.head import build_head
from sppdet.features.regions import FeatureExtractor
from sppdet.features.spp import spp_windows
from sppdet.io.backbone_weights import load_backbone
from sppdet.io.image_cache import ImageCache
from sppdet.parallel import compute_type
from sppdet.stages.detector import Detector
from sppdet.stages.map_cache import MapCache
from sppdet.stages.proposer import Proposer
from sppdet.training_config import HeadConfig, Layer
from sppdet.types import Boxes, FeatureMaps, ImageArray, Proposals

NAMES = ("cat", "dog", "zebra")
LEVELS = (3, 2, 1)
SCALES = [64, 96, 160]
WIDTH, HEIGHT = 120, 90


@pytest.fixture(scope="module")
def image() -> ImageArray:
    return random_image(np.random.default_rng(8), width=WIDTH, height=HEIGHT)


@pytest.fixture(scope="module")
def proposals() -> Proposals:
    boxes = random_boxes(np.random.default_rng(9), 90, width=WIDTH, height=HEIGHT)
    near = boxes[:30] + np.float32(0.01)  # windows that coincide
    return Proposals(clip_boxes(np.concatenate([boxes, near]), width=WIDTH, height=HEIGHT))


def make_detector(
    backbone: Backbone,
    *,
    layer: Layer = "fc7",
    bbox: Layer | None = None,
    config: DetectConfig | None = None,
) -> Detector:
    head = build_head(backbone, LEVELS, HeadConfig(widths=[40, 30]), outputs=4, seed=1).eval()
    head.requires_grad_(False)
    extractor = FeatureExtractor(LEVELS, 96, head)
    generator = torch.Generator().manual_seed(4)
    width = extractor.width(layer, backbone.channels)
    weights = torch.randn(3, width, generator=generator)
    regressors = None
    if bbox is not None:
        wide = extractor.width(bbox, backbone.channels)
        deltas = torch.randn(3, wide, 4, generator=generator) * (0.3 / wide)
        regressors = Regressors(bbox, deltas, torch.randn(3, 4, generator=generator) * 0.2)
    return Detector(
        NAMES,
        Proposer(ProposalsConfig(image_width=150, min_size=10)),
        MapCache(backbone, SCALES, FeaturesConfig(), ImageCache()),
        extractor,
        Classifiers(layer, weights, torch.tensor([0.1, -0.2, 0.3])),
        regressors,
        config or DetectConfig(min_score=-0.5),
    )


def normalised(detector: Detector, maps: FeatureMaps) -> Detector:
    """The same with weights scaled to give scores of some units."""
    boxes = random_boxes(np.random.default_rng(1), 60, width=WIDTH, height=HEIGHT)
    features = detector.extractor(maps, boxes, detector.classifiers.layer).values
    centre = features.mean(dim=0)
    spread = float((features @ detector.classifiers.weights.T).std())
    weights = detector.classifiers.weights / max(spread, 1e-6)
    biases = detector.classifiers.biases - weights @ centre
    return replace(
        detector, classifiers=replace(detector.classifiers, weights=weights, biases=biases)
    )


def slow_features(
    detector: Detector, maps: FeatureMaps, box: NDArray[np.float32], layer: Layer
) -> torch.Tensor:
    """One proposal's features, alone."""
    area = detector.extractor.canonical_size**2
    scale = int(choose_scales(box[None], maps.scale_factors, canonical_area=area)[0])
    feature_map = maps.maps[scale].float()
    window = project(
        box[None],
        maps.scale_factors[[scale]],
        stride=maps.stride,
        offset=maps.offset,
        map_width=feature_map.shape[2],
        map_height=feature_map.shape[1],
    )
    x = spp_windows(feature_map, window, LEVELS)[0]
    head = detector.extractor.head
    assert head is not None and head.fc7 is not None
    if layer != "pool5":
        x = torch.relu(head.fc6.weight @ x + head.fc6.bias)
    if layer == "fc7":
        x = torch.relu(head.fc7.weight @ x + head.fc7.bias)
    return x


def slow_detections(
    detector: Detector, maps: FeatureMaps, boxes: Boxes
) -> list[tuple[float, int, list[float]]]:
    """(score, label, box) in descending score."""
    config, found = detector.config, []
    c = detector.classifiers
    alone = torch.stack([slow_features(detector, maps, box, c.layer) for box in boxes])
    iou = box_iou(boxes, boxes)
    for k in range(3):
        scores = [float(c.weights[k] @ x + c.biases[k]) for x in alone]
        kept: list[int] = []
        for row in sorted(range(len(boxes)), key=lambda r: (-scores[r], r)):
            alone_there = all(iou[row, j] <= config.nms for j in kept)
            if scores[row] >= config.lowest_score(c.kind) and alone_there:
                kept.append(row)
        for row in kept[: config.max_per_class]:
            box = boxes[[row]]
            if detector.regressors is not None:
                r = detector.regressors
                x = slow_features(detector, maps, boxes[row], r.layer)
                deltas = (r.weights[k].T @ x + r.biases[k]).numpy()
                box = clip_boxes(decode_deltas(box, deltas[None]), width=WIDTH, height=HEIGHT)
            found.append((scores[row], k + 1, box[0].tolist()))
    return sorted(found, key=lambda item: -item[0])


@pytest.mark.parametrize(
    ("layer", "bbox"), [("fc7", None), ("fc7", "pool5"), ("pool5", "pool5"), ("fc6", "fc7")]
)
def test_detections_against_a_slow_computation(
    layer: Layer, bbox: Layer | None, tiny: Backbone, image: ImageArray, proposals: Proposals
) -> None:
    detector = make_detector(tiny, layer=layer, bbox=bbox)
    maps = detector.maps.compute(detector.maps.scaled(image))
    detector = normalised(detector, maps.to(detector.maps.device))
    windows = detector.extractor.windows(maps, proposals.boxes)
    assert len(windows) < len(proposals)  # some coincide
    found = detector.detect_in(maps, proposals, width=WIDTH, height=HEIGHT)
    expected = slow_detections(detector, maps, proposals.boxes)
    assert 10 < len(found) == len(expected)
    assert set(found.labels.tolist()) == {1, 2, 3}
    assert (np.diff(found.scores) <= 0).all()
    np.testing.assert_allclose(found.scores, [e[0] for e in expected], rtol=1e-3, atol=1e-4)
    assert found.labels.tolist() == [e[1] for e in expected]
    np.testing.assert_allclose(found.boxes, [e[2] for e in expected], atol=1e-2)


def test_least_score_and_most_detections(
    tiny: Backbone, image: ImageArray, proposals: Proposals
) -> None:
    detector = make_detector(tiny)
    maps = detector.maps.compute(detector.maps.scaled(image))
    detector = normalised(detector, maps.to(detector.maps.device))

    def detect(config: DetectConfig) -> list[tuple[int, float]]:
        one = replace(detector, config=config)
        found = one.detect_in(maps, proposals, width=WIDTH, height=HEIGHT)
        return list(zip(found.labels.tolist(), found.scores.tolist(), strict=True))

    everything = detect(DetectConfig(min_score=-100, nms=1.0, max_per_class=1000))
    assert len(everything) == 3 * len(proposals)
    bound = sorted(score for _, score in everything)[200]
    some = detect(DetectConfig(min_score=bound, nms=1.0, max_per_class=1000))
    assert some == [pair for pair in everything if pair[1] >= bound]
    few = detect(DetectConfig(min_score=-100, nms=1.0, max_per_class=7))
    for label in (1, 2, 3):
        best = [score for k, score in everything if k == label][:7]
        assert [score for k, score in few if k == label] == best
    assert detect(DetectConfig(min_score=100)) == []


def with_biases(detector: Detector, deltas: list[float]) -> Detector:
    """A detector whose regressors give the same deltas everywhere."""
    width = detector.extractor.width("pool5", detector.maps.channels)
    biases = torch.tensor([deltas] * 3)
    regressors = Regressors("pool5", torch.zeros(3, width, 4), biases)
    return replace(detector, regressors=regressors)


def test_regression_moves_what_nms_has_kept(
    tiny: Backbone, image: ImageArray, proposals: Proposals
) -> None:
    plain = make_detector(tiny, config=DetectConfig(min_score=-1e9))
    maps = plain.maps.compute(plain.maps.scaled(image))
    before = plain.detect_in(maps, proposals, width=WIDTH, height=HEIGHT)
    moved = with_biases(plain, [0.25, 0, float(np.log(2)), 0])
    after = moved.detect_in(maps, proposals, width=WIDTH, height=HEIGHT)
    assert np.array_equal(before.scores, after.scores)
    assert np.array_equal(before.labels, after.labels)
    width = before.boxes[:, 2] - before.boxes[:, 0]
    expected = before.boxes.copy()
    expected[:, 0] = np.maximum(before.boxes[:, 0] - width / 4, 0)
    expected[:, 2] = np.minimum(before.boxes[:, 2] + width * 3 / 4, WIDTH)
    np.testing.assert_allclose(after.boxes, expected, atol=1e-3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shift", [500.0, 1e38, float("inf"), float("nan")])
def test_a_box_moved_out_of_the_image_stays(
    tiny: Backbone, image: ImageArray, proposals: Proposals, shift: float
) -> None:
    plain = make_detector(tiny, config=DetectConfig(min_score=-1e9))
    maps = plain.maps.compute(plain.maps.scaled(image))
    before = plain.detect_in(maps, proposals, width=WIDTH, height=HEIGHT)
    away = with_biases(plain, [shift, 0, 0, 0])
    after = away.detect_in(maps, proposals, width=WIDTH, height=HEIGHT)
    assert np.array_equal(before.boxes, after.boxes)


@pytest.mark.parametrize("weight", [float("inf"), float("nan")])
def test_scores_beyond_numbers_are_an_error(
    tiny: Backbone, image: ImageArray, proposals: Proposals, weight: float
) -> None:
    """NaN would be no detection, and infinity no JSON."""
    detector = make_detector(tiny)
    maps = detector.maps.compute(detector.maps.scaled(image))
    weights = torch.full_like(detector.classifiers.weights, weight)
    wrong = replace(detector, classifiers=replace(detector.classifiers, weights=weights))
    with pytest.raises(DataError, match="scores that aren't finite"):
        wrong.detect_in(maps, proposals, width=WIDTH, height=HEIGHT)


def test_no_proposals(tiny: Backbone, image: ImageArray) -> None:
    detector = make_detector(tiny, bbox="pool5")
    none = Proposals(np.zeros((0, 4), np.float32))
    found = detector.detect(
        detector.maps.compute(detector.maps.scaled(image)), none, image, path="x.png"
    )
    assert (len(found), found.path, found.class_names) == (0, "x.png", NAMES)
    assert found.names() == []


def test_nothing_above_the_least_score(
    tiny: Backbone, image: ImageArray, proposals: Proposals
) -> None:
    detector = make_detector(tiny, bbox="pool5", config=DetectConfig(min_score=1e9))
    assert (
        len(detector.detect(detector.maps.compute(detector.maps.scaled(image)), proposals, image))
        == 0
    )


def test_a_path_and_its_pixels_give_the_same(
    tiny: Backbone, image: ImageArray, tmp_path: Path
) -> None:
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    detector = make_detector(tiny, bbox="pool5", config=DetectConfig(min_score=-1e9))
    by_path, by_array = detector(path), detector(image)
    assert len(by_path) > 3
    assert (by_path.path, by_array.path) == (str(path), "")
    assert np.array_equal(by_path.boxes, by_array.boxes)
    assert np.array_equal(by_path.scores, by_array.scores)
    assert np.array_equal(detector(str(path)).scores, by_array.scores)
    assert by_path.boxes[:, :2].min() >= 0
    assert by_path.boxes[:, 2].max() <= WIDTH and by_path.boxes[:, 3].max() <= HEIGHT
    best = by_path.above(float(by_path.scores[2]))
    assert len(best) == 3 and best.path == by_path.path


def test_an_array_in_opencvs_order(tiny: Backbone, image: ImageArray, tmp_path: Path) -> None:
    detector = make_detector(tiny, bbox="pool5", config=DetectConfig(min_score=-1e9))
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    expected = detector(image)
    bgr = cv2.imread(str(path))
    assert bgr is not None
    found = detector(np.asarray(bgr, dtype=np.uint8), bgr=True)
    assert len(expected) and np.array_equal(found.boxes, expected.boxes)
    assert np.array_equal(found.scores, expected.scores)
    swapped = detector(np.asarray(bgr, dtype=np.uint8))  # the mistake that nothing can detect
    assert not np.array_equal(swapped.scores, expected.scores)
    with pytest.raises(ValueError, match=r"bgr with .*a\.png: expected an array"):
        detector(path, bgr=True)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((9, 9), np.uint8),
        np.zeros((9, 9, 4), np.uint8),
        np.zeros((9, 9, 3), np.float32),
        np.zeros((0, 9, 3), np.uint8),
    ],
)
def test_an_array_that_is_no_image(wrong: Any, tiny: Backbone) -> None:
    with pytest.raises(ValueError, match=r"image: .*, expected uint8 \(H, W, 3\) RGB"):
        make_detector(tiny)(wrong)


def test_a_missing_image(tiny: Backbone, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no\.png"):
        make_detector(tiny)(tmp_path / "no.png")


def test_layers_that_are_not_there(tiny: Backbone, image: ImageArray) -> None:
    detector = make_detector(tiny)
    bare = replace(detector.extractor, head=None)
    with pytest.raises(ValueError, match="fc7: there is no head"):
        bare(
            detector.maps.compute(detector.maps.scaled(image)),
            np.array([[0, 0, 9, 9]], np.float32),
            "fc7",
        )


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_networks_that_multiply_in_half(precision: str, image: ImageArray) -> None:
    backbone = load_backbone("zf5", "none", seed=1)
    head = build_head(backbone, LEVELS, HeadConfig(widths=[32, 16]), outputs=4, seed=1).eval()
    boxes = random_boxes(np.random.default_rng(3), 40, width=WIDTH, height=HEIGHT)
    found = []
    for name in ("float32", precision):
        config = FeaturesConfig.model_validate({"precision": name})
        maps = MapCache(backbone, SCALES, config, ImageCache())
        extractor = FeatureExtractor(LEVELS, 96, head, compute_type(name, maps.device))
        made = maps.compute(maps.scaled(image))
        assert all(m.dtype == torch.float16 for m in made.maps)
        found.append((maps.fingerprint, extractor(made.to(maps.device), boxes, "fc7").values))
    (one, exact), (other, halved) = found
    assert one != other and halved.dtype == torch.float32
    distance = float((halved - exact).norm() / exact.norm())
    assert 0 < distance < 0.03

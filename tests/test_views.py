"""Views of an image: their number and places, and scores by crops, by maps and by hand."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from images import painted, save_image
from runs import CommandLine
from samples import random_image
from sppdet.classification import config as settings_types
from sppdet.classification import testing
from sppdet.classification.classifier import SppClassifier, load_classifier
from sppdet.classification.config import ViewSet
from sppdet.classification.views import View, centre_crop, score_crops, score_maps, views_of
from sppdet.features.backbones import Backbone
from sppdet.features.head import Head
from sppdet.features.preprocessing import IMAGENET
from sppdet.io.backbone_weights import load_backbone
from sppdet.io.images import read_image
from sppdet.types import ImageArray

NAMES = ("a", "b", "c", "d")


def random_head(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    head = Head(width, [12], len(NAMES), 0.5)
    nn.init.normal_(head.fc8.weight, std=3.0)  # so that the scores differ
    return head


@pytest.fixture(scope="module")
def classifier() -> SppClassifier:
    """Tiny with random layers."""
    backbone = load_backbone("tiny", "none", seed=1)
    return SppClassifier(backbone, (3, 2, 1), random_head(128 * 14, 2), NAMES).eval()


@pytest.fixture(scope="module")
def pixels() -> SppClassifier:
    """One whose maps are the image itself: a cell is a pixel."""
    backbone = Backbone("own", nn.Conv2d(3, 3, 1), 3, ((1, 0.5),), None)
    with torch.no_grad():
        backbone.layers.weight.copy_(torch.eye(3)[:, :, None, None])  # type: ignore[operator]
        backbone.layers.bias.zero_()  # type: ignore[operator]
    return SppClassifier(backbone, (2, 1), random_head(3 * 5, 3), NAMES).eval()


def image_of(width: int, height: int, seed: int = 0) -> ImageArray:
    return random_image(np.random.default_rng(seed), width=width, height=height)


def softmax(scores: torch.Tensor) -> torch.Tensor:
    powers = torch.exp(scores.double() - scores.max())
    return powers / powers.sum()


def net_score(classifier: SppClassifier, crop: ImageArray) -> torch.Tensor:
    with torch.inference_mode():
        return softmax(classifier(IMAGENET.normalised(np.ascontiguousarray(crop)[None]))[0])


# -- which views ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"),
    [("centre", 1), ("10", 10), ("full", 2), ("maps10", 10), ("maps96", 96), ("maps98", 98)],
)
def test_numbers_of_views(name: ViewSet, count: int) -> None:
    views = views_of(name, 256)
    assert len(views) == count == len(set(views))
    mirrored = sum(view.mirrored for view in views)
    assert mirrored == (0 if name == "centre" else count // 2)


def test_the_ten_views() -> None:
    corners = [(0, 0), (1, 0), (0, 1), (1, 1)]
    expected = {View(300, p, m) for p in [(0.5, 0.5), *corners] for m in (False, True)}
    assert set(views_of("10", 300)) == set(views_of("maps10", 300)) == expected


def test_the_papers_views_by_side() -> None:
    """Paper §3.3: at 224 three views of 224, at each of the other five scales nine; mirrored."""
    sides = Counter(view.side for view in views_of("maps96", 99))
    assert sides == {224: 6, 256: 18, 300: 18, 360: 18, 448: 18, 560: 18}
    more = Counter(views_of("maps98", 256)) - Counter(views_of("maps96", 256))
    assert set(more) == {View(256, None, False), View(256, None, True)}
    assert {v for v in views_of("maps96", 99) if v.side == 224 and not v.mirrored} == {
        View(224, (x, x), False) for x in (0.0, 0.5, 1.0)
    }
    grid = {View(360, (x, y), False) for x in (0.0, 0.5, 1.0) for y in (0.0, 0.5, 1.0)}
    assert {v for v in views_of("maps96", 99) if v.side == 360 and not v.mirrored} == grid


# -- crops ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 60)])
def test_ten_crops_by_hand(classifier: SppClassifier, width: int, height: int) -> None:
    image = image_of(width, height)  # the shorter side is 40 already
    across, down = width - 32, height - 32
    lefts_tops = [(across // 2, down // 2), (0, 0), (across, 0), (0, down), (across, down)]
    total = torch.zeros(4, dtype=torch.float64)
    for left, top in lefts_tops:
        crop = image[top : top + 32, left : left + 32]
        total += net_score(classifier, crop) + net_score(classifier, crop[:, ::-1])
    ours = score_crops(classifier, image, views_of("10", 40), crop=32, size=32)
    torch.testing.assert_close(ours.double(), total / 10, rtol=1e-4, atol=1e-5)
    single = score_crops(classifier, image, views_of("10", 40)[2:3], crop=32, size=32)
    assert not torch.allclose(ours, single, atol=1e-3)
    assert float(ours.sum()) == pytest.approx(1, abs=1e-5)


def test_the_centre_resized(classifier: SppClassifier) -> None:
    image = image_of(90, 60)
    larger = cv2.resize(image, (60, 40), interpolation=cv2.INTER_AREA)
    square = np.ascontiguousarray(larger[4:36, 14:46])
    crop = cv2.resize(square, (24, 24), interpolation=cv2.INTER_AREA)
    assert np.array_equal(centre_crop(image, side=40, crop=32, size=24), crop)
    ours = score_crops(classifier, image, views_of("centre", 40), crop=32, size=24)
    expected = net_score(classifier, np.asarray(crop, np.uint8))
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_whole_image_and_its_mirror_image(classifier: SppClassifier) -> None:
    image = image_of(96, 64)
    with torch.inference_mode():
        scores = [
            softmax(classifier(IMAGENET.to_input(np.ascontiguousarray(one), 1.25))[0])
            for one in (image, image[:, ::-1])
        ]
    assert not torch.allclose(scores[0], scores[1], atol=1e-4)
    ours = score_crops(classifier, image, views_of("full", 80), crop=32, size=32)
    torch.testing.assert_close(ours.double(), sum(scores) / 2, rtol=1e-4, atol=1e-5)


# -- maps ----------------------------------------------------------------------------------------


def test_maps_equal_crops_for_the_whole_image(classifier: SppClassifier) -> None:
    for width, height in ((96, 64), (64, 96), (70, 70)):
        image = image_of(width, height)
        ours = score_maps(classifier, image, views_of("full", 80), crop=32)
        theirs = score_crops(classifier, image, views_of("full", 80), crop=32, size=32)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["centre", "10"])
def test_maps_equal_crops_where_a_view_is_the_whole_square(
    classifier: SppClassifier, name: ViewSet
) -> None:
    image = image_of(80, 80)
    views = views_of(name, 80)
    ours = score_maps(classifier, image, views, crop=80)
    theirs = score_crops(classifier, image, views, crop=80, size=80)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("width", "height"), [(100, 70), (70, 100), (90, 90)])
@pytest.mark.parametrize("side", [70, 96])
def test_maps_equal_crops_where_a_cell_is_a_pixel(
    pixels: SppClassifier, width: int, height: int, side: int
) -> None:
    """No neighbours and no stride: pooling the window is pooling the crop."""
    image = image_of(width, height)
    views = views_of("maps10", side)
    for view in views:
        ours = score_maps(pixels, image, [view], crop=64)
        theirs = score_crops(pixels, image, [view], crop=64, size=64)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    whole = score_maps(pixels, image, views, crop=64)
    parts = [score_maps(pixels, image, [view], crop=64) for view in views]
    torch.testing.assert_close(whole, torch.stack(parts).mean(dim=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["maps96", "maps98"])
def test_the_papers_views_where_a_cell_is_a_pixel(pixels: SppClassifier, name: ViewSet) -> None:
    image = image_of(240, 224)
    views = views_of(name, 256)
    ours = score_maps(pixels, image, views, crop=224)
    theirs = score_crops(pixels, image, views, crop=224, size=224)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_views_of_one_window_count_as_often(pixels: SppClassifier) -> None:
    """On a square at the side of the crop all ten are one window and its mirror image."""
    image = image_of(64, 64)
    ten = score_maps(pixels, image, views_of("maps10", 64), crop=64)
    two = score_maps(pixels, image, views_of("full", 64), crop=64)
    torch.testing.assert_close(ten, two)
    centre, last = View(64, (0.5, 0.5), False), View(64, (1.0, 1.0), True)
    uneven = score_maps(pixels, image, [centre, View(64, (0.0, 0.0), False), last], crop=64)
    plain, mirror = (score_maps(pixels, image, [v], crop=64) for v in (centre, last))
    torch.testing.assert_close(uneven, (2 * plain + mirror) / 3)


def test_a_symmetric_image(classifier: SppClassifier, pixels: SppClassifier) -> None:
    half = image_of(48, 64)
    image = np.ascontiguousarray(np.hstack([half, half[:, ::-1]]))  # 96 × 64: even room
    assert np.array_equal(image, image[:, ::-1])
    for net in (classifier, pixels):
        for x, y in ((0.5, 0.5), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
            assert_same_scores(net, image, View(64, (1 - x, y), False), View(64, (x, y), True))
        assert_same_scores(net, image, View(64, None, False), View(64, None, True))


def assert_same_scores(net: SppClassifier, image: ImageArray, one: View, two: View) -> None:
    by_maps = [score_maps(net, image, [view], crop=48) for view in (one, two)]
    by_crops = [score_crops(net, image, [view], crop=48, size=48) for view in (one, two)]
    for plain, mirrored in (by_maps, by_crops):
        torch.testing.assert_close(plain, mirrored, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("width", "height"), [(20, 120), (120, 20), (1, 6), (6, 1)])
@pytest.mark.parametrize("name", ["centre", "10", "full", "maps10"])
def test_thin_images(classifier: SppClassifier, width: int, height: int, name: ViewSet) -> None:
    config = settings_types.TestConfig(side=70, crop=64)
    scores = testing.score_image(classifier, image_of(width, height), name, config)
    assert scores.shape == (4,) and torch.isfinite(scores).all()
    assert float(scores.sum()) == pytest.approx(1, abs=1e-5)


def test_the_papers_views_of_a_thin_image(pixels: SppClassifier) -> None:
    config = settings_types.TestConfig(side=256, crop=224)
    for width, height in ((20, 120), (120, 20)):
        scores = testing.score_image(pixels, image_of(width, height), "maps98", config)
        assert float(scores.sum()) == pytest.approx(1, abs=1e-5)


def test_the_sets_and_how_they_are_scored(pixels: SppClassifier) -> None:
    image = image_of(50, 40)
    config = settings_types.TestConfig(side=70, crop=64, size=32)
    expected = {
        "10": score_crops(pixels, image, views_of("10", 70), crop=64, size=32),
        "full": score_crops(pixels, image, views_of("full", 70), crop=64, size=64),
        "maps10": score_maps(pixels, image, views_of("maps10", 70), crop=64),
    }
    names: list[ViewSet] = ["10", "full", "maps10"]
    for name in names:
        assert torch.equal(testing.score_image(pixels, image, name, config), expected[name])
    plain = testing.score_image(pixels, image, "10", settings_types.TestConfig(side=70, crop=64))
    assert not torch.allclose(plain, expected["10"], atol=1e-5)  # as cut, not at 32


# -- the commands --------------------------------------------------------------------------------


class Rigged:
    """Scores by a table: an image's row is the number in its first pixel."""

    def __init__(self, table: list[list[float]]) -> None:
        self.table = torch.tensor(table)
        self.asked: list[str] = []

    def __call__(self, _: Any, image: ImageArray, views: str, __: Any) -> torch.Tensor:
        self.asked.append(views)
        return self.table[int(image[0, 0, 0])]


def test_top_1_and_top_5_by_hand(
    classified: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sppdet: CommandLine
) -> None:
    run, images = Path(shutil.copytree(classified, tmp_path / "run")), tmp_path / "set"
    names = [f"class{k}" for k in range(7)]
    for row, name in enumerate(names):
        save_image(images / "val" / name / "1.png", np.full((4, 4, 3), row, dtype=np.uint8))
    # the right class is first, first, second, fifth, sixth, last, and level with the others
    table = torch.zeros(7, 7)
    for row, better in enumerate([0, 0, 1, 4, 5, 6]):
        table[row, row] = 0.5
        others = [k for k in range(7) if k != row]
        table[row, others[:better]] = 0.6
    rigged = Rigged(table.tolist())
    monkeypatch.setattr(testing, "score_image", rigged)
    shutil.copytree(images / "val", images / "train")
    path = run / "config.yaml"
    path.write_text(path.read_text().replace(str(classified.parent), str(images)))
    status, said, error = sppdet(
        *("pretrain-eval", run, "--device", "cpu", "--views", "full", "--views", "maps10"),
        *("--side", "50", "--crop", "40", "--size", "30"),
    )
    assert status == 0, error
    assert rigged.asked == ["full"] * 7 + ["maps10"] * 7
    assert "full: top-1 0.4286, top-5 0.7143 on 7 images" in said
    written = json.loads((run / "eval" / "classifier.json").read_text())
    assert [result["views"] for result in written["results"]] == ["full", "maps10"]
    views = ["full", "maps10"]
    assert written["test"] == {"views": views, "side": 50, "crop": 40, "size": 30}
    for result in written["results"]:
        assert (result["top1"], result["top5"]) == pytest.approx((3 / 7, 5 / 7))
        assert result["images"] == 7 and result["seconds"] >= 0


def test_a_trained_classifier_on_its_validation_set(
    classified: Path, tmp_path: Path, sppdet: CommandLine
) -> None:
    run = Path(shutil.copytree(classified, tmp_path / "run"))
    status, said, _ = sppdet("pretrain-eval", run, "--device", "cpu")
    assert status == 0 and f"written to {run / 'eval' / 'classifier.json'}" in said
    written = json.loads((run / "eval" / "classifier.json").read_text())
    assert [result["views"] for result in written["results"]] == ["centre", "full"]
    net, right = load_classifier(run), []
    for path in sorted((classified.parent / "val").rglob("*.png")):
        crop = centre_crop(read_image(path), side=36, crop=32, size=32)
        label = net.class_names.index(path.parent.name)
        right.append(int(net_score(net, crop).argmax()) == label)
    assert written["results"][0]["top1"] == pytest.approx(np.mean(right))
    assert written["results"][0]["top5"] == 1.0  # there are three classes


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--views", "9"), "test: views.0: should be 'centre', '10', 'full', 'maps10'"),
        (("--views", "full", "--views", "centre", "--crop", "64"), "64 is more than side 36"),
        (("--side", "20", "--views", "10"), "crop: 32 is more than side 20"),
    ],
)
def test_views_that_there_are_not(
    classified: Path, sppdet: CommandLine, words: tuple[str, ...], expected: str
) -> None:
    status, _, said = sppdet("pretrain-eval", classified, "--device", "cpu", *words)
    assert status == 1 and expected in said
    assert said.startswith("error: ") and said.count("\n") == 1


def test_classify(classified: Path, sppdet: CommandLine, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    images = tmp_path / "some"
    for shape in ("disc", "square"):
        save_image(images / f"{shape}.png", painted(rng, shape, width=48, height=40))
    status, said, _ = sppdet(
        *("classify", classified, images, "--views", "maps10", "--top", "2", "--device", "cpu"),
        *("--json", tmp_path / "out" / "answers.json"),
    )
    assert status == 0
    answers = json.loads((tmp_path / "out" / "answers.json").read_text())
    assert [Path(answer["file"]).stem for answer in answers] == ["disc", "square"]
    config = settings_types.TestConfig(side=36, crop=32)
    net = load_classifier(classified)
    for answer, line in zip(answers, said.splitlines(), strict=True):
        image = read_image(answer["file"])
        scores = testing.score_image(net, image, "maps10", config)
        best = sorted(zip(scores.tolist(), net.class_names, strict=True), reverse=True)[:2]
        assert [c["class"] for c in answer["classes"]] == [name for _, name in best]
        assert [c["score"] for c in answer["classes"]] == pytest.approx([s for s, _ in best])
        words = ", ".join(f"{name} {score:.3f}" for score, name in best)
        assert line == f"{answer['file']}: {words}"
        assert best[0][1] == Path(answer["file"]).stem  # it has learnt them


def test_a_broken_image_among_others(classified: Path, sppdet: CommandLine, tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", image_of(40, 40))
    (tmp_path / "b.png").write_bytes(b"no image")
    save_image(tmp_path / "c.png", image_of(40, 40))
    status, said, error = sppdet(
        "classify", classified, tmp_path, "--json", tmp_path / "x.json", "--device", "cpu"
    )
    assert status == 1
    assert [line.split(":")[0] for line in said.splitlines()] == [
        str(tmp_path / name) for name in ("a.png", "c.png")
    ]
    assert error == (
        f"error: 1 of 3 images skipped; the first: {tmp_path / 'b.png'}: can't be decoded as an "
        "image\n"
    )
    assert len(json.loads((tmp_path / "x.json").read_text())) == 2


@pytest.mark.parametrize("mine", ["no answers", "[1]", '{"file": 1}', '[{"file": "a"}]'])
def test_answers_overwrite_answers_alone(
    classified: Path, sppdet: CommandLine, tmp_path: Path, mine: str
) -> None:
    save_image(tmp_path / "a.png", image_of(40, 40))
    file = tmp_path / "x.json"
    command = ("classify", classified, tmp_path / "a.png", "--json", file, "--device", "cpu")
    file.write_text(mine)
    status, said, error = sppdet(*command)
    assert (status, said) == (1, "") and "x.json: wasn't written by classify" in error
    assert file.read_text() == mine
    file.unlink()
    assert [sppdet(*command)[0] for _ in range(2)] == [0, 0]


def test_classify_refuses(classified: Path, sppdet: CommandLine, tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", image_of(40, 40))
    status, _, said = sppdet("classify", tmp_path, tmp_path / "a.png")
    assert (status, said) == (1, f"error: {tmp_path}: not a run: it has no config.yaml\n")
    status, _, said = sppdet("classify", classified, tmp_path / "b.png")
    assert status == 1 and "b.png: no such file or folder" in said
    status, _, said = sppdet("classify", classified, tmp_path, "--views", "20")
    assert status == 2 and "maps96" in said


def test_a_call_that_looks_at_no_image_leaves_the_answers_alone(
    sppdet: CommandLine, classified: Path, tmp_path: Path
) -> None:
    file = tmp_path / "answers.json"
    file.write_text('[{"file": "a.png", "classes": []}]')
    for run, image in ((tmp_path, tmp_path / "a.png"), (classified, tmp_path / "gone.png")):
        assert sppdet("classify", run, image, "--json", file, "--device", "cpu")[0] == 1
    assert json.loads(file.read_text()) == [{"file": "a.png", "classes": []}]

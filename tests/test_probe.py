"""The linear probe: its features, its accuracy on shapes, and VOC's classification by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from sklearn.svm import LinearSVC

from images import painted, save_image
from runs import CLASSES, CommandLine
from samples import random_image
from sppdet.classification import probe as probing
from sppdet.classification.classifier import load_classifier
from sppdet.classification.config import ProbeConfig
from sppdet.classification.data import LabelledImages, split_classes
from sppdet.classification.probe import Features, image_labels, probe
from sppdet.classification.views import centre_crop
from sppdet.data_config import DataConfig
from sppdet.errors import ConfigError, DataError
from sppdet.features.preprocessing import IMAGENET
from sppdet.io.backbone_weights import load_backbone
from sppdet.io.images import read_image
from sppdet.io.settings import check_config
from sppdet.io.splits import read_split
from sppdet.types import AnnotatedImage, Dataset

CPU = torch.device("cpu")


def config_of(root: Path, *, data: dict[str, Any] | None = None, **more: Any) -> ProbeConfig:
    raw: dict[str, Any] = {
        "data": {"root": str(root), "train": "train", "test": "val", **(data or {})},
        "backbone": {"name": "tiny", "weights": "none"},
        "spp_levels": [2, 1],
        "side": 40,
        "splits": [0],
        "workers": 1,
    }
    return check_config({**raw, **more}, "probe", ProbeConfig)


def quiet_probe(config: ProbeConfig, out: Path) -> probing.ProbeResult:
    return probe(config, out, device="cpu")


# -- features ------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", ["full", "crop", "warp"])
@pytest.mark.parametrize("layer", ["conv", "spp", "fc6"])
def test_features_have_length_1(image: str, layer: str, classified: Path) -> None:
    if (image, layer) == ("full", "conv"):
        return
    features = Features(
        config_of(
            classified,
            layer=layer,
            image=image,
            backbone={"name": "tiny", "weights": str(classified)},
            head={"widths": [16]},
        ),
        device=CPU,
    )
    rng = np.random.default_rng(0)
    found = [
        features.of(random_image(rng, width=width, height=height))
        for width, height in ((60, 40), (30, 90), (50, 50))
    ]
    width = {"conv": 128 * 64, "spp": 128 * 5, "fc6": 16}[layer]  # of a map of 8×8 at 64 px
    assert {vector.shape for vector in found} == {(width,)}
    for vector in found:
        assert vector.dtype == np.float32
        assert float(np.linalg.norm(vector)) == pytest.approx(1, abs=1e-5)
    assert not np.allclose(found[0], found[1], atol=1e-3)


def test_which_pixels_they_see(tmp_path: Path) -> None:
    image = random_image(np.random.default_rng(1), width=120, height=80)
    layers = load_backbone("tiny", "none").layers
    seen = {
        "crop": IMAGENET.to_input(centre_crop(image, side=64, crop=64, size=64), 1.0),
        "full": IMAGENET.to_input(image, 0.8),
    }
    for name, x in seen.items():
        config = config_of(tmp_path, image=name, side=64, spp_levels=[1])
        with torch.inference_mode():
            expected = layers(x)[0].amax(dim=(1, 2)).numpy()
        ours = Features(config, device=CPU).of(image)
        np.testing.assert_allclose(ours, expected / np.linalg.norm(expected), rtol=1e-4, atol=1e-6)
    flat = np.full((80, 120, 3), 70, dtype=np.uint8)
    warp = Features(config_of(tmp_path, image="warp", side=64), device=CPU).of(flat)
    full = Features(config_of(tmp_path, side=64), device=CPU).of(flat[:, :80])
    np.testing.assert_allclose(warp, full, atol=1e-5)


def test_fc6_is_the_classifiers_own(classified: Path) -> None:
    backbone = {"name": "tiny", "weights": str(classified)}
    config = config_of(classified, layer="fc6", backbone=backbone, head={"widths": [16]}, side=64)
    image = random_image(np.random.default_rng(2), width=100, height=64)
    net = load_classifier(classified)
    with torch.inference_mode():
        pooled = net.pyramid(net.conv(IMAGENET.to_input(image, 1.0)))
        hidden = torch.relu(net.head.fc6(pooled))[0].numpy()  # type: ignore[operator]
    assert (hidden > 0).any()
    ours = Features(config, device=CPU).of(image)
    np.testing.assert_allclose(ours, hidden / np.linalg.norm(hidden), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"layer": "conv"}, "conv has another length for every image"),
        ({"layer": "fc6"}, "layer: fc6 needs head.widths and weights that have fully connected"),
        ({"layer": "fc6", "head": {"widths": [8]}}, r"head.widths: \[8\], expected .* own \[16\]"),
        ({"layer": "fc7", "head": {"widths": [16]}}, "layer: fc7 needs two head.widths and"),
        ({"layer": "fc7", "head": {"widths": [16, 16]}}, "layer: fc7 needs two head.widths and"),
        (
            {"layer": "fc6", "head": {"widths": [16]}, "spp_levels": [3, 1]},
            r"spp_levels: \[3, 1\] has no 2, which fc6 needs",
        ),
    ],
)
def test_layers_that_there_are_not(
    settings: dict[str, Any], expected: str, classified: Path
) -> None:
    config = config_of(
        classified, **{"backbone": {"name": "tiny", "weights": str(classified)}, **settings}
    )
    with pytest.raises(ConfigError, match=expected):
        Features(config, device=CPU)


def test_random_weights_have_no_fc6(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="weights that have fully connected layers"):
        Features(config_of(tmp_path, layer="fc6", head={"widths": [16]}), device=CPU)


# -- folders -------------------------------------------------------------------------------------


def test_shapes_are_told_apart(shape_root: Path, tmp_path: Path) -> None:
    result = quiet_probe(config_of(shape_root, data={"train_per_class": 15}), tmp_path)
    assert result.metric == "accuracy" and result.width == 128 * 5
    assert result.mean > 0.75  # chance: 0.33
    written = json.loads((tmp_path / "probe.json").read_text())
    assert written["mean"] == result.mean and written["values"] == list(result.values)
    assert written["width"] == 640 and written["settings"]["side"] == 40
    assert set(written["per_class"]) == {"cross", "disc", "square"}
    assert written["mean"] == pytest.approx(np.mean(list(written["per_class"].values())))


def test_splits_of_one_folder_against_plain_code(shape_root: Path, tmp_path: Path) -> None:
    data = {"train": "train", "test": "train", "train_per_class": 4, "test_per_class": 7}
    config = config_of(shape_root, data=data, splits=[0, 3])
    result = quiet_probe(config, tmp_path)
    features = Features(config, device=CPU)
    paths = {
        name: sorted((shape_root / "train" / name).iterdir())
        for name in ("cross", "disc", "square")
    }
    for seed, value in zip((0, 3), result.values, strict=True):
        chosen = {name: draw_of(paths[name], seed, first=4, second=7) for name in paths}
        x, y = table(features, {name: parts[0] for name, parts in chosen.items()})
        machine = LinearSVC(C=1.0, random_state=0, max_iter=5000).fit(x, y)
        right = []
        for name, (_, tested) in chosen.items():
            assert len(tested) == 7
            x, y = table(features, {name: tested})
            right.append(float((machine.predict(x) == y).mean()))
        assert value == pytest.approx(np.mean(right))
    assert result.mean == pytest.approx(np.mean(result.values))


def draw_of(
    paths: list[Path], seed: int, *, first: int, second: int
) -> tuple[list[Path], list[Path]]:
    alone = LabelledImages("", ("x",), tuple(paths), np.zeros(len(paths), dtype=np.int64))
    one, two = split_classes(alone, first=first, second=second, seed=seed)
    return list(one.paths), list(two.paths)


def table(
    features: Features, images: dict[str, list[Path]]
) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    rows = [features.of(read_image(path)) for paths in images.values() for path in paths]
    names = [name for name, paths in images.items() for _ in paths]
    return np.stack(rows), np.array(names)


class Table:
    """In place of `Features`: an image's feature is the number in its first pixel."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def of_all(self, paths: list[Path], **_: Any) -> NDArray[np.float32]:
        numbers = [float(read_image(path)[0, 0, 0]) for path in paths]
        return np.array([[x / 10 - 5, 1.0] for x in numbers], dtype=np.float32)


def numbered(path: Path, number: int) -> None:
    save_image(path, np.full((4, 4, 3), number, dtype=np.uint8))


def test_accuracy_is_the_mean_over_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "Features", Table)
    for k in range(4):
        numbered(tmp_path / "train" / "dark" / f"{k}.png", 10 + k)
        numbered(tmp_path / "train" / "light" / f"{k}.png", 90 - k)
    for k, number in enumerate((5, 6, 7, 8, 9, 95)):  # one of six looks light
        numbered(tmp_path / "val" / "dark" / f"{k}.png", number)
    for k, number in enumerate((8, 92)):  # one of two looks dark
        numbered(tmp_path / "val" / "light" / f"{k}.png", number)
    result = quiet_probe(config_of(tmp_path), tmp_path / "out")
    assert result.per_class == pytest.approx({"dark": 5 / 6, "light": 1 / 2})
    assert result.mean == pytest.approx((5 / 6 + 1 / 2) / 2)  # not 6 of 8


def test_folders_that_leave_nothing(shape_root: Path, tmp_path: Path) -> None:
    same = {"test": "train"}
    with pytest.raises(ConfigError, match="train_per_class: expected where train and test are"):
        quiet_probe(config_of(shape_root, data={**same, "train_per_class": None}), tmp_path)
    with pytest.raises(ConfigError, match="leaves no image to test on"):
        quiet_probe(config_of(shape_root, data={**same, "train_per_class": 20}), tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        quiet_probe(config_of(shape_root, data={"train": "nowhere"}), tmp_path)


# -- VOC -----------------------------------------------------------------------------------------


def annotated(labels: list[int], difficult: list[bool]) -> AnnotatedImage:
    count = len(labels)
    return AnnotatedImage(
        "x",
        Path("x.jpg"),
        9,
        9,
        np.tile(np.array([[0, 0, 5, 5]], np.float32), (count, 1)),
        np.array(labels, dtype=np.int64),
        np.array(difficult, dtype=np.bool_),
        np.zeros(count, dtype=np.bool_),
    )


def test_labels_of_images_by_hand() -> None:
    images = (
        annotated([1, 1, 3], [False, True, False]),  # an easy one beside a difficult one counts
        annotated([2, 3], [True, False]),
        annotated([], []),
        annotated([3, 3], [True, True]),
    )
    found = image_labels(Dataset("set", ("a", "b", "c"), images))
    assert found.tolist() == [[1, -1, 1], [-1, 0, 1], [-1, -1, -1], [-1, -1, 0]]


def voc_config(root: Path, **more: Any) -> ProbeConfig:
    data = {"format": "voc", "train": "trainval", "test": "test"}
    return config_of(root, data=data, **more)


def eleven_points(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """The greatest precision at recall >= 0, 0.1, ... 1, written out."""
    order = np.argsort(-scores, kind="stable")
    points, found = [], 0
    for rank, row in enumerate(order.tolist(), start=1):
        found += bool(positive[row])
        points.append((found, found / rank))
    total = int(positive.sum())
    return float(
        np.mean(
            [max((p for f, p in points if 10 * f >= k * total), default=0.0) for k in range(11)]
        )
    )


def test_voc_against_plain_code(
    demo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a class has difficult objects alone in some images."""
    hidden = {
        ("train", 0): 2,
        ("train", 3): 1,
        ("test", 1): 1,
    }  # position: the label made difficult

    def with_difficult(config: Any, split: str, *others: Any, **more: Any) -> Dataset:
        dataset = genuine(config, split, *others, **more)
        images = list(dataset.images)
        for (where, position), label in hidden.items():
            if where == split:
                image = images[position]
                images[position] = replace(image, difficult=image.gt_labels == label)
        return replace(dataset, images=tuple(images))

    genuine = read_split
    monkeypatch.setattr(probing, "read_split", with_difficult)
    config = voc_config(demo_root, side=80)
    result = quiet_probe(config, tmp_path)
    assert result.metric == "mAP (voc07)"

    features = Features(config, device=CPU)
    settings = DataConfig(root=[demo_root], train=["trainval"], test=["test"])
    train = with_difficult(settings, "train", None, None, workers=1)
    sets = [train, with_difficult(settings, "test", train.class_names, None, workers=1)]
    x, z = (
        np.stack([features.of(read_image(image.path)) for image in part.images]) for part in sets
    )
    left_out, values = 0, {}
    for label, name in enumerate(sets[0].class_names, start=1):
        has = [
            [image.gt_labels[~image.difficult].tolist().count(label) for image in part.images]
            for part in sets
        ]
        unsure = [
            [h == 0 and label in image.gt_labels for h, image in zip(row, part.images, strict=True)]
            for row, part in zip(has, sets, strict=True)
        ]
        used, counted = (~np.array(row) for row in unsure)
        left_out += int((~used).sum() + (~counted).sum())
        y = np.array(has[0])[used] > 0
        machine = LinearSVC(C=1.0, random_state=0, max_iter=5000).fit(x[used], y)
        scores = machine.decision_function(z[counted])
        values[name] = eleven_points(scores, np.array(has[1])[counted] > 0)
    assert left_out > 0
    assert result.per_class == pytest.approx(values)
    assert result.mean == pytest.approx(np.mean(list(values.values())))


def test_voc_on_the_demos_images(demo_root: Path, tmp_path: Path, sppdet: CommandLine) -> None:
    settings = tmp_path / "probe.yaml"
    raw = voc_config(demo_root, side=80).model_dump(mode="json")
    settings.write_text(yaml.safe_dump({**raw, "head": "none"}))
    status, said, _ = sppdet("probe", settings, "--out", tmp_path / "out", "--device", "cpu")
    assert status == 0
    written = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert f"written to {tmp_path / 'out' / 'probe.json'}" in said
    assert written["metric"] == "mAP (voc07)" and 0 < written["mean"] <= 1
    assert set(written["per_class"]) == set(CLASSES)  # those to train on
    assert f"mAP (voc07): {written['mean']:.4f}" in said


def dataset_of(root: Path, split: str, labels: list[list[int]]) -> Dataset:
    """Images whose red says whether they have an object of class a."""
    images = []
    for k, found in enumerate(labels):
        shape = "cross" if 1 in found else "square"
        rng = np.random.default_rng([k, len(split)])
        image = painted(rng, shape, width=40, height=40)
        path = save_image(root / split / f"{k}.png", image)
        images.append(replace(annotated(found, [False] * len(found)), id=f"{k}", path=path))
    return Dataset(split, ("a", "b"), tuple(images))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ([[1], [2], [1], [2]], [[1], [1], []]),  # no b to test on: no part in the mean
        ([[1, 2], [2], [1, 2], [2]], [[1], [2], []]),  # every image to train on has a b
        ([[1], [], [1], []], [[1], [2], []]),  # none has
    ],
)
def test_classes_that_say_nothing(
    train: list[list[int]],
    test: list[list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are left out of the mean or refused in a line; never a traceback or a 0."""
    sets = {
        "train": dataset_of(tmp_path, "train", train),
        "test": dataset_of(tmp_path, "test", test),
    }
    monkeypatch.setattr(probing, "read_split", lambda _c, split, *_, **__: sets[split])
    try:
        result = quiet_probe(voc_config(tmp_path), tmp_path / "out")
    except DataError as error:
        assert "b" in str(error)
    else:
        assert result.mean == pytest.approx(result.per_class["a"])


def test_the_command_refuses_in_one_line(
    shape_root: Path, tmp_path: Path, sppdet: CommandLine
) -> None:
    settings = tmp_path / "probe.yaml"
    settings.write_text(yaml.safe_dump({"data": {"root": str(shape_root)}, "layers": "fc6"}))
    status, _, said = sppdet("probe", settings)
    assert status == 1 and said.endswith("layers: unknown; did you mean layer?\n")
    raw = config_of(shape_root, layer="conv").model_dump(mode="json")
    settings.write_text(yaml.safe_dump({**raw, "head": "none"}))
    status, _, said = sppdet("probe", settings, "--out", tmp_path, "--device", "cpu")
    assert status == 1 and said.count("\n") == 1
    assert said.startswith("error: layer: conv has another length")

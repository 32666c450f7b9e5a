"""Fine-tuning through the pyramid against autograd on slow loops, and its runs."""

from __future__ import annotations

import copy
import math
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from runs import contents, torchrun, train_quietly, write_settings
from sppdet.config import Config
from sppdet.errors import ConfigError, SppdetError, TrainingError
from sppdet.features.backbones import Backbone, conv_backbone
from sppdet.features.folding import folded
from sppdet.features.head import Head, build_head
from sppdet.features.joined import JoinedMaps
from sppdet.io.backbone_weights import load_backbone
from sppdet.io.settings import check_config, load_config
from sppdet.runs.artifacts import read_tensors, write_tensors
from sppdet.stages import finetune_images as stage
from sppdet.stages.detector import Detector
from sppdet.stages.finetune_images import WindowDrawer
from sppdet.training import finetune_images
from sppdet.training.finetune import Progress, head_groups, mean_square_of, rate_factor
from sppdet.training.finetune_images import (
    ImageTuner,
    TrainingImage,
    WindowNetwork,
    conv_parameters,
)
from sppdet.training.finetune_windows import split_images
from sppdet.training.processes import OneProcess
from sppdet.training_config import FinetuneConfig, HeadConfig
from stages import make_world, scenes, slow_deltas, slow_labels

LEVELS = (2, 1)
SETTINGS: dict[str, Any] = {
    "finetune": {
        "layers": "conv2+",
        "batches": 12,
        "batch_size": 24,
        "lr": 1e-3,
        "optimizer": "adamw",
        "schedule": "cosine",
        "box_loss": 1.0,
        "snapshots": 3,
        "image_scales": [120, 200],
    },
}


def backbone_of(*, stages: list[int] | None = None, project: int | None = None) -> Backbone:
    torch.manual_seed(4)
    return folded(conv_backbone("tiny", stages=stages, project=project))


def head_of(backbone: Backbone, *, boxes: bool = True) -> Head:
    head = build_head(
        backbone, LEVELS, HeadConfig(widths=[6], dropout=0.0), outputs=3, seed=2, boxes=boxes
    )
    with torch.no_grad():
        head.fc8.weight.mul_(30)  # so that gradients aren't tiny
        if head.box is not None:
            head.box.weight.mul_(300)
    return head


def image_of(seed: int, *, side: int = 96) -> TrainingImage:
    """Noise of 96 × 128 resized pixels, shown at a factor of 0.5."""
    generator = np.random.default_rng(seed)
    pixels = torch.from_numpy(generator.integers(0, 255, (side, 128, 3), dtype=np.uint8))
    low = generator.uniform(0, 60, (5, 2))
    high = low + generator.uniform(40, 120, (5, 2))
    high[3] = 256, 2 * side  # to the last cell
    boxes = np.hstack([low, high]).astype(np.float32)
    labels = np.array([0, 1, 2, 0, 1])
    shift = generator.uniform(-8, 8, (5, 4)).astype(np.float32)
    targets = np.where(labels[:, None] > 0, boxes + shift, boxes)
    return TrainingImage(pixels, 0.5, boxes, labels, targets)


def config_of(**settings: Any) -> FinetuneConfig:
    return FinetuneConfig(**{"sampling": "images", "layers": "all", "batches": 8, **settings})


def slow_loss(
    layers: nn.Module, backbone: Backbone, head: Head, images: list[TrainingImage], box_loss: float
) -> torch.Tensor:
    """The mean loss of all windows, window by window and bin by bin, by torch's own operations."""
    total, count = torch.zeros(()), 0
    for image in images:
        x = (image.pixels.permute(2, 0, 1).float() / 255)[None]
        mean, std = (
            torch.tensor(v).view(1, 3, 1, 1)
            for v in (backbone.preprocessing.mean, backbone.preprocessing.std)
        )
        feature_map = layers((x - mean) / std)[0]
        for box, label, target in zip(
            image.boxes.tolist(), image.labels.tolist(), image.targets.tolist(), strict=True
        ):
            lows, highs = [], []
            for axis in (0, 1):
                cells = feature_map.shape[2 - axis]
                centres = [(backbone.offset + backbone.stride * i) / 0.5 for i in range(cells)]
                inside = [i for i, c in enumerate(centres) if box[axis] < c < box[axis + 2]]
                lows.append(inside[0])
                highs.append(inside[-1] + 1)
            window = feature_map[:, lows[1] : highs[1], lows[0] : highs[0]]
            bins = []
            for n in LEVELS:
                h, w = window.shape[1:]
                for i in range(n):
                    for j in range(n):
                        rows = slice(i * h // n, math.ceil((i + 1) * h / n))
                        columns = slice(j * w // n, math.ceil((j + 1) * w / n))
                        bins.append(window[:, rows, columns].amax(dim=(1, 2)))
            unit = torch.relu(head.fc6(torch.cat(bins)))
            scores = head.fc8(unit)
            total = total - torch.log_softmax(scores, dim=0)[label]
            if label and head.box is not None:
                deltas = head.box(unit)[4 * (label - 1) : 4 * label]
                wanted = slow_deltas(tuple(box), tuple(target))
                for d, t, unit_of in zip(deltas, wanted, (0.1, 0.1, 0.2, 0.2), strict=True):
                    gap = (d - t / unit_of).abs()
                    total = total + box_loss * torch.where(gap < 1, gap * gap / 2, gap - 0.5)
            count += 1
    return total / count


@pytest.mark.parametrize(("stages", "project"), [(None, None), ([4, 8], 5)])
def test_a_step_follows_the_gradient_of_slow_loops(
    stages: list[int] | None, project: int | None
) -> None:
    backbone = backbone_of(stages=stages, project=project)
    head = head_of(backbone)
    slow_layers, slow_head = copy.deepcopy(backbone.layers), copy.deepcopy(head)
    images = [image_of(1), image_of(2)]
    config = config_of(box_loss=0.7, lr=0.01, momentum=0.0, weight_decay=0.0, conv_rate=0.25)
    tuner = ImageTuner(backbone, head, LEVELS, config, seed=1)
    tuner.step(images, 10)
    slow_layers.requires_grad_(True)
    loss = slow_loss(slow_layers, backbone, slow_head, images, 0.7)
    loss.backward()
    checked = 0
    for slow, fast in ((slow_layers, backbone.layers), (slow_head, head)):
        after = dict(fast.named_parameters())
        for name, before in slow.named_parameters():
            rate = 0.01 if fast is head or "projection" in name else 0.0025
            gradient = torch.zeros_like(before) if before.grad is None else before.grad
            if name == "factors":
                gradient = torch.zeros_like(before)  # fitted, not trained
            wanted = before - rate * gradient
            assert torch.allclose(after[name], wanted, atol=2e-6), name
            checked += bool((gradient != 0).any())
    assert checked >= 10


def test_losses_of_classes_and_boxes() -> None:
    """Both losses against the slow loops, apart from gradients."""
    backbone = backbone_of()
    head = head_of(backbone)
    images = [image_of(3), image_of(4)]
    with torch.no_grad():
        scores, deltas = WindowNetwork(backbone, head, LEVELS)(images)
        classes, boxes = finetune_images.losses(scores, deltas, images)
        for weight in (0.0, 1.0):
            slow = slow_loss(backbone.layers, backbone, head, images, weight)
            assert float(classes + weight * boxes) / 10 == pytest.approx(float(slow), rel=1e-5)


@pytest.mark.parametrize("flip", [False, True])
def test_windows_of_an_image_and_of_its_mirror_image(
    flip: bool, tiny: Backbone, tmp_path: Path
) -> None:
    """Labels and targets by slow loops on the scene, mirrored by hand where it is."""
    world = make_world(tmp_path, tiny, scenes())
    config = config_of(batch_size=4000, batch_images=2, positive_fraction=0.5)
    draw = WindowDrawer(
        world.data, config, scales=[96, 144], max_side=2400, interpolation="bilinear"
    )
    for position, scene in enumerate(world.scenes):
        found = draw.image(position, 0, 0, flip=flip)
        seen = scene.mirrored() if flip else scene
        assert found.factor in (1.0, 1.5)
        if found.factor == 1:
            assert torch.equal(found.pixels, torch.from_numpy(seen.image))
        labelled = {box: (label, target) for box, label, target in slow_labels(seen, config)}
        rows = zip(found.boxes.tolist(), found.labels.tolist(), found.targets.tolist(), strict=True)
        got = {tuple(box): (label, tuple(target)) for box, label, target in rows}
        assert got == labelled


def test_background_takes_the_place_of_positives(tiny: Backbone, tmp_path: Path) -> None:
    world = make_world(tmp_path, tiny, scenes())
    config = config_of(batch_size=32, batch_images=2, positive_fraction=0.9)
    draw = WindowDrawer(world.data, config, scales=[96], max_side=2400, interpolation="bilinear")
    for position in range(4):
        labels = draw.image(position, 0, 0, flip=False).labels
        assert len(labels) == 16 and 0 < (labels > 0).sum() <= 14
    again = draw.image(3, 0, 0, flip=False)
    assert np.array_equal(again.labels, labels)
    assert not np.array_equal(draw.image(3, 1, 0, flip=False).boxes, again.boxes)


FIRST_TRAINED = {
    ("vgg16", "conv3+"): "10.",  # conv3_1
    ("resnet18", "conv3+"): "5.",  # layer2, at stride 8
    ("squeezenet1_1", "conv3+"): "6.",  # fire4
    ("alexnet", "conv3+"): "6.",  # conv3
    ("alexnet", "all"): "0.",
    ("tiny", "conv2+"): "4.",
}


@pytest.mark.parametrize(("name", "layers"), FIRST_TRAINED)
def test_layers_from_a_resolution_on_are_trained(name: str, layers: str) -> None:
    backbone = conv_backbone(name)
    chosen = {id(p) for p in conv_parameters(backbone, layers)}
    named = [(key, id(p) in chosen) for key, p in backbone.layers.named_parameters()]
    norms = [key for key, m in backbone.layers.named_modules() if isinstance(m, nn.BatchNorm2d)]
    first = next(
        i for i, (key, _) in enumerate(named) if key.startswith(FIRST_TRAINED[name, layers])
    )
    for i, (key, trained) in enumerate(named):
        frozen = key.rpartition(".")[0] in norms
        assert trained == (i >= first and not frozen), key


def test_layers_of_timm_and_those_that_there_are_not() -> None:
    pytest.importorskip("timm")
    backbone = conv_backbone("timm/tf_efficientnet_lite0", stages=[16, 32])
    assert isinstance(backbone.layers, JoinedMaps)
    chosen = {id(p) for p in conv_parameters(backbone, "conv3+")}
    blocks = {
        int(key.split("blocks.")[1].split(".")[0]) if "blocks" in key else -1
        for key, p in backbone.layers.named_parameters()
        if id(p) in chosen
    }
    assert blocks == {2, 3, 4, 5, 6}
    with pytest.raises(
        ValueError, match=r"conv5\+: .* 3 resolutions; expected fc, all, conv2\+, conv3\+$"
    ):
        conv_parameters(conv_backbone("tiny"), "conv5+")
    assert conv_parameters(conv_backbone("tiny"), "fc") == []


def test_frozen_layers_and_statistics_stay() -> None:
    backbone = conv_backbone("tiny")  # with its batch normalisation
    before = copy.deepcopy(backbone.layers.state_dict())
    tuner = ImageTuner(backbone, head_of(backbone), LEVELS, config_of(layers="conv2+"), seed=1)
    for seed in range(3):
        tuner.step([image_of(seed)], 5)
    changed = {k for k, t in backbone.layers.state_dict().items() if not torch.equal(t, before[k])}
    assert changed == {"4.weight", "8.weight", "11.weight"}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_restored_training_goes_on_to_the_same_bits(optimizer: str, tmp_path: Path) -> None:
    config = config_of(optimizer=optimizer, snapshots=4, schedule="cosine", lr=3e-3)

    def new() -> ImageTuner:
        backbone = backbone_of()
        head = head_of(backbone)
        head.dropout.p = 0.3
        return ImageTuner(backbone, head, LEVELS, config, seed=1)

    def trained(tuner: ImageTuner, until: int = 8) -> ImageTuner:
        while tuner.progress.batch < until:
            tuner.step([image_of(tuner.progress.batch)], 5, [image_of(100)])
        return tuner

    whole, first = trained(new()), trained(new(), until=5)
    assert whole.finished and not first.finished
    path = tmp_path / "state"
    write_tensors(path, first.state(), made_by="x", about=asdict(first.progress))
    state, about = read_tensors(path)
    torch.manual_seed(77)
    second = new()
    second.restore(state, Progress(**about))
    trained(second)
    assert second.progress == whole.progress
    for tuner in (whole, second):
        tuner.take_best()
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(second.network.state_dict()[name], tensor), name


def test_names_in_checkpoints() -> None:
    """Another name would lose the momentum of an unfinished training without a word."""
    for optimizer, names in (("sgd", {"momentum"}), ("adamw", {"step", "exp_avg", "exp_avg_sq"})):
        backbone = backbone_of()
        config = config_of(optimizer=optimizer)
        tuner = ImageTuner(backbone, head_of(backbone), LEVELS, config, seed=1)
        tuner.step([image_of(0)], 5)
        kinds = {name.split(".")[0] for name in tuner.state()} - {"net", "best"}
        assert kinds == names


def test_a_loss_that_isnt_finite_is_an_error() -> None:
    backbone = backbone_of()
    head = head_of(backbone)
    tuner = ImageTuner(backbone, head, LEVELS, config_of(), seed=1)
    with torch.no_grad():
        head.fc8.bias.fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"the loss is nan at batch 0; .*finetune\.lr"):
        tuner.step([image_of(0)], 5)


def test_rates_of_both_schedules() -> None:
    cosine = config_of(schedule="cosine", batches=1000)
    assert rate_factor(0, cosine) == pytest.approx(1 / 50)
    assert rate_factor(24, cosine) == pytest.approx(25 / 50 * (1 + math.cos(math.pi * 0.024)) / 2)
    assert rate_factor(500, cosine) == pytest.approx(0.5)
    assert rate_factor(999, cosine) == pytest.approx(0, abs=1e-5)
    step = config_of(batches=12)
    assert [rate_factor(b, step) for b in (0, 9, 10, 11)] == [1.0, 1.0, 0.1, 0.1]


def test_rates_of_fc6_follow_the_features_scale() -> None:
    head = head_of(backbone_of())
    rates, decays = {}, {}
    for name in ("sgd", "adamw"):
        config = config_of(optimizer=name, lr=0.1, weight_decay=0.02)
        groups = head_groups(head, config, 400.0)
        rates[name] = [group["lr"] for group in groups]
        decays[name] = [group["lr"] * group["weight_decay"] for group in groups]
    assert rates == {"sgd": [0.1 / 400, 0.1], "adamw": [0.1 / 20, 0.1]}
    assert decays == {name: pytest.approx([0.002, 0.002]) for name in ("sgd", "adamw")}


def test_at_most_so_many_images_are_held_out() -> None:
    training, held_out = split_images(1000, fraction=0.2, seed=3, most=64)
    assert len(held_out) == 64 and len(training) == 936
    assert held_out.max() > 500  # drawn, not the first ones
    assert not set(training) & set(held_out)


def test_the_head_alone_is_trained_on_images(demo_root: Path, tmp_path: Path) -> None:
    finetune = {**SETTINGS["finetune"], "layers": "fc", "sampling": "images"}
    config = settings_of(tmp_path, demo_root, finetune=finetune)
    run = tmp_path / "run"
    assert not config.tunes_conv()
    train_quietly(config, run)
    _, said = train_quietly(config, run)
    assert "head: there already" in said and "svm: there already" in said
    initial = load_backbone("tiny", "none", seed=config.seed)
    layers = read_tensors(run / "model" / "backbone.safetensors")[0]
    for name, tensor in folded(initial).layers.state_dict().items():
        assert torch.equal(layers[name], tensor)


@pytest.mark.parametrize("emptied", [8, None])
def test_images_without_windows_before_the_others(
    demo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emptied: int | None
) -> None:
    """Without objects no proposal has an IoU of 0.1: the head is fitted to the images that have windows."""
    monkeypatch.setattr(stage, "_START_IMAGES", 2)
    root = tmp_path / "set"
    shutil.copytree(demo_root, root)
    names = (root / "ImageSets" / "Main" / "trainval.txt").read_text().split()
    assert len(names) > 8
    for name in sorted(names)[:emptied]:
        path = root / "Annotations" / f"{name}.xml"
        path.write_text(re.sub(r"(?s)<object>.*</object>", "", path.read_text()))
    finetune = {**SETTINGS["finetune"], "negative_iou": [0.1, 0.5]}
    config = settings_of(tmp_path, root, finetune=finetune)
    if emptied is None:
        with pytest.raises(SppdetError, match="no object"):
            train_quietly(config, tmp_path / "run", until="finetune")
        return
    train_quietly(config, tmp_path / "run", until="finetune")
    tensors = read_tensors(tmp_path / "run" / "model" / "head.safetensors")[0]
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_the_images_that_a_head_starts_from_are_drawn(
    demo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the first by name, which are often of one class."""
    drawn: list[int] = []

    class Recorded(stage.WindowDrawer):
        def image(self, position: int, number: int, place: int, *, flip: bool) -> TrainingImage:
            if place == -1:
                drawn.append(position)
            return super().image(position, number, place, flip=flip)

    monkeypatch.setattr(stage, "_START_IMAGES", 4)
    monkeypatch.setattr(stage, "WindowDrawer", Recorded)
    starts = []
    for seed in (0, 1):
        drawn.clear()
        config = settings_of(tmp_path, demo_root, seed=seed)
        train_quietly(config, tmp_path / f"run{seed}", until="finetune")
        starts.append(drawn[:4])
    assert all(len(set(start)) == 4 and start != sorted(start) for start in starts)
    assert starts[0] != starts[1]


def test_all_objects_in_held_out_images(demo_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(demo_root, root)
    names = (root / "ImageSets" / "Main" / "trainval.txt").read_text().split()
    config = settings_of(
        tmp_path, root, finetune={**SETTINGS["finetune"], "negative_iou": [0.1, 0.5]}
    )
    assert config.finetune is not None
    training, held_out = split_images(
        len(names), fraction=config.finetune.val_fraction, seed=config.seed
    )
    assert len(held_out)
    for position in training:
        path = root / "Annotations" / f"{names[position]}.xml"
        path.write_text(re.sub(r"(?s)<object>.*</object>", "", path.read_text()))
    with pytest.raises(TrainingError, match="no training image has a window"):
        train_quietly(config, tmp_path / "run", until="finetune")


def test_a_mean_square_of_nothing() -> None:
    alone = OneProcess()
    assert mean_square_of(torch.tensor([[3.0, 1.0], [2.0, 0.0]]), alone) == pytest.approx(3.5)
    assert mean_square_of(torch.zeros(0, 4), alone) == 1.0
    assert mean_square_of(torch.zeros(3, 4), alone) == 1.0


def settings_of(folder: Path, root: Path, **more: Any) -> Config:
    return load_config(write_settings(folder / "settings.yaml", root, **{**SETTINGS, **more}))


@pytest.fixture(scope="module")
def tuned(demo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose convolutional layers were tuned, with SVMs and ridge regression on top."""
    run = tmp_path_factory.mktemp("tuned") / "run"
    train_quietly(settings_of(run.parent, demo_root), run)
    return run


def test_maps_of_the_svms_are_the_tuned_layers(tuned: Path, demo_root: Path) -> None:
    detector = Detector.load(tuned)
    layers = read_tensors(tuned / "model" / "backbone.safetensors")[0]
    initial = folded(conv_backbone("tiny")).layers.state_dict()
    assert layers.keys() == initial.keys()
    stored = list((tuned / "store").glob("maps-*"))
    assert len(stored) == 1  # none of the layers before fine-tuning
    assert detector.maps.fingerprint in stored[0].name
    assert not (tuned / "model" / "initial_backbone.safetensors").exists()
    assert not (tuned / "state").exists()


def test_a_finished_run_does_nothing_again(tuned: Path, demo_root: Path, tmp_path: Path) -> None:
    before = contents(tuned / "model")
    _, said = train_quietly(settings_of(tmp_path, demo_root), tuned)
    assert "head: there already" in said and "svm: there already" in said
    assert contents(tuned / "model") == before
    (tuned / "model" / "backbone.safetensors").unlink()
    _, said = train_quietly(settings_of(tmp_path, demo_root), tuned)
    assert "finetune: kept the snapshot" in said
    assert contents(tuned / "model") == before


@pytest.mark.parametrize("stop", [1, 5])
def test_an_interrupted_run_ends_in_the_same_bytes(
    stop: int, tuned: Path, demo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings_of(tmp_path, demo_root, checkpoint_minutes=0)
    run = tmp_path / "run"
    steps: list[int] = []
    genuine = ImageTuner.step

    def step(self: ImageTuner, *arguments: Any) -> None:
        if len(steps) == stop:
            raise KeyboardInterrupt
        steps.append(self.progress.batch)
        genuine(self, *arguments)

    monkeypatch.setattr(ImageTuner, "step", step)
    monkeypatch.setattr("sppdet.stages.pipeline.announce", lambda _: None)  # which takes steps, too
    with pytest.raises(KeyboardInterrupt):
        train_quietly(config, run)
    monkeypatch.undo()
    _, said = train_quietly(config, run)
    assert f"finetune: going on after batch {stop} of 12" in said
    assert contents(run / "model", "*.safetensors") == contents(tuned / "model", "*.safetensors")


def test_svms_on_pool5_depend_on_the_tuned_layers(demo_root: Path, tmp_path: Path) -> None:
    more = {"svm": {"layer": "pool5", "retrain_after": 200}}
    train_quietly(settings_of(tmp_path, demo_root, **more), tmp_path / "run", until="svm")
    more["finetune"] = {**SETTINGS["finetune"], "lr": 2e-3}
    changed = settings_of(tmp_path, demo_root, **more)
    _, said = train_quietly(changed, tmp_path / "run", until="svm")
    assert "head: made by other settings or data; made again" in said
    assert "svm: made by other settings or data; made again" in said


def test_softmax_and_learned_boxes(tuned: Path, demo_root: Path, tmp_path: Path) -> None:
    """The detector scores and moves by what fine-tuning has learned; the tuned layers stay.

    The SVMs' layer, which some packaged settings have, is without effect.
    """
    more = {"classifier": "softmax", "bbox": {"source": "finetune"}, "svm": {"layer": "pool5"}}
    run = tmp_path / "run"
    result, _ = train_quietly(settings_of(tmp_path, demo_root, **more), run)
    assert result is not None
    ours, theirs = (read_tensors(r / "model" / "head.safetensors")[0] for r in (run, tuned))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    detector = Detector.load(run)
    features = torch.rand(7, 32)
    scores = detector.classifiers.scores(features @ detector.classifiers.weights.T)
    linear = features @ ours["fc8.weight"].T + ours["fc8.bias"]
    p = torch.softmax(linear.double(), dim=1)[:, 1:]
    assert torch.allclose(scores.double(), torch.log(p / (1 - p)), atol=1e-4)
    assert detector.regressors is not None
    for label in (1, 3):
        rows = slice(4 * (label - 1), 4 * label)
        wanted = features @ ours["box.weight"][rows].T + ours["box.bias"][rows]
        k = label - 1
        found = features @ detector.regressors.rows[k].T + detector.regressors.biases[k]
        assert torch.allclose(found, wanted * torch.tensor([0.1, 0.1, 0.2, 0.2]), atol=1e-6)
    assert detector.min_score == -7
    image = np.random.default_rng(0).integers(0, 255, (90, 130, 3), dtype=np.uint8)
    assert (detector(image).scores >= -7).all()


def test_a_certain_softmax_has_finite_odds(tuned: Path) -> None:
    from sppdet.detection.detect import Classifiers

    sure = Classifiers("fc6", torch.tensor([[0.0], [500.0]]), torch.zeros(2), "softmax")
    features = torch.tensor([[1.0], [-1.0], [0.0]])
    assert torch.isfinite(sure.scores(features @ sure.weights.T)).all()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"classifier": "softmax", "finetune": "none"}, "needs a head and finetune settings"),
        ({"bbox": {"source": "finetune"}, "finetune": {}}, r"needs a head and finetune\.box_loss"),
        ({"finetune": {"layers": "all", "sampling": "regions"}}, "needs sampling: images"),
        ({"finetune": {"box_loss": 1.0}}, "box_loss needs sampling: images"),
        ({"finetune": {"layers": "all", "image_scales": [300, 200]}}, "low < high"),
        ({"finetune": {"image_scales": [200, 300]}}, "image_scales needs sampling: images"),
    ],
)
def test_settings_that_contradict(more: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        check_config({"data": {"root": "x", "train": "t"}, **more}, "settings", Config)


def test_a_resolution_that_there_is_not(demo_root: Path, tmp_path: Path) -> None:
    finetune = {**SETTINGS["finetune"], "layers": "conv5+"}
    with pytest.raises(ConfigError, match=r"finetune\.layers: conv5\+: the layers have 3"):
        train_quietly(settings_of(tmp_path, demo_root, finetune=finetune), tmp_path / "run")


def test_two_processes_train_as_one(demo_root: Path, tmp_path: Path) -> None:
    finetune = {**SETTINGS["finetune"], "batches": 3, "snapshots": 1, "val_fraction": 0.0}
    more = {"finetune": finetune, "head": {"widths": [32], "dropout": 0.0}}
    alone, run = tmp_path / "alone", tmp_path / "run"
    train_quietly(settings_of(tmp_path, demo_root, **more), alone, until="finetune")
    done = torchrun(2, "train", tmp_path / "settings.yaml", "--run", run, "--until", "finetune")
    assert done.returncode == 0, done.stderr
    for part in ("backbone", "head"):
        ours, theirs = (read_tensors(r / "model" / f"{part}.safetensors")[0] for r in (run, alone))
        for name, tensor in theirs.items():
            # Adam's first steps have the length of the rate, whatever the gradient's
            assert torch.allclose(ours[name], tensor, atol=1e-3), (part, name)

"""A classifier's training as a stage: it learns, its files, and what a second call does."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from runs import (
    CommandLine,
    contents,
    log_of,
    pretrain_quietly,
    write_classifier_settings,
)
from sppdet.classification import config as settings_types
from sppdet.classification.classifier import (
    build_classifier,
    load_classifier,
)
from sppdet.classification.config import PretrainConfig, ViewSet, read_classifier_config
from sppdet.classification.testing import score_image
from sppdet.classification.trainer import Trainer
from sppdet.classification.views import centre_crop
from sppdet.errors import ArtifactError, DataError, TrainingError
from sppdet.features.nets import tiny
from sppdet.features.preprocessing import IMAGENET
from sppdet.io.images import read_image
from sppdet.io.settings import load_settings
from sppdet.runs.artifacts import fingerprint_of, read_tensors

# for runs that only have to happen
QUICK = ("train.epochs=1", "data.train_per_class=3", "data.val_per_class=1")


@pytest.fixture
def run_of_one_epoch(classifier_settings: Path, tmp_path: Path) -> Path:
    pretrain_quietly(classifier_settings, tmp_path / "run", *QUICK)
    return tmp_path / "run"


def epochs_of(run: Path) -> list[dict[str, Any]]:
    return [record for record in log_of(run) if record["event"] == "epoch"]


def test_it_learns(classified: Path) -> None:
    records = epochs_of(classified)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record["size"] for record in records] == [32, 24, 32, 24, 32, 24]
    assert [record["lr"] for record in records] == pytest.approx([0.01] * 3 + [1e-3] * 2 + [1e-4])
    errors = [record["val_error"] for record in records]
    assert min(errors) < 0.2  # chance: 0.67
    assert records[-1]["train_error"] < 0.3 < records[0]["train_error"]
    assert records[-1]["train_loss"] < 0.7 * records[0]["train_loss"]
    assert all(record["images_per_second"] > 0 for record in records)


def test_the_files(classified: Path) -> None:
    assert {p.name for p in classified.iterdir()} >= {"config.yaml", "log.jsonl", "model"}
    assert set(contents(classified / "model")) == {"net.safetensors", "last.safetensors"}
    assert not contents(classified / "state") and not (classified / ".lock").exists()
    assert "pretrain" in json.loads((classified / "timings.json").read_text())
    tensors, about = read_tensors(classified / "model" / "net.safetensors")
    classes = ["cross", "disc", "square"]
    assert about == {"net": "tiny", "levels": [2, 1], "class_names": classes}
    assert {k for k in tensors if k.startswith("conv.")} == {
        f"conv.{k}" for k in tiny().state_dict()
    }
    assert tensors["head.fc6.weight"].shape == (16, 128 * 5)
    assert tensors["head.fc8.weight"].shape == (3, 16) and "head.fc7.weight" not in tensors
    made_by = [fingerprint_of(path) for path in sorted((classified / "model").iterdir())]
    assert made_by[0] == made_by[1] is not None


def test_the_settings_are_kept_whole(classified: Path, classifier_settings: Path) -> None:
    kept = read_classifier_config(classified)
    assert kept == load_settings(classifier_settings, PretrainConfig)
    assert yaml.safe_load((classified / "config.yaml").read_text())["train"]["momentum"] == 0.9


def test_the_kept_epoch_is_the_one_of_least_error(classified: Path) -> None:
    """The stored net gives the validation error that the log has for its epoch."""
    classifier = load_classifier(classified)
    assert not classifier.training
    wrong, losses = [], []
    for path in sorted((classified.parent / "val").rglob("*.png")):
        crop = centre_crop(read_image(path), side=36, crop=32, size=32)
        with torch.inference_mode():
            scores = classifier(IMAGENET.normalised(crop[None]))
        label = torch.tensor([classifier.class_names.index(path.parent.name)])
        losses.append(float(F.cross_entropy(scores, label)))
        wrong.append(int(scores.argmax()) != int(label))
    records = epochs_of(classified)
    best = min(records, key=lambda record: record["val_error"])  # of equals the first
    assert np.mean(wrong) == pytest.approx(best["val_error"])
    assert np.mean(losses) == pytest.approx(best["val_loss"], rel=1e-3)
    said = [r["text"] for r in log_of(classified) if str(r.get("text")).startswith("kept epoch")]
    assert said == [f"kept epoch {best['epoch']:.0f} of 6; the run is in {classified}"]


def test_a_second_call_finds_it_there(classifier_settings: Path, run_of_one_epoch: Path) -> None:
    model = contents(run_of_one_epoch / "model")
    stamps = {p: p.stat().st_mtime_ns for p in (run_of_one_epoch / "model").iterdir()}
    said = pretrain_quietly(classifier_settings, run_of_one_epoch, *QUICK)
    assert "the classifier is there already" in said and "epoch 1," not in said
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    # what training doesn't depend on may change
    test_views = ("test.views=[full]", "workers=1", "checkpoint_minutes=0")
    said = pretrain_quietly(classifier_settings, run_of_one_epoch, *QUICK, *test_views)
    assert "there already" in said and contents(run_of_one_epoch / "model") == model
    assert read_classifier_config(run_of_one_epoch).test.views == ["full"]


@pytest.mark.parametrize(
    "change",
    [
        *("train.lr=0.02", "seed=1", "augment.flip=false", "spp_levels=[3,1]"),
        *("data.train_per_class=4", "data.split_seed=1", "head=none", "head.widths=[8]"),
    ],
)
def test_other_settings_are_done_anew(
    classifier_settings: Path, run_of_one_epoch: Path, change: str
) -> None:
    before = contents(run_of_one_epoch / "model")
    said = pretrain_quietly(classifier_settings, run_of_one_epoch, *QUICK, change)
    assert "made by other settings or data; made again" in said
    after = contents(run_of_one_epoch / "model")
    assert before.keys() == after.keys() and all(after[key] != before[key] for key in after)
    assert "there already" in pretrain_quietly(
        classifier_settings, run_of_one_epoch, *QUICK, change
    )


def test_a_moved_folder_is_the_same_data_and_a_changed_image_is_not(
    classifier_settings: Path, run_of_one_epoch: Path, shape_root: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(shape_root, tmp_path / "elsewhere"))
    there = (*QUICK, f"data.root={moved}")
    assert "there already" in pretrain_quietly(classifier_settings, run_of_one_epoch, *there)
    for path in (moved / "train").rglob("*.png"):
        state, data = path.stat(), bytearray(path.read_bytes())
        data[-1] ^= 1  # of the end mark, without which it is decoded all the same
        path.write_bytes(data)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    said = pretrain_quietly(classifier_settings, run_of_one_epoch, *there)
    assert "made by other settings or data; made again" in said


def test_another_dropout_is_done_anew(classifier_settings: Path, run_of_one_epoch: Path) -> None:
    said = pretrain_quietly(classifier_settings, run_of_one_epoch, *QUICK, "head.dropout=0")
    assert "made again" in said


def test_a_net_of_other_settings_is_not_taken_for_this_one(
    classifier_settings: Path, run_of_one_epoch: Path, tmp_path: Path
) -> None:
    """Other settings were interrupted after an epoch: then the first ones are wanted again."""
    whole = contents(run_of_one_epoch / "model")
    pretrain_quietly(classifier_settings, tmp_path / "other", *QUICK, "train.lr=0.02")
    shutil.copy(tmp_path / "other" / "model" / "net.safetensors", run_of_one_epoch / "model")
    pretrain_quietly(classifier_settings, run_of_one_epoch, *QUICK)
    assert contents(run_of_one_epoch / "model") == whole
    (run_of_one_epoch / "model" / "net.safetensors").unlink()
    pretrain_quietly(classifier_settings, run_of_one_epoch, *QUICK)
    assert contents(run_of_one_epoch / "model") == whole


def test_the_same_settings_the_same_bytes(
    classifier_settings: Path, run_of_one_epoch: Path, tmp_path: Path
) -> None:
    torch.manual_seed(99)
    pretrain_quietly(classifier_settings, tmp_path / "other", *QUICK, "workers=1")
    assert contents(tmp_path / "other" / "model") == contents(run_of_one_epoch / "model")


def test_one_linear_layer_and_no_validation(classifier_settings: Path, tmp_path: Path) -> None:
    overrides = ("train.epochs=2", "data.train_per_class=3", "head=none", "data.val=null")
    said = pretrain_quietly(classifier_settings, tmp_path, *overrides)
    assert "9 images of 3 classes, none to validate on" in said
    tensors, _ = read_tensors(tmp_path / "model" / "net.safetensors")
    assert tensors["head.weight"].shape == (3, 128 * 5)
    assert all("val_error" not in record for record in epochs_of(tmp_path))
    model = contents(tmp_path / "model")  # nothing to choose by: the last epoch
    assert read_tensors(tmp_path / "model" / "last.safetensors")[0].keys() == tensors.keys()
    assert model["net.safetensors"] == model["last.safetensors"]
    assert load_classifier(tmp_path)(torch.zeros(1, 3, 40, 70)).shape == (1, 3)
    assert "kept epoch 2 of 2" in said


def test_without_validation_the_last_epoch_is_kept_and_said(
    classifier_settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the images trained on were answered better before."""

    def worse(trainer: Trainer, validation: None) -> tuple[dict[str, float], bool]:
        trainer.progress.correct = trainer.progress.seen * (1 - 0.1 * trainer.progress.epoch)
        return genuine(trainer, validation)

    genuine = Trainer.end_epoch
    monkeypatch.setattr(Trainer, "end_epoch", worse)
    said = pretrain_quietly(
        classifier_settings, tmp_path, *QUICK, "data.val=null", "train.epochs=3"
    )
    assert [r["train_error"] for r in epochs_of(tmp_path)] == pytest.approx([0, 0.1, 0.2])
    model = contents(tmp_path / "model")
    assert model["net.safetensors"] == model["last.safetensors"]
    assert "kept epoch 3 of 3" in said


def test_it_starts_from_another_run(
    classified: Path, classifier_settings: Path, tmp_path: Path
) -> None:
    config = load_settings(
        classifier_settings, PretrainConfig, [f"backbone.weights={classified}", "seed=5"]
    )
    started = build_classifier(config, ["one", "two"])
    tensors, _ = read_tensors(classified / "model" / "net.safetensors")
    for key, value in started.conv.state_dict().items():
        assert torch.equal(value, tensors[f"conv.{key}"])
    assert torch.equal(started.head.state_dict()["fc6.weight"], tensors["head.fc6.weight"])
    assert all(parameter.requires_grad for parameter in started.parameters())
    assert started(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


def test_broken_images_are_named_and_left_out(shape_root: Path, tmp_path: Path) -> None:
    shutil.copytree(shape_root / "train", tmp_path / "set" / "train")
    broken = tmp_path / "set" / "train" / "disc" / "001.png"
    broken.write_bytes(b"no image")
    settings = write_classifier_settings(tmp_path / "s.yaml", tmp_path / "set")
    overrides = ("data.val=null", "data.on_error=skip", *QUICK[:2])
    said = pretrain_quietly(settings, tmp_path / "run", *overrides)
    assert f"skipped: {broken}: can't be decoded" in said
    (record,) = (r for r in log_of(tmp_path / "run") if r["event"] == "skipped")
    assert str(broken) in record["text"]


@pytest.mark.parametrize("views", ["full", "maps10"])
def test_outputs_that_are_no_numbers(classified: Path, views: ViewSet) -> None:
    """No score is above NaN, which would pass for the best."""
    classifier = load_classifier(classified)
    for parameter in classifier.parameters():
        parameter.data.fill_(float("nan"))
    image = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(DataError, match="scores that aren't finite"):
        score_image(classifier, image, views, settings_types.TestConfig(side=36, crop=32))


def test_a_rate_that_is_too_great(classifier_settings: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) in epoch \d+, batch \d+; exp"):
        pretrain_quietly(classifier_settings, tmp_path, "train.lr=1e30", "train.batch_size=4")


def test_two_at_once(classifier_settings: Path, tmp_path: Path, sppdet: CommandLine) -> None:
    from sppdet.runs.lock import run_lock

    with run_lock(tmp_path):
        status, _, said = sppdet("pretrain", classifier_settings, "--run", tmp_path)
    assert status == 1 and "is training here; wait until it has ended" in said


# -- the command ---------------------------------------------------------------------------------


def test_the_command(classifier_settings: Path, sppdet: CommandLine, tmp_path: Path) -> None:
    words = [word for override in QUICK for word in ("--set", override)]
    status, said, _ = sppdet(
        "pretrain", classifier_settings, "--run", tmp_path / "r", "--device", "cpu", *words
    )
    assert status == 0
    assert "9 images of 3 classes, 3 to validate on" in said
    assert re.search(r"^epoch 1, lr .*, train_loss .*, val_error .*, size 32,", said, re.MULTILINE)
    assert f"kept epoch 1 of 1; the run is in {tmp_path / 'r'}" in said
    assert (tmp_path / "r" / "model" / "net.safetensors").is_file()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("train.epoch=3", "train.epoch: unknown; did you mean train.epochs?"),
        ("backbone.name=zf", "backbone.name: zf: unknown here and in torchvision; did you mean"),
        ("backbone.name=vit_b_16", "vit_b_16: can't be used as a backbone"),
        ("augment.crop=64", "augment: crop: 64 is more than resize 36"),
        ("test.crop=64", "test: crop: 64 is more than side 36"),
        ("spp_levels=[2,2]", "spp_levels: expected every level once"),
        ("data.train=nowhere", "nowhere: no such folder"),
        ("backbone.weights=imagenet", "there are no imagenet weights for tiny"),
        ("train.sizes=[]", "train.sizes: "),
    ],
)
def test_wrong_settings_are_one_line(
    classifier_settings: Path, sppdet: CommandLine, tmp_path: Path, change: str, expected: str
) -> None:
    status, _, said = sppdet(
        "pretrain", classifier_settings, "--run", tmp_path, "--set", change, "--device", "cpu"
    )
    assert status == 1 and expected in said
    assert said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_views_that_need_no_square_may_be_smaller() -> None:
    assert settings_types.TestConfig(views=["full"], side=36, crop=224).crop == 224
    for views in ("centre", "10", "maps10"):
        with pytest.raises(ValueError, match="crop: 224 is more than side 36"):
            settings_types.TestConfig(views=["full", views], side=36, crop=224)


@pytest.mark.parametrize("what", ["nothing", "a detector", "no weights"])
def test_what_is_no_run_of_a_classifier(
    what: str, classified: Path, settings: Path, tmp_path: Path
) -> None:
    expected = "not a run: it has no config.yaml"
    if what == "a detector":
        shutil.copy(settings, tmp_path / "config.yaml")
        expected = "not the run of a classifier: "
    elif what == "no weights":
        shutil.copy(classified / "config.yaml", tmp_path)
        expected = "net.safetensors: no such file"
    with pytest.raises(ArtifactError, match=expected):
        load_classifier(tmp_path)


def test_weights_that_do_not_fit_the_settings(classified: Path, tmp_path: Path) -> None:
    shutil.copytree(classified, tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    raw = yaml.safe_load(path.read_text())
    raw["spp_levels"] = [3, 1]
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ArtifactError, match="doesn't fit the run's settings: ") as caught:
        load_classifier(tmp_path / "run")
    assert "\n" not in str(caught.value)


# -- curves --------------------------------------------------------------------------------------


def test_curves_without_tensorboard(
    classifier_settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match="tensorboard: true needs `pip install tensorboard`"):
        pretrain_quietly(classifier_settings, tmp_path, *QUICK, "tensorboard=true")
    assert not (tmp_path / ".lock").exists()


class Writer:
    """Remembers what it is asked to draw."""

    drawn: list[tuple[str, float, int]] = []

    def __init__(self, folder: str) -> None:
        Path(folder).mkdir()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.drawn.append(("closed", 0, 0))

    def add_scalar(self, key: str, value: float, step: int) -> None:
        self.drawn.append((key, value, step))

    def flush(self) -> None:
        pass


def test_what_is_drawn(
    classifier_settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Writer, "drawn", [])
    pretrain_quietly(classifier_settings, tmp_path, *QUICK, "train.epochs=2", "tensorboard=true")
    *curves, last = Writer.drawn
    assert last[0] == "closed"
    records = epochs_of(tmp_path)
    expected = {
        (key, value, record["epoch"])
        for record in records
        for key, value in record.items()
        if key not in ("epoch", "event", "time", "text")
    }
    assert set(curves) == expected and len(curves) == 2 * 7


def test_curves_as_tensorboard_reads_them(classifier_settings: Path, tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pretrain_quietly(classifier_settings, tmp_path, *QUICK, "train.epochs=2", "tensorboard=true")
    (path,) = (tmp_path / "tensorboard").glob("events*")
    events = reading.EventAccumulator(str(path))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("val_loss")]
    expected = [(record["epoch"], record["val_loss"]) for record in epochs_of(tmp_path)]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)

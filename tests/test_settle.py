"""What `data.format: auto` and `data.test: 0.2` make of a folder, and that a run keeps its split."""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import labelled_sets as sets
from images import save_image
from runs import SMALL, CommandLine, small_set, train_quietly, write_settings
from sppdet.config import Config
from sppdet.data_config import DataConfig
from sppdet.errors import ConfigError, DataError
from sppdet.evaluation.similar_images import differences, group_similar, look_of
from sppdet.io.id_lists import read_id_list
from sppdet.io.settings import load_config
from sppdet.io.voc_writing import voc_annotation
from sppdet.runs.artifacts import write_text
from sppdet.stages.model_files import read_run_config
from sppdet.stages.settle import settle


def settled(root: Path | list[Path], folder: Path, *, seed: int = 0, **data: Any) -> DataConfig:
    settings = {"format": "auto", "root": root, **data}
    return settle(Config(data=DataConfig(**settings), seed=seed), folder).data


def lists(folder: Path) -> tuple[list[str], list[str]]:
    train, test = (read_id_list(folder / "split" / f"{key}.txt") for key in ("train", "test"))
    return train, test


def labelled(root: Path, name: str, image: np.ndarray[Any, Any], *classes: str) -> None:
    """An image with boxes of some classes, as LabelImg has them."""
    save_image(root / f"{name}.png", image)
    boxes = np.array([[1, 2, 30, 40]] * len(classes), np.float32).reshape(-1, 4)
    write_text(
        root / f"{name}.xml",
        voc_annotation(
            filename=f"{name}.png",
            width=120,
            height=90,
            boxes=boxes,
            names=classes,
        ),
    )


def test_settings_that_leave_nothing_open_stay(tmp_path: Path) -> None:
    config = Config(data=DataConfig(root=[tmp_path / "not there"], train=["a"], test=["b"]))
    assert settle(config, tmp_path) is config


def test_the_split_of_the_layout_is_used_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sets.roboflow_yolo(tmp_path / "set")
    with caplog.at_level(logging.INFO, "sppdet"):
        data = settled(tmp_path / "set", tmp_path)
    assert (data.format, data.train, data.test) == ("yolo", ["train"], ["val"])
    assert (
        "yolo (data.yaml, 5 label files such as train/labels/a_png.rf.aaaaaaaa.txt)" in caplog.text
    )
    assert "trained on train, tested on val" in caplog.text
    assert not (tmp_path / "split").exists()


def test_a_test_set_comes_before_a_validation_set(tmp_path: Path) -> None:
    for folder in ("train", "valid", "test"):
        labelled(tmp_path / "set" / folder, folder, sets.noise(folder), "cat")
    data = settled(tmp_path / "set", tmp_path)
    assert (data.train, data.test) == (["train"], ["test"])


def test_null_means_no_test_set(tmp_path: Path) -> None:
    sets.coco(tmp_path / "set")
    data = settled(tmp_path / "set", tmp_path, test=None)
    assert data.train == ["annotations/instances_train2017.json"] and data.test is None


def test_a_fraction_divides_what_the_layout_trains_on(tmp_path: Path) -> None:
    sets.coco(tmp_path / "set")
    settled(tmp_path / "set", tmp_path, test=0.25)
    train, test = lists(tmp_path)
    assert (len(train), len(test)) == (3, 1) and set(train + test) == set(sets.TRAIN)


def test_a_fraction_of_voc(tmp_path: Path) -> None:
    sets.pascal(tmp_path / "set")
    data = settled(tmp_path / "set", tmp_path, format="voc", train=["trainval"], test=0.5)
    assert data.test == ["trainval"]
    train, test = lists(tmp_path)
    assert sorted(train + test) == sorted(sets.TRAIN)


def test_names_of_another_set_are_said_not_to_be_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sets.roboflow_yolo(tmp_path / "set")
    data = settled(tmp_path / "set", tmp_path, train=["trainval"], test=["test"])
    assert (data.train, data.test) == (["train"], ["val"])
    assert "data.train: trainval: no set that was found" in caplog.text


def test_roots_of_two_formats(tmp_path: Path) -> None:
    sets.coco(tmp_path / "a")
    sets.labelme(tmp_path / "b")
    with pytest.raises(DataError, match=r"a is coco and .*b is labelme; expected one format"):
        settled([tmp_path / "a", tmp_path / "b"], tmp_path)


def test_a_split_without_a_run_is_refused(tmp_path: Path) -> None:
    sets.labelme(tmp_path)
    config = settle(Config(data=DataConfig(format="auto", root=[tmp_path])), None)
    with pytest.raises(ConfigError, match=r"data\.test: 0\.2 .*config\.yaml of the run"):
        config.data.sets_of("test")


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 7, 0, False, math.nan])
def test_wrong_fractions(fraction: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="should be a fraction between 0 and 1, the name of a set"):
        DataConfig(root=[tmp_path], train=["a"], test=fraction)


def many(root: Path, count: int = 40) -> Path:
    for k in range(count):
        classes = [name for name, every in (("cat", 2), ("dog", 5), ("owl", 20)) if k % every == 0]
        labelled(root, f"image {k * 7 + 3}", sets.noise(f"x{k}"), *classes)
    return root


def test_classes_are_in_proportion_and_the_seed_decides(tmp_path: Path) -> None:
    root = many(tmp_path / "set")
    settled(root, tmp_path / "one")
    train, test = lists(tmp_path / "one")
    assert (len(train), len(test)) == (32, 8) and not set(train) & set(test)
    number = {name: (int(name.split()[1]) - 3) // 7 for name in train + test}
    assert [sum(number[name] % every == 0 for name in test) for every in (2, 5, 20)] == [4, 2, 1]
    settled(root, tmp_path / "two")
    assert lists(tmp_path / "two") == (train, test)
    settled(root, tmp_path / "three", seed=1)
    assert lists(tmp_path / "three")[1] != test


def test_the_split_stays_when_images_come_and_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = many(tmp_path / "set", 20)
    settled(root, tmp_path)
    train, test = lists(tmp_path)
    labelled(root, "a new one", sets.noise("new"), "cat")
    settled(root, tmp_path)
    assert lists(tmp_path) == (train, test)
    assert "1 images were added after its split and aren't used (a new one)" in caplog.text
    (root / f"{test[0]}.png").unlink()
    (root / f"{test[0]}.xml").unlink()
    settled(root, tmp_path)
    assert lists(tmp_path) == (train, test[1:])
    assert f"gone since: {test[0]}" in caplog.text
    labelled(root, test[0], sets.noise("back"), "cat")
    settled(root, tmp_path)
    assert lists(tmp_path) == (train, test)
    (root / f"{test[0]}.png").unlink()
    (root / f"{test[0]}.xml").unlink()
    settled(root, tmp_path)
    settled(root, tmp_path, test=0.5)  # another fraction divides again, the new one included
    assert len(lists(tmp_path)[1]) == 10
    assert not list(tmp_path.glob("split/*-gone.txt"))


def test_other_images_in_the_same_run_are_refused(tmp_path: Path) -> None:
    settled(many(tmp_path / "set", 10), tmp_path)
    before = lists(tmp_path)
    for k in range(10):
        labelled(tmp_path / "other", f"other {k}", sets.noise(f"y{k}"), "cat")
    with pytest.raises(
        DataError, match=r"train\.txt: none of its 8 images is in other-all any more"
    ):
        settled(tmp_path / "other", tmp_path)
    assert lists(tmp_path) == before


def test_a_split_of_two_images_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"0\.2 of 2 images .* or data\.test: null to train"):
        settled(many(tmp_path / "set", 2), tmp_path)


def test_frames_and_copies_stay_together(tmp_path: Path) -> None:
    root = many(tmp_path / "set", 20)
    for k in range(4):
        labelled(root, f"walk_frame_{k:03}", sets.noise(f"walk {k}"), "cat")
    copy = cv2.resize(sets.noise("x3"), (60, 45), interpolation=cv2.INTER_AREA)
    labelled(root, "copy", np.ascontiguousarray(copy), "cat")
    for seed in range(6):
        run = tmp_path / f"run{seed}"
        settled(root, run, seed=seed, test=0.4)
        sides = [set(ids) for ids in lists(run)]
        frames = {f"walk_frame_{k:03}" for k in range(4)}
        assert any(frames <= side for side in sides)
        assert any({"copy", "image 24"} <= side for side in sides)


def test_one_video_is_cut_in_two(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "set"
    for k in range(10):
        labelled(root, f"video_{k + 1}", sets.noise(f"v{k}"), "cat")
    settled(root, tmp_path)
    assert lists(tmp_path)[1] == ["video_10", "video_9"]
    assert "10 of 10 images show nearly the same" in caplog.text


def test_groups_of_similar_images() -> None:
    plain = [np.full((50, 70, 3), colour, np.uint8) for colour in ((10, 20, 200), (200, 20, 10))]
    pixels = [sets.noise("a"), sets.noise("b")]
    brighter = np.clip(pixels[0].astype(int) + 6, 0, 255).astype(np.uint8)
    moved = np.roll(pixels[1], 2, axis=1)
    names = [
        "a",
        "b",
        "c",
        "red",
        "blue",
        "p1",
        "p2",
        "p4",
        "q/clip1",
        "q/clip7",
        "r/clip2",
        "none",
    ]
    images = [*pixels, brighter, *plain, pixels[1], moved, moved[::-1], *pixels[:1], plain[0] // 2]
    looks = [look_of(np.ascontiguousarray(image)) for image in images]
    groups = group_similar(names, [*looks, look_of(sets.noise("z")), None]).tolist()
    together = {frozenset(n for n, g in zip(names, groups, strict=True) if g == k) for k in groups}
    assert together == {
        frozenset({"a", "c", "q/clip1", "q/clip7"}),  # the same pixels, and a clip
        frozenset({"b", "p1", "p2"}),  # the same pixels, and the next number with a like look
        *(frozenset({name}) for name in ("red", "blue", "p4", "r/clip2", "none")),
    }


def test_differences_by_hand() -> None:
    left = np.zeros((16, 17, 3), np.uint8)
    right = left.copy()
    right[:8, 1::2] = 255  # in 8 rows every second value is larger than the one before
    bits, colours = differences(look_of(left), look_of(right))
    assert bits == 8 * 8
    assert colours == pytest.approx(255 / 4, abs=10)  # about half of half the rows


def test_a_run_can_be_moved_and_goes_on(tmp_path: Path, sppdet: CommandLine) -> None:
    """The whole way from a folder: train, resume, move, evaluate."""
    made = small_set(tmp_path / "made")
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted([*made.glob("JPEGImages/*.jpg"), *made.glob("Annotations/*.xml")]):
        path.rename(photos / path.name)
    settings = write_settings(tmp_path / "small.yaml", tmp_path, finetune="none", head="none")
    overrides = ("data.format=auto", f"data.root={photos}")
    run = tmp_path / "run"
    result, said = train_quietly(settings, run, *overrides)
    assert result is not None and result.images == len(lists(run)[1])
    assert "xml (18 VOC annotations" in said and "no split" in said
    text = (run / "config.yaml").read_text()
    assert "train_ids: split/train.txt" in text and "format: xml" in text
    again, said = train_quietly(settings, run, *overrides)
    assert again is not None and again.mean_ap == result.mean_ap
    assert "svm: there already" in said
    moved = run.rename(tmp_path / "elsewhere")
    assert read_run_config(moved).data.test_ids == moved / "split" / "test.txt"
    status, out, err = sppdet("eval", moved)
    assert status == 0, err
    assert "mAP" in out


def test_no_test_set_is_said(tmp_path: Path) -> None:
    sets.labelimg_voc(tmp_path / "set")
    data = DataConfig(format="auto", root=[tmp_path / "set"], test=None)
    config = Config.model_validate({**SMALL, "data": data})
    result, said = train_quietly(config, tmp_path / "run", until="data")
    assert result is None and "no test set (data.test is null): there will be no metric" in said


def test_exif_turns_count_for_fractions(tmp_path: Path) -> None:
    from sppdet.io.dataset import load_dataset

    exif = Image.Exif()
    exif[0x0112] = 6  # shown as 40 x 60
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 0.25\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    dataset = load_dataset(
        format="yolo", roots=[tmp_path], sets=["all"], images=None, class_names=None,
        on_error="stop", read_images=True, known=None,
    )  # fmt: skip
    assert dataset.images[0].gt_boxes.tolist() == [[10, 22.5, 30, 37.5]]


# -- a folder in the place of settings -------------------------------------------------------------


def test_a_folder_is_trained_on(
    sppdet: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets.roboflow_yolo(tmp_path / "my photos")
    monkeypatch.chdir(tmp_path)
    network = ("--set", "backbone={name: tiny, weights: none}", "--set", "features={}")
    status, out, err = sppdet("train", "my photos", *network, "--until", "data", "--device", "cpu")
    assert status == 0, err
    assert "preset fast: the network as it is, images at " in out
    assert "(`sppdet init lite0_small` prints the settings)" in out
    assert "yolo" in out and (tmp_path / "runs" / "my photos" / "log.jsonl").is_file()
    monkeypatch.chdir(tmp_path / "my photos")
    status, out, err = sppdet("train", ".", *network, "--until", "data", "--device", "cpu")
    assert status == 0 and Path("runs/my photos/log.jsonl").is_file(), err


def test_a_folder_from_end_to_end(
    sppdet: CommandLine, demo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in sorted((demo_root / "Annotations").iterdir())[:12]:
        shutil.copy(path, folder)
        shutil.copy(demo_root / "JPEGImages" / f"{path.stem}.jpg", folder)
    monkeypatch.chdir(tmp_path)
    network = ("--set", "backbone={name: tiny, weights: none, stages: auto}")
    quick = (
        "--set",
        "features.project=none",
        "--set",
        "scales=[120]",
        "--set",
        "calibrate={folds: 2}",
    )
    small = (*network, *quick)
    status, out, err = sppdet("train", "photos", *small, "--device", "cpu")
    assert status == 0, err
    assert "trained on all, tested on 20 % of its images, kept out of training" in out
    assert "9 images to train on, 3 to test on" in out or "10 images to train on, 2" in out
    assert Path("runs/photos/report.html").is_file()
    assert "mAP (11-point, photos-all-test)" in out
    status, out, err = sppdet(
        "detect", "runs/photos", "photos", "--out", "found", "--device", "cpu"
    )
    assert status == 0 and Path("found/detections.json").is_file(), err


def test_settings_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(tmp_path, ["data.test=0.3", "seed=4"])
    assert (config.data.format, config.data.root) == ("auto", [tmp_path])
    assert (config.data.test, config.seed) == (0.3, 4)
    assert config.backbone.name == "timm/tf_efficientnet_lite0" and config.data.train is None
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert load_config(tmp_path).backbone.name == "squeezenet1_1"
    with pytest.raises(ConfigError, match=r"data\.test: should be a fraction between 0 and 1"):
        load_config(tmp_path, ["data.test=0"])
    # the name of a packaged config stands for it where a folder has the same
    (tmp_path / "voc07").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("voc07")).data.format == "voc"
    assert load_config(Path("./voc07")).data.format == "voc"
    (tmp_path / "mine").mkdir()
    assert load_config(Path("mine")).data.root == [tmp_path / "mine"]  # wherever the run is
    assert load_config(tmp_path / "voc07").data.format == "auto"


def test_a_folder_without_annotations(sppdet: CommandLine, tmp_path: Path) -> None:
    save_image(tmp_path / "only" / "a.png", sets.noise("a"))
    status, _, err = sppdet("train", tmp_path / "only", "--run", tmp_path / "run")
    assert status == 1 and err.count("\n") == 1 and "only" in err

"""Training from Python: what settings may be given as, and what comes back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import sppdet
from runs import SMALL, log_of
from sppdet.config import Config
from sppdet.errors import ConfigError, DataError
from sppdet.io.settings import load_config, load_settings

QUICK = {"head": None, "finetune": None, "scales": [120], "svm": {"layer": "pool5"}}


def small(root: Path, **more: Any) -> dict[str, Any]:
    data = {"root": root, "train": "trainval", "test": "test"}
    return {"data": data, **SMALL, **QUICK, **more}


def test_a_dict_trains_what_its_yaml_file_would(demo_root: Path, tmp_path: Path) -> None:
    events: list[str] = []
    trained = sppdet.train(
        small(demo_root), tmp_path / "a", device="cpu", on_event=lambda name, _: events.append(name)
    )
    assert trained.run == tmp_path / "a" and "evaluated" in events
    assert trained.result is not None and trained.mean_ap == trained.result.mean_ap > 0
    assert repr(trained).startswith(f"<Trained: {tmp_path}/a, ") and len(repr(trained)) < 300
    found = trained.load(device="cpu")(demo_root / "fresh" / "000019.jpg")
    assert isinstance(found, sppdet.Detections)

    settings = tmp_path / "b.yaml"
    plain = small(demo_root)
    plain["data"]["root"] = str(demo_root)
    settings.write_text(yaml.safe_dump(plain), encoding="utf-8")
    again = sppdet.train(str(settings), str(tmp_path / "b"), device="cpu")
    assert again.mean_ap == trained.mean_ap
    for name in ("svm.safetensors", "bbox.safetensors"):
        assert (again.run / "model" / name).read_bytes() == (
            trained.run / "model" / name
        ).read_bytes()
    # a Config that was read, in the same folder: all is there already
    third = sppdet.train(load_config(settings), again.run, device="cpu")
    assert third.mean_ap == again.mean_ap


def test_a_folder_of_images_takes_a_preset(demo_root: Path, tmp_path: Path) -> None:
    trained = sppdet.train(str(demo_root), tmp_path, device="cpu", until="data", preset="fast")
    assert (tmp_path / "preset.json").exists() and trained.result is None
    started = next(line for line in log_of(tmp_path) if line["event"] == "run started")
    assert started["config"]["data"]["root"] == [str(demo_root)]
    with pytest.raises(ValueError, match="not evaluated"):
        _ = trained.mean_ap
    assert repr(trained) == f"<Trained: {tmp_path}>"


def test_a_dict_builds_on_a_packaged_config(demo_root: Path, tmp_path: Path) -> None:
    base = load_config("squeezenet_small", [f"data.root={demo_root}"])
    found = load_config({"base": "squeezenet_small", "data": {"root": demo_root}, "seed": 7})
    assert found.seed == 7
    assert found.model_dump(exclude={"seed", "data"}) == base.model_dump(exclude={"seed", "data"})
    own = tmp_path / "own.yaml"
    own.write_text("base: more.yaml\nsvm: {C: 0.5}\n")
    (tmp_path / "more.yaml").write_text("seed: 3\nstore: cache\n")
    found = load_config({"base": str(own), "data": {"root": "x"}}, ["svm.layer=pool5"])
    assert (found.svm.C, found.seed, found.svm.layer) == (0.5, 3, "pool5")
    assert found.store == tmp_path / "cache"  # relative to its file
    found = load_config({"base": str(own), "data": {"root": "x"}, "svm": {"C": 2}, "seed": 9})
    assert (found.svm.C, found.seed) == (2, 9)  # the dict's come first


def test_python_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {
        "data": {"root": Path("photos"), "train": ("a",)},
        "scales": (np.int64(120), 200),
        "svm": {"C": np.float32(0.5)},
        "seed": torch.tensor(3),
        "store": Path("~/x"),
    }
    found = load_config(given)
    assert found.data.root == [tmp_path / "photos"]  # relative to the working folder
    assert found.scales == [120, 200] and found.svm.C == 0.5 and found.seed == 3
    assert found.store == Path.home() / "x"
    assert isinstance(given["data"], dict) and given["data"]["root"] == Path("photos")


DATA = {"data": {"root": "x", "train": "t"}}
DEEP: dict[str, Any] = {}
DEEP["svm"] = DEEP


@pytest.mark.parametrize(
    "wrong",
    [
        {"svm": {"hard_tresh": 1}},
        {"svm": {"C": "many"}},
        {"svm": {"C": -1}},
        {"scales": []},
        {"nonsense": 1},
        {"backbone": {"name": "alexnett"}},
        {"detect": {"max_iou": [1, 2]}},
        {"store": ""},
        {3: 4},
    ],
    ids=repr,
)
def test_messages_are_those_of_files(wrong: dict[Any, Any], tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump({**DATA, **wrong}), encoding="utf-8")
    with pytest.raises(ConfigError) as of_file:
        load_settings(file, Config)
    with pytest.raises(ConfigError) as of_dict:
        sppdet.train({**DATA, **wrong}, tmp_path / "run")
    assert str(of_dict.value) == str(of_file.value).replace(f"{file}:", "settings:")
    assert "\n" not in str(of_dict.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"svm": {"C": {1, 2}}}, "settings: svm.C: set, expected text, a number, a list or a dict"),
        ({"svm": {"C": np.ones(3)}}, "settings: svm.C: ndarray, expected text, a number"),
        ({"seed": 10**5000}, "settings: seed: a large number, expected"),
        (DEEP, "settings: svm.svm.svm.svm: nested too deeply"),
        ({"base": 3}, "settings: base: expected the name of a packaged config or of a YAML file"),
        ({"base": "squeezenet_smal"}, "squeezenet_smal: .*did you mean squeezenet_small"),
        ({"base": "no/such.yaml"}, "no/such.yaml"),
    ],
)
def test_what_only_python_can_give(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config({**DATA, **wrong})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"settings": 3},
            "settings: int, expected a dict, a path or the name of a packaged config",
        ),
        ({"settings": "voc07_alexnt_5scale"}, "did you mean voc07_alexnet_5scale"),
        ({"until": "evaluation"}, "until: 'evaluation', expected one of data, proposals"),
        ({"preset": "fastest"}, "preset: 'fastest', expected one of fast, balanced, accurate"),
        (
            {"preset": "fast"},
            "settings: has settings of its own; preset and minutes are for a folder",
        ),
        ({"minutes": 5}, "settings: has settings of its own"),
        ({"minutes": 0}, "minutes: 0, expected a number greater than 0"),
        ({"minutes": "5"}, "minutes: '5', expected a number"),
        ({"run": ""}, "run: '', expected the path of a folder"),
        ({"run": None}, "run: None, expected the path of a folder"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        sppdet.train(**{"settings": DATA, "run": tmp_path / "run", **arguments})
    assert not (tmp_path / "run").exists()


def test_data_that_isnt_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        sppdet.train({"data": {"root": tmp_path / "nowhere", "train": "t"}}, tmp_path / "run")


STATE = """
import json, logging, os, sys
import cv2, torch
torch.set_num_threads(2); cv2.setNumThreads(3)
before = dict(os.environ), torch.get_num_threads(), cv2.getNumThreads(), logging.getLogger().handlers
import sppdet
settings = json.loads(sys.argv[1])
sppdet.train(settings, sys.argv[2], device="cpu").load(device="cpu")(sys.argv[3])
after = dict(os.environ), torch.get_num_threads(), cv2.getNumThreads(), logging.getLogger().handlers
assert before == after, [(a, b) for a, b in zip(before, after) if a != b]
"""


def test_the_process_is_left_as_it_is(demo_root: Path, tmp_path: Path) -> None:
    import json

    settings = small(demo_root)
    settings["data"]["root"] = str(demo_root)
    image = demo_root / "fresh" / "000019.jpg"
    done = subprocess.run(
        [sys.executable, "-c", STATE, json.dumps(settings), tmp_path / "run", image],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("OMP")},
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr

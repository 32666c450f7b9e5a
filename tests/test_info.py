"""`sppdet info` on damaged files, and what a score says of the data behind it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from runs import CommandLine
from sppdet.cli.info import describe_run
from sppdet.config import Config
from sppdet.runs.artifacts import read_json, write_json
from sppdet.stages.model_files import ModelFiles, read_run_config, signature

SCORES = "eval/test/voc07/metrics.json"


@pytest.fixture
def light_run(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained` without what `info` doesn't look at."""
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("store", "*.png", "*.csv"))
    return run


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        (SCORES, "{}", "expected mAP and metric"),
        (SCORES, "[]", "a list, expected an object"),
        (SCORES, "3", "a int, expected an object"),
        (SCORES, '{"mAP": 1, "metric": 3}', "expected mAP and metric"),
        (SCORES, '{"mAP": "x", "metric": "voc07"}', "mAP 'x', expected a number"),
        (SCORES, '{"mAP": true, "metric": "voc07"}', "mAP True, expected a number"),
        (SCORES, '{"mAP": 1' + "0" * 400 + ', "metric": "voc07"}', "mAP 10000"),
        (SCORES, "[" * 100_000, "damaged"),
        (SCORES, "", "damaged"),
        ("timings.json", "[]", "a list, expected an object"),
        ("timings.json", '{"svm": null}', "svm None, expected a number"),
        ("timings.json", '{"svm": {}}', "svm {}, expected a number"),
    ],
)
def test_a_damaged_file_is_one_line_after_the_others(
    sppdet: CommandLine, light_run: Path, name: str, text: str, problem: str
) -> None:
    whole = list(describe_run(light_run))
    (light_run / name).write_text(text)
    status, out, err = sppdet("info", light_run)
    assert status == 1 and err.count("\n") == 1, err
    assert name in err and problem in err
    kind = "score" if name == SCORES else "seconds"
    kept = [line for line in whole if not line.startswith(kind)]
    assert [line for line in out.splitlines() if not line.startswith(kind)] == kept


def test_scores_of_all_layouts(light_run: Path) -> None:
    folder = light_run / "eval"
    metrics = read_json(light_run / SCORES)
    old = {**metrics, "mAP": 0.25}
    write_json(folder / "test" / "metrics.json", old)  # of an older version, and scored again
    write_json(folder / "val" / "metrics.json", old)
    write_json(folder / "val" / "coco" / "metrics.json", {**old, "metric": "coco", "mAP": None})
    write_json(folder / "x" / "y" / "voc10" / "metrics.json", {**old, "metric": "voc10"})
    assert [line for line in describe_run(light_run) if line.startswith("score")] == [
        f"score      mAP (voc07, test) {metrics['mAP']:.4f}",
        "score      mAP (voc07, val) 0.2500",
        "score      mAP (voc10, x/y) 0.2500",
    ]


def test_a_damaged_seal_is_one_line(sppdet: CommandLine, light_run: Path) -> None:
    sealed = ModelFiles(light_run).sealed
    for text in ("[]", "{}", "3", "null", '{"parts": 1}', "[" * 100_000, ""):
        sealed.write_text(text)
        assert ModelFiles(light_run).training_data() is None
        status, _, err = sppdet("eval", light_run)
        assert status == 1 and err.count("\n") == 1 and "have changed since it was trained" in err


def test_a_signature_names_the_data(trained: Path) -> None:
    config = read_run_config(trained)
    scored = read_json(trained / SCORES)["signature"]
    digest = ModelFiles(trained).training_data()
    assert digest is not None and re.search(rf"\|train:{digest[:8]}\|test:[0-9a-f]{{8}}\|", scored)
    other = signature(config, train="f" * 16, test="0" * 16)
    assert other != scored and "|train:ffffffff|test:00000000|" in other
    assert "|train:unknown|" in signature(config, train=None)


def test_the_training_data_is_in_the_signature(
    sppdet: CommandLine, demo_root: Path, run_copy: Path
) -> None:
    """The run's settings name the same set, whose list has grown shorter."""
    root = run_copy.parent / "set"
    shutil.copytree(demo_root, root)
    path = root / "ImageSets" / "Main" / "trainval.txt"
    path.write_text("\n".join(path.read_text().split("\n")[1:]))
    settings = yaml.safe_load((run_copy / "config.yaml").read_text())
    settings["data"]["root"] = str(root)
    config = run_copy.parent / "shorter.yaml"
    config.write_text(yaml.safe_dump(settings))
    before = read_json(run_copy / SCORES)["signature"]
    overrides = (
        "--set",
        "svm.layer=pool5",
        "--set",
        "head=none",
        "--set",
        "finetune=none",
        "--set",
        "bbox=none",
    )
    status, _, err = sppdet("train", config, "--run", run_copy, "--device", "cpu", *overrides)
    assert status == 0, err
    parts = [dict(p.split(":", 1) for p in s.split("|")) for s in (before, _signature(run_copy))]
    assert parts[0]["train"] != parts[1]["train"]
    assert parts[0]["test"] == parts[1]["test"]  # the same images, elsewhere


def _signature(run: Path) -> str:
    text: str = json.loads((run / SCORES).read_text())["signature"]
    return text


def test_config_has_no_training_set() -> None:
    config = Config.model_validate({"data": {"root": ["x"], "test": ["y"]}}, strict=False)
    assert config.data.train is None

"""Times that are announced: by hand, and through the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from preset_samples import FAST, config, dataset, load, small
from runs import CommandLine
from sppdet.errors import ConfigError
from sppdet.stages import forecast as module
from sppdet.stages.forecast import Speed, forecast, megapixels


def test_megapixels_by_hand() -> None:
    images = dataset(2, side=50)
    area = 640 * 480 / 1e6
    assert megapixels(load(False), images) == pytest.approx(area)
    two = config(**{**FAST, "scales": [240, 480]})
    assert megapixels(two, images) == pytest.approx(1.25 * area)
    mean = np.mean([(side / 480) ** 2 for side in range(240, 481, 30)])
    assert megapixels(load(False), images, [240, 480]) == pytest.approx(mean * area)


def test_a_forecast_by_hand() -> None:
    images = dataset(10, side=50)
    speed = Speed(
        search=0.5,
        layers=2.0,
        windows={"pool5": 0.25, "fc6": 0.375},
        detected=0.3125,
        step=4.0,
        width=12800,
    )
    area = 640 * 480 / 1e6
    fast = forecast(load(False), speed, images, tests=4)
    assert fast["proposals"] == 0.5 * 14 and fast["features"] == pytest.approx(2 * area * 10)
    assert "finetune" not in fast and {"svm", "bbox", "calibrate", "evaluate"} <= set(fast)
    tuned = forecast(load(True), speed, images, tests=0)
    assert tuned["features"] == 0 and "evaluate" not in tuned
    small = megapixels(load(True), images) * 2.0 * 10  # maps of the tuned layers
    steps = 1000 * 2 * 4.0 * megapixels(load(True), images, [256, 384])
    assert tuned["finetune"] == pytest.approx(steps + small)
    twice = forecast(load(False), speed, dataset(20, side=50), tests=8)
    assert twice["proposals"] == 2 * fast["proposals"]
    # 24 examples an object, up to a limit, and their products with each other
    assert fast["bbox"] == pytest.approx(0.25 * (0.35 * 10 + 0.055 * 240 + 2e-6 * 240**2))
    few = config(**{**FAST, "bbox": {"max_examples": 100}})
    limited = forecast(few, speed, images, tests=0)["bbox"]
    assert limited == pytest.approx(0.25 * (0.35 * 10 + 0.055 * 100 + 2e-6 * 100**2))
    hard = [replace(image, difficult=~image.difficult) for image in images.images]
    unused = forecast(load(False), speed, replace(images, images=tuple(hard)), tests=0)["bbox"]
    assert unused == pytest.approx(0.25 * 0.35 * 10)
    # an SVM of one class, and 10 of folds, on vectors of 12,800 values, or on the 32 of fc6
    solving = 0.25 * (50 + 0.55 * 10 + 6.5 * 10)
    assert fast["svm"] == pytest.approx(0.25 * 10 + solving)
    assert tuned["svm"] == pytest.approx(0.375 * 10 + solving * 32 / 12800)
    assert fast["calibrate"] == tuned["calibrate"] == pytest.approx((0.3125 + 0.02) * 10 + 1)
    assert fast["evaluate"] == pytest.approx((2.0 * area + 0.3125 + 0.02) * 4 + 4)
    on_maps = config(scales=[320], head={"widths": [32]}, finetune={"batches": 50})
    steps = 50 * (4.0 + 128 / 2000 * 0.25)  # batches of 128 windows
    assert forecast(on_maps, speed, images, tests=0)["finetune"] == pytest.approx(steps)
    mirrored = forecast(config(**FAST, detect={"flip": True}), speed, images, tests=4)
    assert mirrored["calibrate"] == pytest.approx((2.0 * area + 2 * 0.3125 + 0.02) * 10 + 1)
    assert mirrored["evaluate"] == pytest.approx((2 * (2.0 * area + 0.3125) + 0.02) * 4 + 4)
    assert mirrored["svm"] == fast["svm"] and mirrored["features"] == fast["features"]
    both = config(scales=[480], head={"widths": [32]}, detect={"flip": True})
    stored = forecast(both, speed, images, tests=0)  # by fine-tuning with mirrored maps
    assert stored["calibrate"] == pytest.approx((2 * 0.3125 + 0.02) * 10 + 1)
    softmax = config(scales=[480], head={"widths": [32]}, classifier="softmax")
    held_out = forecast(softmax, speed, images, tests=0)["calibrate"]
    assert held_out == pytest.approx((0.3125 + 0.02) * 1 + 1)  # a tenth of the images
    bare = config(**FAST, bbox=None, calibrate=None)
    assert not {"bbox", "calibrate", "ranking"} & set(forecast(bare, speed, images, tests=1))
    fewer = config(**FAST, detect={"max_windows": 300})
    ranked = forecast(fewer, speed, images, tests=4)
    assert ranked.pop("ranking") == pytest.approx(0.25 * 0.9 * 10) and ranked == fast
    many = forecast(fewer, speed, dataset(300, side=50), tests=0)
    assert many["ranking"] == pytest.approx(0.25 * 0.9 * 200)  # fitted to 200 images


def test_stored_proposals_are_not_searched_to_measure(
    sppdet: CommandLine, demo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tmp_path / "stored"
    assert sppdet("propose", demo_root, "--run", tmp_path / "a", "--out", stored, *small())[0] == 0

    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("sppdet.stages.proposer.propose", refuse)
    more = f"proposals={{engine: stored, path: {stored}, max_boxes: 150}}"
    words = ("train", demo_root, "--run", tmp_path / "run", "--until", "data", "--minutes", "99")
    status, _, err = sppdet(*words, *small(more, "finetune.image_scales=null"))
    assert status == 0, err


def test_windows_are_measured_on_both_layers(
    sppdet: CommandLine, demo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(function: Any, _: Any) -> tuple[Any, float]:
        """Return 1 s for windows on pool5, 2 s for those on fc6, 3 s for fc7."""
        layer = function.args[-1] if isinstance(function, partial) and function.args else None
        seconds = (
            {"pool5": 1.0, "fc6": 2.0, "fc7": 3.0}.get(layer, 0.0)
            if isinstance(layer, str)
            else 0.0
        )
        return function(), seconds

    def measured(*words: str) -> Speed:
        found: list[Speed] = []

        def keep(_: Any, speed: Speed, *others: Any, **more: Any) -> None:
            found.append(speed)
            raise ConfigError("enough")

        monkeypatch.setattr(module, "forecast", keep)
        run = tmp_path / f"run{len(words)}"
        status, _, err = sppdet("train", demo_root, "--run", run, *small(*words))
        assert status == 1 and "enough" in err
        return found[0]

    monkeypatch.setattr(module, "_timed", timed)
    bare = measured()
    assert (bare.windows, bare.step, bare.width) == ({"pool5": 1}, 0, 50 * 128)
    tuned = measured("head={widths: [32]}", "finetune={batches: 40, snapshots: 1}")
    assert tuned.windows == {"pool5": 1, "fc6": 2}
    moved = measured(
        *("head={widths: [32, 24]}", "finetune={batches: 40, snapshots: 1}"),
        *("svm.layer=pool5", "bbox.layer=fc7"),
    )
    assert moved.windows == {"pool5": 1, "fc7": 3}
    assert (bare.detected, tuned.detected, moved.detected) == (1, 2, 1)


def test_only_windows_of_the_ranking_are_timed_as_detection(
    sppdet: CommandLine, demo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(function: Any, _: Any) -> tuple[Any, float]:
        """Return as many seconds as windows have scores."""
        made = function()
        return made, float(len(made)) if isinstance(made, torch.Tensor) else 0.0

    def stop(_: Any, speed: Speed, *others: Any, **more: Any) -> None:
        found.append(speed)
        raise ConfigError("enough")

    found: list[Speed] = []
    monkeypatch.setattr(module, "forecast", stop)
    monkeypatch.setattr(module, "_timed", timed)
    for count in ("7", "null"):
        words = small(f"detect.max_windows={count}")
        status, _, err = sppdet("train", demo_root, "--run", tmp_path / count, *words)
        assert status == 1 and "enough" in err
    fewer, every = found
    assert fewer.detected == 7 < fewer.windows["pool5"] == every.detected == every.windows["pool5"]


def test_times_are_announced_before_the_work(
    sppdet: CommandLine, demo_root: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ("train", demo_root, "--run", run, *small())
    status, out, err = sppdet(*words)
    assert status == 0, err
    lines = out.splitlines()
    (at,) = [n for n, line in enumerate(lines) if line.startswith("expected: about ")]
    assert at < next(n for n, line in enumerate(lines) if line.startswith("[2/"))
    status, out, err = sppdet(*words)
    assert status == 0 and "expected: about" not in out


def test_a_batch_of_windows_is_measured(
    sppdet: CommandLine, demo_root: Path, tmp_path: Path
) -> None:
    head = ("head={widths: [32]}", "finetune={batches: 40, snapshots: 1}", "calibrate=null")
    words = ("--run", tmp_path / "run", "--verbose", *small(*head))
    status, _, err = sppdet("train", demo_root, *words)
    assert status == 0, err
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    (found,) = [json.loads(line) for line in lines if '"event": "forecast"' in line]
    assert found["seconds"]["finetune"] > 0

"""The diagnosis of a small trained run: its causes, counts, files and messages."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from runs import CommandLine, printed_to, train_quietly
from sppdet.boxes import empty_boxes
from sppdet.config import Config
from sppdet.data_config import DataConfig
from sppdet.errors import ArtifactError, ConfigError
from sppdet.evaluation.causes import judge
from sppdet.evaluation.repairs import gains
from sppdet.evaluation.traces import FALSE_CAUSES, MISS_CAUSES, MissCause
from sppdet.io.image_cache import ImageCache
from sppdet.io.splits import read_split
from sppdet.stages.advice import advice_for_false, advice_for_miss
from sppdet.stages.causes import Diagnosis, Prepared, diagnose, diagnose_run, trace_image
from sppdet.stages.detector import Detector
from sppdet.stages.evaluate import evaluate_run
from sppdet.stages.model_files import read_run_config
from sppdet.types import EvalResult, Proposals


def causes_of(run: Path, split: str = "test") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "eval" / split / "causes.json").read_text())
    return found


def edited(run: Path, section: str, **values: Any) -> Path:
    """The run with other settings, as by hand."""
    path = run / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config[section] |= values
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return run


def check_against_evaluation(
    found: Diagnosis, entries: dict[str, Any], result: EvalResult, thresholds: Sequence[float]
) -> None:
    """The causes add up to what the evaluation counts at the thresholds."""
    assert found.gains.mean_ap == pytest.approx(result.mean_ap, abs=1e-12)
    missed = false = 0
    for one, threshold in zip(result.classes, thresholds, strict=True):
        above = one.scores >= threshold
        missed += one.ground_truths - int((one.outcomes[above] == 1).sum())
        false += int((one.outcomes[above] == 0).sum())
    assert len(entries["missed"]) == missed == entries["objects"] - entries["found"]
    assert len(entries["false_detections"]) == false
    for kind, causes, total in (("missed", MISS_CAUSES, missed), ("false", FALSE_CAUSES, false)):
        summary = entries["summary"][kind]
        assert tuple(summary) == causes
        assert sum(one["count"] for one in summary.values()) == total
        assert all(sum(one["by_class"].values()) == one["count"] for one in summary.values())
        if total:
            assert sum(one["share"] for one in summary.values()) == pytest.approx(1)


@pytest.mark.parametrize("threshold", [0.0, -0.6, -9.0])
def test_causes_add_up_to_the_evaluation(run_copy: Path, threshold: float) -> None:
    result = evaluate_run(run_copy, "test", device="cpu")
    found = diagnose_run(run_copy, wanted=threshold, device="cpu")
    entries = causes_of(run_copy)
    lowest = max(threshold, -1.5)
    check_against_evaluation(found, entries, result, [lowest] * 4)
    assert set(entries["thresholds"].values()) == {lowest}
    assert found.gains == gains(found.images, found.false, min_score=-1.5)
    assert threshold == -9 or sum(found.gains.missed.values()) > 0
    names = {image.id for image in found.dataset.images}
    for entry in [*entries["missed"], *entries["false_detections"]]:
        assert entry["image"] in names and entry["class"] in entries["thresholds"]
        assert len(entry["box"]) == 4
    for entry in entries["false_detections"]:
        assert entry["score"] >= lowest
    sizes = entries["groups"]["size"].values()
    assert sum(one["objects"] for one in sizes) == entries["objects"]
    assert sum(one["found"] for one in sizes) == entries["found"]


def test_detections_are_those_of_the_evaluation(run_copy: Path) -> None:
    result = evaluate_run(run_copy, "test", device="cpu")
    found = diagnose_run(run_copy, wanted=0.0, device="cpu")
    for label, one in enumerate(result.classes, start=1):
        scores = np.concatenate(
            [i.detections.scores[i.detections.labels == label] for i in found.images]
        )
        assert sorted(scores.tolist(), reverse=True) == one.scores.tolist()


@pytest.mark.parametrize(
    "changes",
    [
        {"soft_nms": 0.5, "box_voting": 0.5, "flip": True},
        {"max_per_class": 1},
        {"min_score": 50.0},
    ],
    ids=str,
)
def test_other_settings_of_detection(run_copy: Path, changes: dict[str, Any]) -> None:
    run = edited(run_copy, "detect", **changes)
    result = evaluate_run(run, "test", device="cpu")
    found = diagnose_run(run, wanted=-0.9, device="cpu")
    lowest = max(-0.9, changes.get("min_score", -1.5))
    entries = causes_of(run)
    check_against_evaluation(found, entries, result, [lowest] * 4)
    assert len(entries["notes"]) == (3 if "flip" in changes else 0)


def test_a_threshold_for_each_class(run_copy: Path) -> None:
    result = evaluate_run(run_copy, "test", device="cpu")
    thresholds = np.array([-1.0, -0.5, 0.0, 0.5])
    found = diagnose_run(run_copy, wanted=thresholds, device="cpu")
    check_against_evaluation(found, causes_of(run_copy), result, thresholds.tolist())
    for wrong in (np.zeros(3), np.array([0, 0, 0, np.nan])):
        with pytest.raises(ConfigError, match="one number, or one for each of 4 classes"):
            diagnose_run(run_copy, wanted=wrong, device="cpu")


def test_another_split(run_copy: Path) -> None:
    found = diagnose_run(run_copy, "trainval", wanted=0.0, device="cpu")
    assert found.dataset.name.endswith("trainval") and len(found.dataset) == 12
    assert causes_of(run_copy, "trainval")["images"] == 12
    with pytest.raises(ConfigError):
        diagnose_run(edited(run_copy, "data", test=None), device="cpu")


def test_images_without_proposals_or_objects(trained: Path) -> None:
    found = diagnose_run_of(trained)
    detector = Detector.load(trained, device="cpu")
    image = next(one for one in found.dataset.images if (~one.difficult).any())
    views = detector.prepare(detector.read(image.path))
    nothing = Prepared(Proposals(empty_boxes()), views)
    scales = found.config.scales
    judged = judge(trace_image(detector, image, nothing, scales), np.zeros(4), finest_level=6)
    assert {miss.cause for miss in judged.misses} == {"not proposed"}
    assert len(judged.misses) == (~image.difficult).sum()
    flags = np.zeros(0, dtype=np.bool_)
    bare = replace(
        image,
        gt_boxes=empty_boxes(),
        gt_labels=np.zeros(0, np.int64),
        difficult=flags,
        truncated=flags,
    )
    inputs = Prepared(Proposals(image.gt_boxes), views)
    assert (
        judge(trace_image(detector, bare, inputs, scales), np.zeros(4), finest_level=6).misses == ()
    )
    judge(trace_image(detector, bare, nothing, scales), np.zeros(4), finest_level=6)


def test_a_trace_fits_together(trained: Path) -> None:
    found = diagnose_run_of(trained)
    detector = Detector.load(trained, device="cpu")
    image = found.dataset.images[0]
    pixels = detector.read(image.path)
    proposals = detector.proposer.of(pixels)
    inputs = Prepared(proposals, detector.prepare(pixels))
    trace = trace_image(detector, image, inputs, found.config.scales)
    boxes, rows = trace.detections, trace.rows
    assert len(boxes) > 20 and (trace.proposals == proposals.boxes).all()
    assert (trace.windows == proposals.boxes).all()
    assert (trace.scores[rows, boxes.labels - 1] == boxes.scores).all()
    assert (trace.regressed[rows, boxes.labels - 1] == boxes.boxes).all()
    # larger boxes are pooled at smaller scales, and a window's cells are those of its own box
    scales, area = trace.cells[:, 0], np.prod(trace.windows[:, 2:] - trace.windows[:, :2], axis=1)
    assert set(scales.tolist()) == {0, 1} and area[scales == 0].min() > area[scales == 1].max()
    maps = detector.maps.compute(inputs.views[0])
    for row in range(0, len(proposals), 10):
        alone = detector.extractor.windows(maps, trace.windows[[row]])
        assert trace.cells[row].tolist() == alone.cells[0].tolist()
    assert trace.scales_px.tolist() == found.config.scales


def diagnose_run_of(run: Path) -> Diagnosis:
    """A diagnosis that writes nothing."""
    config = read_run_config(run)
    images = ImageCache.load(run / "images.json", max_pixels=config.data.max_pixels)
    detector = Detector.load(run, device="cpu")
    dataset = read_split(config.data, "test", detector.class_names, images, workers=1)
    return diagnose(run, config, detector, dataset, images, thresholds=0.0)


def test_softmax_and_no_regression(settings: Path, run_copy: Path) -> None:
    train_quietly(settings, run_copy, "classifier=softmax", "bbox=none")
    result = evaluate_run(run_copy, "test", device="cpu")
    found = diagnose_run(run_copy, wanted=-2.0, device="cpu")
    entries = causes_of(run_copy)
    check_against_evaluation(found, entries, result, [-2.0] * 4)
    for cause in ("proposed badly", "moved off by regression"):
        assert entries["summary"]["missed"][cause]["count"] == 0
    for entry in entries["false_detections"]:
        assert entry["cause"] != "looks unlabelled" or entry["score"] > np.log(9)


def test_what_the_command_prints(sppdet: CommandLine, run_copy: Path) -> None:
    status, out, err = sppdet("diagnose", run_copy, "--score", "-0.6", "--device", "cpu")
    assert (status, err) == (0, "warning: 1 objects of other classes left out: ring 1\n")
    entries = causes_of(run_copy)
    for words in ("missed objects", "false detections", "objects by", "mAP (11-point, "):
        assert words in out
    assert all(line in out for line in entries["advice"]) and len(entries["advice"]) >= 2
    before = (run_copy / "eval" / "test" / "causes.json").read_bytes()
    assert sppdet("diagnose", run_copy, "--score", "-0.6", "--device", "cpu")[0] == 0
    assert (run_copy / "eval" / "test" / "causes.json").read_bytes() == before
    # mAP doesn't depend on the threshold
    assert "largest gain in mAP" in entries["advice"][-1]
    assert "--score" not in entries["advice"][-1]
    best = entries["best_threshold"]
    assert best["score"] < 0 < best["recall"] <= 1 and 0 < best["precision"] <= 1
    status, out, _ = sppdet("diagnose", run_copy, "--score", "-3", "--device", "cpu")
    assert status == 0 and "detect.min_score is -1.5" in out


def test_errors_of_the_command(sppdet: CommandLine, run_copy: Path, tmp_path: Path) -> None:
    status, _, err = sppdet("diagnose", tmp_path)
    assert status == 1 and err.startswith("error: ") and "not a run" in err
    status, _, err = sppdet("diagnose", run_copy, "--score", "nan")
    assert (status, err) == (1, "error: --score nan: expected a number\n")
    status, _, err = sppdet("diagnose", run_copy, run_copy)
    assert status == 2
    shutil.rmtree(run_copy / "model")
    with pytest.raises(ArtifactError):
        diagnose_run(run_copy, device="cpu")


def test_several_processes_are_refused(
    sppdet: CommandLine, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sppdet.stages.causes.process_count", lambda: 2)
    status, _, err = sppdet("diagnose", run_copy)
    assert (status, err) == (1, "error: diagnose: runs in one process\n")


def test_every_cause_has_advice() -> None:
    config = Config(data=DataConfig(root=[Path("x")], train=["a"]))
    for cause in MISS_CAUSES:
        assert advice_for_miss(cause, config).startswith(("try ", "look "))
    for false in FALSE_CAUSES:
        assert advice_for_false(false, config).startswith(("try ", "look "))
    joined, more = "proposals.engine: [sppdet, edgeboxes]", "a larger proposals.max_boxes than 2000"
    for mode, ways in (
        ("fast", f"try proposals.mode: diverse or {joined}"),
        ("diverse", f"try proposals.mode: quality or {joined}"),
        ("quality", f"try {joined} or {more}"),
    ):
        proposals = config.proposals.model_copy(update={"mode": mode})
        searched = config.model_copy(update={"proposals": proposals})
        assert advice_for_miss("not proposed", searched) == ways
        assert advice_for_miss("counted for another object", searched).endswith(f"else {ways}")
    below: MissCause = "scored below the threshold"
    assert "--score -0.85 (where F1" in advice_for_miss(below, config, lower=-0.851)
    assert "--score 0.50 (where F1" in advice_for_false("background", config, higher=0.5)
    for text in (advice_for_miss(below, config), advice_for_false("background", config)):
        assert "--score" not in text
    small = advice_for_miss("not proposed", config, too_small=3)
    assert small.startswith("try proposals.min_size below 20") and "3 of these objects" in small


def test_quiet_without_a_console(run_copy: Path) -> None:
    said = io.StringIO()
    with printed_to(said):
        diagnose_run(run_copy, device="cpu")
    assert "every missed object and false detection is in" in said.getvalue()

"""COCO AP: worked by hand and against pycocotools called directly on files."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from evaluation_samples import Box, make_detections, make_image, random_split
from sppdet.errors import DataError
from sppdet.evaluation.coco import COCO_NUMBERS, evaluate_coco, to_coco
from sppdet.io.coco_results import write_coco_results
from sppdet.types import Dataset

COCO = pytest.importorskip("pycocotools.coco").COCO
COCOeval = pytest.importorskip("pycocotools.cocoeval").COCOeval

A: Box = (0, 0, 10, 10)
B: Box = (20, 20, 60, 60)


def test_one_box_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    # IoU 0.78 is enough for .50 .55 .60 .65 .70 .75, six thresholds of ten
    dataset = Dataset("val", ("cat", "dog"), (make_image("a", [(1, A)]),))
    result = evaluate_coco(dataset, {"a": make_detections([(1, 0.9, (0, 0, 10, 7.8))])})
    cat, dog = result.classes
    assert cat.ap == pytest.approx(0.6)
    assert math.isnan(dog.ap)
    assert result.mean_ap == cat.ap
    assert (result.metric, result.split, result.images) == ("coco", "val", 1)
    assert tuple(result.extra) == COCO_NUMBERS
    assert result.extra["AP50"] == pytest.approx(1.0)
    assert result.extra["AP75"] == pytest.approx(1.0)
    assert result.extra["APs"] == pytest.approx(0.6)  # 100 px² is small
    assert math.isnan(result.extra["APm"])
    assert result.extra["AR1"] == pytest.approx(0.6)
    assert (cat.ground_truths, cat.detections, dog.ground_truths) == (1, 1, 0)
    assert len(cat.recall) == len(cat.precision) == len(cat.scores) == 101
    assert cat.precision == pytest.approx(np.ones(101))
    assert len(dog.recall) == 0
    assert capsys.readouterr().out == ""


def test_a_false_positive_first_halves_the_precision() -> None:
    dataset = Dataset("val", ("cat",), (make_image("a", [(1, A)]), make_image("b", [])))
    found = {"b": make_detections([(1, 0.9, A)]), "a": make_detections([(1, 0.8, A)])}
    assert evaluate_coco(dataset, found).mean_ap == pytest.approx(0.5)


def test_difficult_objects_count_neither_way() -> None:
    dataset = Dataset("val", ("cat",), (make_image("a", [(1, B), (1, A)], [True, False]),))
    inside: Box = (30, 30, 40, 40)  # IoU 1/16, but all of it lies in the difficult object
    rows: list[tuple[int, float, Box]] = [(1, 0.9, B), (1, 0.8, B), (1, 0.7, inside), (1, 0.6, A)]
    result = evaluate_coco(dataset, {"a": make_detections(rows)})
    assert result.mean_ap == pytest.approx(1.0)
    assert result.classes[0].ground_truths == 1
    outside: Box = (100, 100, 110, 110)
    worse = evaluate_coco(dataset, {"a": make_detections([(1, 0.9, outside), (1, 0.6, A)])})
    assert worse.mean_ap == pytest.approx(0.5)


def test_no_detections_no_ground_truth() -> None:
    dataset = Dataset("val", ("cat",), (make_image("a", [(1, A)]),))
    assert evaluate_coco(dataset, {}).mean_ap == 0.0
    bare = Dataset("val", ("cat",), (make_image("a", []),))
    result = evaluate_coco(bare, {"a": make_detections([(1, 0.9, A)])})
    assert math.isnan(result.mean_ap)
    assert all(math.isnan(value) for value in result.extra.values())


def test_unknown_image_is_refused() -> None:
    dataset = Dataset("val", ("cat",), (make_image("a", [(1, A)]),))
    with pytest.raises(DataError, match="'b', which is not in val"):
        evaluate_coco(dataset, {"b": make_detections([(1, 0.9, A)])})


def test_equals_pycocotools_on_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, detections = random_split(3)
    (tmp_path / "truth.json").write_text(json.dumps(to_coco(dataset)))
    write_coco_results(tmp_path / "found.json", dataset, detections)
    truth = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "found.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    result = evaluate_coco(dataset, detections)
    ours = [-1.0 if math.isnan(value) else value for value in result.extra.values()]
    assert ours == pytest.approx(evaluation.stats.tolist(), abs=1e-12)
    assert 0.05 < result.mean_ap < 0.95
    assert result.mean_ap == pytest.approx(np.nanmean([c.ap for c in result.classes]))


def test_without_pycocotools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    dataset = Dataset("val", ("cat",), (make_image("a", [(1, A)]),))
    with pytest.raises(DataError, match="pip install pycocotools"):
        evaluate_coco(dataset, {})

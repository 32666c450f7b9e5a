"""Detection files: round trips of both formats, and what is refused."""

from __future__ import annotations

import csv
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation_samples import Box, make_detections, make_image, random_split
from sppdet.errors import DataError
from sppdet.evaluation.coco import evaluate_coco
from sppdet.evaluation.voc import evaluate_voc
from sppdet.io.coco_results import default_image_ids, write_coco_results
from sppdet.io.comp4 import write_comp4
from sppdet.io.detection_files import read_detections, write_curve_csv
from sppdet.io.names import class_file_names
from sppdet.types import Dataset, Detections

A: Box = (0, 0, 10, 10)


def assert_same(found: dict[str, Detections], wanted: dict[str, Detections]) -> None:
    assert found.keys() == wanted.keys()
    for image_id, want in wanted.items():
        have = found[image_id]
        # classes may mix differently among equal scores
        a = np.lexsort((want.labels, -want.scores))
        b = np.lexsort((have.labels, -have.scores))
        assert have.scores[b].tolist() == want.scores[a].tolist()
        assert have.labels[b].tolist() == want.labels[a].tolist()
        np.testing.assert_allclose(have.boxes[b], want.boxes[a], rtol=0, atol=1e-4)
        assert (np.diff(have.scores) <= 0).all()


def awkward_split() -> tuple[Dataset, dict[str, Detections]]:
    dataset, detections = random_split(5)
    dataset = replace(dataset, class_names=("a", "dining table", "table", "x/y"), name="VOC 2007/t")
    rng = np.random.default_rng(0)
    for image_id, found in detections.items():
        boxes = (found.boxes * 30 + rng.random(found.boxes.shape)).astype(np.float32)
        boxes[:, 2:] += 1
        scores = np.sort(rng.normal(size=len(found)).astype(np.float32))[::-1].copy()
        detections[image_id] = Detections(boxes, scores, found.labels)
    return dataset, detections


def test_comp4_round_trip(tmp_path: Path) -> None:
    dataset, detections = awkward_split()
    paths = write_comp4(tmp_path, dataset, detections)
    assert [path.name for path in paths] == [
        "comp4_det_VOC 2007__t_a.txt",
        "comp4_det_VOC 2007__t_dining table.txt",
        "comp4_det_VOC 2007__t_table.txt",
        "comp4_det_VOC 2007__t_x__y.txt",
    ]
    found = read_detections(tmp_path, dataset)
    assert_same(found, detections)
    before = evaluate_voc(dataset, detections, metric="voc10").mean_ap
    assert evaluate_voc(dataset, found, metric="voc10").mean_ap == before


def test_comp4_is_one_based_inclusive(tmp_path: Path) -> None:
    dataset = Dataset("test", ("cat",), (make_image("000012", []),))
    write_comp4(tmp_path, dataset, {"000012": make_detections([(1, -1.25, (0, 4, 10, 5))])})
    text = (tmp_path / "comp4_det_test_cat.txt").read_text()
    assert text == "000012 -1.25 1 5 10 5\n"


def test_comp4_of_another_set_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = Dataset("mine", ("table", "dining_table", "cat"), (make_image("im 1", []),))
    (tmp_path / "comp4_det_test_dining_table.txt").write_text("im 1 0.5 1 1 10 10\n\n")
    (tmp_path / "comp4_det_test_table.txt").write_text("im 1 0.25 1 1 10 10\nim 1.jpg 1 1 1 9 9")
    (tmp_path / "comp4_det_test_zebra.txt").write_text("not read")
    with caplog.at_level(logging.WARNING, logger="sppdet"):
        found = read_detections(tmp_path, dataset)["im 1"]
    assert found.labels.tolist() == [1, 2, 1]
    assert found.scores.tolist() == [1.0, 0.5, 0.25]
    assert found.boxes.tolist() == [[0, 0, 9, 9], [0, 0, 10, 10], [0, 0, 10, 10]]
    assert "zebra.txt: not a class of mine" in caplog.text
    assert "no file, so no detections, for: cat" in caplog.text
    (tmp_path / "comp4_det_val_table.txt").write_text("")
    with pytest.raises(DataError, match=r"comp4_det_val_table\.txt\? keep one"):
        read_detections(tmp_path, dataset)
    (tmp_path / "comp4_det_mine_table.txt").write_text("")
    assert read_detections(tmp_path, dataset)["im 1"].labels.tolist() == [2]


def test_longer_class_of_this_set_is_not_a_shorter_one(tmp_path: Path) -> None:
    dataset = Dataset("mine", ("table",), (make_image("a", []),))
    (tmp_path / "comp4_det_mine_dining_table.txt").write_text("a 1 1 1 9 9")
    assert len(read_detections(tmp_path, dataset)["a"]) == 0


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("a 0.5 1 1 10", "5 fields, expected: id score x1 y1 x2 y2"),
        ("a 0.5 1 one 10 10", "'one' is not a number"),
    ],
)
def test_wrong_comp4_lines(tmp_path: Path, line: str, problem: str) -> None:
    dataset = Dataset("test", ("ant", "cat"), (make_image("a", []),))
    (tmp_path / "comp4_det_test_ant.txt").write_text("a 0.5 1 1 10 10\n")
    path = tmp_path / "comp4_det_test_cat.txt"
    path.write_text(f"a 0.5 1 1 10 10\n\n{line}\na 0.5 1 1 10 10\n")
    with pytest.raises(DataError) as caught:
        read_detections(tmp_path, dataset)
    assert str(caught.value) == f"{path}:3: {problem}"


def test_raw_comp4_lines_are_counted_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = Dataset("test", ("ant", "cat"), (make_image("a", []),))
    (tmp_path / "comp4_det_test_ant.txt").write_text("a 0.5 1 1 10 10\n")
    lines = ["a 0.75 1 1 10 10", "", "a 1 11 1 10 10", "a nan 1 1 9 9", "a 1 1 1 1e99 9"]
    path = tmp_path / "comp4_det_test_cat.txt"
    path.write_text("\n".join([*lines, "b 1 1 1 10 10", "a 1 5 5 5 4"]))
    with caplog.at_level(logging.WARNING, logger="sppdet"):
        found = read_detections(tmp_path, dataset)
    assert found["a"].scores.tolist() == [0.75, 0.5]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: image not in test: 'b'; 1 of 7 detections left out",
        f"{tmp_path}: 4 of 7 detections left out: 2 boxes without area, 2 with a number that is not"
        f" finite; the first: {path}:3",
    ]
    path.write_text("b 1 1 1 10 10\nc 1 1 1 10 10\n")
    (tmp_path / "comp4_det_test_ant.txt").write_text("")
    with pytest.raises(DataError, match="'b', 'c'; none of the 2 detections is left"):
        read_detections(tmp_path, dataset)


def test_paths_that_are_neither(tmp_path: Path) -> None:
    dataset = Dataset("test", ("cat",), ())
    with pytest.raises(DataError, match="no comp4_det_"):
        read_detections(tmp_path, dataset)
    with pytest.raises(DataError, match="no such file or folder"):
        read_detections(tmp_path / "none", dataset)
    (tmp_path / "x.csv").write_text("")
    with pytest.raises(DataError, match="neither a folder nor"):
        read_detections(tmp_path / "x.csv", dataset)


def test_coco_round_trip(tmp_path: Path) -> None:
    dataset, detections = awkward_split()
    path = tmp_path / "results.json"
    write_coco_results(path, dataset, detections)
    found = read_detections(path, dataset)
    assert_same(found, detections)
    pytest.importorskip("pycocotools")
    before = evaluate_coco(dataset, detections).extra
    assert evaluate_coco(dataset, found).extra == pytest.approx(before, nan_ok=True)


def test_coco_ids(tmp_path: Path) -> None:
    images = (make_image("000000000139", []), make_image("000000000285", []))
    dataset = Dataset("val", ("cat", "dog"), images)
    assert default_image_ids(dataset) == {"000000000139": 139, "000000000285": 285}
    mixed = Dataset("val", (), (make_image("7", []), make_image("x", [])))
    assert default_image_ids(mixed) == {"7": 1, "x": 2}
    same = Dataset("val", (), (make_image("7", []), make_image("07", [])))
    assert default_image_ids(same) == {"7": 1, "07": 2}
    detections = {"000000000285": make_detections([(2, 0.5, (1, 2, 4, 8))])}
    path = tmp_path / "results.json"
    write_coco_results(path, dataset, detections)
    wanted = {"image_id": 285, "category_id": 2, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.5}
    wanted |= {"file_name": "000000000285.jpg", "category_name": "dog"}
    assert json.loads(path.read_text()) == [wanted]
    write_coco_results(path, dataset, {})
    assert json.loads(path.read_text()) == []
    assert [len(found) for found in read_detections(path, dataset).values()] == [0, 0]


def test_class_file_names_differ() -> None:
    assert class_file_names(["cat", "Cat", "a/b", "a__b"]) == ["cat", "Cat__2", "a__b", "a__b__2"]


def test_curve_csv(tmp_path: Path) -> None:
    dataset = Dataset("val", ("cat",), (make_image("=a", [(1, A)]), make_image("b,c", [])))
    found = {
        "=a": make_detections([(1, 0.5, A)]),
        "b,c": make_detections([(1, 0.75, (1, 2, 3.5, 4))]),
    }
    result = evaluate_voc(dataset, found, metric="voc07")
    write_curve_csv(tmp_path / "cat.csv", result.classes[0], result.image_ids)
    with (tmp_path / "cat.csv").open(newline="") as handle:
        rows = list(csv.reader(handle))
    assert rows == [
        ["image", "score", "x1", "y1", "x2", "y2", "recall", "precision", "outcome"],
        ["b,c", "0.75", "1", "2", "3.5", "4", "0", "0", "fp"],
        ["'=a", "0.5", "0", "0", "10", "10", "1", "0.5", "tp"],
    ]

"""Conversion of detections: `detect`'s own, COCO results and comp4 files, into labels and each other."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from images import save_image
from labelled_sets import HEIGHT, WIDTH, noise
from runs import CommandLine
from sppdet.errors import ConfigError, DataError, ImageError
from sppdet.io.detection_files import read_detections
from sppdet.io.voc import read_voc_annotation
from sppdet.io.writing.layouts import LAYOUTS, Target
from sppdet.stages.convert import convert
from sppdet.stages.convert_labels import Reading
from sppdet.types import AnnotatedImage, Dataset, Detections

CLASSES = ("große Katze", "猫", "table", "dining_table")
FOUND: dict[str, list[tuple[str, float, list[float]]]] = {
    "a.png": [("猫", 1.5, [1.25, 2.5, 30.75, 41.125]), ("table", -0.25, [0, 0, 120, 90])],
    "süß/b 1.png": [("große Katze", 0.125, [100.5, 60.25, 119.5, 89.75])],
    "c.png": [],
    "dining.png": [("dining_table", -0.5, [3, 4, 5, 6])],
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in FOUND:
        save_image(tmp_path / "photos" / name, noise(name))
    return tmp_path / "photos"


@pytest.fixture
def found(images: Path, tmp_path: Path) -> Path:
    """A detections.json as `detect` writes it."""
    files = [
        {"id": k, "file_name": n, "path": str(images / n), "width": WIDTH, "height": HEIGHT}
        for k, n in enumerate(FOUND, start=1)
    ]
    rows = [
        {"image_id": k, "category_id": CLASSES.index(name) + 1, "score": score,
         "bbox": [x1, y1, x2 - x1, y2 - y1], "file_name": file, "class": name, "probability": 0.5}
        for k, (file, own) in enumerate(FOUND.items(), start=1)
        for name, score, (x1, y1, x2, y2) in own
    ]  # fmt: skip
    categories = [{"id": k, "name": name} for k, name in enumerate(CLASSES, start=1)]
    path = tmp_path / "found" / "detections.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"images": files, "annotations": rows, "categories": categories}))
    return path


def dataset_of(images: Path) -> Dataset:
    nothing, flags = np.zeros(0, np.int64), np.zeros(0, np.bool_)
    annotated = tuple(
        AnnotatedImage(
            name.replace("/", "__").removesuffix(".png"), images / name, WIDTH, HEIGHT,
            np.zeros((0, 4), np.float32), nothing, flags, flags,
        )
        for name in FOUND
    )  # fmt: skip
    return Dataset("all", CLASSES, annotated)


def assert_found(read: dict[str, Detections], *, least: float = -9) -> None:
    assert len(read) == len(FOUND)
    for name, own in FOUND.items():
        one = read[name.replace("/", "__").removesuffix(".png")]
        kept = [row for row in own if row[1] >= least]
        assert one.names() == [row[0] for row in kept]
        assert one.scores.tolist() == [row[1] for row in kept]
        assert one.boxes.tolist() == [row[2] for row in kept]


@pytest.mark.parametrize("target", ["json", "coco-results", "comp4"])
def test_detections_in_each_other_s_formats(
    found: Path, images: Path, tmp_path: Path, target: Target
) -> None:
    """To the bit, also through the formats in turn."""
    out, again = tmp_path / "out", tmp_path / "again"
    convert(found, out, target)
    results = {"json": "detections.json", "coco-results": "coco_results.json", "comp4": "."}
    assert_found(read_detections(out / results[target], dataset_of(images)))
    reading = Reading(images=images, classes=CLASSES)
    convert(out / results[target], again, "json", reading=reading)
    assert_found(read_detections(again / "detections.json", dataset_of(images)))
    convert(found, tmp_path / "some", target, reading=Reading(min_score=-0.25))
    some = read_detections(tmp_path / "some" / results[target], dataset_of(images))
    assert_found(some, least=-0.25)


def test_detections_as_labels(
    found: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    convert(found, tmp_path / "voc", "voc", reading=Reading(min_score=0))
    assert "voc can't hold: scores (2), fractions of pixels (2)" in caplog.messages
    assert any("probabilities aren't converted" in message for message in caplog.messages)
    (item,) = read_voc_annotation(tmp_path / "voc" / "Annotations" / "a.xml").objects
    assert (item.name, item.box) == ("猫", (1, 2, 31, 41))
    assert (tmp_path / "voc" / "JPEGImages" / "süß" / "b 1.png").is_file()

    convert(found, tmp_path / "yolo", "yolo")
    labels = tmp_path / "yolo" / "labels"
    assert (labels / "dining.txt").read_text() == f"3 {4 / WIDTH:.9g} {5 / HEIGHT:.9g} " + (
        f"{2 / WIDTH:.9g} {2 / HEIGHT:.9g}\n"
    )
    assert (labels / "c.txt").read_text() == ""
    convert(found, tmp_path / "yolo", "yolo", scores=True)
    assert (labels / "dining.txt").read_text().endswith(" -0.5\n")

    convert(found, tmp_path / "coco", "coco")
    coco = COCO(str(tmp_path / "coco" / "annotations" / "instances_all.json"))
    assert sorted(one["score"] for one in coco.anns.values()) == [-0.5, -0.25, 0.125, 1.5]

    convert(found, tmp_path / "tasks", "labelstudio")
    tasks = json.loads((tmp_path / "tasks" / "tasks.json").read_text(encoding="utf-8"))
    first = tasks[0]["predictions"][0]
    assert first["score"] == 1.5 and [r["score"] for r in first["result"]] == [1.5, -0.25]
    assert first["model_version"] and "annotations" not in tasks[0]

    convert(found, tmp_path / "labelme", "labelme")
    data = json.loads((tmp_path / "labelme" / "a.json").read_text(encoding="utf-8"))
    assert [shape["score"] for shape in data["shapes"]] == [1.5, -0.25]
    assert data["shapes"][0]["points"] == [[1.25, 2.5], [30.75, 41.125]]


def test_detections_as_lines(found: Path, images: Path, tmp_path: Path) -> None:
    convert(found, tmp_path / "csv", "csv")
    with (tmp_path / "csv" / "detections.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [(row["file_name"], row["class"], float(row["score"])) for row in rows] == [
        (file, name, score) for file, own in FOUND.items() for name, score, _ in own
    ]
    convert(found, tmp_path / "jsonl", "jsonl")
    text = (tmp_path / "jsonl" / "detections.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["path"] for line in lines] == [str(images / name) for name in FOUND]
    assert [[d["box"] for d in line["detections"]] for line in lines] == [
        [box for *_, box in own] for own in FOUND.values()
    ]


def test_no_detections_at_all(found: Path, tmp_path: Path) -> None:
    data = json.loads(found.read_text())
    found.write_text(json.dumps({**data, "annotations": []}))
    for target in LAYOUTS:
        convert(found, tmp_path / target, target)
    assert json.loads((tmp_path / "json" / "detections.json").read_text())["annotations"] == []


def test_images_that_have_moved(found: Path, images: Path, tmp_path: Path) -> None:
    images.rename(tmp_path / "elsewhere")
    with pytest.raises(ImageError, match="no such file; expected --images none"):
        convert(found, tmp_path / "out", "voc")
    convert(found, tmp_path / "coco", "coco")  # the sizes are in the file
    moved = Reading(images=tmp_path / "elsewhere")
    convert(found, tmp_path / "out", "voc", reading=moved, images="link")
    link = tmp_path / "out" / "JPEGImages" / "süß" / "b 1.png"
    assert link.resolve() == (tmp_path / "elsewhere" / "süß" / "b 1.png").resolve()


def test_results_by_numbers(images: Path, tmp_path: Path) -> None:
    """The annotations that the ids are of say what they mean."""
    entries = [{"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}]
    (tmp_path / "results.json").write_text(json.dumps(entries))
    truth = {
        "images": [{"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    with pytest.raises(ConfigError, match=r"doesn't name its images; expected --images-in FOLDER"):
        convert(tmp_path / "results.json", tmp_path / "out", "voc")
    reading = Reading(images=images, ids=str(tmp_path / "truth.json"))
    data = convert(tmp_path / "results.json", tmp_path / "out", "voc", reading=reading)
    assert data.class_names == ("cat",) and len(data.images) == len(FOUND)
    (item,) = read_voc_annotation(tmp_path / "out" / "Annotations" / "a.xml").objects
    assert (item.name, item.box) == ("cat", (1, 2, 4, 6))
    with pytest.raises(DataError, match="image_id 7 is not"):
        convert(
            tmp_path / "results.json",
            tmp_path / "out",
            "voc",
            reading=Reading(images=images, classes=("cat",)),
        )


def test_classes_by_the_names_of_comp4_files(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Main"
    folder.mkdir()
    for name in ("dining_table", "cat"):
        (folder / f"comp4_det_test_{name}.txt").write_text("a 0.5 2 3 5 6\n")
    data = convert(folder, tmp_path / "out", "json", reading=Reading(images=images))
    assert data.class_names == ("cat", "dining_table")
    (first,) = [image for image in data.images if len(image.boxes)]
    assert first.boxes.tolist() == [[1, 2, 5, 6]] * 2
    (folder / "comp4_det_test_cat.txt").unlink()
    data = convert(folder, tmp_path / "out", "json", reading=Reading(images=images))
    assert data.class_names == ("dining_table",)


def test_boxes_are_clipped_to_their_image(
    found: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data: dict[str, Any] = json.loads(found.read_text())
    data["annotations"][0]["bbox"] = [100, -5, 50, 20]
    data["annotations"][1]["bbox"] = [200, 5, 50, 20]
    found.write_text(json.dumps(data))
    convert(found, tmp_path / "voc", "voc")
    (item,) = read_voc_annotation(tmp_path / "voc" / "Annotations" / "a.xml").objects
    assert item.box == (100, 0, 120, 15)
    assert "a.png: 1 boxes outside the image left out" in caplog.messages


def test_a_run_s_own_files(
    sppdet: CommandLine, trained: Path, demo_root: Path, tmp_path: Path
) -> None:
    """What `detect` has written, by the command; its labels come back through YOLO."""
    out = tmp_path / "found"
    status, _, err = sppdet(
        *(
            "detect",
            trained,
            demo_root / "fresh",
            "--out",
            out,
            "--score",
            "-1.2",
            "--save",
            "json,coco",
        ),
        *("--device", "cpu"),
    )
    assert (status, err) == (0, "")
    arguments = (out / "detections.json", tmp_path / "yolo", "--format", "yolo", "--score", "-1")
    status, said, err = sppdet("convert", *arguments)
    assert status == 0 and "scores are left out; --scores writes them" in said
    status, said, err = sppdet("convert", tmp_path / "yolo", tmp_path / "coco", "--format", "coco")
    assert (status, err) == (0, "")
    rows = json.loads((out / "detections.json").read_text())["annotations"]
    wanted = [row["bbox"] for row in rows if row["score"] >= -1]
    (file,) = (tmp_path / "coco" / "annotations").iterdir()
    boxes = [row["bbox"] for row in json.loads(file.read_text())["annotations"]]
    np.testing.assert_allclose(sorted(boxes), sorted(wanted), atol=1e-4)
    assert len(boxes) > 3
    status, said, err = sppdet(
        *("convert", out / "coco_results.json", tmp_path / "comp4", "--format", "comp4"),
        *("--images-in", demo_root / "fresh"),
    )
    assert (status, err) == (0, "")
    lines = sum(len(p.read_text().splitlines()) for p in (tmp_path / "comp4").glob("comp4_*.txt"))
    assert lines == len(rows)
    status, _, err = sppdet(
        "convert", out / "detections.json", tmp_path / "x", "--format", "voc", "--split", "test"
    )
    assert (status, err) == (1, "error: --split test: detections have no sets\n")

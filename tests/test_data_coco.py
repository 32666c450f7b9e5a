"""COCO annotations."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sppdet.errors import AnnotationError
from sppdet.evaluation.coco import to_coco
from sppdet.io.coco import (
    coco_file,
    read_coco_annotations,
    read_coco_ids,
    read_coco_set,
)
from sppdet.io.records import Skips
from sppdet.types import AnnotatedImage, Dataset

STOP = Skips(stop=True)


def _data(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "images": [{"id": 40, "file_name": "b.jpg"}, {"id": 7, "file_name": "a.jpg"}],
        "categories": [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {"id": 501, "image_id": 7, "category_id": 90, "bbox": [1, 2, 10.5, 20]},
            {"id": 502, "image_id": 7, "category_id": 3, "bbox": [0, 0, 5, 5], "iscrowd": 1},
        ],
    }
    return {**data, **changes}


def _write(path: Path, data: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_sparse_ids_and_crowds(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.json", _data())
    empty, full = read_coco_annotations(path, folders=(tmp_path,), skips=STOP)
    assert (empty.id, empty.objects) == ("b", ())
    assert full.path == tmp_path / "a.jpg"
    assert [item.name for item in full.objects] == ["dog", "cat"]
    assert full.objects[0].box == (1.0, 2.0, 11.5, 22.0)
    assert [item.difficult for item in full.objects] == [False, True]
    assert [item.number for item in full.objects] == [501, 502]


@pytest.mark.parametrize("key", ["ignore", "difficult"])
def test_ignored_objects_are_difficult(tmp_path: Path, key: str) -> None:
    entry = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [0, 0, 5, 5], key: 1}
    path = _write(tmp_path / "a.json", _data(annotations=[entry]))
    assert read_coco_annotations(path, folders=(tmp_path,), skips=STOP)[1].objects[0].difficult


@pytest.mark.parametrize("key", ["iscrowd", "ignore", "difficult", "truncated"])
def test_flags_are_read_strictly(tmp_path: Path, key: str) -> None:
    def flag(value: object) -> bool | str:
        entry = {"id": 5, "image_id": 7, "category_id": 3, "bbox": [0, 0, 5, 5], key: value}
        path = _write(tmp_path / "a.json", _data(annotations=[entry]))
        (item,) = read_coco_annotations(path, folders=(tmp_path,), skips=STOP)[1].objects
        assert item.difficult == (item.difficult and key != "truncated")
        return item.problem or item.difficult or item.truncated

    no: list[object] = ["0", "false", "False", " 0 ", 0, 0.0, -0.0, False, None]
    yes: list[object] = ["1", "true", "TRUE", 1, 1.0, True]
    wrong: list[object] = ["", "no", "yes", "2", "0.0", 2, -1, 0.5, float("nan"), 10**30, [], {}]
    for value in no:
        assert flag(value) is False, value
    for value in yes:
        assert flag(value) is True, value
    for value in wrong:
        assert flag(value) == f"{key} {value!r:.40}, expected 0 or 1"


@pytest.mark.parametrize(
    ("bbox", "problem"),
    [
        ([1, 2, 0, 5], "width 0 <= 0"),
        ([1, 2, 4, -3.5], "height -3.5 <= 0"),
        ([1, 2, 3], "bbox [1, 2, 3], expected 4 numbers"),
        ([1, 2, 3, "4"], "bbox [1, 2, 3, '4'], expected 4 numbers"),
        ([1, 2, 3, float("nan")], "bbox [1, 2, 3, nan], expected 4 numbers"),
        ([1, 2, 3, float("inf")], "bbox [1, 2, 3, inf], expected 4 numbers"),
        ([1, 2, True, 4], "bbox [1, 2, True, 4], expected 4 numbers"),
        ([-(10**30), 2, 3, 4], f"bbox [-{10**30}, 2, 3, 4], expected 4 numbers"),
        ({"x": 1}, "bbox {'x': 1}, expected 4 numbers"),
        (None, "bbox None, expected 4 numbers"),
    ],
)
def test_problems_of_a_box(tmp_path: Path, bbox: object, problem: str) -> None:
    entry = {"id": 501, "image_id": 7, "category_id": 90, "bbox": bbox}
    path = _write(tmp_path / "a.json", _data(annotations=[entry]))
    record = read_coco_annotations(path, folders=(tmp_path,), skips=STOP)[1]
    assert record.objects[0].problem == problem
    line = str(record.error(record.objects[0], problem))
    assert line == f"a.json, annotation 501: {problem}"


ANNOTATION = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [0, 0, 5, 5]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "a list, expected an object"),
        ({"images": [], "categories": []}, "no list 'annotations'"),
        (_data(images={}), "no list 'images'"),
        (_data(images=[3]), "images, entry 1: expected an object"),
        (_data(images=[{"id": 7}]), "images, entry 1: no 'file_name'"),
        (_data(images=[{"file_name": "a"}]), "images, entry 1: no 'id'"),
        (_data(images=[{"id": [], "file_name": "a"}]), "id [], expected a number"),
        (_data(images=[{"id": 7, "file_name": 8}]), "file_name 8, expected text"),
        (_data(categories=[{"id": 3}]), "categories, entry 1: no 'name'"),
        (
            _data(categories=[{"id": 3, "name": "x"}] * 2),
            "categories, entry 2: id 3 is there twice",
        ),
        (_data(annotations=[{**ANNOTATION, "image_id": 8}]), "image_id 8 is not the id"),
        (_data(annotations=[{**ANNOTATION, "category_id": 8}]), "category_id 8 is not the id"),
        (_data(annotations=[{"id": 1, "image_id": 7, "category_id": 3}]), "entry 1: no 'bbox'"),
        (
            _data(
                images=[{"id": 7, "file_name": "a"}, {"id": 8, "file_name": "a"}], annotations=[]
            ),
            "'a' is there twice",
        ),
    ],
)
def test_structure_errors(tmp_path: Path, data: object, message: str) -> None:
    path = _write(tmp_path / "a.json", data)
    with pytest.raises(AnnotationError) as caught:
        read_coco_annotations(path, folders=(tmp_path,), skips=STOP)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_entries_that_can_not_be_used_are_skipped(tmp_path: Path) -> None:
    good = {"id": 9, "image_id": 7, "category_id": 3, "bbox": [0, 0, 5, 5]}
    wrong: list[tuple[object, str]] = [
        ({**good, "image_id": 8}, "image_id 8 is not the id of any entry"),  # a removed image
        ({**good, "category_id": 8}, "category_id 8 is not the id of any entry"),
        ({k: v for k, v in good.items() if k != "bbox"}, "no 'bbox'"),
        ({k: v for k, v in good.items() if k != "image_id"}, "no 'image_id'"),
        ({**good, "image_id": True}, "image_id True, expected a number"),
        ({**good, "image_id": [7]}, "image_id [7], expected a number"),
        ({**good, "image_id": 7.5}, "image_id 7.5, expected a number"),
        (None, "expected an object"),
    ]
    images = [*_data()["images"], {"id": 50}, {"id": 51, "file_name": 3}, 4]
    entries = [*(entry for entry, _ in wrong), {**good, "image_id": 7.0}]
    path = _write(tmp_path / "a.json", _data(images=images, annotations=entries))
    skips = Skips(stop=False)
    records = read_coco_annotations(path, folders=(tmp_path,), skips=skips)
    assert [(record.id, len(record.objects)) for record in records] == [("b", 0), ("a", 1)]
    assert skips.lines == [
        f"{path}, images, entry 3: no 'file_name'",
        f"{path}, images, entry 4: file_name 3, expected text",
        f"{path}, images, entry 5: expected an object",
        *(f"{path}, annotations, entry {k}: {text}" for k, (_, text) in enumerate(wrong, start=1)),
    ]
    for entry, text in wrong:
        _write(path, _data(annotations=[entry]))
        with pytest.raises(AnnotationError, match=re.escape(text)):
            read_coco_annotations(path, folders=(tmp_path,), skips=STOP)


def test_ids_are_read_as_annotations_are(tmp_path: Path) -> None:
    data = _data(images=[{"id": 4, "file_name": " b.jpg"}, {"id": "x", "file_name": "a.jpg"}, {}])
    data["categories"] = [{"id": 1, "name": "banana "}, {"id": 2, "name": "banana"}]
    _write(tmp_path / "val.json", {**data, "annotations": []})
    ids = read_coco_ids(tmp_path, "val", images=None)
    assert ids.file_names == {4: "b.jpg", "x": "a.jpg"}
    assert ids.category_names == {1: "banana", 2: "banana"}
    records = read_coco_set(tmp_path, "val", images=None, skips=Skips(stop=False))
    assert [record.path for record in records] == list(ids.image_paths.values())


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b'{"images": "\xff"}',
        b"",
        b"[" * 100_000,
        b'{"images":' * 100_000,
        b'{"images": [' + b"1" * 5000 + b"]}",
    ],
)
def test_bad_json_is_one_clear_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(AnnotationError) as caught:
        read_coco_annotations(path, folders=(tmp_path,), skips=STOP)
    assert str(caught.value).startswith(f"{path}: not ")
    assert "\n" not in str(caught.value)


def test_ids_of_stems_that_clash(tmp_path: Path) -> None:
    names = ["x/a.jpg", "y/a.jpg", "b.jpg"]
    images = [{"id": k, "file_name": name} for k, name in enumerate(names)]
    path = _write(tmp_path / "a.json", _data(images=images, annotations=[]))
    records = read_coco_annotations(path, folders=(tmp_path,), skips=STOP)
    assert [record.id for record in records] == ["x__a", "y__a", "b"]
    assert records[0].path == tmp_path / "x" / "a.jpg"


@pytest.mark.parametrize(
    "name",
    [
        "annotations/instances_val.json",
        "annotations/val.json",
        "val.json",
        "val/_annotations.coco.json",
    ],
)
@pytest.mark.parametrize("folder", ["val", "images/val", "images", "."])
def test_layouts(tmp_path: Path, name: str, folder: str) -> None:
    _write(tmp_path / name, _data())
    image = tmp_path / folder / "b.jpg"
    image.parent.mkdir(parents=True, exist_ok=True)
    image.touch()
    assert coco_file(tmp_path, "val") == tmp_path / name
    assert read_coco_set(tmp_path, "val", images=None, skips=STOP)[0].path == image
    elsewhere = tmp_path / "else"
    assert (
        read_coco_set(tmp_path, "val", images=elsewhere, skips=STOP)[0].path == elsewhere / "b.jpg"
    )


def test_set_given_as_a_file(tmp_path: Path) -> None:
    path = _write(tmp_path / "my" / "labels.json", _data())
    assert coco_file(tmp_path, "my/labels.json") == path


def test_missing_set_lists_files(tmp_path: Path) -> None:
    _write(tmp_path / "annotations" / "train.json", _data())
    with pytest.raises(AnnotationError, match=r"there are: annotations/train\.json$"):
        read_coco_set(tmp_path, "val", images=None, skips=STOP)


def test_to_coco_is_what_pycocotools_takes() -> None:
    boxes = np.array([[1, 2, 11, 22], [0, 0, 5, 4]], dtype=np.float32)
    none = np.zeros((0, 4), dtype=np.float32)

    def image(name: str, rows: Any, labels: list[int], difficult: list[bool]) -> AnnotatedImage:
        flags = np.array(difficult, dtype=np.bool_)
        gt_labels = np.array(labels, dtype=np.int64)
        path = Path("p") / f"{name}.jpg"
        return AnnotatedImage(name, path, 50, 40, rows, gt_labels, flags, flags & False)

    images = (image("b", none, [], []), image("a", boxes, [2, 1], [False, True]))
    coco = to_coco(Dataset("set", ("cat", "dog"), images))
    assert json.loads(json.dumps(coco)) == coco
    assert [(i["id"], i["sppdet_id"], i["file_name"]) for i in coco["images"]] == [
        (1, "b", "b.jpg"),
        (2, "a", "a.jpg"),
    ]
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    first, second = coco["annotations"]
    assert first["bbox"] == [1, 2, 10, 20]
    assert (first["id"], first["image_id"], first["category_id"]) == (1, 2, 2)
    assert (first["area"], first["iscrowd"], second["iscrowd"]) == (200, 0, 1)

"""COCO annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sppdet.data.coco import coco_file, read_coco_annotations, read_coco_set, to_coco
from sppdet.errors import AnnotationError
from sppdet.types import AnnotatedImage, Dataset


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
    empty, full = read_coco_annotations(path, folders=(tmp_path,))
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
    assert read_coco_annotations(path, folders=(tmp_path,))[1].objects[0].difficult


@pytest.mark.parametrize(
    ("bbox", "problem"),
    [
        ([1, 2, 0, 5], "width 0 <= 0"),
        ([1, 2, 4, -3.5], "height -3.5 <= 0"),
        ([1, 2, 3], "bbox [1, 2, 3], expected 4 numbers"),
        ([1, 2, 3, "4"], "bbox [1, 2, 3, '4'], expected 4 numbers"),
        ([1, 2, 3, float("nan")], "bbox [1, 2, 3, nan], expected 4 numbers"),
        (None, "bbox None, expected 4 numbers"),
    ],
)
def test_problems_of_a_box(tmp_path: Path, bbox: object, problem: str) -> None:
    entry = {"id": 501, "image_id": 7, "category_id": 90, "bbox": bbox}
    path = _write(tmp_path / "a.json", _data(annotations=[entry]))
    record = read_coco_annotations(path, folders=(tmp_path,))[1]
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
        read_coco_annotations(path, folders=(tmp_path,))
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


@pytest.mark.parametrize("data", [b"{", b'{"images": "\xff"}', b"", b"[" * 100_000])
def test_bad_json_is_one_clear_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(AnnotationError) as caught:
        read_coco_annotations(path, folders=(tmp_path,))
    assert str(caught.value).startswith(f"{path}: not ")
    assert "\n" not in str(caught.value)


def test_ids_of_stems_that_clash(tmp_path: Path) -> None:
    names = ["x/a.jpg", "y/a.jpg", "b.jpg"]
    images = [{"id": k, "file_name": name} for k, name in enumerate(names)]
    path = _write(tmp_path / "a.json", _data(images=images, annotations=[]))
    records = read_coco_annotations(path, folders=(tmp_path,))
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
    picture = tmp_path / folder / "b.jpg"
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.touch()
    assert coco_file(tmp_path, "val") == tmp_path / name
    assert read_coco_set(tmp_path, "val", images=None)[0].path == picture
    elsewhere = tmp_path / "else"
    assert read_coco_set(tmp_path, "val", images=elsewhere)[0].path == elsewhere / "b.jpg"


def test_set_given_as_a_file(tmp_path: Path) -> None:
    path = _write(tmp_path / "my" / "labels.json", _data())
    assert coco_file(tmp_path, "my/labels.json") == path


def test_missing_set_lists_files(tmp_path: Path) -> None:
    _write(tmp_path / "annotations" / "train.json", _data())
    with pytest.raises(AnnotationError, match=r"there are: annotations/train\.json$"):
        read_coco_set(tmp_path, "val", images=None)


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

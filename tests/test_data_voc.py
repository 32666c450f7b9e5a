"""VOC annotations and set files."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from sppdet.errors import AnnotationError
from sppdet.io.voc import read_set_file, read_voc_annotation, voc_image_path
from sppdet.io.voc_writing import voc_annotation
from sppdet.runs.artifacts import write_text

BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"


def _xml(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "000012.xml"
    path.write_text(f"<annotation>{body}</annotation>", encoding="utf-8")
    return path


def _object(box: str = BOX, extra: str = "") -> str:
    return f"<object><name>cat</name>{extra}{box}</object>"


def _bounds(xmin: object, ymin: object, xmax: object, ymax: object) -> str:
    return (
        f"<bndbox><ymax>{ymax}</ymax><xmin>{xmin}</xmin>"
        f"<ymin>{ymin}</ymin><xmax>{xmax}</xmax></bndbox>"
    )


def test_boxes_become_zero_based_half_open(tmp_path: Path) -> None:
    objects = read_voc_annotation(_xml(tmp_path, _object())).objects
    assert [item.box for item in objects] == [(0.0, 1.0, 30.0, 40.0)]
    assert (objects[0].name, objects[0].difficult, objects[0].truncated) == ("cat", False, False)


def test_flags_floats_and_order_of_tags(tmp_path: Path) -> None:
    flags = "<difficult>1</difficult><truncated> 1 </truncated>"
    path = _xml(tmp_path, _object(_bounds("10.5", "1e1", "20.25", "10"), flags))
    (item,) = read_voc_annotation(path).objects
    assert item.box == (9.5, 9.0, 20.25, 10.0)
    assert item.difficult
    assert item.truncated


def test_parts_are_ignored(tmp_path: Path) -> None:
    part = f"<part><name>head</name>{_bounds(3, 3, 5, 5)}</part>"
    (item,) = read_voc_annotation(_xml(tmp_path, _object(extra=part))).objects
    assert (item.name, item.box) == ("cat", (0.0, 1.0, 30.0, 40.0))
    assert not item.problem


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        (_bounds(152, 1, 140, 9), "xmax 140 < xmin 152"),
        (_bounds(1, 9.5, 4, 9), "ymax 9 < ymin 9.5"),
        (_bounds("left", 1, 4, 9), "xmin 'left' is not a number"),
        (_bounds(1, "nan", 4, 9), "ymin 'nan' is not a number"),
        (_bounds(1, 1, "inf", 9), "xmax 'inf' is not a number"),
        ("<bndbox><xmin>1</xmin></bndbox>", "no <ymin>"),
        ("", "no <bndbox>"),
        (f"{BOX}<difficult>perhaps</difficult>", "difficult 'perhaps', expected 0 or 1"),
        (f"{BOX}<difficult><b>1</b></difficult>", "difficult has elements in it, expected 0 or 1"),
    ],
)
def test_problems_of_an_object(tmp_path: Path, box: str, problem: str) -> None:
    objects = read_voc_annotation(_xml(tmp_path, _object() + _object(box))).objects
    assert [item.problem for item in objects] == ["", problem]
    assert objects[1].number == 2


def test_a_box_of_one_pixel_is_no_problem(tmp_path: Path) -> None:
    (item,) = read_voc_annotation(_xml(tmp_path, _object(_bounds(7, 7, 7, 7)))).objects
    assert item.box == (6.0, 6.0, 7.0, 7.0)
    assert not item.problem


BOMB = """<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>
<annotation><filename>&b;</filename></annotation>"""
OUTSIDE = """<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]>
<annotation><filename>&a;</filename></annotation>"""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (BOMB.encode(), "XML that is refused"),
        (OUTSIDE.encode(), "XML that is refused"),
        (b"<annotation><object>", "not well-formed XML"),
        (b"", "not well-formed XML"),
        (b"<annotation>\xff\xfe</annotation>", "not well-formed XML"),
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', ""),
        (b"<html></html>", "<html>, expected <annotation>"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "bad.xml"
    path.write_bytes(data)
    with pytest.raises(AnnotationError) as caught:
        read_voc_annotation(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"gone\.xml: no such file"):
        read_voc_annotation(tmp_path / "gone.xml")


def _sets(root: Path, **files: str) -> Path:
    folder = root / "ImageSets" / "Main"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return root


def test_set_file_columns_and_empty_lines(tmp_path: Path) -> None:
    root = _sets(tmp_path, train="\ufeff000005\n\n000002 -1\r\n000009  1\nmy photo 7\nphoto 1\n")
    (root / "Annotations").mkdir()
    (root / "Annotations" / "photo 1.xml").touch()
    assert read_set_file(root, "train") == ["000005", "000002", "000009", "my photo 7", "photo 1"]


def test_repeated_name_is_used_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="sppdet"):
        assert read_set_file(_sets(tmp_path, train="b\na\nb\n"), "train") == ["b", "a"]
    assert "repeated, used once: b" in caplog.text


def test_missing_set_lists_those_there_are(tmp_path: Path) -> None:
    root = _sets(tmp_path, train="a", test="b", cat_train="a 1", dog_test="b 1")
    with pytest.raises(AnnotationError, match=r"val\.txt: no such set; there are: test, train$"):
        read_set_file(root, "val")
    with pytest.raises(AnnotationError, match="has none"):
        read_set_file(tmp_path / "elsewhere", "val")


def test_empty_set(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="lists no images"):
        read_set_file(_sets(tmp_path, train="\n \n"), "train")


def test_image_path_prefers_jpg_then_suffixes_then_filename(tmp_path: Path) -> None:
    assert voc_image_path(tmp_path, "a", "b.webp") == tmp_path / "a.jpg"
    (tmp_path / "b.webp").touch()
    assert voc_image_path(tmp_path, "a", r"C:\images\b.webp") == tmp_path / "b.webp"
    (tmp_path / "a.PNG").touch()
    assert voc_image_path(tmp_path, "a", "b.webp") == tmp_path / "a.PNG"
    (tmp_path / "a.jpg").touch()
    assert voc_image_path(tmp_path, "a", "b.webp") == tmp_path / "a.jpg"


def test_written_annotation_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "made" / "a.xml"
    boxes = np.array([[0, 0, 100, 50], [3, 4, 5, 6]], dtype=np.float32)
    write_text(
        path,
        voc_annotation(
            filename="a.jpg",
            width=100,
            height=50,
            boxes=boxes,
            names=["chat & chien", "Bär"],
            difficult=np.array([False, True]),
            truncated=np.array([True, False]),
        ),
    )
    annotation = read_voc_annotation(path)
    assert annotation.filename == "a.jpg"
    assert [item.box for item in annotation.objects] == [tuple(box) for box in boxes.tolist()]
    assert [item.name for item in annotation.objects] == ["chat & chien", "Bär"]
    assert [item.difficult for item in annotation.objects] == [False, True]
    assert [item.truncated for item in annotation.objects] == [True, False]
    text = path.read_text(encoding="utf-8")
    assert "<xmin>1</xmin>" in text
    assert "<xmax>100</xmax>" in text
    assert [p.name for p in path.parent.iterdir()] == ["a.xml"]


def test_written_boxes_keep_a_pixel_inside_the_image(tmp_path: Path) -> None:
    boxes = np.array([[0, 9.8, 0.3, 10], [4.4, 2.6, 7.6, 5.2], [9.6, 0, 10, 1]], dtype=np.float32)
    path = tmp_path / "a.xml"
    write_text(
        path, voc_annotation(filename="a.jpg", width=10, height=10, boxes=boxes, names=["x"] * 3)
    )
    read = [item.box for item in read_voc_annotation(path).objects]
    assert read == [(0, 9, 1, 10), (4, 3, 8, 5), (9, 0, 10, 1)]

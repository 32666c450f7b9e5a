"""Wrong input of each format: one line that names the file and what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import labelled_sets as sets
from images import save_image
from sppdet.config import Config
from sppdet.data_config import DataConfig
from sppdet.errors import DataError, SppdetError
from sppdet.io.formats.find import find_format
from sppdet.io.image_cache import ImageCache
from sppdet.io.splits import read_split
from sppdet.stages.settle import settle
from sppdet.types import Dataset


def read_all(*roots: Path, **data: Any) -> Dataset:
    """The training images that are found, with no test set."""
    settings = {"format": "auto", "root": list(roots), "test": None, **data}
    config = settle(Config(data=DataConfig(**settings)), None)
    return read_split(config.data, "train", None, ImageCache(), workers=1)


def edit(path: Path, old: str, new: str) -> Path:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


def edit_json(path: Path, change: Callable[[Any], object]) -> Path:
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


Damage = Callable[[Path], object]
CASES: dict[str, tuple[Callable[[Path], None], Damage, tuple[str, ...]]] = {
    "xml cut off": (
        sets.labelimg_voc,
        lambda r: (r / "b.xml").write_text("<annotation><object>"),
        ("b.xml", "not well-formed XML"),
    ),
    "xml, box outside": (
        sets.labelimg_voc,
        lambda r: edit(r / "d.xml", "<xmin>34</xmin>", "<xmin>300</xmin>").write_text(
            (r / "d.xml").read_text().replace("<xmax>78</xmax>", "<xmax>350</xmax>")
        ),
        ("d.xml, object 1", "lies outside the 120x90 image"),
    ),
    "xml, image missing": (
        sets.labelimg_voc,
        lambda r: (r / "c.png").unlink(),
        ("c: no such file",),
    ),
    "two annotations of an image": (
        sets.labelimg_voc,
        lambda r: edit(r / "c.xml", "c.png", "a.png") and (r / "c.png").rename(r / "c.bin"),
        ("a.png: annotated twice", "a.xml", "c.xml"),
    ),
    "labelme cut off": (
        sets.labelme,
        lambda r: (r / "json" / "b.json").write_text('{"shapes": [{"label": "cat", "points": [[1'),
        ("b.json", "not JSON"),
    ),
    "labelme, one point": (
        sets.labelme,
        lambda r: edit_json(
            r / "json" / "a.json", lambda d: d["shapes"][0].update(points=[[1, 2], [1, 9]])
        ),
        ("a.json, shape 1", "x from 1 to 1, expected a box with area"),
    ),
    "labelme without a label": (
        sets.labelme,
        lambda r: edit_json(r / "json" / "a.json", lambda d: d["shapes"][0].update(label="  ")),
        ("a.json, shape 1", "expected the name of a class"),
    ),
    "yolo, unknown class": (
        sets.labelimg_yolo,
        lambda r: (r / "a.txt").write_text("3 0.5 0.5 0.1 0.1\n"),
        ("a.txt, line 1", "class 3 has no name; there are 3, from 0"),
    ),
    "yolo in pixels": (
        sets.labelimg_yolo,
        lambda r: (r / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n0 50 30 20 20\n"),
        ("a.txt, line 2", "50 is no fraction of the image"),
    ),
    "yolo, oriented": (
        sets.ultralytics,
        lambda r: (r / "labels/train/a.txt").write_text("0 0.5 0.1 0.9 0.5 0.5 0.9 0.1 0.5\n"),
        ("labels/train/a.txt, line 1", "oriented box (obb)"),
    ),
    "yolo, predictions": (
        sets.labelimg_yolo,
        lambda r: (r / "a.txt").write_text("0 0.5 0.5 0.1 0.1 0.93\n"),
        ("a.txt, line 1", "6 numbers, expected 5"),
    ),
    "yolo, words": (
        sets.labelimg_yolo,
        lambda r: (r / "a.txt").write_text("0 0.5 0.5 0.1 much\n"),
        ("a.txt, line 1", "'much' is not a number"),
    ),
    "yolo, words among corners": (
        sets.labelimg_yolo,
        lambda r: (r / "a.txt").write_text("0 0.1 0.1 0.9 0.1 much 0.9 0.1 0.9\n"),
        ("a.txt, line 1", "'much' is not a number"),
    ),
    "yolo without names": (
        sets.labelimg_yolo,
        lambda r: (r / "classes.txt").unlink(),
        ("labels of YOLO without names", "classes.txt"),
    ),
    "yolo, two data.yaml": (
        sets.ultralytics,
        lambda r: (r / "other.yaml").write_text((r / "animals.yaml").read_text()),
        ("animals.yaml or other.yaml",),
    ),
    "yolo, objects in data.yaml": (
        sets.ultralytics,
        lambda r: (r / "animals.yaml").write_text(
            "train: images/train\nnames: !!python/object/apply:os.system ['true']\n"
        ),
        ("animals.yaml", "tags are refused"),
    ),
    "yolo, listed image missing": (
        sets.cvat_ultralytics,
        lambda r: (r / "images/train/b.png").unlink(),
        ("train.txt, line 2", "images/train/b.png isn't there"),
    ),
    "coco cut off": (
        sets.label_studio_coco,
        lambda r: (r / "result.json").write_text(
            '{"images": [], "annotations": [], "categories": ['
        ),
        ("result.json", "not JSON"),
    ),
    "coco, unknown class": (
        sets.label_studio_coco,
        lambda r: edit_json(r / "result.json", lambda d: d["annotations"][0].update(category_id=9)),
        ("result.json, annotations, entry 1", "category_id 9"),
    ),
    "via, two attributes": (
        sets.via_json,
        lambda r: edit_json(
            r / "via_region_data.json",
            lambda d: d["a.png1234"]["regions"][0]["region_attributes"].update(colour="red"),
        ),
        ("via_region_data.json", "animal, colour"),
    ),
    "via without a class": (
        sets.via_json,
        lambda r: edit_json(
            r / "via_region_data.json",
            lambda d: d["b.png1234"]["regions"][1].update(region_attributes={}),
        ),
        ("via_region_data.json, b.png, region 2", "attribute animal None"),
    ),
    "via csv, damaged json": (
        sets.via_csv,
        lambda r: edit(r / "via_region_data.csv", '""name"": ""rect""', '""name"": ""rect'),
        ("via_region_data.csv, line 2",),
    ),
    "csv, corners swapped": (
        sets.retinanet,
        lambda r: edit(r / "annotations.csv", "10,20,50,60", "50,20,10,60"),
        ("annotations.csv, line 1", "x from 50 to 10"),
    ),
    "csv, too few columns": (
        sets.retinanet,
        lambda r: edit(r / "annotations.csv", "10,20,50,60,cat", "10,20,50"),
        ("annotations.csv, line 1", "4 cells, expected path,x1,y1,x2,y2,class"),
    ),
    "cvat, turned": (
        sets.cvat_images,
        lambda r: edit(r / "annotations.xml", "<box ", '<box rotation="30.0" '),
        ("annotations.xml, a.png, shape 1", "turned by 30.0 degrees"),
    ),
    "two formats": (
        sets.labelimg_voc,
        sets.labelimg_yolo,
        (
            "xml (6 VOC annotations such as a.xml)",
            "yolo (classes.txt, 5 label files such as a.txt)",
        ),
    ),
    "nothing": (
        sets.labelimg_voc,
        lambda r: [path.rename(r / f".{path.name}") for path in r.glob("*.xml")],
        ("no annotations", "there are 6 images and 0 other files"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_that_names_it(case: str, tmp_path: Path) -> None:
    write, damage, parts = CASES[case]
    root = tmp_path / "set"
    write(root)
    damage(root)
    with pytest.raises(SppdetError) as caught:
        read_all(root)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("case", ["xml cut off", "labelme cut off", "yolo, unknown class"])
def test_skipping_lists_it_and_reads_the_rest(case: str, tmp_path: Path) -> None:
    write, damage, parts = CASES[case]
    root = tmp_path / "set"
    write(root)
    damage(root)
    dataset = read_all(root, on_error="skip")
    (line,) = dataset.skipped
    assert parts[0] in line
    whole = "unknown class" in case  # only the object is left out, not its image
    assert len(dataset) == (6 if whole else 5)


def test_two_formats_need_a_word(tmp_path: Path) -> None:
    sets.labelimg_voc(tmp_path)
    sets.labelimg_yolo(tmp_path)
    for format in ("xml", "yolo"):
        assert len(read_all(tmp_path, format=format)) == 6


def test_what_is_left_out_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sets.labelme(tmp_path)
    edit_json(
        tmp_path / "json" / "a.json",
        lambda d: d["shapes"].append({"label": "cat", "points": [[1, 2]], "shape_type": "point"}),
    )
    save_image(tmp_path / "photos" / "new.png", sets.noise("new"))
    (tmp_path / "notes.json").write_text("{}")
    dataset = read_all(tmp_path)
    assert len(dataset) == 6
    assert "shapes that are no boxes (point): 1 (json/a.json, shape 2)" in caplog.text
    assert "images without an annotation: 1 (photos/new.png)" in caplog.text
    assert "JSON files that are not labelme's: 1 (notes.json)" in caplog.text


def test_yolo_counts_backgrounds_orphans_and_repeats(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sets.labelimg_yolo(tmp_path)
    (tmp_path / "f.txt").unlink()
    (tmp_path / "gone.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    lines = (tmp_path / "a.txt").read_text()
    (tmp_path / "a.txt").write_text(lines + lines)
    dataset = read_all(tmp_path)
    assert sum(len(image.gt_boxes) for image in dataset.images) == 7
    assert "images without a label file, taken for images without objects: 1 (f.png)" in caplog.text
    assert "label files without an image: 1 (gone.txt)" in caplog.text
    assert "lines that are there twice: 1 (a.txt, line 2)" in caplog.text


def test_devkits_beside_each_other_must_be_listed(tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        sets.pascal(tmp_path / year)
    with pytest.raises(DataError, match=r"several devkits: .*VOC2007, .*VOC2012"):
        read_all(tmp_path)
    roots = [tmp_path / "VOC2007", tmp_path / "VOC2012"]
    dataset = read_all(*roots)
    assert len(dataset) == 2 * len(sets.TRAIN)


def test_a_devkit_in_a_folder_is_found(tmp_path: Path) -> None:
    sets.pascal(tmp_path / "VOCdevkit" / "VOC2007")
    assert [image.id for image in read_all(tmp_path).images] == list(sets.TRAIN)


def test_sets_without_known_names_must_be_named(tmp_path: Path) -> None:
    sets.retinanet(tmp_path)
    (tmp_path / "second.csv").write_text((tmp_path / "annotations.csv").read_text())
    with pytest.raises(DataError, match=r"annotations\.csv, second\.csv; expected data\.train"):
        read_all(tmp_path)
    assert len(read_all(tmp_path, train=["second.csv"])) == 6


def test_csv_in_an_encoding_of_excel_is_named(tmp_path: Path) -> None:
    sets.put_images(tmp_path, ["a"])
    rows = "filename,class,xmin,ymin,xmax,ymax\na.png,k\u00e4fer,1,2,30,40\n"
    (tmp_path / "labels.csv").write_bytes(rows.encode("latin-1"))
    with pytest.raises(DataError, match=r"labels\.csv: not UTF-8 text \(byte 42\)"):
        find_format(tmp_path)


def test_a_folder_that_has_been_moved_is_said(tmp_path: Path) -> None:
    sets.labelimg_yolo(tmp_path / "set")
    (tmp_path / "run").mkdir()
    config = Config(data=DataConfig(format="auto", root=[tmp_path / "set"], test=None))
    data = settle(config, tmp_path / "run").data
    (tmp_path / "set").rename(tmp_path / "moved")
    with pytest.raises(DataError, match="set: no such folder"):
        read_split(data, "train", None, None, workers=1)
    with pytest.raises(DataError, match="photos: no such folder"):
        find_format(tmp_path / "moved", images=tmp_path / "photos")

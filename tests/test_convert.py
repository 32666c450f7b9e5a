"""Conversion between formats: every layout that is read, written in every format, and read again."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import numpy as np
import pytest
import supervision
from pycocotools.coco import COCO
from torchvision.datasets import VOCDetection

from images import save_image
from labelled_sets import CLASSES, HEIGHT, SETS, TEST, TRAIN, WIDTH, WRITERS, noise, pascal
from runs import CommandLine, files_in
from sppdet.data_config import DataConfig
from sppdet.errors import AnnotationError, ArtifactError, ConfigError, DataError, ImageError
from sppdet.io.formats.find import find_format
from sppdet.io.image_cache import ImageCache
from sppdet.io.splits import read_split
from sppdet.io.voc_writing import voc_annotation
from sppdet.io.writing.layouts import Target
from sppdet.stages.convert import convert
from sppdet.stages.convert_labels import Reading
from test_formats import Objects, assert_objects, objects_of

READABLE: tuple[Target, ...] = ("voc", "coco", "yolo", "csv", "labelme", "via", "cvat")
LABELS: tuple[Target, ...] = (*READABLE, "jsonl", "labelstudio")


def read_again(root: Path, images: Path | None) -> dict[str, dict[str, Objects]]:
    """The objects by set, as our own readers read the folder."""
    found = find_format(root, images=images)
    sets = {}
    for name in found.sets:
        data = DataConfig(format=found.format, root=[found.root], images=images, train=[name])  # type: ignore[arg-type]
        read = read_split(data, "train", None, ImageCache(), workers=1)
        assert not read.skipped and not read.clipped_boxes
        sets[name] = objects_of(read)
    return sets


def read_json_lines(out: Path) -> Iterator[tuple[str, Objects]]:
    for path in out.glob("*.jsonl"):
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            assert Path(line["path"]).name == Path(line["file_name"]).name
            yield line["path"], [(one["class"], *one["box"]) for one in line["objects"]]


def read_tasks(out: Path) -> Iterator[tuple[str, Objects]]:
    """Read tasks by the fields that Label Studio documents, as it would show them."""
    interface = ElementTree.parse(out / "label_studio.xml").getroot()
    control, image = interface.find("RectangleLabels"), interface.find("Image")
    assert control is not None and image is not None
    known = [label.get("value") for label in control]
    for path in out.glob("*.json"):
        for task in json.loads(path.read_text(encoding="utf-8")):
            (annotation,) = task["annotations"]
            assert not task.get("predictions")
            boxes = []
            for region in annotation["result"]:
                assert region["type"] == "rectanglelabels"
                assert (region["from_name"], region["to_name"]) == (
                    control.get("name"),
                    image.get("name"),
                )
                width, height, value = (
                    region["original_width"],
                    region["original_height"],
                    region["value"],
                )
                (name,) = value["rectanglelabels"]
                assert name in known and value["rotation"] == region["image_rotation"] == 0
                x, y = value["x"] / 100 * width, value["y"] / 100 * height
                w, h = value["width"] / 100 * width, value["height"] / 100 * height
                boxes.append((name, x, y, x + w, y + h))
            url = urlsplit(task["data"][(image.get("value") or "").lstrip("$")])
            assert url.path == "/data/local-files/"
            yield "/" + parse_qs(url.query)["d"][0], boxes


def by_letter(found: Iterator[tuple[str, Objects]]) -> dict[str, Objects]:
    """Key objects by the name that all sets share, once the image is there."""
    objects = {}
    for path, own in found:
        assert Path(path).is_file()
        stem = Path(path).stem.split("_png.rf.")[0].rpartition("-")[2]
        assert stem not in objects
        objects[stem] = own
    return objects


@pytest.mark.parametrize("target", LABELS)
@pytest.mark.parametrize("tool", WRITERS)
def test_every_layout_in_every_format(tool: str, target: Target, tmp_path: Path) -> None:
    write, _, has_split = WRITERS[tool]
    source, out = tmp_path / "my photos", tmp_path / "out"
    write(source)
    before = files_in(source)
    data = convert(source, out, target)
    assert files_in(source) == before
    assert set(CLASSES) <= set(data.class_names)
    if target == "jsonl":
        assert_objects(by_letter(read_json_lines(out)), tuple(SETS))
    elif target == "labelstudio":
        assert_objects(by_letter(read_tasks(out)), tuple(SETS))
    else:
        sets = read_again(out, None if target in ("voc", "yolo") else source)
        if has_split:
            assert len(sets) == 2
            for name, own in sets.items():
                assert_objects(own, TRAIN if "train" in name else TEST)
        else:
            (whole,) = sets.values()
            assert_objects(whole, tuple(SETS))
    written = files_in(out)
    convert(source, out, target)
    assert files_in(out) == written


# -- other programs ----------------------------------------------------------------------------


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """VOC's files with names, classes, flags and boxes of every kind."""
    root = tmp_path / "odd names"
    for name, objects in ODD.items():
        save_image(root / "JPEGImages" / f"{name}.png", noise(name))
        boxes = np.array([one[1:5] for one in objects], np.float32).reshape(-1, 4)
        text = voc_annotation(
            filename=f"{Path(name).name}.png", width=WIDTH, height=HEIGHT, boxes=boxes,
            names=[str(one[0]) for one in objects],
            difficult=np.array([one[5] for one in objects], np.bool_),
            truncated=np.array([one[6] for one in objects], np.bool_),
        )  # fmt: skip
        path = root / "Annotations" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    sets = root / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    for part, names in (("train", list(ODD)[:3]), ("val", list(ODD)[3:])):
        (sets / f"{part}.txt").write_text("".join(f"{n}\n" for n in names), encoding="utf-8")
    return root


ODD: dict[str, list[tuple[str, int, int, int, int, bool, bool]]] = {
    "Größe 1": [("süßer Käfer", 10, 20, 50, 60, True, False)],
    "日本 の猫": [("猫", 0, 0, 120, 90, False, True), ("a/b: c", 1, 2, 4, 8, False, False)],
    "plain": [],
    "deep er/Größe 2": [("=1+1", 100, 70, 120, 90, True, True)],
    "deep er/x.y": [("猫", 33, 21, 78, 55, False, False)],
}


def classes_of(found: supervision.Detections) -> list[int]:
    assert found.class_id is not None
    return [int(number) for number in found.class_id]


def wanted(name: str) -> list[tuple[float, ...]]:
    return [tuple(float(side) for side in one[1:5]) for one in ODD[name]]


@pytest.mark.parametrize("target", READABLE)
def test_names_flags_and_classes_come_back(odd: Path, target: Target, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(odd, out, target)
    images = None if target in ("voc", "yolo") else odd
    found = find_format(out, images=images)
    seen: dict[str, Any] = {}
    for name in found.sets:
        data = DataConfig(format=found.format, root=[found.root], images=images, train=[name])  # type: ignore[arg-type]
        read = read_split(data, "train", None, ImageCache(), workers=1)
        for image in read.images:
            key = next(n for n in ODD if image.path.as_posix().endswith(f"/{n}.png"))
            assert key not in seen
            seen[key] = [
                (read.class_names[label - 1], *map(round, box), bool(hard), bool(cut))
                for label, box, hard, cut in zip(
                    image.gt_labels, image.gt_boxes.tolist(), image.difficult, image.truncated,
                    strict=True,
                )
            ]  # fmt: skip
    flags = target in ("voc", "coco", "labelme", "via", "cvat")
    for name, objects in ODD.items():
        assert seen[name] == [one if flags else (*one[:5], False, False) for one in objects]


def test_coco_by_pycocotools_and_supervision(odd: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(odd, out, "coco", images="copy")
    seen = {}
    for part in ("train", "val"):
        file = out / "annotations" / f"instances_{part}.json"
        coco = COCO(str(file))
        for image in coco.dataset["images"]:
            rows = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
            boxes = [(x, y, x + w, y + h) for x, y, w, h in (row["bbox"] for row in rows)]
            assert boxes == wanted(image["file_name"].removesuffix(".png"))
            names = [coco.loadCats(row["category_id"])[0]["name"] for row in rows]
            assert names == [one[0] for one in ODD[image["file_name"].removesuffix(".png")]]
            assert all(row["area"] == row["bbox"][2] * row["bbox"][3] for row in rows)
            seen[image["file_name"]] = rows
        read = supervision.DetectionDataset.from_coco(str(out / "images"), str(file))
        for path, pixels, found in read:
            name = Path(path).relative_to(out / "images").as_posix().removesuffix(".png")
            assert pixels.shape == (HEIGHT, WIDTH, 3)
            assert [tuple(box) for box in found.xyxy.tolist()] == wanted(name)
            assert [read.classes[k] for k in classes_of(found)] == [one[0] for one in ODD[name]]
    assert sorted(seen) == sorted(f"{name}.png" for name in ODD)


def test_yolo_by_supervision(odd: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(odd, out, "yolo")
    count = 0
    for part, folder in (("train", ""), ("val", "deep er")):
        # of one folder at a time: it doesn't search those below
        inside = next((out / "images" / part).glob("**/*.png")).parent
        labels = out / "labels" / inside.relative_to(out / "images")
        read = supervision.DetectionDataset.from_yolo(
            str(inside), str(labels), str(out / "data.yaml")
        )
        assert sorted(read.classes) == sorted({one[0] for own in ODD.values() for one in own})
        for path, _, found in read:
            name = f"{folder}/{Path(path).stem}".lstrip("/")
            np.testing.assert_allclose(
                found.xyxy.reshape(-1, 4), np.reshape(wanted(name), (-1, 4)), atol=1e-4
            )
            assert [read.classes[k] for k in classes_of(found)] == [one[0] for one in ODD[name]]
            count += 1
    assert count == len(ODD)


def test_voc_by_torchvision_and_supervision(odd: Path, tmp_path: Path) -> None:
    """Torchvision takes .jpg alone for the image, which it opens only when asked."""
    out = tmp_path / "VOCdevkit" / "VOC2012"
    convert(odd, out, "voc")
    count = 0
    for part in ("train", "val"):
        read = VOCDetection(str(tmp_path), year="2012", image_set=part)
        for path in read.annotations:
            annotation = read.parse_voc_xml(ElementTree.parse(path).getroot())["annotation"]
            name = Path(path).relative_to(out / "Annotations").as_posix().removesuffix(".xml")
            own = annotation.get("object", [])
            boxes = [
                tuple(float(one["bndbox"][k]) for k in ("xmin", "ymin", "xmax", "ymax"))
                for one in own
            ]
            assert boxes == [(x1 + 1, y1 + 1, x2, y2) for x1, y1, x2, y2 in wanted(name)]
            flags = [(one["name"], one["difficult"], one["truncated"]) for one in own]
            assert flags == [(one[0], str(int(one[5])), str(int(one[6]))) for one in ODD[name]]
            count += 1
    assert count == len(ODD)
    folders = {path.parent for path in (out / "JPEGImages").rglob("*.png")}
    names = []
    for folder in folders:
        inside = folder.relative_to(out / "JPEGImages")
        found = supervision.DetectionDataset.from_pascal_voc(
            str(folder), str(out / "Annotations" / inside)
        )
        names += [Path(path).stem for path, _, _ in found]
    assert len(names) == len(ODD)


def test_csv_by_the_csv_module(odd: Path, tmp_path: Path) -> None:
    """RetinaNet's: no header, paths from the file's folder, a row of an image without objects."""
    out = tmp_path / "out"
    convert(odd, out, "csv")
    rows: dict[str, list[list[str]]] = {}
    for part in ("train", "val"):
        with (out / f"{part}.csv").open(encoding="utf-8", newline="") as handle:
            for path, *rest in csv.reader(handle):
                assert (out / path).is_file()
                rows.setdefault(path.partition("JPEGImages/")[2].removesuffix(".png"), []).append(
                    rest
                )
    assert rows.pop("plain") == [["", "", "", "", ""]]
    for name, own in rows.items():
        assert own == [[*map(str, one[1:5]), one[0]] for one in ODD[name]]
    with (out / "classes.csv").open(encoding="utf-8", newline="") as handle:
        assert [int(k) for _, k in csv.reader(handle)] == list(range(4))


def test_via_and_cvat_by_their_definitions(odd: Path, tmp_path: Path) -> None:
    """VIA joins name and size to its keys; CVAT's corners lie between pixels."""
    convert(odd, tmp_path / "via", "via")
    convert(odd, tmp_path / "cvat", "cvat")
    seen: dict[str, dict[str, list[Any]]] = {"via": {}, "cvat": {}}
    for file in (tmp_path / "via").glob("*.json"):
        for key, entry in json.loads(file.read_text(encoding="utf-8")).items():
            assert key == f"{entry['filename']}{entry['size']}"
            assert (tmp_path / "via" / entry["filename"]).is_file()
            seen["via"][entry["filename"]] = own = []
            for region in entry["regions"]:
                shape, about = region["shape_attributes"], region["region_attributes"]
                x, y = shape["x"], shape["y"]
                box = x, y, x + shape["width"], y + shape["height"]
                own.append((about["class"], *box, "difficult" in about, "truncated" in about))
    for file in (tmp_path / "cvat").glob("*.xml"):
        for image in ElementTree.parse(file).getroot().iter("image"):
            assert (image.get("width"), image.get("height")) == (str(WIDTH), str(HEIGHT))
            seen["cvat"][image.attrib["name"]] = [
                (
                    shape.get("label"),
                    *(float(shape.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr")),
                    *(
                        any(a.get("name") == flag and a.text == "true" for a in shape)
                        for flag in ("difficult", "truncated")
                    ),
                )
                for shape in image.iter("box")
            ]
    for found in seen.values():
        assert len(found) == len(ODD)
        for name, objects in found.items():
            assert objects == ODD[name.partition("JPEGImages/")[2].removesuffix(".png")]


def test_labelme_opens_the_images_where_they_are(odd: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(odd, out, "labelme")
    files = sorted(out.rglob("*.json"))
    assert len(files) == len(ODD)
    for file in files:
        data = json.loads(file.read_text(encoding="utf-8"))
        assert (file.parent / data["imagePath"]).is_file()  # as labelme joins them
        assert (data["imageWidth"], data["imageHeight"]) == (WIDTH, HEIGHT)


# -- what is kept ------------------------------------------------------------------------------


def test_what_is_lost_is_said(odd: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def said(target: Target) -> str:
        caplog.clear()
        convert(odd, tmp_path / target, target)
        return "".join(m for m in caplog.messages if "can't hold" in m)

    assert said("yolo") == "yolo can't hold: difficult (2), truncated (2)"
    assert said("labelstudio") == "labelstudio can't hold: difficult (2), truncated (2)"
    assert said("voc") == said("coco") == said("labelme") == said("jsonl") == ""
    assert said("via") == said("cvat") == ""
    (tmp_path / "thin").mkdir()
    file = tmp_path / "thin" / "a.csv"
    file.write_text(f"{odd / 'JPEGImages' / 'plain.png'},1.5,2,3.25,4,cat\n")
    caplog.clear()
    convert(file, tmp_path / "rounded", "voc", reading=Reading(images=odd))
    assert "voc can't hold: fractions of pixels (1)" in caplog.messages


def test_the_order_of_classes_is_kept(tmp_path: Path) -> None:
    """Also of one without an object: a model's outputs are numbered by it."""
    save_image(tmp_path / "set" / "images" / "a.png", noise("a"))
    (tmp_path / "set" / "labels").mkdir()
    (tmp_path / "set" / "labels" / "a.txt").write_text("2 0.5 0.5 0.5 0.5\n")
    (tmp_path / "set" / "data.yaml").write_text("train: images\nnames: [zebra, ape, cat]\n")
    names = ("zebra", "ape", "cat")
    assert convert(tmp_path / "set", tmp_path / "coco", "coco", images="link").class_names == names
    assert convert(tmp_path / "coco", tmp_path / "yolo", "yolo").class_names == names
    assert (tmp_path / "yolo" / "labels" / "train" / "a.txt").read_text() == "2 0.5 0.5 0.5 0.5\n"
    chosen = Reading(classes=("cat",))
    data = convert(tmp_path / "coco", tmp_path / "one", "yolo", reading=chosen)
    assert data.class_names == ("cat",)


def test_one_set_of_several(tmp_path: Path) -> None:
    pascal(tmp_path / "set")
    data = convert(tmp_path / "set", tmp_path / "out", "voc", reading=Reading(split="test"))
    assert [image.stem for image in data.images] == list(TEST)
    assert [p.name for p in (tmp_path / "out" / "ImageSets" / "Main").iterdir()] == ["test.txt"]
    with pytest.raises(DataError, match="no set val; there are: test, trainval"):
        convert(tmp_path / "set", tmp_path / "out", "voc", reading=Reading(split="val"))


def test_sets_that_overlap(tmp_path: Path) -> None:
    """VOC keeps all; YOLO's folders have each image once, in the smallest of its sets."""
    pascal(tmp_path / "set")
    lists = tmp_path / "set" / "ImageSets" / "Main"
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("c\nf\n")
    convert(tmp_path / "set", tmp_path / "voc", "voc")
    again = tmp_path / "voc" / "ImageSets" / "Main"
    assert {p.name: p.read_text() for p in again.iterdir()} == {
        p.name: p.read_text() for p in lists.iterdir() if p.name != "cat_trainval.txt"
    }
    convert(tmp_path / "set", tmp_path / "yolo", "yolo")
    images = (p.relative_to(tmp_path / "yolo") for p in (tmp_path / "yolo").rglob("*.png"))
    assert sorted(path.as_posix() for path in images) == [
        *("images/test/d.png", "images/test/e.png", "images/train/a.png", "images/train/b.png"),
        *("images/val/c.png", "images/val/f.png"),
    ]
    text = (tmp_path / "yolo" / "data.yaml").read_text()
    assert "train: images/train\nval: images/val\ntest: images/test\n" in text


def test_images_of_one_name_and_other_suffix(tmp_path: Path) -> None:
    """Ultralytics finds labels by the stem, so that the images need other ones."""
    for name in ("a.png", "a.bmp"):
        save_image(tmp_path / "set" / name, noise(name))
    rows = f"{tmp_path}/set/a.png,1,2,3,4,cat\n{tmp_path}/set/a.bmp,5,6,7,8,cat\n"
    (tmp_path / "set" / "boxes.csv").write_text(rows)
    convert(tmp_path / "set", tmp_path / "out", "yolo", images="link")
    pairs = {p.stem: p.resolve().name for p in (tmp_path / "out" / "images").iterdir()}
    assert pairs == {"a.png": "a.png", "a.bmp": "a.bmp"}
    assert {p.stem for p in (tmp_path / "out" / "labels").iterdir()} == {"a.png", "a.bmp"}
    read = supervision.DetectionDataset.from_yolo(
        images_directory_path=str(tmp_path / "out" / "images"),
        annotations_directory_path=str(tmp_path / "out" / "labels"),
        data_yaml_path=str(tmp_path / "out" / "data.yaml"),
    )
    found = {Path(path).resolve().name: one.xyxy.round().tolist() for path, _, one in read}
    assert found == {"a.png": [[1, 2, 3, 4]], "a.bmp": [[5, 6, 7, 8]]}


def test_links_copies_and_none(tmp_path: Path) -> None:
    pascal(tmp_path / "set")
    source, out = (
        tmp_path / "set" / "JPEGImages" / "a.png",
        tmp_path / "out" / "JPEGImages" / "a.png",
    )
    convert(tmp_path / "set", tmp_path / "out", "voc", images="link")
    assert out.is_symlink() and out.read_bytes() == source.read_bytes()
    convert(tmp_path / "set", tmp_path / "out", "voc")  # some programs would write through links
    assert not out.is_symlink() and out.read_bytes() == source.read_bytes()
    out.unlink()
    convert(tmp_path / "set", tmp_path / "out", "voc", images="copy")
    assert out.is_file()
    convert(tmp_path / "set", tmp_path / "out", "voc", images="none")
    assert not out.exists() and source.is_file()


def test_where_links_are_refused_images_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pascal(tmp_path / "set")

    def refuse(*_: object, **__: object) -> None:
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    convert(tmp_path / "set", tmp_path / "out", "voc", images="link")
    copy = tmp_path / "out" / "JPEGImages" / "a.png"
    assert copy.is_file() and not copy.is_symlink()
    assert "takes no symbolic links; images are copied" in caplog.text


def test_labels_without_images(tmp_path: Path) -> None:
    """The stated sizes are enough where no image is put beside the labels."""
    pascal(tmp_path / "set")
    for path in (tmp_path / "set" / "JPEGImages").iterdir():
        path.unlink()
    convert(tmp_path / "set", tmp_path / "out", "coco")
    coco = COCO(str(tmp_path / "out" / "annotations" / "instances_test.json"))
    assert [(i["width"], i["height"]) for i in coco.dataset["images"]] == [(WIDTH, HEIGHT)] * 2
    with pytest.raises(ImageError, match=r"\.jpg: no such file; expected --images none"):
        convert(tmp_path / "set", tmp_path / "voc", "voc")
    file = tmp_path / "set" / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace(f"<width>{WIDTH}<", "<width>0<"))
    with pytest.raises(ImageError, match="no such file, and its annotation states no size"):
        convert(tmp_path / "set", tmp_path / "out", "coco")


# -- folders of others, and what can't be read -------------------------------------------------


def test_files_of_others_stay(tmp_path: Path) -> None:
    pascal(tmp_path / "set")
    out = tmp_path / "out"
    convert(tmp_path / "set", out, "yolo")
    convert(tmp_path / "set", out, "coco")  # both are there
    assert (out / "data.yaml").is_file() and (out / "annotations").is_dir()
    edited = out / "labels" / "test" / "d.txt"
    edited.write_text("0 0.1 0.1 0.1 0.1\n")
    before = files_in(out)
    with pytest.raises(
        ArtifactError, match=r"d\.txt: `sppdet convert` hasn't written it, or it has"
    ):
        convert(tmp_path / "set", out, "yolo")
    assert files_in(out) == before
    (tmp_path / "mine" / "annotations").mkdir(parents=True)
    (tmp_path / "mine" / "annotations" / "instances_test.json").write_text("mine")
    with pytest.raises(ArtifactError, match=r"instances_test\.json: `sppdet convert` hasn't"):
        convert(tmp_path / "set", tmp_path / "mine", "coco")


@pytest.mark.parametrize("out", ["set", "set/yolo", "."])
def test_the_source_is_not_written_into(tmp_path: Path, out: str) -> None:
    pascal(tmp_path / "set")
    before = files_in(tmp_path)
    with pytest.raises(ConfigError, match="expected a folder of its own"):
        convert(tmp_path / "set", tmp_path / out, "yolo")
    assert files_in(tmp_path) == before


def test_a_wrong_box_stops_or_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pascal(tmp_path / "set")
    file = tmp_path / "set" / "Annotations" / "b.xml"
    file.write_text(file.read_text().replace("<xmax>4<", "<xmax>0<"))
    with pytest.raises(AnnotationError, match=r"b\.xml, object 2: xmax 0 < xmin 2"):
        convert(tmp_path / "set", tmp_path / "out", "yolo")
    assert not (tmp_path / "out").exists()
    data = convert(tmp_path / "set", tmp_path / "out", "yolo", reading=Reading(skip=True))
    assert Counter(image.stem for image in data.images for _ in image.boxes)["b"] == 1
    assert "left out: b.xml, object 2" in caplog.text


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(AnnotationError, match="no annotations found"):
        convert(tmp_path / "empty", tmp_path / "out", "voc")
    with pytest.raises(DataError, match="no such file or folder"):
        convert(tmp_path / "nothing", tmp_path / "out", "voc")
    (tmp_path / "a.txt").write_text("0 1 1 1 1")
    with pytest.raises(AnnotationError, match=r"a\.txt: no file that has the labels"):
        convert(tmp_path / "a.txt", tmp_path / "out", "voc")
    pascal(tmp_path / "set")
    with pytest.raises(ConfigError, match=r"--format comp4: is of detections, and .* has labels"):
        convert(tmp_path / "set", tmp_path / "out", "comp4")
    for wrong in ({"reading": Reading(min_score=0.5)}, {"scores": True}):
        with pytest.raises(ConfigError, match=r"--scores: are of detections, and .*set has labels"):
            convert(tmp_path / "set", tmp_path / "out", "yolo", **wrong)
    with pytest.raises(ConfigError, match="--score nan: expected a number"):
        convert(tmp_path / "set", tmp_path / "out", "yolo", reading=Reading(min_score=np.nan))
    with pytest.raises(ConfigError, match=r"a\.txt: isn't a folder"):
        convert(tmp_path / "set", tmp_path / "a.txt", "yolo")
    assert not (tmp_path / "out").exists()


def test_single_files(tmp_path: Path) -> None:
    """The file of one set of COCO, VIA, CSV or CVAT stands for the set."""
    for tool, file in (
        ("COCO", "annotations/instances_train2017.json"),
        ("VIA, JSON", "via_region_data.json"),
        ("VIA, CSV", "via_region_data.csv"),
        ("RetinaNet", "annotations.csv"),
        ("CVAT for images", "annotations.xml"),
    ):
        WRITERS[tool][0](tmp_path / tool)
        data = convert(tmp_path / tool / file, tmp_path / f"{tool} out", "yolo")
        assert len(data.images) == (4 if tool == "COCO" else 6)


def test_the_command(sppdet: CommandLine, tmp_path: Path) -> None:
    pascal(tmp_path / "set")
    status, out, err = sppdet("convert", tmp_path / "set", tmp_path / "out", "--format", "yolo")
    assert (status, err) == (0, "")
    assert out.endswith(
        f"6 images (trainval 4, test 2), 7 objects of 3 classes as yolo; see {tmp_path / 'out'}\n"
    )
    status, out, err = sppdet(
        *("convert", tmp_path / "set", tmp_path / "one", "--format", "csv", "--split", "test"),
        *("--from", "voc", "--classes", "dog, cat", "--images", "copy"),
    )
    assert (status, err) == (0, "warning: 1 objects of other classes left out: small bird 1\n")
    with (tmp_path / "one" / "test.csv").open(newline="") as handle:
        assert list(csv.reader(handle)) == [
            ["images/d.png", "33", "21", "78", "55", "dog"], ["images/e.png", "60", "5", "61", "85", "cat"],
        ]  # fmt: skip
    status, out, err = sppdet("convert", tmp_path / "gone", tmp_path / "out", "--format", "voc")
    assert (status, err) == (1, f"error: {tmp_path / 'gone'}: no such file or folder\n")


def test_paths_that_need_quoting(tmp_path: Path) -> None:
    """In Label Studio's URLs."""
    pascal(tmp_path / "ä &?#%41 b")
    convert(tmp_path / "ä &?#%41 b", tmp_path / "out", "labelstudio")
    (first, *_) = json.loads((tmp_path / "out" / "test.json").read_text(encoding="utf-8"))
    url = first["data"]["image"]
    assert Path("/" + unquote(urlsplit(url).query.removeprefix("d="))).is_file()

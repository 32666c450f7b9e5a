"""What `detect` writes, read by other programs: crops, YOLO, JSON lines, COCO."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import supervision
from PIL import Image
from pycocotools.coco import COCO
from torchvision.datasets import ImageFolder

from folder_runs import LEAST
from runs import CLASSES
from sppdet.boxes import whole_pixels
from sppdet.errors import ConfigError, DataError
from sppdet.folders.folder import FolderResult, detect_folder
from sppdet.folders.formats import IMAGE_FORMATS, Format
from sppdet.folders.image_files import Finding, content_of
from sppdet.io.names import class_folders
from sppdet.io.yolo_writing import yolo_labels
from sppdet.stages.detector import Detector
from sppdet.types import Detections


@pytest.fixture
def images(demo_root: Path, tmp_path: Path) -> Path:
    """A folder of three images, one of them in a folder of its own."""
    folder = Path(shutil.copytree(demo_root / "fresh", tmp_path / "in"))
    (folder / "süß 日本").mkdir()
    first = min(folder.glob("*.jpg"))
    first.rename(folder / "süß 日本" / first.name)
    return folder


def detect(
    detector: Detector, images: Path, out: Path, formats: Sequence[Format], *, least: float = LEAST
) -> FolderResult:
    return detect_folder(detector, [images], out, min_score=least, formats=formats, workers=2)


def found_in(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "detections.json").read_text())
    return found


def crops_in(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in (out / "crops").rglob("*.jpg")}


def finding(boxes: Sequence[Sequence[float]], *, size: tuple[int, int] = (40, 30)) -> Finding:
    """An image of noise (width, height) with detections of class 1."""
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    count = len(boxes)
    found = Detections(
        np.array(boxes, np.float32), np.ones(count, np.float32), np.ones(count, np.int64), ("a",)
    )
    return Finding("a.png", pixels, found)


def test_a_file_for_each_detection_in_a_folder_of_its_class(
    detector: Detector, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    detect(detector, images, out, ["crops", "json"])
    found = found_in(out)
    by_id = {image["id"]: image for image in found["images"]}
    ranks: dict[int, int] = {}
    for row in found["annotations"]:
        rank = ranks[row["image_id"]] = ranks.get(row["image_id"], 0) + 1
        stem = row["file_name"].removesuffix(".jpg")
        crop = Image.open(out / "crops" / row["class"] / f"{stem}-{rank}.jpg")
        x, y, w, h = row["bbox"]
        box = (round(x), round(y), round(x + w), round(y + h))
        assert crop.size == (box[2] - box[0], box[3] - box[1])
        own = Image.open(by_id[row["image_id"]]["path"]).convert("RGB").crop(box)
        apart = np.abs(np.asarray(own, float) - np.asarray(crop, float))
        assert apart.mean() < 6  # JPEG's losses; another place of the image differs by 30 and more
    assert len(crops_in(out)) == len(found["annotations"]) > 5
    loaded = ImageFolder(str(out / "crops"))
    assert set(loaded.classes) <= set(CLASSES) and len(loaded) == len(found["annotations"])


def test_a_crop_has_at_least_a_pixel() -> None:
    boxes = [[3.2, 4.1, 3.4, 4.3], [39.6, 0, 40, 30], [0, 29.9, 40, 30], [0, 0, 0.4, 0.4]]
    made = finding(boxes)
    sizes = []
    for number in range(len(boxes)):
        data = np.frombuffer(content_of("crops", made, number), np.uint8)
        sizes.append(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR)).shape[:2])
    assert sizes == [(1, 1), (30, 1), (1, 40), (1, 1)]
    assert whole_pixels(made.detections.boxes).tolist() == [
        [3, 4, 4, 5], [39, 0, 40, 30], [0, 29, 40, 30], [0, 0, 1, 1],
    ]  # fmt: skip


def test_a_crop_too_wide_for_jpeg() -> None:
    made = finding([[0, 0, 69_000, 2]], size=(70_000, 2))
    with pytest.raises(DataError, match="69000x2 pixels can't be encoded as JPEG"):
        content_of("crops", made, 0)


def test_names_of_classes_that_some_file_system_refuses() -> None:
    names = ["con", "Cat", "cat", "a/b", "a:b", "dot.", "LPT1.x", "Ä " * 200, "猫", "nul_"]
    folders = class_folders(names)
    assert len({name.casefold() for name in folders}) == len(names)
    for name in folders:
        assert not set('/\\:*?"<>|') & set(name) and not name.endswith((".", " "))
        assert name.split(".")[0].lower() not in ("con", "nul", "lpt1")
        assert len(name.encode()) <= 255
    assert folders[1] == "Cat" and folders[8] == "猫"


def test_crops_of_detections_that_are_no_more_are_removed(
    detector: Detector, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    detect(detector, images, out, ["crops", "json"])
    before = crops_in(out)
    edited = out / max(before)
    edited.write_bytes(b"mine")
    score = sorted(row["score"] for row in found_in(out)["annotations"])[-3]
    other = tmp_path / "other"
    detect(detector, images, other, ["crops"], least=score)
    assert len(crops_in(other)) == 3
    (out / min(before)).unlink()
    edited.unlink()
    detect(detector, images, out, ["crops", "json"], least=score)
    assert crops_in(out) == crops_in(other) and len(before) > 3


def test_crops_of_others_stay(detector: Detector, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mine = out / "crops" / CLASSES[0] / "mine.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"mine\.jpg: wasn't written by sppdet"):
        detect(detector, images, out, ["crops"])
    mine.unlink()
    detect(detector, images, out, ["crops"])
    first = out / min(crops_in(out))
    first.write_bytes(b"edited")
    with pytest.raises(ConfigError, match="has changed since sppdet wrote it"):
        detect(detector, images, out, ["crops"])
    first.unlink()
    (out / "crops" / "elsewhere").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="crops/elsewhere: wasn't written by sppdet"):
        detect(detector, images, out, ["crops"])
    (out / "crops" / "elsewhere").unlink()
    detect(detector, images, out, ["crops"])
    assert Image.open(first).size


def test_a_crop_that_is_gone_is_cut_again(detector: Detector, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    detect(detector, images, out, ["crops"])
    before = crops_in(out)
    (out / min(before)).unlink()
    detect(detector, images, out, ["crops"])
    assert crops_in(out) == before


def test_no_file_stands_where_a_folder_must(tmp_path: Path) -> None:
    """Of an image `x` and of one in a folder `x-1.jpg`."""
    from sppdet.folders.inputs import plan_images

    for name in ("x.png", "x-1.jpg/z.png", "y.png", "y-z.jpg/z.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    plan = plan_images([tmp_path])
    crops = [file for i in plan.stills for file in IMAGE_FORMATS["crops"].files(i.stem, ["a"] * 3)]
    assert len(set(crops)) == 12
    folders = {parent.as_posix() for file in crops for parent in Path(file).parents}
    assert not folders & set(crops)
    assert "crops/a/y-1.jpg" in crops  # of a name that clashes with nothing


def test_yolo_as_supervision_reads_it(detector: Detector, images: Path, tmp_path: Path) -> None:
    """It wants the images in one folder; Ultralytics finds labels by `images` made `labels`."""
    out = tmp_path / "out"
    detect(detector, images, out, ["yolo", "json"])
    found = found_in(out)
    (out / "yolo" / "images").symlink_to(images)  # as docs/outputs.md has it
    for folder in ("", "süß 日本"):
        read = supervision.DetectionDataset.from_yolo(
            images_directory_path=str(out / "yolo" / "images" / folder),
            annotations_directory_path=str(out / "yolo" / "labels" / folder),
            data_yaml_path=str(out / "yolo" / "data.yaml"),
        )
        assert read.classes == list(CLASSES)
        assert len(read) == (1 if folder else 2)
        for path, _, detections in read:
            name = f"{folder}/{Path(path).name}".lstrip("/")
            own = [row for row in found["annotations"] if row["file_name"] == name]
            corners = [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in own)]
            np.testing.assert_allclose(detections.xyxy, corners, atol=1e-3)
            assert (np.asarray(detections.class_id) + 1).tolist() == [r["category_id"] for r in own]


def test_json_lines(detector: Detector, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    detect(detector, images, out, ["jsonl", "json"], least=0.0)
    found = found_in(out)
    lines = [json.loads(line) for line in (out / "detections.jsonl").read_text().splitlines()]
    assert len(lines) == len(found["images"]) == 3
    for line, image in zip(lines, found["images"], strict=True):
        rows = [row for row in found["annotations"] if row["image_id"] == image["id"]]
        assert {**line, "id": image["id"]} == {**image, "detections": line["detections"]}
        for entry, row in zip(line["detections"], rows, strict=True):
            x, y, w, h = row["bbox"]
            assert entry["box"] == [x, y, x + w, y + h]
            assert (entry["class"], entry["score"]) == (row["class"], row["score"])


def test_detections_json_is_a_data_set_of_coco(
    detector: Detector, images: Path, tmp_path: Path
) -> None:
    """Read by pycocotools, and by supervision, whose reader wants `iscrowd` and `area`."""
    out = tmp_path / "out"
    detect(detector, images, out, ["coco", "json"])
    found = found_in(out)
    truth = COCO(str(out / "detections.json"))
    results = truth.loadRes(str(out / "coco_results.json"))
    assert len(results.anns) == len(truth.anns) == len(found["annotations"])
    crowd = truth.getAnnIds(iscrowd=False, areaRng=[1, 1e9])
    assert len(crowd) == len(found["annotations"])
    read = supervision.DetectionDataset.from_coco(str(images), str(out / "detections.json"))
    assert read.classes == list(CLASSES) and len(read) == 3
    for path, _, detections in read:
        name = Path(path).relative_to(images).as_posix()
        own = [row for row in found["annotations"] if row["file_name"] == name]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in own)]
        np.testing.assert_allclose(detections.xyxy, corners, atol=1e-3)


def test_labels_of_no_detections() -> None:
    empty = np.zeros((0, 4), np.float32)
    assert yolo_labels(empty, np.zeros(0, np.int64), width=3, height=3) == ""

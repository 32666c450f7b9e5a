"""Detection in folders of images: the files that it leaves, and images of every kind."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runs import CLASSES, CommandLine
from sppdet.errors import ConfigError
from sppdet.folders.folder import FolderResult, detect_folder
from sppdet.folders.formats import FORMATS, parse_formats
from sppdet.folders.journal import JOURNAL
from sppdet.io.images import read_image
from sppdet.io.voc import read_voc_annotation
from sppdet.stages.detector import Detector

LEAST = -1.2  # a score that this little training reaches


@pytest.fixture(scope="session")
def detector(trained: Path) -> Detector:
    return Detector.load(trained, device="cpu")


@pytest.fixture
def images(demo_root: Path, tmp_path: Path) -> Path:
    """Nested folders: a plain image, one in a format of its own, one turned, one broken."""
    folder = tmp_path / "images"
    (folder / "a" / "deep er").mkdir(parents=True)
    fresh = sorted((demo_root / "fresh").iterdir())
    shutil.copy(fresh[0], folder / "plain.jpg")
    Image.open(fresh[1]).save(folder / "a" / "lossless.PNG")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    Image.open(fresh[2]).save(folder / "a" / "deep er" / "turned.jpg", exif=exif)
    (folder / "a" / "broken.jpg").write_bytes(fresh[0].read_bytes()[:300])
    (folder / "notes.txt").write_text("no image")
    return folder


def detect(
    detector: Detector, paths: list[Path], out: Path, *, workers: int = 2
) -> tuple[FolderResult, dict[str, Any]]:
    """Detect with every format; returns what came of it and detections.json."""
    result = detect_folder(detector, paths, out, min_score=LEAST, formats=FORMATS, workers=workers)
    found: dict[str, Any] = json.loads((out / "detections.json").read_text())
    return result, found


def test_a_folder_by_the_command_line(
    sppdet: CommandLine, trained: Path, detector: Detector, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    status, said, err = sppdet(
        *("detect", trained, images, "--out", out, "--score", LEAST),
        *("--save", "images, csv,json,voc,coco", "--workers", "2", "--device", "cpu"),
    )
    broken = f"{images / 'a' / 'broken.jpg'}: can't be decoded as an image"
    assert status == 1
    assert err == f"error: 1 of 4 images failed; the first: {broken}\n"
    assert f"failed: {broken}\n" in said

    found = json.loads((out / "detections.json").read_text())
    names = ["a/deep er/turned.jpg", "a/lossless.PNG", "plain.jpg"]
    assert [image["file_name"] for image in found["images"]] == names
    assert [image["id"] for image in found["images"]] == [1, 2, 3]
    assert found["categories"] == [{"id": k, "name": n} for k, n in enumerate(CLASSES, start=1)]
    rows = found["annotations"]
    assert f"{len(rows)} detections in 3 images" in said
    for image in found["images"]:
        expected = detector(image["path"]).above(LEAST)
        own = [row for row in rows if row["image_id"] == image["id"]]
        assert len(own) == len(expected) > 0
        corners = [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in own)]
        np.testing.assert_allclose(corners, expected.boxes, atol=1e-3)
        np.testing.assert_allclose([row["score"] for row in own], expected.scores, atol=1e-5)
        assert [row["class"] for row in own] == expected.names()
        assert [CLASSES[row["category_id"] - 1] for row in own] == expected.names()
        assert {row["file_name"] for row in own} == {image["file_name"]}
        assert np.max(corners, axis=0)[2] <= image["width"]
        assert np.max(corners, axis=0)[3] <= image["height"]
    assert [row["id"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(row["area"] == pytest.approx(row["bbox"][2] * row["bbox"][3]) for row in rows)

    lines = list(csv.DictReader((out / "detections.csv").open(encoding="utf-8")))
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        x, y, w, h = row["bbox"]
        assert (line["file_name"], line["class"]) == (row["file_name"], row["class"])
        assert float(line["score"]) == pytest.approx(row["score"], abs=1e-6)
        box = [float(line[key]) for key in ("x1", "y1", "x2", "y2")]
        assert box == pytest.approx([x, y, x + w, y + h], abs=0.006)

    coco = json.loads((out / "coco_results.json").read_text())
    for entry, row in zip(coco, rows, strict=True):
        assert entry["category_name"] == row["class"]
        assert all(entry[k] == row[k] for k in ("image_id", "category_id", "file_name"))
        assert np.float32(entry["score"]) == np.float32(row["score"])
        assert entry["bbox"] == pytest.approx(row["bbox"], abs=1e-5)

    for image in found["images"]:
        stem = image["file_name"].rpartition(".")[0]
        annotation = read_voc_annotation(out / "Annotations" / f"{stem}.xml")
        assert annotation.filename == Path(image["file_name"]).name
        own = [row for row in rows if row["image_id"] == image["id"]]
        assert [item.name for item in annotation.objects] == [row["class"] for row in own]
        for item, row in zip(annotation.objects, own, strict=True):
            x, y, w, h = row["bbox"]
            assert item.problem == ""
            assert item.box == pytest.approx((x, y, x + w, y + h), abs=0.51)
        pixels = read_image(image["path"])
        drawn = read_image(out / "images" / f"{stem}.jpg")
        assert drawn.shape == pixels.shape == (image["height"], image["width"], 3)
        assert (np.abs(drawn.astype(int) - pixels) > 60).any()
    written = {p.name for p in out.iterdir()}
    files = {"detections.json", "detections.csv", "coco_results.json"}
    assert written == {"images", "Annotations", JOURNAL, *files}


def test_a_turned_image_is_detected_in_as_it_is_shown(
    detector: Detector, images: Path, tmp_path: Path
) -> None:
    turned = images / "a" / "deep er" / "turned.jpg"
    _, found = detect(detector, [turned], tmp_path / "out")
    (image,) = found["images"]
    stored = Image.open(turned)
    assert (image["width"], image["height"]) == (stored.height, stored.width)
    assert image["file_name"] == "turned.jpg"
    assert (tmp_path / "out" / "images" / "turned.jpg").is_file()


def test_the_least_score_and_the_default_formats(
    sppdet: CommandLine, trained: Path, demo_root: Path, tmp_path: Path
) -> None:
    status, said, _ = sppdet(
        *("detect", trained, demo_root / "fresh", "--out", tmp_path, "--score", "9")
    )
    assert status == 0
    assert "0 detections in 3 images" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == [JOURNAL, "detections.json", "images"]
    found = json.loads((tmp_path / "detections.json").read_text())
    assert found["annotations"] == [] and len(found["images"]) == 3


def test_images_of_the_same_name(detector: Detector, demo_root: Path, tmp_path: Path) -> None:
    pixels = Image.open(next((demo_root / "fresh").iterdir()))
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    pixels.save(tmp_path / "one" / "x.jpg")
    pixels.resize((200, 140)).save(tmp_path / "one" / "x.png")
    pixels.resize((140, 200)).save(tmp_path / "two" / "x.jpg")
    _, found = detect(detector, [tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    names = ["one/x.jpg", "one/x.png", "two/x.jpg"]
    assert [image["file_name"] for image in found["images"]] == names
    out = tmp_path / "out"
    for name in names:
        drawn = read_image(out / "images" / f"{name}.jpg")
        assert drawn.shape == read_image(tmp_path / name).shape
        assert read_voc_annotation(out / "Annotations" / f"{name}.xml").objects
    assert len(list(out.glob("images/**/*.jpg"))) == len(list(out.rglob("*.xml"))) == 3
    assert len(list(out.glob("crops/**/*.jpg"))) == len(found["annotations"])


def test_a_folder_and_one_within(detector: Detector, images: Path, tmp_path: Path) -> None:
    (images / "a" / "broken.jpg").unlink()
    paths = [images / "a", images, images / "plain.jpg"]
    result, found = detect(detector, paths, tmp_path / "out")
    assert (result.detected, result.failed) == (3, ())
    names = [image["file_name"] for image in found["images"]]
    assert names == ["a/deep er/turned.jpg", "a/lossless.PNG", "plain.jpg"]


def test_links_keep_their_own_names(detector: Detector, demo_root: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    pixels = next((demo_root / "fresh").iterdir())
    try:
        (tmp_path / "links" / "named.jpg").symlink_to(pixels)
    except OSError:
        pytest.skip("links can't be made here")
    _, found = detect(detector, [tmp_path / "links"], tmp_path / "out")
    assert [image["file_name"] for image in found["images"]] == ["named.jpg"]


def test_workers_change_nothing(detector: Detector, demo_root: Path, tmp_path: Path) -> None:
    _, one = detect(detector, [demo_root / "fresh"], tmp_path / "one", workers=1)
    _, three = detect(detector, [demo_root / "fresh"], tmp_path / "three", workers=3)
    assert one == three


def test_several_images_in_flight_change_nothing(
    detector: Detector, demo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = detect(detector, [demo_root / "fresh"], tmp_path / "one")[1]
    monkeypatch.setattr(
        "sppdet.folders.folder.detection_threads", lambda device: 3
    )  # as with a GPU
    assert detect(detector, [demo_root / "fresh"], tmp_path / "three")[1] == one


def test_formats() -> None:
    assert parse_formats("crops,coco , images") == ("images", "coco", "crops")
    assert parse_formats(",".join(FORMATS)) == FORMATS
    for text in ("", " , "):
        with pytest.raises(ConfigError, match="--save: expected some of images, json, jsonl"):
            parse_formats(text)

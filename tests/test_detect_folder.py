"""Detection in folders of images: the files that it leaves, and images of every kind."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from folder_runs import LEAST
from runs import CLASSES, CommandLine
from sppdet.errors import ConfigError
from sppdet.folders.folder import FolderResult, detect_folder
from sppdet.folders.formats import FORMATS, parse_formats
from sppdet.io.finding import JOURNAL
from sppdet.io.images import read_image
from sppdet.io.voc import read_voc_annotation
from sppdet.stages.detector import Detector
from sppdet.stages.model import choose_device
from sppdet.types import Detections


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
        "sppdet.folders.finder.detection_threads", lambda device: 3
    )  # as with a GPU
    assert detect(detector, [demo_root / "fresh"], tmp_path / "three")[1] == one


def test_tiles_of_a_folder_are_those_of_the_detector(
    sppdet: CommandLine, trained: Path, detector: Detector, demo_root: Path, tmp_path: Path
) -> None:
    tiled = detector.tiled(160, overlap=0.3)
    image = read_image(sorted((demo_root / "fresh").iterdir())[0])
    height, width = image.shape[:2]
    tiles = tiled.tiles(width=width, height=height)
    parts = [detector(np.ascontiguousarray(image[y1:y2, x1:x2])) for x1, y1, x2, y2 in tiles]
    by_hand = tiled.merge(parts, width=width, height=height)
    expected = tiled(image)
    assert len(tiles) > 4 and len(expected) > 0
    np.testing.assert_array_equal(expected.boxes, by_hand.boxes)
    np.testing.assert_array_equal(expected.scores, by_hand.scores)
    out = tmp_path / "out"
    words = ["detect", trained, demo_root / "fresh", "--out", out, "--score", LEAST]
    tiles_of = ["--device", "cpu", "--save", "json", "--tile", "160", "--overlap", "0.3"]
    assert sppdet(*words, *tiles_of)[0] == 0
    found = json.loads((out / "detections.json").read_text())
    rows = [row for row in found["annotations"] if row["image_id"] == 1]
    kept = expected.above(LEAST)
    assert [row["score"] for row in rows] == pytest.approx(kept.scores.tolist(), abs=1e-6)
    status, said, _ = sppdet(*words, *tiles_of)
    assert status == 0 and "3 of 3 images were done already" in said
    status, said, _ = sppdet(*words, *tiles_of[:-1], "0.2")  # other tiles
    assert status == 0 and "done already" not in said


def test_a_tile_that_fails_fails_its_image_alone(
    detector: Detector, demo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, calls = Detector.detect_prepared, 0

    def failing(self: Detector, *arguments: Any, **named: Any) -> Detections:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise MemoryError
        return genuine(self, *arguments, **named)

    monkeypatch.setattr(Detector, "detect_prepared", failing)
    result, found = detect(detector.tiled(200), [demo_root / "fresh"], tmp_path / "out")
    assert len(result.failed) == 1 and "not enough memory" in result.failed[0]
    assert result.detected == 2 == len(found["images"])


def test_the_largest_image_of_a_call(
    sppdet: CommandLine, trained: Path, demo_root: Path, tmp_path: Path
) -> None:
    words = ["detect", trained, demo_root / "fresh", "--out", tmp_path, "--device", "cpu"]
    status, said, _ = sppdet(*words, "--max-pixels", "1000")
    assert status == 1 and said.count("pixels, expected 1000 at most") == 3
    assert sppdet(*words, "--max-pixels", "1000000")[0] == 0


def test_an_image_on_standard_input(
    sppdet: CommandLine, trained: Path, detector: Detector, demo_root: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = sorted((demo_root / "fresh").iterdir())[0]
    words = ["detect", trained, "-", "--score", LEAST, "--device", "cpu", "--out"]
    for content in (path.read_bytes(), b""):
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
            status, said, _ = sppdet(*words, tmp_path / f"out{len(content)}")
        if content:
            assert status == 0
            out = tmp_path / f"out{len(content)}"
            found = json.loads((out / "detections.json").read_text())
            assert [image["file_name"] for image in found["images"]] == ["stdin"]
            assert len(found["annotations"]) == len(detector(path).above(LEAST)) > 0
            assert (out / "images" / "stdin.jpg").is_file()
        else:
            assert status == 1
            assert "failed: standard input: is empty, expected an image\n" in said


@pytest.mark.parametrize(
    ("device", "problem"),
    [
        ("mps", "--device mps: torch finds no GPU of Apple's here; expected cpu or auto"),
        ("cuda", "--device cuda: torch finds no GPU here; expected cpu or auto"),
        ("cuda:1", "--device cuda:1: torch finds no GPU here; expected cpu or auto"),
        ("gpu", "--device gpu: expected auto, cpu, cuda, cuda:N or mps"),
        ("cuda:x", "--device cuda:x: expected auto, cpu, cuda, cuda:N or mps"),
    ],
)
def test_devices_that_are_not_there(
    device: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(ConfigError) as caught:
        choose_device(device)
    assert str(caught.value) == problem


def test_one_gpu_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert str(choose_device("cuda:1")) == "cuda:1" and str(choose_device("auto")) == "cuda"
    with pytest.raises(ConfigError, match="cuda:2: torch finds 2 here; expected cuda:0 to cuda:1"):
        choose_device("cuda:2")
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert str(choose_device("mps")) == "mps"


def test_a_device_by_another_name_is_refused_at_once(
    sppdet: CommandLine, trained: Path, tmp_path: Path
) -> None:
    status, _, err = sppdet("detect", trained, "x.jpg", "--out", tmp_path, "--device", "gpu")
    assert status == 2 and "gpu: expected auto, cpu, cuda, cuda:N or mps" in err


def test_formats() -> None:
    assert parse_formats("crops,coco , images") == ("images", "coco", "crops")
    assert parse_formats(",".join(FORMATS)) == FORMATS
    for text in ("", " , "):
        with pytest.raises(ConfigError, match="--save: expected some of images, json, jsonl"):
            parse_formats(text)

"""`sppdet audit`: its files, read again, and the folders and runs that it refuses."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from runs import CLASSES, CommandLine, contents, train_quietly
from sppdet.errors import ArtifactError
from sppdet.evaluation.audit import Suspicion, audit, corrected
from sppdet.evaluation.calibration import Calibration, Evidence
from sppdet.io.image_cache import ImageCache
from sppdet.io.splits import read_split
from sppdet.io.voc import read_voc_annotation
from sppdet.io.voc_writing import voc_annotation
from sppdet.runs.artifacts import write_text
from sppdet.runs.owned import Copied, replace_files
from sppdet.stages.audit import audit_run, with_probabilities
from sppdet.stages.audit_drawing import draw_suspicion
from sppdet.stages.audit_report import annotation_folders, files_of
from sppdet.stages.crossfit import read_cross_fitted
from sppdet.stages.detector import Detector
from sppdet.stages.model_files import read_run_config
from sppdet.types import AnnotatedImage, Dataset, Detections
from test_audit import annotated, moved


def training_set(run: Path) -> Dataset:
    return read_split(read_run_config(run).data, "train", CLASSES, ImageCache(), workers=1)


@pytest.fixture(scope="module")
def audited(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and what an audit of it has written; not to be changed."""
    run = tmp_path_factory.mktemp("audited") / "run"
    shutil.copytree(trained, run)
    audit_run(run, top=10)
    return run


def test_the_rows_are_those_of_the_method(audited: Path) -> None:
    dataset = training_set(audited)
    calibration = Detector.load(audited, device="cpu").calibration
    assert calibration is not None
    seen = {
        image.id: with_probabilities(found, calibration, image)
        for image in dataset.images
        if (found := read_cross_fitted(audited).get(image.id)) is not None
    }
    expected = audit(dataset, seen)
    content = json.loads((audited / "audit" / "audit.json").read_text())
    assert sum(content["counts"].values()) == len(content["rows"]) == len(expected) > 10
    by_id = {image.id: image for image in dataset.images}
    for rank, (row, one) in enumerate(zip(content["rows"], expected, strict=True), start=1):
        assert (row["rank"], row["kind"], row["image"]) == (rank, one.kind, one.image)
        assert row["score"] == pytest.approx(one.score, abs=1e-4)
        assert Path(row["file"]) == by_id[one.image].path
        side = row["suggestion"] if one.kept is None else row["same_object"]
        assert side["class"] == CLASSES[one.label - 1]
        assert side["box"] == pytest.approx(one.box.tolist(), abs=0.01)
        assert (row["annotated"] is None) == (one.row is None) == (one.kind == "unlabelled")
    text = (audited / "audit" / "audit.csv").read_text()
    lines = list(csv.DictReader(io.StringIO(text)))
    for line, row in zip(lines, content["rows"], strict=True):
        assert (line["kind"], line["image"]) == (row["kind"], row["image"])
        for prefix, side in (("", row["annotated"]), ("suggested_", row["suggestion"])):
            assert line[f"{prefix}class"] == (side["class"] if side else "")
            numbers = [line[f"{prefix}{x}"] for x in ("x1", "y1", "x2", "y2")]
            assert numbers == ([str(x) for x in side["box"]] if side else [""] * 4)


def test_probabilities_by_class_and_boxes_within_the_image() -> None:
    evidence = (Evidence(np.zeros(0), np.zeros(0, dtype=np.bool_), 0),) * 2
    calibration = Calibration(np.array([1.0, 2.0]), np.array([0.0, 1.0]), evidence)
    boxes = np.array([[10, 10, 500, 50], [400, 0, 500, 50], [-5, 0, 20, 20]], dtype=np.float32)
    scores, labels = np.array([1.0, 0.5, -1.0], dtype=np.float32), np.array([1, 2, 2])
    given = Detections(boxes, scores, labels, ("ant", "bee"))
    found = with_probabilities(given, calibration, annotated([]))  # 400 x 300 px
    assert found.boxes.tolist() == [[10, 10, 400, 50], [0, 0, 20, 20]]
    assert found.scores.tolist() == [1, -1] and found.labels.tolist() == [1, 2]
    assert found.probabilities is not None
    assert found.probabilities.tolist() == pytest.approx(
        [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))]
    )


def test_the_first_rows_are_drawn(audited: Path) -> None:
    rows = json.loads((audited / "audit" / "audit.json").read_text())["rows"]
    drawn = sorted(path.name for path in (audited / "audit" / "images").iterdir())
    names = [f"{r['rank']:03d}_{r['kind'].replace(' ', '_')}_{r['image']}.jpg" for r in rows[:10]]
    assert drawn == names
    for name in drawn:
        assert cv2.imread(str(audited / "audit" / "images" / name)) is not None


def test_the_colours_of_a_drawing() -> None:
    image = annotated([((100, 100, 200, 180), 1), ((120, 30, 180, 90), 2)])
    pixels = np.zeros((300, 400, 3), dtype=np.uint8)
    box = np.array([140, 110, 240, 200], dtype=np.float32)
    drawn = draw_suspicion(pixels, image, Suspicion("loose box", 0.5, "im", box, 1, 0), ["a", "b"])
    height, width = drawn.shape[:2]
    strip = height - round((250 - 50) * width / (310 - 30))  # the caption; 280 x 200 px are shown
    assert strip == 44 and width == 640
    factor = width / (310 - 30)

    def at(x: float, y: float) -> list[int]:
        return drawn[strip + round((y - 50) * factor), round((x - 30) * factor)].tolist()  # type: ignore[no-any-return]

    assert at(100, 150) == [225, 45, 45] and at(130, 100) == [225, 45, 45]
    lines = [
        drawn[strip + round((190 - 50) * factor), round((140 - 30) * factor) + k]
        for k in range(-1, 7)
    ]
    assert any(line.tolist() == [40, 190, 70] for line in lines)
    assert at(120, 70) == [60, 130, 255]  # another object
    assert at(60, 220) == [0, 0, 0]
    whole = Suspicion("unlabelled", 0.5, "im", np.array([0, 0, 400, 300], dtype=np.float32), 1)
    assert draw_suspicion(pixels, image, whole, ["a"]).shape[1] == 640


def regions_of(task: Mapping[str, Any], image: AnnotatedImage) -> list[tuple[Any, ...]]:
    """Box, class and note of every region, in pixels."""
    found = []
    (prediction,) = task["predictions"]
    for region in prediction["result"]:
        value = region["value"]
        x, y = value["x"] * image.width / 100, value["y"] * image.height / 100
        size = value["width"] * image.width / 100, value["height"] * image.height / 100
        assert (region["original_width"], region["original_height"]) == (image.width, image.height)
        assert (region["from_name"], region["to_name"]) == ("label", "image")
        note = region.get("meta", {"text": [""]})["text"][0]
        found.append(([x, y, x + size[0], y + size[1]], value["rectanglelabels"], note))
    return found


def scene(folder: Path) -> tuple[Dataset, list[Suspicion]]:
    """An image with a suspicion of every kind, and one without."""
    boxes = [(10.0 + 60 * k, 20.0, 50.0 + 60 * k, 90.0) for k in range(3)]
    objects = [(boxes[0], 1), (boxes[1], 2), (boxes[2], 3), (moved(boxes[2], 3), 3)]
    image = annotated(objects, name="a b")
    path = folder / "a b.png"
    cv2.imwrite(str(path), np.full((300, 400, 3), 90, dtype=np.uint8))
    image = AnnotatedImage(**{**vars(image), "path": path})
    new = np.array([200, 150, 300, 250], dtype=np.float32)
    found = [
        Suspicion("double box", 0.9, "a b", image.gt_boxes[2], 3, 3, 2),
        Suspicion("unlabelled", 0.8, "a b", new, 1),
        Suspicion("loose box", 0.7, "a b", image.gt_boxes[0] + 5, 1, 0),
        Suspicion("swapped class", 0.6, "a b", image.gt_boxes[1], 3, 1),
    ]
    return Dataset("set", ("ant", "=bee", "cow & calf"), (image,)), found


def test_label_studio_gets_labels_and_suggestions(tmp_path: Path) -> None:
    dataset, found = scene(tmp_path)
    files = files_of(dataset, found, ImageCache(), top=4)
    (task,) = json.loads(files["label_studio.json"])
    image = dataset.images[0]
    served = task["data"]["image"]
    assert served.startswith("/data/local-files/?d=") and " " not in served
    assert "/" + unquote(served.partition("?d=")[2]) == str(image.path)
    assert task["predictions"][0]["score"] == 0.8
    regions = regions_of(task, image)
    for (box, names, _), wanted, label in zip(
        regions, image.gt_boxes, image.gt_labels, strict=False
    ):
        assert box == pytest.approx(wanted.tolist()) and names == [dataset.class_names[label - 1]]
    assert [note for *_, note in regions[:4]] == ["", "", "", "double box: remove?"]
    expected = [(one.box, one.label, one.kind) for one in found[1:]]
    for (box, names, note), (wanted, label, kind) in zip(regions[4:], expected, strict=True):
        assert box == pytest.approx(wanted.tolist()) and names == [dataset.class_names[label - 1]]
        assert note == f"suggested, {kind}"
    interface = ElementTree.fromstring(files["label_studio.xml"])
    assert [one.get("value") for one in interface.iter("Label")] == list(dataset.class_names)


def test_labelimg_gets_the_corrected_labels(tmp_path: Path) -> None:
    dataset, found = scene(tmp_path)
    files = files_of(dataset, found, ImageCache(), top=4)
    replace_files(tmp_path / "out", files, command="audit")
    read = read_voc_annotation(tmp_path / "out" / "Annotations" / "a b.xml")
    wanted = corrected(dataset.images[0], found)
    assert read.filename == "a b.png" and read.size == (400, 300)
    assert [o.name for o in read.objects] == [dataset.class_names[k - 1] for k in wanted.gt_labels]
    assert [list(o.box) for o in read.objects] == wanted.gt_boxes.tolist()
    assert [o.truncated for o in read.objects] == wanted.truncated.tolist()
    first = files_of(dataset, found, ImageCache(), top=1)
    replace_files(tmp_path / "out", first, command="audit")
    assert len(read_voc_annotation(tmp_path / "out" / "Annotations" / "a b.xml").objects) == 3
    assert [p.name for p in (tmp_path / "out" / "images").iterdir()] == ["001_double_box_a b.jpg"]
    assert files["audit.csv"].decode().splitlines()[4].split(",")[5] == "'=bee"


def test_images_of_several_folders(tmp_path: Path) -> None:
    dataset, _ = scene(tmp_path)
    image = dataset.images[0]
    other = AnnotatedImage(**{**vars(image), "path": Path("elsewhere") / "a b.png"})
    assert annotation_folders([image, image]) == {tmp_path: "Annotations"}
    names = {tmp_path: "Annotations-1", Path("elsewhere"): "Annotations-2"}
    assert annotation_folders([image, other]) == names
    assert annotation_folders([]) == {}


def test_the_command(sppdet: CommandLine, run_copy: Path, demo_root: Path, tmp_path: Path) -> None:
    before = contents(demo_root / "Annotations")
    status, out, err = sppdet("audit", run_copy, "--top", "5")
    assert status == 0, err
    folder = run_copy / "audit"
    rows = json.loads((folder / "audit.json").read_text())["rows"]
    assert f"{len(rows)} suspicions: unlabelled " in out and "12 of 12 images audited" in out
    assert f"labelImg {demo_root / 'JPEGImages'} {folder / 'classes.txt'}" in out
    assert "; to correct labels:" in out
    assert contents(demo_root / "Annotations") == before
    again = contents(folder)
    assert sppdet("audit", run_copy, "--top", "3")[0] == 0
    assert len(list((folder / "images").iterdir())) == 3
    assert sppdet("audit", run_copy, "--top", "5")[0] == 0 and contents(folder) == again
    edited = next((folder / "Annotations").iterdir())
    edited.write_text(edited.read_text().replace("Unspecified", "Left"))
    status, _, err = sppdet("audit", run_copy)
    assert status == 1 and f"{edited}: `sppdet audit` hasn't written it, or it has changed" in err
    assert err.count("\n") == 1 and "Left" in edited.read_text() and contents(folder) == again
    assert sppdet("audit", run_copy, "--out", tmp_path / "other")[0] == 0
    assert (tmp_path / "other" / "audit.csv").read_bytes() == (folder / "audit.csv").read_bytes()


def test_runs_that_cant_be_audited(
    sppdet: CommandLine, settings: Path, run_copy: Path, tmp_path: Path
) -> None:
    status, _, err = sppdet("audit", tmp_path / "none")
    assert status == 1 and "not a run" in err and err.count("\n") == 1
    config = run_copy / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("nms: 0.3", "nms: 0.4"))
    status, _, err = sppdet("audit", run_copy)
    assert status == 1 and "has no probabilities: too few detections" in err
    config.write_text(text)
    whole = (run_copy / "folds" / "detections.safetensors").read_bytes()
    (run_copy / "folds" / "detections.safetensors").write_bytes(whole[:-9])
    status, _, err = sppdet("audit", run_copy)
    assert status == 1 and "detections.safetensors: damaged" in err and err.count("\n") == 1
    train_quietly(settings, run_copy, "calibrate=none", until="calibrate")
    status, _, err = sppdet("audit", run_copy)
    assert status == 1 and err.count("\n") == 1
    assert "has no cross-fitted detections (calibrate: none)" in err
    assert not (run_copy / "audit").exists()


def test_labels_that_have_changed_are_said(
    run_copy: Path, demo_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = shutil.copytree(demo_root, tmp_path / "set")
    config = run_copy / "config.yaml"
    config.write_text(config.read_text().replace(str(demo_root), str(root)))
    before = audit_run(run_copy, top=1)
    assert "has changed since the run was trained" not in caplog.text
    one = before.suspicions[0]
    image = next(image for image in before.dataset.images if image.id == one.image)
    after_it = corrected(image, [one])
    write_text(
        root / "Annotations" / f"{one.image}.xml",
        voc_annotation(
            filename=image.path.name,
            width=image.width,
            height=image.height,
            boxes=after_it.gt_boxes,
            names=[CLASSES[label - 1] for label in after_it.gt_labels],
            difficult=after_it.difficult,
        ),
    )
    after = audit_run(run_copy, top=1)
    assert "has changed since the run was trained" in caplog.text
    assert not any(
        (s.kind, s.image, s.detection) == (one.kind, one.image, one.detection)
        for s in after.suspicions
    )


# -- files that are written anew -------------------------------------------------------------------


def test_no_command_where_no_label_looks_wrong(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sppdet.stages.audit.audit", lambda *_: [])
    with caplog.at_level("INFO"):
        assert not audit_run(run_copy).suspicions
    assert f"see {run_copy / 'audit'}" in caplog.messages and "labelImg" not in caplog.text


def test_files_are_replaced_only_where_they_are_our_own(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    replace_files(folder, {"a.txt": b"1", "sub/b.txt": b"2"}, command="audit")
    replace_files(folder, {"a.txt": b"3", "c.txt": b"4"}, command="audit")
    assert contents(folder, "*.txt") == {"a.txt": b"3", "c.txt": b"4"}
    assert not (folder / "sub" / "b.txt").exists()
    (folder / "mine.txt").write_text("mine")
    for files in ({"mine.txt": b"5"}, {"a.txt": b"5", "c.txt/d": b"5", "mine.txt": b"6"}):
        with pytest.raises(ArtifactError, match=r"mine\.txt: `sppdet audit` hasn't written it"):
            replace_files(folder, files, command="audit")
    assert (folder / "a.txt").read_bytes() == b"3"
    (folder / "c.txt").write_bytes(b"edited")
    with pytest.raises(ArtifactError, match=r"c\.txt: .* expected another --out"):
        replace_files(folder, {"a.txt": b"5"}, command="audit")
    assert contents(folder, "*.txt") == {"a.txt": b"3", "c.txt": b"edited", "mine.txt": b"mine"}


def test_files_are_copied_by_their_path(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"photo")
    folder, source = tmp_path / "out", Copied(tmp_path / "source")
    replace_files(folder, {"images/a.jpg": source, "b.txt": b"1"}, command="suggest")
    assert (folder / "images" / "a.jpg").read_bytes() == b"photo"
    replace_files(folder, {"images/a.jpg": source}, command="suggest")
    (folder / "images" / "a.jpg").write_bytes(b"mine")
    with pytest.raises(ArtifactError, match="it has changed since"):
        replace_files(folder, {"images/a.jpg": source}, command="suggest")
    other = tmp_path / "other"
    with pytest.raises(ArtifactError, match="gone: can't be read: No such file"):
        replace_files(other, {"a.txt": b"1", "b.jpg": Copied(tmp_path / "gone")}, command="suggest")
    assert not other.exists()


def test_links_and_lists_that_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    (outside / "a.txt").write_bytes(b"1")
    replace_files(folder, {"a.txt": b"1"}, command="audit")
    mark = folder / ".sppdet-audit"
    (digest,) = json.loads(mark.read_text())["a.txt"]
    mark.write_text(json.dumps({"a.txt": [digest], "../outside/a.txt": [digest], "/x": [digest]}))
    replace_files(folder, {"a.txt": b"2"}, command="audit")
    assert (outside / "a.txt").read_bytes() == b"1"
    (folder / "sub").symlink_to(outside)
    with pytest.raises(ArtifactError, match=r"sub/b\.txt"):
        replace_files(folder, {"a.txt": b"2", "sub/b.txt": b"3"}, command="audit")
    assert not (outside / "b.txt").exists()
    mark.write_text("[")
    with pytest.raises(ArtifactError, match=r"a\.txt: `sppdet audit` hasn't written it"):
        replace_files(folder, {"a.txt": b"2"}, command="audit")

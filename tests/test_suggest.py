"""`sppdet suggest`: what it chooses, the pre-labels read back, and the calls that it refuses."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from images import save_image
from runs import CLASSES, CommandLine, files_in, train_quietly
from sppdet.errors import ArtifactError, ConfigError
from sppdet.evaluation.selection import entropy, jackknife_errors
from sppdet.io.dataset import load_dataset
from sppdet.io.image_cache import ImageCache
from sppdet.io.images import read_image
from sppdet.io.splits import read_split
from sppdet.stages.crossfit import read_fold_classifiers
from sppdet.stages.detector import Detector
from sppdet.stages.look import Look, Looker
from sppdet.stages.model_files import ModelFiles, read_run_config
from sppdet.stages.suggest import suggest_images
from sppdet.stages.suggest_files import Prelabels
from sppdet.stages.suggest_report import Report
from sppdet.stages.thresholds import Threshold
from sppdet.types import AnnotatedImage, Dataset, Proposals

LEAST = Threshold("score", -1.2)  # a score that this little training reaches


@pytest.fixture(scope="module")
def pool(demo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unlabelled images, copies of one to train on and of one to test on, and a broken one."""
    folder = tmp_path_factory.mktemp("pool") / "pool"
    (folder / "more").mkdir(parents=True)
    fresh = sorted((demo_root / "fresh").iterdir())
    for path in fresh:
        shutil.copy(path, folder / path.name)
    pixels = read_image(fresh[0])
    save_image(folder / "more" / "grüße, 図 =1.png", pixels[:, ::-1])
    save_image(folder / "more" / fresh[0].with_suffix(".png").name, pixels[::-1])
    lists = demo_root / "ImageSets" / "Main"
    for split in ("trainval", "test"):
        name = (lists / f"{split}.txt").read_text().split()[0]
        shutil.copy(demo_root / "JPEGImages" / f"{name}.jpg", folder / f"renamed-{split}.jpg")
    (folder / "broken.jpg").write_bytes(fresh[0].read_bytes()[:300])
    return folder


@pytest.fixture(scope="module")
def seen(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has looked at the pool; the tests copy it."""
    return Path(shutil.copytree(trained, tmp_path_factory.mktemp("seen") / "run"))


def made(run: Path, pool: Path, out: Path, kind: Prelabels = "voc", **more: Any) -> Report:
    return suggest_images(run, [pool], out=out, prelabels=kind, wanted=LEAST, **more)


def test_the_command(
    sppdet: CommandLine, seen: Path, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, out = files_in(pool), tmp_path / "out"
    words = ("suggest", seen, pool, "--out", out, "--score", "-1.2", "--device", "cpu")
    status, said, err = sppdet(*words, "--count", "3")
    broken = f"{pool / 'broken.jpg'}: can't be decoded as an image"
    assert status == 1
    assert err == f"error: 1 of 8 images failed; the first: {broken}\n"
    assert f"failed: {broken}\n" in said
    assert "3 of 5 images to label; 2 that the run has used are left out" in said
    assert f"labelImg {out / 'images'} {out / 'classes.txt'} {out / 'Annotations'}" in said
    assert files_in(pool) == before
    content = json.loads((out / "suggest.json").read_text())
    assert content["left_out"] == 2 and content["failed"] == [broken]
    rows = content["rows"]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    names = {row["image"] for row in rows}
    assert len(names) == 5 and not any("renamed" in name for name in names)
    assert "more/grüße, 図 =1.png" in names
    lines = list(csv.DictReader(io.StringIO((out / "suggest.csv").read_text())))
    for line, row in zip(lines, rows, strict=True):
        assert (line["image"], line["reason"]) == (row["image"], row["reason"])
        assert float(line["score"]) == row["score"]
        assert row["score"] == pytest.approx(row["uncertainty"] * row["coverage"], abs=2e-4)
    assert len(list((out / "images").iterdir())) == len(list((out / "Annotations").iterdir())) == 3
    copied = {path.read_bytes() for path in (out / "images").iterdir()}
    assert copied == {Path(row["file"]).read_bytes() for row in rows[:3]}
    page = (out / "suggest.html").read_text()
    assert page.count("<figure") == 3 and "broken.jpg" in page and "://" not in page

    again = files_in(out)
    monkeypatch.setattr(Looker, "look", None)  # nothing is looked at twice
    monkeypatch.setattr("sppdet.stages.proposer.Proposer.of", None)
    assert sppdet(*words, "--count", "3")[0] == 1 and files_in(out) == again
    assert sppdet(*words, "--count", "2", "--format", "yolo")[0] == 1
    assert (out / "labels" / "classes.txt").read_text().split() == list(CLASSES)
    assert not list((out / "Annotations").iterdir()) and len(list((out / "images").iterdir())) == 2


def test_what_is_seen_is_kept_when_the_call_is_killed(
    run_copy: Path, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, looked = Looker.look, list[str]()

    def look(self: Looker, image: AnnotatedImage, proposals: Proposals) -> Look:
        if len(looked) == 3:
            raise KeyboardInterrupt
        looked.append(image.id)
        return genuine(self, image, proposals)

    monkeypatch.setattr(Looker, "look", look)
    with pytest.raises(KeyboardInterrupt):
        made(run_copy, pool, tmp_path / "one")
    assert not (tmp_path / "one").exists()
    monkeypatch.setattr(Looker, "look", genuine)
    monkeypatch.setattr(Looker, "known", counted := Counted(Looker.known))
    found = made(run_copy, pool, tmp_path / "one")
    assert len(found.rows) == 5 and counted.found == 3


class Counted:
    """A look-up of what is known that counts what it finds."""

    def __init__(self, genuine: Callable[[Looker, AnnotatedImage], Look | None]) -> None:
        self.genuine, self.found = genuine, 0

    def __get__(self, looker: Looker, _: object) -> Callable[[AnnotatedImage], Look | None]:
        def known(image: AnnotatedImage) -> Look | None:
            made = self.genuine(looker, image)
            self.found += made is not None
            return made

        return known


def read_back(out: Path, kind: str, sets: str) -> Dataset:
    return load_dataset(
        format=kind,
        roots=[out],
        sets=[sets],
        images=None,
        class_names=CLASSES,
        on_error="stop",
        read_images=True,
        known=ImageCache(),
    )


@pytest.mark.parametrize(
    ("kind", "reader", "sets", "tolerance"),
    [
        ("voc", "xml", "all", 0.51),
        ("yolo", "yolo", "train", 1e-4),
        ("coco", "coco", "coco.json", 1e-4),
    ],
)
def test_prelabels_read_back_are_the_detections(
    seen: Path,
    pool: Path,
    tmp_path: Path,
    kind: Prelabels,
    reader: str,
    sets: str,
    tolerance: float,
) -> None:
    found = made(seen, pool, tmp_path, kind, count=4)
    dataset = read_back(tmp_path, reader, sets)
    assert len(dataset) == 4
    by_bytes = {image.path.read_bytes(): image for image in dataset.images}
    total = 0
    for one, boxes in zip(found.rows[:4], found.boxes, strict=False):
        image = by_bytes[one.candidate.image.path.read_bytes()]
        assert (image.width, image.height) == (
            one.candidate.image.width,
            one.candidate.image.height,
        )
        np.testing.assert_allclose(image.gt_boxes, boxes.boxes, atol=tolerance)
        assert image.gt_labels.tolist() == boxes.labels.tolist()
        assert (boxes.scores >= np.float32(-1.2)).all()
        expected = Detector.load(seen, device="cpu")(one.candidate.image.path).above(-1.2)
        np.testing.assert_array_equal(boxes.boxes, expected.boxes)
        np.testing.assert_array_equal(boxes.scores, expected.scores)
        total += len(boxes)
    assert total > 10


def test_pycocotools_reads_the_prelabels(seen: Path, pool: Path, tmp_path: Path) -> None:
    found = made(seen, pool, tmp_path, "coco", count=3)
    coco = COCO(str(tmp_path / "coco.json"))
    assert [coco.cats[k]["name"] for k in sorted(coco.cats)] == list(CLASSES)
    for image_id, boxes in zip(sorted(coco.imgs), found.boxes, strict=False):
        assert (tmp_path / coco.imgs[image_id]["file_name"]).is_file()
        entries = coco.loadAnns(coco.getAnnIds(imgIds=[image_id], iscrowd=False))
        corners = [[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in entries)]
        np.testing.assert_allclose(corners, boxes.boxes, atol=1e-3)
        assert [one["category_id"] for one in entries] == boxes.labels.tolist()
        sides = boxes.boxes[:, 2:] - boxes.boxes[:, :2]
        np.testing.assert_allclose([one["area"] for one in entries], sides.prod(axis=1), rtol=1e-4)


def test_auto_finds_the_prelabels(
    seen: Path, pool: Path, tmp_path: Path, sppdet: CommandLine
) -> None:
    for kind, said in (
        ("voc", "xml (2 VOC"),
        ("yolo", "yolo (data.yaml"),
        ("coco", "coco (1 COCO"),
    ):
        made(seen, pool, tmp_path / kind, kind, count=2)  # type: ignore[arg-type]
        report = tmp_path / "check"
        status, out, err = sppdet("check", tmp_path / kind, "--proposals", "0", "--out", report)
        assert status == 0 and said in out, err


def test_label_studio_gets_predictions(seen: Path, pool: Path, tmp_path: Path) -> None:
    found = made(seen, pool, tmp_path, "labelstudio", count=2)
    tasks = json.loads((tmp_path / "label_studio.json").read_text())
    assert len(tasks) == 2
    for task, one, boxes in zip(tasks, found.rows, found.boxes, strict=False):
        path = Path("/" + unquote(task["data"]["image"].partition("?d=")[2]))
        assert path.parent == tmp_path / "images"
        assert path.read_bytes() == one.candidate.image.path.read_bytes()
        (prediction,) = task["predictions"]
        image = one.candidate.image
        regions = prediction["result"]
        assert boxes.probabilities is not None
        for region, box, name, p in zip(
            regions, boxes.boxes, boxes.names(), boxes.probabilities, strict=True
        ):
            value = region["value"]
            x, y = value["x"] * image.width / 100, value["y"] * image.height / 100
            far = x + value["width"] * image.width / 100, y + value["height"] * image.height / 100
            assert [x, y, *far] == pytest.approx(box.tolist(), abs=1e-3)
            assert value["rectanglelabels"] == [name]
            assert region["score"] == pytest.approx(float(p), abs=1e-4)
    interface = ElementTree.fromstring((tmp_path / "label_studio.xml").read_text())
    assert [one.get("value") for one in interface.iter("Label")] == list(CLASSES)


def test_without_copies(seen: Path, pool: Path, tmp_path: Path, sppdet: CommandLine) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in pool.glob("*.jpg"):
        shutil.copy(path, flat)
    (flat / "broken.jpg").unlink()
    out = tmp_path / "out"
    status, said, _ = sppdet("suggest", seen, flat, "--out", out, "--no-copy", "--count", "2")
    assert status == 0 and not (out / "images").exists()
    assert f"labelImg {flat} {out / 'classes.txt'}" in said
    (first, *_) = (out / "Annotations").iterdir()
    assert (flat / first.with_suffix(".jpg").name).is_file()
    status, said, _ = sppdet("suggest", seen, pool, flat, "--out", out, "--no-copy", "--count", "9")
    assert "labelImg" not in said  # images of several folders


def test_the_doubt_is_that_of_the_detections(seen: Path, pool: Path, tmp_path: Path) -> None:
    found = made(seen, pool, tmp_path)
    dataset = read_split(read_run_config(seen).data, "train", CLASSES, ImageCache(), workers=1)
    counts = np.bincount(np.concatenate([i.gt_labels for i in dataset.images]), minlength=5)[1:]
    weights = 1 / np.sqrt(counts)
    weights /= weights.mean()
    detector = Detector.load(seen, device="cpu")
    content = json.loads((tmp_path / "suggest.json").read_text())
    slopes = detector.calibration.slopes if detector.calibration else np.zeros(0)
    moved = 0.0
    for one, row in zip(found.rows, content["rows"], strict=True):
        detections = detector(one.candidate.image.path)
        assert detections.probabilities is not None
        plain = detections.probabilities.astype(np.float64)
        errors = one.candidate.look.errors * slopes[detections.labels - 1]
        p = 1 / (1 + np.exp(-np.log(plain / (1 - plain)) / np.sqrt(1 + np.pi / 8 * errors**2)))
        total = 0.0
        for label, name in enumerate(CLASSES, start=1):
            own = np.flatnonzero(detections.labels == label)
            if not len(own):
                assert name not in row["classes"]
                continue
            bits = entropy(p[own])
            total += weights[label - 1] * bits.max()
            told = row["classes"][name]
            assert told["uncertainty"] == pytest.approx(bits.max(), abs=2e-4)
            assert told["probability"] == pytest.approx(plain[own][bits.argmax()], abs=1e-4)
            moved = max(moved, bits.max() - entropy(plain[own]).max())
        assert row["uncertainty"] == pytest.approx(total, abs=1e-3)
    assert moved > 0.01  # where the models of the folds disagree
    vectors = [one.candidate.look.vector for one in found.rows]
    maps = detector.maps.compute(
        detector.maps.scaled(detector.read(found.rows[0].candidate.image.path))
    )
    np.testing.assert_array_equal(vectors[0], maps.maps[0].float().flatten(1).max(dim=1).values)


def test_a_near_duplicate_of_an_image_comes_after_the_others(
    seen: Path, demo_root: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "near"
    folder.mkdir()
    fresh = sorted((demo_root / "fresh").iterdir())
    for path in fresh:
        shutil.copy(path, folder)
    for k in range(3):
        Image.open(fresh[0]).save(folder / f"twin-{k}.jpg", quality=90 + k)
    found = suggest_images(seen, [folder], out=tmp_path / "out", count=6)
    group = {fresh[0].name, "twin-0.jpg", "twin-1.jpg", "twin-2.jpg"}
    places = [k for k, one in enumerate(found.rows) if one.candidate.name in group]
    assert places[0] <= 2 and places[1:] == [3, 4, 5]
    first = found.rows[places[0]].candidate.name
    for one in found.rows[3:]:
        assert one.like in group and "; like " in one.reason
    assert first in {one.like for one in found.rows[3:]}
    assert [one.like for one in found.rows[:1]] == [None]


def test_the_committee_scores_as_the_models_of_the_folds(seen: Path, pool: Path) -> None:
    config, detector = read_run_config(seen), Detector.load(seen, device="cpu")
    path, images = next((pool / "more").iterdir()), ImageCache()
    info = images.look(path)
    nothing = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    flags = (np.zeros(0, np.bool_), np.zeros(0, np.bool_))
    image = AnnotatedImage("x", path, info.width, info.height, *nothing, *flags)
    looker = Looker(seen, config, detector, images)
    assert looker.has_committee
    found = looker.look(image, looker.proposals(image))
    folds = read_fold_classifiers(ModelFiles(seen).fold_svm, config, classes=len(CLASSES))
    without = [replace(detector, classifiers=one, regressors=None) for one in folds]
    maps = detector.maps.over(images).of_image(image)
    proposals = looker.proposals(image)
    scored = [one.score_in(maps, proposals, width=image.width).scores for one in without]
    # the proposal of a detection is the one of the same score by the model of all images
    own = detector.score_in(maps, proposals, width=image.width).scores
    for d in range(0, len(found.detections), 7):
        k = found.detections.labels[d] - 1
        (rows,) = np.nonzero(own[:, k] == found.detections.scores[d])
        margins = np.array([[one[rows[0], k] for one in scored]])
        assert found.errors[d] == pytest.approx(jackknife_errors(margins)[0], rel=1e-3, abs=1e-5)
    assert found.errors.max() > 0


def test_runs_and_places_that_are_refused(
    sppdet: CommandLine, seen: Path, pool: Path, demo_root: Path, tmp_path: Path
) -> None:
    def refused(*words: str | Path) -> str:
        status, _, err = sppdet("suggest", *words)
        assert status == 1 and err.count("\n") == 1, err
        return err

    assert "not a run" in refused(tmp_path / "none", pool)
    assert "no such file or folder" in refused(seen, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no images found" in refused(seen, tmp_path / "empty")
    for out in (pool, pool / "more", pool / "new"):
        assert "is searched for images; expected another folder" in refused(
            seen, pool, "--out", out
        )
    (tmp_path / "file").write_text("mine")
    assert "is a file; expected a folder" in refused(seen, pool, "--out", tmp_path / "file")
    labelled = refused(seen, demo_root / "JPEGImages", "--out", tmp_path / "o")
    assert "no images besides 18 that the run has used" in labelled
    assert "none of 1 images can be read" in refused(
        seen, pool / "broken.jpg", "--out", tmp_path / "o"
    )
    assert "--min-probability" in refused(seen, pool, "--min-probability", "2")
    assert "expected a number or auto" in refused(seen, pool, "--score", "high")
    assert not (tmp_path / "o").exists()
    for words in (["--count", "0"], ["--format", "labelme"]):
        assert sppdet("suggest", seen, pool, *words)[0] == 2
    (tmp_path / "theirs" / "Annotations").mkdir(parents=True)
    (tmp_path / "theirs" / "classes.txt").write_text("mine")
    assert "hasn't written it" in refused(seen, pool, "--out", tmp_path / "theirs")
    assert files_in(tmp_path / "theirs") == {"classes.txt": b"mine"}


def test_corrected_labels_are_not_overwritten(seen: Path, pool: Path, tmp_path: Path) -> None:
    made(seen, pool, tmp_path, count=2)
    edited = next((tmp_path / "Annotations").iterdir())
    edited.write_text(edited.read_text().replace("Unspecified", "Left"))
    before = files_in(tmp_path)
    with pytest.raises(ArtifactError, match="it has changed since; expected another --out"):
        made(seen, pool, tmp_path, count=2)
    assert files_in(tmp_path) == before


def test_files_of_the_run_are_no_candidates(run_copy: Path, pool: Path, tmp_path: Path) -> None:
    made(run_copy, pool, run_copy / "suggest", count=3)  # its copies are images below the run
    folder = tmp_path / "all"
    folder.mkdir()
    shutil.copy(next((pool / "more").iterdir()), folder / "one.png")
    shutil.move(run_copy, folder / "run")
    found = suggest_images(folder / "run", [folder], out=tmp_path / "out")
    assert [one.candidate.name for one in found.rows] == ["one.png"]
    with pytest.raises(ConfigError, match="is searched for images"):
        suggest_images(folder / "run", [folder])


def test_a_damaged_store_is_made_again(run_copy: Path, pool: Path, tmp_path: Path) -> None:
    run = run_copy
    first = made(run, pool, tmp_path / "one")
    stored = sorted((run / "store").glob("looks-*/*"))
    assert len(stored) == len(first.rows)
    stored[0].write_bytes(stored[0].read_bytes()[:-20])
    made(run, pool, tmp_path / "two")
    one, two = files_in(tmp_path / "one"), files_in(tmp_path / "two")
    assert one == two


def test_without_probabilities(
    settings: Path, run_copy: Path, pool: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_quietly(settings, run_copy, "calibrate=none", until="calibrate")
    found = made(run_copy, pool, tmp_path)
    assert "has no probabilities; a score of 0 is taken for an even chance" in caplog.text
    one = found.rows[0]
    assert one.detections.probabilities is not None
    sigmoid = 1 / (1 + np.exp(-one.detections.scores.astype(np.float64)))
    np.testing.assert_allclose(one.detections.probabilities, sigmoid, rtol=1e-5)

"""What `detect` writes is scored by `eval --detections` as `eval RUN` scores the run itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from runs import CommandLine
from sppdet.io.voc import read_voc_annotation

ORDER = [4, 15, 2, 11, 1, 9, 14, 3, 10, 6, 13, 5, 8, 12, 7]  # neither by number nor by name


def named_by_number(demo_root: Path, root: Path) -> Path:
    """Fifteen images of the set as 1.jpg to 15.jpg in the layout of VOC, some of another suffix."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for number, stem in enumerate(sorted(demo_root.glob("Annotations/*.xml"))[:15], start=1):
        suffix = {3: ".JPG", 12: ".png", 13: ".jpeg"}.get(number, ".jpg")
        image = demo_root / "JPEGImages" / f"{stem.stem}.jpg"
        shutil.copy(image, root / "JPEGImages" / f"{number}{suffix}")
        shutil.copy(stem, root / "Annotations" / f"{number}.xml")
    (root / "ImageSets" / "Main" / "test.txt").write_text("".join(f"{n}\n" for n in ORDER))
    return root


def in_folders(voc: Path, root: Path) -> Path:
    """Six of them as COCO, names repeated in three folders, the ids neither positions nor names."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    for key, number in zip(rng.permutation(np.arange(3, 9)).tolist(), range(1, 7), strict=True):
        (image,) = (voc / "JPEGImages").glob(f"{number}.*")
        name = f"{'xyz'[number % 3]}/{(number + 2) // 3}{image.suffix}"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, root / name)
        images.append({"id": key, "file_name": name})
        for item in read_voc_annotation(voc / "Annotations" / f"{number}.xml").objects:
            x1, y1, x2, y2 = item.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": key,
                    "category_id": {"star": 9, "disc": 4, "square": 7, "triangle": 2, "ring": 1}[
                        item.name
                    ],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "ignore": str(int(item.difficult)),
                }
            )
    categories = [
        {"id": 9, "name": "star"},
        {"id": 4, "name": "disc"},
        {"id": 2, "name": "triangle "},
    ]
    categories += [{"id": 7, "name": "square"}, {"id": 1, "name": "ring"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "test.json").write_text(json.dumps(content))
    return root


def metrics(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "voc07" / "metrics.json").read_text())
    return found


def use_data(run: Path, data: dict[str, Any]) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**settings, "data": data}))


@pytest.fixture(autouse=True)
def without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing them takes longer than all else here."""
    monkeypatch.setattr("sppdet.stages.evaluate.write_curves", lambda *_: None)


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_detect_then_eval(
    sppdet: CommandLine, demo_root: Path, run_copy: Path, tmp_path: Path, layout: str
) -> None:
    root = named_by_number(demo_root, tmp_path / "set")
    searched = root / "JPEGImages"
    if layout == "coco":
        root = searched = in_folders(root, tmp_path / "in folders")
    classes = ["disc", "square", "star", "triangle"]
    data = {"format": layout, "root": str(root), "test": "test", "classes": classes}
    use_data(run_copy, {**data, "train": "test"})
    config = tmp_path / "data.yaml"
    config.write_text(yaml.safe_dump({"data": data}))

    assert sppdet("eval", run_copy, "--device", "cpu")[0] == 0
    wanted = metrics(run_copy / "eval" / "test")
    assert wanted["images"] == (15 if layout == "voc" else 6)
    assert wanted["detections"] > 100 and wanted["mAP"] > 0.02
    out = tmp_path / "found"
    command = ["detect", run_copy, searched, "--out", out, "--save", "coco,json", "--score", "-1.5"]
    status, _, err = sppdet(*command, "--device", "cpu")
    assert status == 0, err

    def score(path: Path, *options: str) -> tuple[int, str]:
        to = tmp_path / "scored"
        shutil.rmtree(to, ignore_errors=True)
        command = ["eval", "--config", config, "--detections", path, "--out", to, *options]
        status, _, err = sppdet(*command)
        if status == 0:
            have = metrics(to)
            assert have["detections"] == wanted["detections"]
            assert have["AP"] == pytest.approx(wanted["AP"], abs=1e-9)
        expected = ("other classes left out: ring 1", "no object that counts: square")
        lines = [line for line in err.splitlines() if not line.endswith(expected)]
        return status, "\n".join(lines)

    own = run_copy / "eval" / "test"
    for path in (
        out / "detections.json",
        out / "coco_results.json",
        own,
        own / "coco_results.json",
    ):
        assert score(path) == (0, ""), path

    # without the names, numbers of `detect` are refused where they could mean two things
    entries = json.loads((out / "coco_results.json").read_text())
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps([{k: v for k, v in e.items() if "name" not in k} for e in entries]))
    if layout == "voc":
        status, err = score(bare)
        assert status == 1 and "by its name or" in err and "--ids stem" in err

    # those of the annotations are certain
    entries = json.loads((own / "coco_results.json").read_text())
    bare.write_text(json.dumps([{k: v for k, v in e.items() if "name" not in k} for e in entries]))
    assert score(bare, *(["--ids", "stem"] if layout == "voc" else [])) == (0, "")


def test_the_test_set_suffices(
    sppdet: CommandLine, demo_root: Path, trained: Path, tmp_path: Path
) -> None:
    found = trained / "eval" / "test" / "coco_results.json"

    def score(name: str, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        config = tmp_path / f"{name}.yaml"
        config.write_text(
            yaml.safe_dump({"data": {"root": str(demo_root), "test": "test", **data}})
        )
        out = tmp_path / name
        command = ("eval", "--config", config, "--detections", found, "--out", out)
        status, said, err = sppdet(*command)
        assert status == 0, err
        return said, metrics(out)

    with_ring = ["disc", "ring", "square", "star", "triangle"]
    alone = score("alone", {})
    assert "5 classes: those of set-test (no training set is named)" in alone[0]
    assert list(alone[1]["AP"]) == with_ring  # a ring is in the test set, in no training image
    said, by_names = score("by_names", {"classes": with_ring})
    assert "5 classes: data.classes" in said and by_names["AP"] == alone[1]["AP"]
    said, gone = score("gone", {"train": "nowhere"})
    assert "the training set can't be read: " in said and gone["AP"] == alone[1]["AP"]
    said, by_training = score("by_training", {"train": "trainval"})
    assert "4 classes: those of the training set" in said
    run = json.loads((trained / "eval" / "test" / "voc07" / "metrics.json").read_text())
    assert by_training["AP"] == run["AP"]

    entries = json.loads(found.read_text())
    more = tmp_path / "more.json"
    more.write_text(json.dumps([*entries, {**entries[0], "category_name": "zebra"}]))
    found = more
    said, named = score("named", {})
    assert "6 classes: those of set-test, and without an object zebra of the detections" in said
    assert named["AP"] == {**alone[1]["AP"], "zebra": None} and named["mAP"] == alone[1]["mAP"]
    signatures = [one["signature"] for one in (alone[1], by_names, named, by_training)]
    assert signatures[0] == signatures[1]  # the same data by other settings
    assert len(set(signatures)) == 3


def test_eval_of_wrong_ids_is_one_line(
    sppdet: CommandLine, demo_root: Path, trained: Path, tmp_path: Path
) -> None:
    config = tmp_path / "data.yaml"
    config.write_text(yaml.safe_dump({"data": {"root": str(demo_root), "test": "test"}}))
    found = trained / "eval" / "test" / "coco_results.json"
    command = ["eval", "--config", config, "--detections", found, "--out", tmp_path, "--ids"]
    for ids, problem in (
        ("nonsense", "--ids nonsense: expected stem"),
        (str(found), "a list, exp"),
    ):
        status, _, err = sppdet(*command, ids)
        assert (status, err.count("\n")) == (1, 1) and problem in err
    status, _, err = sppdet("eval", trained, "--ids", "stem")
    assert status == 1 and "--detections" in err

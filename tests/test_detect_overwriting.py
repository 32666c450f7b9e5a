"""Detection in folders overwrites nothing that it has not written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from folder_runs import OLD, detect
from runs import CommandLine, files_in
from sppdet.errors import ConfigError, ImageError
from sppdet.io.finding import JOURNAL
from sppdet.stages.detector import Detector
from sppdet.types import Detections


def test_annotations_made_by_hand_stay(
    sppdet: CommandLine, trained: Path, demo_root: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(demo_root, tmp_path / "set"))
    before = files_in(root)
    status, out, err = sppdet(
        "detect", trained, root / "JPEGImages", "--out", root, "--save", "voc"
    )
    first = sorted(p.name for p in (root / "JPEGImages").iterdir())[0].replace("jpg", "xml")
    path = root / "Annotations" / first
    assert (status, out) == (1, "")
    assert err == (
        f"error: {path}: wasn't written by sppdet and isn't overwritten; expected another --out\n"
    )
    assert files_in(root) == before


@pytest.mark.parametrize(
    "file",
    [
        "detections.json",
        "detections.jsonl",
        "detections.csv",
        "coco_results.json",
        "yolo/data.yaml",
    ],
)
def test_joint_files_of_others_stay(
    detector: Detector, images: Path, tmp_path: Path, calls: list[int], file: str
) -> None:
    (tmp_path / "out" / file).parent.mkdir(parents=True)
    (tmp_path / "out" / file).write_text("mine")
    with pytest.raises(ConfigError, match=f"{file}: wasn't written by sppdet"):
        detect(detector, [images], tmp_path / "out")
    assert files_in(tmp_path / "out") == {file: b"mine"}
    assert not calls  # before anything was computed


def test_results_that_were_edited_stay(detector: Detector, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    detect(detector, [images], out)
    edited = next((out / "Annotations").iterdir())
    edited.write_text(edited.read_text().replace("<segmented>0<", "<segmented>1<"))
    before = files_in(out)
    with pytest.raises(ConfigError, match=f"{edited.name}: has changed since sppdet wrote it"):
        detect(detector, [images], out)
    assert files_in(out) == before
    detect(detector, [images], out, formats=["images", "json"])  # which leave it alone
    assert edited.read_bytes() == before[f"Annotations/{edited.name}"]


def test_a_link_in_the_place_of_a_result_stays(
    detector: Detector, images: Path, tmp_path: Path
) -> None:
    mine, out = tmp_path / "mine.json", tmp_path / "out"
    mine.write_text("mine")
    out.mkdir()
    (out / "detections.json").symlink_to(mine)
    with pytest.raises(ConfigError, match=r"detections\.json: wasn't written by sppdet"):
        detect(detector, [images], out)
    assert mine.read_text() == "mine"


def test_a_file_that_comes_meanwhile_stays(
    detector: Detector, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sorted(images.iterdir())[0].stem
    target = tmp_path / "out" / "Annotations" / f"{first}.xml"
    genuine = Detector.detect_prepared

    def slow(self: Detector, *arguments: Any, **named: Any) -> Detections:
        target.write_text("mine")
        return genuine(self, *arguments, **named)

    monkeypatch.setattr(Detector, "detect_prepared", slow)
    result, said = detect(detector, [images], tmp_path / "out", formats=["voc", "json"])
    assert target.read_text() == "mine"
    assert f"{target}: wasn't written by sppdet" in said and len(result.failed) == 1
    assert result.detected == 3  # what was found in it is kept


@pytest.mark.parametrize(
    ("searched", "out"),
    [
        ("in", "in"),
        ("in/images", "in"),  # images/*.jpg would be searched
        ("in/images/sub", "in"),
        ("in", "link"),  # to in/
        ("link", "in"),
        ("in", "sneaky"),  # whose `images` is a link to in/
        ("in", "in/images"),  # where images are that nobody has written
    ],
)
def test_a_searched_folder_gets_no_results(
    detector: Detector, images: Path, tmp_path: Path, searched: str, out: str
) -> None:
    (images / "images" / "sub").mkdir(parents=True)
    for name in ("images", "images/sub"):
        shutil.copy(next(images.glob("*.jpg")), images / name / "x.jpg")
    (tmp_path / "link").symlink_to(images)
    (tmp_path / "sneaky").mkdir()
    (tmp_path / "sneaky" / "images").symlink_to(images)
    before = files_in(tmp_path)
    with pytest.raises(ConfigError, match="is searched for images"):
        detect(detector, [tmp_path / searched], tmp_path / out)
    assert files_in(tmp_path) == before


def test_links_within_the_results_are_refused(
    detector: Detector, images: Path, tmp_path: Path
) -> None:
    (images / "sub").mkdir()
    next(images.glob("*.jpg")).rename(images / "sub" / "x.jpg")
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    (out / "images").mkdir(parents=True)
    (out / "images" / "sub").symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="images/sub: leads elsewhere by a link"):
        detect(detector, [images], out)
    assert not list(elsewhere.iterdir())


def test_an_image_is_not_drawn_over(detector: Detector, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    detect(detector, [images], out)
    drawn = next((out / "images").iterdir())
    before = drawn.read_bytes()  # sppdet's own, but an input now
    with pytest.raises(ConfigError, match=r"\.jpg is one of the images to detect in"):
        detect(detector, [drawn], out)
    assert drawn.read_bytes() == before
    detect(detector, [drawn], tmp_path / "other")  # named by itself it is an image as others


def test_earlier_results_are_left_out_of_the_search(
    detector: Detector, images: Path, tmp_path: Path
) -> None:
    out = images / "found"
    first, _ = detect(detector, [images], out, formats=OLD)
    written = files_in(out)
    again, said = detect(detector, [images], out, formats=OLD)
    assert first.images == again.images == 3
    assert "left out: 3 images that detect has written" in said
    assert files_in(out) == written
    other, _ = detect(detector, [images], tmp_path / "out")
    assert other.images == 3
    with pytest.raises(ImageError, match="no images besides 3 images that detect has written"):
        detect(detector, [out / "images"], tmp_path / "out")
    shutil.copy(next(images.glob("*.jpg")), out / "images" / "mine.jpg")
    assert detect(detector, [images], tmp_path / "out2")[0].images == 4
    with pytest.raises(ConfigError, match=r"is searched for images \(.*mine.jpg\)"):
        detect(detector, [images], out, formats=OLD)


@pytest.mark.parametrize("out", ["file", "file/below", "dangling"])
def test_no_folder_for_results(
    detector: Detector, images: Path, tmp_path: Path, calls: list[int], out: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"--out .*: .*(file|dangling) isn't a folder"):
        detect(detector, [images], tmp_path / out)
    assert not calls


def test_the_files_folder_is_a_file(
    detector: Detector, images: Path, tmp_path: Path, calls: list[int]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "images").write_text("mine")
    with pytest.raises(ConfigError, match="there is a file where a folder must be"):
        detect(detector, [images], tmp_path / "out")
    assert not calls and files_in(tmp_path / "out") == {"images": b"mine"}


def test_a_journal_of_something_else_stays(
    detector: Detector, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOURNAL).write_text("mine\n")
    with pytest.raises(ConfigError, match="no journal of this version"):
        detect(detector, [images], tmp_path / "out")
    assert files_in(tmp_path / "out") == {JOURNAL: b"mine\n"}

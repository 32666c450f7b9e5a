"""Names from other systems and the files that they mean."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

import labelled_sets as sets
from images import save_image
from sppdet.errors import AnnotationError
from sppdet.io.coco import read_coco_set
from sppdet.io.files import read_foreign_text
from sppdet.io.finding import JOURNAL, find_images
from sppdet.io.folder_files import FolderFiles
from sppdet.io.records import Skips
from sppdet.io.voc import parse_xml, read_set_file, read_voc_set

FILES = (
    "a.jpg",
    "B.JPG",
    "photos/a.jpg",
    "photos/my cat.png",
    "train/x.jpg",
    "val/x.jpg",
    "v1.2.jpg",
)
NFC, NFD = (unicodedata.normalize(form, "Bär") for form in ("NFC", "NFD"))


@pytest.fixture
def files(tmp_path: Path) -> FolderFiles:
    for name in (*FILES, f"photos/{NFD}.jpg", "notes.txt", ".hidden.jpg", ".git/c.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return FolderFiles(tmp_path)


@pytest.mark.parametrize(
    ("name", "near", "found"),
    [
        ("b.jpg", "", "B.JPG"),  # case
        ("b.png", "", "B.JPG"),  # another suffix
        ("b", "", "B.JPG"),  # a stem
        ("v1.2", "", "v1.2.jpg"),  # a stem with a dot
        ("b.jpg.txt", "", "B.JPG"),  # two suffixes
        (f"{NFC}.jpg", "", f"photos/{NFD}.jpg"),
        ("photos\\a.jpg", "", "photos/a.jpg"),
        ("..\\photos\\a.jpg", "labels", "photos/a.jpg"),
        ("C:\\Users\\me\\photos\\a.jpg", "", "photos/a.jpg"),
        ("/elsewhere/train/x.jpg", "", "train/x.jpg"),
        ("https://host/data/val/x.jpg?key=1", "", "val/x.jpg"),
        ("/data/local-files/?d=photos%2Fmy%20cat.png", "", "photos/my cat.png"),
        ("upload/1/0a1b2c3d-my%20cat.png", "", "photos/my cat.png"),
        ("x.jpg", "train", "train/x.jpg"),  # beside the annotation
        ("x", "val/labels", "val/x.jpg"),  # nearest to it
        ("a.jpg", "photos", "photos/a.jpg"),
        ("train/a.jpg", "", None),  # the folder is there, the file isn't
        ("elsewhere/b.jpg", "", "B.JPG"),
        (".hidden.jpg", "", None),
        ("c.jpg", "", None),
        ("notes.txt", "", None),
        ("", "", None),
        ("..", "", None),
    ],
)
def test_the_file_that_a_name_means(
    files: FolderFiles, name: str, near: str, found: str | None
) -> None:
    assert files.image(name, near=near) == found


@pytest.mark.parametrize(("name", "both"), [("x.jpg", "train/x.jpg or val/x.jpg")])
def test_a_name_of_two_files_names_both(files: FolderFiles, name: str, both: str) -> None:
    with pytest.raises(AnnotationError, match=f"{name} could be {both}"):
        files.image(name)


def test_the_exact_name_goes_before_another_suffix(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "A.png"):
        (tmp_path / name).touch()
    files = FolderFiles(tmp_path)
    assert files.image("a.png") == "a.png"
    assert files.image("A.png") == "A.png"
    with pytest.raises(AnnotationError, match=r"a could be"):
        files.image("a")


def test_a_list_of_another_system_names_a_devkits_images(tmp_path: Path) -> None:
    """Suffixes, folders and UTF-16 in a list; Unicode forms between it and the files."""
    sets.pascal(tmp_path)
    for folder, suffix in (("Annotations", ".xml"), ("JPEGImages", ".png")):
        (tmp_path / folder / f"a{suffix}").rename(tmp_path / folder / f"{NFD}{suffix}")
    (tmp_path / "JPEGImages" / "b.png").rename(tmp_path / "JPEGImages" / "b.PnG")
    listed = tmp_path / "ImageSets" / "Main" / "mine.txt"
    listed.write_bytes(f"{NFC}.png\r\nJPEGImages\\b.png\r\nc\r\n".encode("utf-16"))
    assert read_set_file(tmp_path, "mine") == [f"{NFC}.png", "JPEGImages\\b.png", "c"]
    records = list(read_voc_set(tmp_path, "mine", images=None, skips=Skips(stop=True)))
    assert [record.id for record in records] == [NFD, "b", "c"]
    assert [record.path.name for record in records] == [f"{NFD}.png", "b.PnG", "c.png"]
    assert [len(record.objects) for record in records] == [1, 2, 1]


def test_two_coco_names_of_one_file_are_refused(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", sets.noise("a"))
    images = [{"id": k, "file_name": f"{folder}/a.png"} for k, folder in enumerate("xy")]
    data = {"images": images, "annotations": [], "categories": []}
    (tmp_path / "t.json").write_text(json.dumps(data))
    with pytest.raises(AnnotationError, match=r"'x/a\.png' and 'y/a\.png' are both a\.png"):
        read_coco_set(tmp_path, "t", images=None, skips=Skips(stop=True))


@pytest.mark.parametrize(
    ("declared", "codec", "word"),
    [
        ("gb2312", "gb18030", "猫镕"),  # the second is in no gb2312
        ("gbk", "gbk", "猫"),
        ("cp1252", "cp1252", "Bär€"),
        ("windows-1252", "cp1252", "Bär"),
        ("utf8", "utf-8", "猫"),
        ("UTF-16", "utf-16", "猫"),
        ("shift_jis", "shift_jis", "猫"),
    ],
)
def test_declared_encodings(declared: str, codec: str, word: str, tmp_path: Path) -> None:
    body = f"<annotation><filename>{word}</filename></annotation>"
    text = f'<?xml version="1.0" encoding="{declared}"?>\n{body}'
    (tmp_path / "a.xml").write_bytes(text.encode(codec))
    assert parse_xml(tmp_path / "a.xml").findtext("filename") == word


def test_entities_are_refused_in_every_encoding(tmp_path: Path) -> None:
    text = (
        '<?xml version="1.0" encoding="gb2312"?><!DOCTYPE a [<!ENTITY b "猫">]>'
        "<annotation><filename>&b;</filename></annotation>"
    )
    (tmp_path / "a.xml").write_bytes(text.encode("gb18030"))
    with pytest.raises(AnnotationError, match="refused"):
        parse_xml(tmp_path / "a.xml")


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
def test_texts_of_other_programs(codec: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Bär\n".encode(codec))
    assert read_foreign_text(tmp_path / "a.txt") == "Bär\n"


def test_half_a_character_of_utf16(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Bär".encode("utf-16")[:-1])
    with pytest.raises(AnnotationError, match=r"a\.txt: not UTF-16 text"):
        read_foreign_text(tmp_path / "a.txt")


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    elsewhere, root = tmp_path / "disk" / "photos", tmp_path / "set"
    (elsewhere / "day").mkdir(parents=True)
    (elsewhere / "day" / "a.jpg").touch()
    (root / "own").mkdir(parents=True)
    (root / "own" / "b.jpg").touch()
    (tmp_path / "shelf" / "day").mkdir(parents=True)
    for name in ("day/c.jpg", "d.jpg"):
        (tmp_path / "shelf" / name).touch()
    for name, target in [
        ("images", elsewhere),
        ("later", elsewhere / "day"),
        ("all", tmp_path / "shelf" / "day"),
        ("more", tmp_path / "shelf"),
        ("again", root / "own"),
        ("own/up", root),
        ("above", tmp_path),
        ("gone", tmp_path / "nothing"),
    ]:
        (root / name).symlink_to(target)
    wanted = ("all/c.jpg", "later/a.jpg", "more/d.jpg", "own/b.jpg")  # each file once
    assert FolderFiles(root).images == wanted


def test_results_of_detect_are_neither_labels_nor_images_of_a_set(tmp_path: Path) -> None:
    """A folder of results among the photos has detections that look like COCO's and VOC's labels."""
    save_image(tmp_path / "a.png", sets.noise("a"))
    results = tmp_path / "sub" / "found"
    for name in ("images/a.jpg", "crops/cat/a-1.jpg"):
        save_image(results / name, sets.noise(name))
    for name in ("detections.json", "Annotations/a.xml", JOURNAL):
        (results / name).parent.mkdir(exist_ok=True)
        (results / name).touch()
    assert FolderFiles(tmp_path).names == ("a.png",)
    assert find_images([tmp_path]) == [tmp_path / "a.png"]
    assert "detections.json" in FolderFiles(results).names  # named by itself
    assert len(find_images([results])) == 2
